"""Which prior a network has learned, by its draws and its loss."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.training import learners, measures

pytestmark = pytest.mark.usefixtures('standard_promotion')

COUNTS = np.array([60, 30, 10])
SHARE = COUNTS / COUNTS.sum()


def learned(recipe, counts=COUNTS, psi=None, stage=None):
    stage = stage or recipe.stage_1
    rebalancer = learners.make_rebalancer(stage.meta, tuple(counts.tolist()))
    current = types.SimpleNamespace(step=stage.steps, psi=psi)
    prior = measures.learned_log_prior(stage, counts, rebalancer, current)
    return np.exp(prior - np.logaddexp.reduce(prior))


@pytest.mark.parametrize(
    ('method', 'wanted'),
    [
        ('softmax', SHARE),
        ('balanced_softmax', np.full(3, 1 / 3)),
        ('softmax_cbs', np.full(3, 1 / 3)),
        ('balanced_softmax_smoothing', np.full(3, 1 / 3)),
        # One branch has log n, the other −log n; their mean is tested.
        ('bilateral_branch', np.full(3, 1 / 3)),
        # A sixth of every label, on average, is of a class-balanced batch.
        ('balanced_mixup', SHARE * 5 / 6 + 1 / 18),
    ],
)
def test_the_learned_prior_is_what_the_draws_and_the_loss_leave(method, wanted, small_recipe):
    """Other test priors are put in its place: a wrong one would be kept at test."""
    np.testing.assert_allclose(learned(small_recipe(method)), wanted, atol=1e-6)


def test_of_changing_draws_it_is_the_mean(small_recipe):
    """From instance-balanced to class-balanced in a line: on average half of either."""
    recipe = small_recipe('softmax')
    stage = dataclasses.replace(recipe.stage_1, draws='progressive')
    np.testing.assert_allclose(learned(recipe, stage=stage), SHARE / 2 + 1 / 6, atol=1e-6)


def test_a_learned_adjustment_adds_to_the_known_one(small_recipe):
    """τ = 1 and ψ = 0 is Balanced Softmax, whose prior is flat."""
    stage = small_recipe('learned_adjustment').stage_2
    stage = dataclasses.replace(stage, loss=dataclasses.replace(stage.loss, tau=1.0))
    flat = learned(None, psi=jnp.zeros(3), stage=stage)
    np.testing.assert_allclose(flat, np.full(3, 1 / 3), atol=1e-6)


def test_an_empty_class_leaves_the_prior_finite(small_recipe):
    """Nothing was learned of it; the others must still be told."""
    prior = learned(small_recipe('softmax'), np.array([60, 0, 10]))
    assert np.all(np.isfinite(prior))
