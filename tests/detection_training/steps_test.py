"""Losses by their names, learning rates, and what a step of each stage moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import losses, region_sources
from balms_jax.detection.rebalancing import Regions
from balms_jax.detection_training import steps
from balms_jax.detection_training.material import load_material
from balms_jax.detection_training.recipe import LOSSES, WITH_BACKGROUND, Loss, Optimizer
from balms_jax.training import mesh

LOGITS = jax.random.normal(jax.random.key(0), (5, 36))
CATEGORIES = jnp.array([0, 7, 35, -1, 3])


@pytest.fixture(scope='module')
def material(smallest):
    return load_material(smallest())


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_is_one_number_a_region(material, name):
    logits = jnp.pad(LOGITS, ((0, 0), (0, 1))) if name in WITH_BACKGROUND else LOGITS
    values = steps.category_loss_of(Loss(name), material)(logits, CATEGORIES)
    assert values.shape == (5,)
    assert jnp.isfinite(values).all()
    assert (values > 0).all()


@pytest.mark.parametrize(
    'plain',
    [Loss('focal', gamma=0.0), Loss('class_balanced', beta=0.0), Loss('equalization', threshold=0)],
    ids=lambda loss: loss.name,
)
def test_in_their_limits_losses_are_the_plain_sigmoid(material, plain):
    # γ = 0 focuses on nothing, β = 0 counts every category once, λ = 0 calls none rare.
    values = steps.category_loss_of(plain, material)(LOGITS, CATEGORIES)
    np.testing.assert_allclose(values, losses.sigmoid_loss(LOGITS, CATEGORIES), rtol=1e-5)


def test_class_weights_are_of_the_foreground_alone(material):
    # Background has no category, and so no effective number.
    values = steps.category_loss_of(Loss('class_balanced', beta=0.9), material)(LOGITS, CATEGORIES)
    plain = losses.sigmoid_loss(LOGITS, CATEGORIES)
    ratio = np.asarray(values / plain)
    np.testing.assert_allclose(ratio[3], 1, rtol=1e-6)
    assert len(np.unique(ratio.round(4))) > 2


def test_a_rate_rises_then_drops_at_the_steps_that_are_told():
    settings = Optimizer(learning_rate=1.0, warmup_steps=2, warmup_factor=0.5, drops=(4, 6))
    rate = steps.learning_rate(settings, 8)
    shown = [round(float(rate(jnp.asarray(step))), 4) for step in range(8)]
    assert shown == [0.5, 0.75, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_a_cosine_ends_at_zero_and_begins_after_the_warm_up():
    settings = Optimizer(learning_rate=1.0, warmup_steps=2, schedule='cosine')
    rate = steps.learning_rate(settings, 10)
    assert float(rate(2)) == pytest.approx(1.0)
    assert float(rate(10)) == pytest.approx(0.0, abs=1e-6)


@pytest.fixture(scope='module')
def cached():
    """Regions of three images."""
    key = jax.random.key(1)
    categories = jnp.array([0, 1, -1, 2, -1, 30])
    regions = Regions(jax.random.normal(key, (6, 16)), categories, jnp.ones(6, bool))
    return region_sources.CachedRegions(regions, jnp.array([0, 2, 4]), jnp.array([2, 2, 2]))


def stage_2_state(recipe, categories=36):
    params = {
        'classifier': {
            'Dense_0': {'kernel': jnp.zeros((16, categories)), 'bias': jnp.zeros(categories)}
        },
        'backbone': {'kernel': jnp.ones(3)},
    }
    return steps.first_state(recipe, recipe.stage_2, jax.random.key(2), params, {})


def test_the_class_layer_alone_moves_in_stage_2(smallest, material, cached, standard_promotion):
    # Everything else is frozen: regions that are read once would otherwise go stale.
    recipe = smallest('balms')
    state = stage_2_state(recipe)
    step = jax.jit(steps.make_step(recipe, recipe.stage_2, material, mesh.data_mesh(1)))
    after, metrics = step(state, (cached, jnp.ones(3)), jnp.array([1.0, 1.0, 5.0]))
    assert int(after.step) == 1
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after.frozen, state.frozen))
    kernels = [each.trained['classifier']['Dense_0']['kernel'] for each in (state, after)]
    assert not jnp.array_equal(*kernels)
    assert metrics['weights'].shape == (36,)
    assert jnp.abs(after.psi).max() > 0
    assert {'loss', 'learning_rate', 'meta_loss'} <= metrics.keys()


def test_without_a_rebalancer_the_meta_factors_change_nothing(
    smallest, material, cached, standard_promotion
):
    recipe = smallest('balanced_sigmoid_decoupled')
    step = jax.jit(steps.make_step(recipe, recipe.stage_2, material, mesh.data_mesh(1)))
    given = (cached, jnp.ones(3))
    after = [
        step(stage_2_state(recipe), given, meta)[0].trained
        for meta in (jnp.ones(3), jnp.array([0.0, 0.0, 9.0]))
    ]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, *after))


def test_the_released_codes_meta_loss_is_the_stages_own(
    smallest, material, cached, standard_promotion
):
    # L_meta of the paper is the plain sigmoid; both are the same where the stage's loss is.
    def meta_loss(method, loss):
        recipe = smallest(method)
        meta = dataclasses.replace(recipe.stage_2.meta, loss=loss)
        stage = dataclasses.replace(recipe.stage_2, meta=meta)
        step = jax.jit(steps.make_step(recipe, stage, material, mesh.data_mesh(1)))
        return float(
            step(stage_2_state(recipe), (cached, jnp.ones(3)), jnp.ones(3))[1]['meta_loss']
        )

    plain = [meta_loss('sigmoid_meta_reweighter', loss) for loss in ('sigmoid', 'same')]
    balanced = [meta_loss('balms', loss) for loss in ('sigmoid', 'same')]
    assert plain[0] == plain[1]
    assert balanced[0] != balanced[1]
