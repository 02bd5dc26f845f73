"""A batch in micro-batches gives the step of the whole batch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.data import resident
from balms_jax.training import checks, job, learners, recipe, state, step_parts, steps

pytestmark = pytest.mark.usefixtures('standard_promotion')

COUNTS = (8, 4, 2)


def take_steps(count=3, rebalancer='none', mode='forward_over_reverse', **changes):
    """Of a linear classifier whose statistics count the batches and remember the last size."""
    meta = recipe.Meta(rebalancer, batch_size=8, mode=mode, learning_rate=0.1)
    stage = recipe.Stage(steps=20, batch_size=8, meta=meta, **changes)
    learned = learners.make_rebalancer(meta, COUNTS)
    optimizer = learners.make_optimizer(stage.optimizer, stage.steps)

    def logits(params, stats, inputs, train):
        after = {'batches': stats['batches'] + 1, 'size': jnp.float32(len(inputs))}
        return inputs @ params['w'], after

    task = step_parts.Task(logits, resident.read_features, COUNTS, COUNTS)
    stats = {'batches': jnp.float32(0), 'size': jnp.float32(0)}
    psi_optimizer = learners.make_psi_optimizer(stage.meta)
    start = {'w': jax.random.normal(jax.random.key(2), (2, 3))}
    psi = learned.psi if learned else None
    first = state.create(jax.random.key(0), start, {}, stats, optimizer, psi, psi_optimizer)
    features = jax.random.normal(jax.random.key(1), (1, sum(COUNTS), 2))
    run = steps.compile_steps(steps.make_step(task, stage, learned))
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


@pytest.mark.parametrize(
    ('rebalancer', 'mode'),
    [
        ('meta_sampler', 'forward_over_reverse'),
        ('meta_sampler', 'lean'),
        ('meta_sampler', 'ghost_product'),
        ('meta_reweighter', 'forward_over_reverse'),
        ('meta_reweighter', 'per_example'),
        ('learned_adjustment', 'reverse'),
        ('learning_to_reweight', 'per_example'),
        ('meta_weight_net', 'forward_over_reverse'),
        ('class_balanced_domain_adaptation', 'ghost_product'),
    ],
)
def test_micro_batches_give_the_meta_step_of_the_whole_batches(rebalancer, mode):
    """Parameters, ψ and both optimizers': weights, and L2RW's of a real step, are of the batch."""
    (whole, metrics), (parts, metrics_parts) = (
        take_steps(1, rebalancer, mode, accumulation=count) for count in (1, 4)
    )
    for name in ('trained', 'opt_state', 'psi', 'psi_opt_state'):
        jax.tree.map(
            lambda a, b, n=name: np.testing.assert_allclose(a, b, 1e-3, 1e-6, err_msg=n),
            getattr(parts, name),
            getattr(whole, name),
        )
    for name in metrics:
        np.testing.assert_allclose(metrics_parts[name], metrics[name], 1e-4, 1e-6, err_msg=name)


@pytest.mark.parametrize('rebalancer', ['none', 'meta_sampler', 'meta_weight_net'])
def test_statistics_move_with_every_micro_batch(rebalancer):
    """As batch norm's do: it sees a micro-batch, each after the other, of the real step alone."""
    parts, _ = take_steps(3, rebalancer, accumulation=4)
    assert float(parts.batch_stats['batches']) == 3 * 4
    assert float(parts.batch_stats['size']) == 8 / 4


def temporary_bytes(rebalancer, accumulation):
    """Of a step of twelve layers on a batch whose activations are most of its memory."""
    meta = recipe.Meta(rebalancer, batch_size=4096, mode='lean')
    stage = recipe.Stage(steps=20, batch_size=4096, meta=meta, accumulation=accumulation)
    counts = (6000, 3000, 1000)
    learned = learners.make_rebalancer(meta, counts)

    def logits(params, stats, inputs, train):
        for kernel in params['layers']:
            inputs = jnp.tanh(inputs @ kernel)
        return inputs[:, :3], stats

    task = step_parts.Task(logits, resident.read_features, counts, counts)
    first = state.create(
        jax.random.key(0),
        {'layers': [jnp.zeros((16, 16))] * 12},
        {},
        {},
        learners.make_optimizer(stage.optimizer, stage.steps),
        learned.psi if learned else None,
        learners.make_psi_optimizer(meta),
    )
    features = jax.ShapeDtypeStruct((1, sum(counts), 16), jnp.float32)
    step = steps.compile_steps(steps.make_step(task, stage, learned))
    compiled = step.lower(first, features, features, steps=1).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('rebalancer', ['none', 'meta_sampler'])
def test_a_step_in_parts_needs_the_memory_of_one(rebalancer):
    """A batch that does not fit is why anyone asks for parts: activations must not outlive theirs.

    What is drawn and read stays whole, and is small beside twelve layers.
    """
    whole, parts = (temporary_bytes(rebalancer, count) for count in (1, 4))
    assert parts < 0.6 * whole, parts / whole


def test_what_cannot_be_accumulated_is_refused(small_recipe):
    """Both batches are cut alike, and a step of two training batches is not."""

    def with_parts(method, stage, count):
        made = small_recipe(method)
        changed = dataclasses.replace(getattr(made, stage), accumulation=count)
        return dataclasses.replace(made, **{stage: changed})

    for stage in ('stage_1', 'stage_2'):
        checks.check(with_parts('balms', stage, 4))
    for method, stage, count, message in (
        ('bilateral_branch', 'stage_1', 4, r"stage_1\.accumulation: got 4 .* draws = 'bilateral'"),
        ('softmax', 'stage_1', 3, r'accumulation: got 3, wanted a divisor of the batch size, 16'),
        ('softmax', 'stage_1', 0, r'stage_1\.accumulation: got 0, wanted at least 1'),
    ):
        with pytest.raises(recipe.ConfigError, match=message):
            checks.check(with_parts(method, stage, count))
    made = with_parts('balms', 'stage_2', 4)
    meta = dataclasses.replace(made.stage_2.meta, batch_size=18)
    made = dataclasses.replace(made, stage_2=dataclasses.replace(made.stage_2, meta=meta))
    with pytest.raises(recipe.ConfigError, match=r'got 4, wanted a divisor of the meta batch .*18'):
        checks.check(made)


def test_a_meta_step_in_parts_runs_on_many_devices(small_recipe, tmp_path):
    """Each device has its share of every micro-batch, and batch norm sees the micro-batch."""
    for devices in (1, 4):
        made = small_recipe('balms_end_to_end', steps=3, devices=devices)
        stage = dataclasses.replace(made.stage_1, accumulation=4)
        job.train(dataclasses.replace(made, stage_1=stage), tmp_path / str(devices))
    one, four = (
        [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('1', '4')
    )
    for ours, theirs in zip(one, four, strict=True):
        if ours['kind'] == 'train':
            for name in ('loss', 'meta_loss'):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    with pytest.raises(recipe.ConfigError, match=r'batch_size / accumulation: got 4, wanted a mul'):
        checks.check_divisible(dataclasses.replace(made, stage_1=stage), 8)
