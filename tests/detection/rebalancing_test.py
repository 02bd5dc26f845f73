"""Stage 2 of the detector: the weights of regions, and steps that agree with plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import rebalancers
from balms_jax.detection import losses, rebalancing
from balms_jax.detection.rebalancing import MetaRegions, Regions, foreground_weights
from balms_jax.detection.targets import NO_CATEGORY
from balms_jax.estimators import Draw

pytestmark = pytest.mark.usefixtures('standard_promotion')

CATEGORIES, FEATURES = 3, 4
FRACTIONS = np.array([0.9, 0.3, 0.05], np.float32)
PSI = jnp.array([-1.0, 0.5, 1.5])
RATE, MOMENTUM, DECAY = 0.5, 0.9, 1e-2
OPTIMIZER = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM))
PSI_OPTIMIZER = optax.adam(0.1)


def logits(layer, features):
    return features @ layer['kernel'] + layer['bias'][None]


def balanced(values, categories):
    return losses.balanced_sigmoid_loss(values, categories, FRACTIONS)


def regions(seed, categories, padding=0):
    """Of drawn features; the last ones are padding."""
    categories = jnp.array(categories)
    features = jax.random.normal(jax.random.key(seed), (len(categories), FEATURES))
    return Regions(features, categories, jnp.arange(len(categories)) < len(categories) - padding)


TRIAL = regions(1, [0, 0, 2, 1, NO_CATEGORY, NO_CATEGORY])
META = regions(2, [1, 2, 2, NO_CATEGORY])
REAL = regions(3, [0, 1, 0, NO_CATEGORY, NO_CATEGORY, NO_CATEGORY])
LAYER = {
    'kernel': 0.3 * jax.random.normal(jax.random.key(0), (FEATURES, CATEGORIES)),
    'bias': jnp.array([0.2, -0.5, -1.0]),
}


def state(psi=PSI, psi_optimizer=PSI_OPTIMIZER, optimizer=OPTIMIZER):
    """After a plain step, so that there is momentum."""
    step = jax.jit(rebalancing.make_step(logits, balanced, optimizer))
    before = rebalancing.init_state(jax.random.key(0), LAYER, optimizer, psi, psi_optimizer)
    return step(before, TRIAL)[0]


def meta_step(psi_optimizer=PSI_OPTIMIZER, optimizer=OPTIMIZER, **settings):
    made = rebalancing.make_meta_step(logits, balanced, optimizer, psi_optimizer, **settings)
    return jax.jit(made)


def agree(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def test_weights_by_hand():
    # Rates 1/2, 1/4 and, rightly, no rate of the background: the foreground's mean is 1/3 over
    # three regions, 1/2 + 1/4 + 1/4 = 1.
    psi = jnp.log(jnp.array([1.0, 1 / 3]))
    weights = foreground_weights(psi, jnp.array([0, NO_CATEGORY, 1, 1, NO_CATEGORY]))
    np.testing.assert_allclose(weights, [1.5, 1, 0.75, 0.75, 1], rtol=1e-6)


def test_weights_of_foreground_alone_are_the_meta_reweighters():
    classes = jnp.array([0, 2, 1, 0])
    reweighter = rebalancers.meta_reweighter(np.array([5, 2, 1]))
    theirs = reweighter.weights(PSI, Draw(jnp.arange(4), classes), jnp.zeros(4))
    np.testing.assert_allclose(foreground_weights(PSI, classes), theirs, rtol=1e-6)


@pytest.mark.parametrize('psi', [-200.0, 200.0])
def test_weights_of_extreme_rates_keep_their_mean(psi):
    # σ(−200) is 0 in float32; a background region beside it must not take the mean.
    psi = jnp.array([psi, psi, 200.0])
    categories = jnp.array([0, 1, NO_CATEGORY])
    value, gradient = jax.value_and_grad(lambda p: foreground_weights(p, categories)[0])(psi)
    np.testing.assert_allclose(value, 1, rtol=1e-6)
    assert jnp.isfinite(gradient).all()


def test_a_plain_step_by_hand():
    # One region of one feature, logits 0, y = 1: the gradient is σ(0) − y = (½, −½), of the mean
    # over two regions a half of it. The padding has features too, and must not count.
    step = rebalancing.make_step(lambda w, x: x @ w, losses.sigmoid_loss, optax.sgd(1.0))
    before = rebalancing.init_state(jax.random.key(0), jnp.zeros((1, 2)), optax.sgd(1.0))
    three = Regions(
        jnp.array([[1.0], [0.0], [9.0]]), jnp.array([1, 0, 0]), jnp.array([True, True, False])
    )
    after, metrics = step(before, three)
    np.testing.assert_allclose(after.classifier, [[-0.25, 0.25]])
    np.testing.assert_allclose(metrics.loss, 2 * np.log(2), rtol=1e-6)
    assert int(after.step) == 1


def test_equal_rates_that_are_not_learned_are_plain_fine_tuning():
    # Equal ψ gives every region weight 1, and at a rate of 0 it stays equal: then the Meta
    # Reweighter has nothing to say, whatever the trial step and the meta set are.
    still = optax.sgd(0.0)
    before = state(jnp.full(CATEGORIES, 0.7), still)
    plain, plain_metrics = rebalancing.make_step(logits, balanced, OPTIMIZER)(before, REAL)
    after, metrics = meta_step(still)(before, MetaRegions(TRIAL, META, REAL))
    agree(after.classifier, plain.classifier)
    agree(after.opt_state, plain.opt_state)
    agree(metrics.loss, plain_metrics.loss)
    np.testing.assert_array_equal(after.psi, before.psi)


def mean_loss(layer, psi, drawn, loss):
    """Σ w ℓ / N, written without the engine, of regions without padding."""
    values = loss(logits(layer, drawn.features), drawn.categories)
    if psi is None:
        return values.mean()
    rates = jax.nn.sigmoid(psi)[drawn.categories]
    is_object = drawn.categories >= 0
    mean = jnp.where(is_object, rates, 0).sum() / is_object.sum(dtype=jnp.float32)
    return (jnp.where(is_object, rates / mean, 1) * values).mean()


def moved(layer, trace, psi, drawn):
    """θ − η (μ v + g + λ θ), written out."""
    gradient = jax.grad(mean_loss)(layer, psi, drawn, balanced)
    return jax.tree.map(
        lambda p, v, g: p - RATE * (MOMENTUM * v + g + DECAY * p), layer, trace, gradient
    )


@pytest.mark.parametrize('meta_loss', [losses.sigmoid_loss, balanced])
@pytest.mark.parametrize('mode', ['reverse', 'per_example'])
def test_a_meta_step_is_that_written_out(meta_loss, mode):
    # With ψ's optimizer a plain descent of rate 1, ψ shows its gradient. Momentum and decay act in
    # the trial step; it is thrown away, and the real step takes the new ψ on the real regions.
    descent = optax.sgd(1.0)
    before = state(PSI, descent)
    after, metrics = meta_step(descent, meta_loss=meta_loss, mode=mode)(
        before, MetaRegions(TRIAL, META, REAL)
    )
    layer, trace = before.classifier, before.opt_state[1][0].trace

    def after_trial(psi):
        return mean_loss(moved(layer, trace, psi, TRIAL), None, META, meta_loss)

    value, gradient = jax.value_and_grad(after_trial)(PSI)
    assert jnp.abs(gradient).max() > 1e-3
    agree(metrics.meta_loss, value)
    agree(before.psi - after.psi, gradient)
    agree(metrics.loss, mean_loss(layer, PSI - gradient, REAL, balanced))
    agree(after.classifier, moved(layer, trace, PSI - gradient, REAL))


def test_padding_does_not_count():
    # Slots of padding hold whatever the frozen network made of an empty box.
    def padded(drawn, seed):
        more = regions(seed, [0, 1])
        arrays = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, more)
        return arrays._replace(where=jnp.arange(len(arrays.categories)) < len(drawn.categories))

    step, before = meta_step(), state()
    plain, plain_metrics = step(before, MetaRegions(TRIAL, META, REAL))
    after, metrics = step(
        before, MetaRegions(*map(padded, MetaRegions(TRIAL, META, REAL), (7, 8, 9)))
    )
    agree(after.classifier, plain.classifier)
    agree(after.psi, plain.psi)
    agree(metrics, plain_metrics)


@pytest.mark.parametrize('padding', [0, 2, 6])
def test_batches_without_foreground_leave_everything_finite(padding):
    # Many images of LVIS hold no object. Then ψ has no gradient, though Adam's root is taken of it.
    nothing = regions(4, [NO_CATEGORY] * 6, padding)
    before = rebalancing.init_state(jax.random.key(0), LAYER, OPTIMIZER, PSI, PSI_OPTIMIZER)
    after, metrics = meta_step()(before, MetaRegions(nothing, nothing, nothing))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((after[:-2], metrics)))
    np.testing.assert_array_equal(after.psi, PSI)


def test_a_rare_category_of_the_meta_set_gains_weight():
    # All meta regions are of category 2, whose training loss teaches it: its rate must rise.
    meta = TRIAL._replace(categories=jnp.full(6, 2), features=TRIAL.features[jnp.full(6, 2)])
    after, _ = meta_step()(state(jnp.zeros(CATEGORIES)), MetaRegions(TRIAL, meta, REAL))
    assert after.psi[2] > 0
    assert after.psi[2] == after.psi.max()


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match='psi: got one of'):
        rebalancing.init_state(jax.random.key(0), LAYER, OPTIMIZER, PSI)
    with pytest.raises(ValueError, match=r'psi: got shape \(1, 3\)'):
        foreground_weights(PSI[None], jnp.array([0]))
    with pytest.raises(ValueError, match='mode'):
        meta_step(mode='backwards')
