"""A batch in micro-batches gives the step of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.data import resident
from balms_jax.training import checks, recipe, state, steps

pytestmark = pytest.mark.usefixtures('standard_promotion')

COUNTS = (8, 4, 2)


def take_steps(count=3, **changes):
    """Of a linear classifier whose statistics count the batches and remember the last size."""
    stage = recipe.Stage(steps=20, batch_size=8, **changes)
    optimizer = steps.make_optimizer(stage.optimizer, stage.steps)

    def logits(params, stats, inputs, train):
        after = {'batches': stats['batches'] + 1, 'size': jnp.float32(len(inputs))}
        return inputs @ params['w'], after

    task = steps.Task(logits, resident.read_features, COUNTS, COUNTS)
    stats = {'batches': jnp.float32(0), 'size': jnp.float32(0)}
    psi_optimizer = steps.make_psi_optimizer(stage.meta)
    start = {'w': jax.random.normal(jax.random.key(2), (2, 3))}
    first = state.create(jax.random.key(0), start, {}, stats, optimizer, None, psi_optimizer)
    features = jax.random.normal(jax.random.key(1), (1, sum(COUNTS), 2))
    run = steps.compile_steps(steps.make_step(task, stage, None))
    return run(first, features, features, steps=count)


@pytest.mark.parametrize('changes', [{}, {'mixup': 1.0}, {'draws': 'class_balanced'}])
def test_micro_batches_give_the_step_of_the_whole_batch(changes):
    """Without batch norm nothing but rounding tells them apart; mixing is of the whole batch."""
    (whole, metrics), (parts, metrics_parts) = (
        take_steps(accumulation=count, **changes) for count in (1, 4)
    )
    np.testing.assert_allclose(parts.trained['w'], whole.trained['w'], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics_parts['loss'], metrics['loss'], rtol=1e-6)
    assert int(parts.step) == int(whole.step) == 3


def test_statistics_move_with_every_micro_batch():
    """As batch norm's do: it sees a micro-batch, each after the other."""
    parts, _ = take_steps(accumulation=4)
    assert float(parts.batch_stats['batches']) == 3 * 4
    assert float(parts.batch_stats['size']) == 8 / 4


def test_what_cannot_be_accumulated_is_refused(small_recipe):
    """The gradient of ψ goes through one update of the whole batch."""

    def with_parts(method, stage, count):
        made = small_recipe(method)
        changed = dataclasses.replace(getattr(made, stage), accumulation=count)
        return dataclasses.replace(made, **{stage: changed})

    checks.check(with_parts('balms', 'stage_1', 4))
    for method, stage, count, message in (
        ('balms', 'stage_2', 4, r"stage_2\.accumulation: got 4 beside meta\.rebalancer = 'meta_s"),
        ('bilateral_branch', 'stage_1', 4, r"stage_1\.accumulation: got 4 .* draws = 'bilateral'"),
        ('softmax', 'stage_1', 3, r'accumulation: got 3, wanted a divisor of the batch size, 16'),
        ('softmax', 'stage_1', 0, r'stage_1\.accumulation: got 0, wanted at least 1'),
    ):
        with pytest.raises(recipe.ConfigError, match=message):
            checks.check(with_parts(method, stage, count))
