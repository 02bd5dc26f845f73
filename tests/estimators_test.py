"""An estimator draws at the rates of ψ, and its weights have the value and gradient it states.

Means and covariances are compared in ``tests/experiments/exact_moments_test.py``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from balms_jax import estimators, sampling
from balms_jax.estimators import ESTIMATORS, Draw

COUNTS = np.array([60, 25, 0, 10, 5])
LABELS = np.repeat(np.arange(5), COUNTS)
PSI = jnp.array([-1.0, 0.5, 3.0, 2.0, 0.0])
ALL = list(ESTIMATORS)
WEIGHTLESS = [name for name in ALL if name != 'expectation']  # z is exactly 1
BY_CLASS = [name for name in ALL if name != 'examples']


@functools.cache
def make(name, temperature=1.0):
    """Its functions compiled, once, for that is how they are used."""
    estimator = ESTIMATORS[name](COUNTS, temperature=temperature)
    return estimators.Estimator(
        jax.jit(estimator.draw, static_argnums=2), jax.jit(estimator.weights)
    )


@functools.cache
def _jacobian(estimator):
    return jax.jit(jax.jacobian(estimator.weights))


def jacobian(estimator, psi, draw):
    """∂z/∂ψ, ``[batch, classes]``."""
    return _jacobian(estimator)(psi, draw)


def q_of(psi):
    return np.asarray(sampling.rated_class_probabilities(psi, COUNTS), np.float64)


# Draws


@pytest.mark.parametrize('name', ALL)
def test_drawn_examples_are_of_their_classes(name):
    """The data set is sorted by class."""
    draw = make(name).draw(jax.random.key(0), PSI, 2000)
    assert draw.examples.dtype == draw.classes.dtype == jnp.int32
    np.testing.assert_array_equal(LABELS[draw.examples], draw.classes)
    assert len(set(draw.examples.tolist())) > 90  # Not always the same of a class.


@pytest.mark.parametrize('name', ['examples', 'classes', 'score', 'score_leave_one_out'])
def test_independent_draws_are_at_the_rates_of_psi(name):
    classes = make(name).draw(jax.random.key(1), PSI, 10_000).classes
    present = COUNTS > 0
    seen = np.bincount(classes, minlength=5)
    assert seen[2] == 0
    expected = q_of(PSI)[present]
    p_value = scipy.stats.chisquare(seen[present], expected / expected.sum() * 10_000).pvalue
    assert p_value > 1e-3


@pytest.mark.parametrize('name', ['systematic', 'systematic_examples', 'expectation'])
def test_systematic_draws_hold_each_class_as_often_as_its_share(name):
    """For the expectation every class that is not empty has the same share, whatever ψ."""
    draw = make(name).draw(jax.random.key(1), PSI, 1003)
    share = np.where(COUNTS > 0, 1 / 4, 0) if name == 'expectation' else q_of(PSI)
    seen = np.bincount(draw.classes, minlength=5)
    assert np.all(np.abs(seen - 1003 * share) < 1)


def test_spread_examples_come_equally_often():
    draw = make('systematic_examples').draw(jax.random.key(0), PSI, 200)
    seen = np.bincount(draw.examples, minlength=100)
    for j in (0, 1, 3, 4):
        of_class = seen[j == LABELS]
        assert of_class.max() - of_class.min() <= 1


@pytest.mark.parametrize('name', BY_CLASS)
def test_a_billion_examples_are_only_counts(name):
    counts = np.array([600_000_000, 400_000_000])
    estimator = ESTIMATORS[name](counts)
    compiled = (
        jax.jit(estimator.draw, static_argnums=2)
        .lower(jax.random.key(0), jnp.zeros(2), 64)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 2**16
    draw = compiled(jax.random.key(0), jnp.zeros(2))
    np.testing.assert_array_equal(draw.examples >= 600_000_000, draw.classes == 1)


# Weights


@pytest.mark.parametrize('name', WEIGHTLESS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_weights_are_exactly_1_and_have_a_gradient(name, dtype):
    """The real step must not be weighted by rounding."""
    estimator = make(name)
    psi = PSI.astype(dtype)
    draw = estimator.draw(jax.random.key(0), psi, 64)
    z = estimator.weights(psi, draw)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z, jnp.ones(64, dtype))
    gradient = jacobian(estimator, psi, draw)
    assert gradient.dtype == dtype
    assert np.all(np.isfinite(gradient.astype(float)))
    assert np.all(np.any(np.asarray(gradient) != 0, axis=1))


@pytest.mark.parametrize('name', ALL)
def test_rates_that_vanish_leave_numbers(name):
    """At ψ of −1e4 a rate is 0 in any precision, and its logarithm is not."""
    estimator = make(name)
    psi = jnp.array([-1e4, 0.0, 0.0, 1e4, -1e4])
    draw = estimator.draw(jax.random.key(0), psi, 64)
    for at in (psi, psi[::-1]):  # The other way round the draw is stale, and all but impossible.
        assert np.all(np.isfinite(estimator.weights(at, draw)))
        assert np.all(np.isfinite(jacobian(estimator, at, draw)))


@pytest.mark.parametrize('name', ['score', 'systematic', 'systematic_examples'])
def test_the_gradient_of_a_score_is_that_of_the_log_probability(name):
    """∂ log q_c / ∂ψ_j = (1 − s_j) (1[c = j] − q_j)."""
    draw = make('score').draw(jax.random.key(0), PSI, 64)
    ours = jacobian(make(name), PSI, draw)
    one_hot = np.eye(5)[draw.classes]
    expected = (1 - sampling.rates(PSI))[None] * (one_hot - q_of(PSI)[None])
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_leaving_one_out_subtracts_the_mean_influence_of_the_others():
    draw = make('score').draw(jax.random.key(0), PSI, 64)
    influences = np.random.default_rng(0).normal(size=64)
    ours = influences @ jacobian(make('score_leave_one_out'), PSI, draw)
    others = (influences.sum() - influences) / 63
    score = jacobian(make('score'), PSI, draw)
    np.testing.assert_allclose(ours, (influences - others) @ score, rtol=1e-4, atol=1e-6)


def test_what_influences_share_cancels_when_one_is_left_out():
    draw = make('score').draw(jax.random.key(0), PSI, 64)
    ours = jacobian(make('score_leave_one_out'), PSI, draw)
    np.testing.assert_allclose(ours.sum(0), 0, atol=1e-5)
    assert np.abs(jacobian(make('score'), PSI, draw).sum(0)).max() > 0.1


@pytest.mark.parametrize('batch_size', [4, 12, 64])
def test_the_expectation_weighs_each_class_by_its_probability(batch_size):
    """Where every class comes equally often, a mean of the batch is the expectation at q."""
    estimator = make('expectation')
    draw = estimator.draw(jax.random.key(0), PSI, batch_size)
    z = estimator.weights(PSI, draw)
    np.testing.assert_allclose(z, 4 * q_of(PSI)[draw.classes], rtol=1e-5)
    assert z.mean() == pytest.approx(1, rel=1e-5)
    losses = np.array([1.0, 2.0, 99.0, 4.0, 8.0])
    assert np.mean(z * losses[draw.classes]) == pytest.approx(q_of(PSI) @ losses, rel=1e-5)


def test_the_expectation_is_differentiated_as_it_is():
    """No straight-through: value and gradient belong together."""
    with jax.enable_x64(True):
        psi, estimator = jnp.asarray(PSI, jnp.float64), make('expectation')
        draw = estimator.draw(jax.random.key(0), psi, 64)
        check_grads(lambda psi: estimator.weights(psi, draw), (psi,), order=1, modes=['rev'])


# Stale draws


@pytest.mark.parametrize('name', ALL)
def test_a_stale_draw_is_weighed_at_the_present_psi(name):
    """Examples and classes stay as drawn; only what ψ says of them moves on."""
    estimator = make(name)
    draw = estimator.draw(jax.random.key(0), PSI, 64)
    now = -PSI
    z = estimator.weights(now, draw)
    if name == 'expectation':
        np.testing.assert_allclose(z, 4 * q_of(now)[draw.classes], rtol=1e-5)
        return
    np.testing.assert_array_equal(z, np.ones(64))
    ours = jacobian(estimator, now, draw)
    one_hot = np.eye(5)[draw.classes]
    if name in ('examples', 'classes'):
        rates = 1 / (1 + np.exp(-np.asarray(now)))
        weights, labels, drawn = COUNTS * rates, np.arange(5), draw.classes
        if name == 'examples':
            weights, labels, drawn = rates[LABELS], LABELS, draw.examples
        soft = weights * np.exp(draw.noise)
        soft /= soft.sum(1, keepdims=True)
        assert np.any(soft.argmax(1) != drawn)  # A new argmax would tell.
        p = soft[np.arange(64), drawn][:, None]
        expected = p * (one_hot - soft @ np.eye(5)[labels])
    else:
        expected = one_hot - q_of(now)[None]
        if name == 'score_leave_one_out':
            expected = 64 / 63 * (one_hot - one_hot.mean(0))
    expected = np.asarray(1 - sampling.rates(now))[None] * expected
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


# How they are called


@pytest.mark.parametrize('name', ALL)
def test_draws_and_weights_are_pure_functions_to_transform(name):
    """Mapped over keys they give what they give of each; another key, another draw."""
    estimator = make(name)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    @jax.vmap
    def together(key):
        draw = estimator.draw(key, PSI, 64)
        return draw, jax.jacobian(estimator.weights)(PSI, draw)

    draws, jacobians = map(jax.device_get, together(keys))
    for i, key in enumerate(keys):
        draw = estimator.draw(key, PSI, 64)
        np.testing.assert_array_equal(draws.examples[i], draw.examples)
        np.testing.assert_allclose(
            jacobians[i], jacobian(estimator, PSI, draw), rtol=1e-5, atol=1e-6
        )
    assert np.any(draws.examples[0] != draws.examples[1])


@pytest.mark.parametrize('name', ALL)
def test_the_temperature_softens_the_gumbel_estimators_alone(name):
    """It is never the draw's."""
    cold, warm = make(name, temperature=0.5), make(name, temperature=2.0)
    draws = [estimator.draw(jax.random.key(0), PSI, 64) for estimator in (cold, warm)]
    np.testing.assert_array_equal(draws[0].examples, draws[1].examples)
    jacobians = [jacobian(estimator, PSI, draws[0]) for estimator in (cold, warm)]
    assert np.allclose(*jacobians) == (name not in ('examples', 'classes'))


def test_a_baseline_of_others_needs_another():
    estimator = make('score_leave_one_out')
    with pytest.raises(ValueError, match='batch_size: got 1, wanted at least 2'):
        estimator.draw(jax.random.key(0), PSI, 1)
    with pytest.raises(ValueError, match='batch_size: got 1, wanted at least 2'):
        estimator.weights(PSI, Draw(jnp.array([0]), jnp.array([0])))


@pytest.mark.parametrize('name', ['examples', 'classes'])
def test_a_draw_without_noise_has_no_soft_sample(name):
    draw = make('score').draw(jax.random.key(0), PSI, 4)
    with pytest.raises(ValueError, match='draw: got one without noise'):
        make(name).weights(PSI, draw)


@pytest.mark.parametrize('name', ALL)
def test_bad_arguments_are_refused(name):
    with pytest.raises(ValueError, match=r'class_counts: got 1\.5, wanted whole'):
        ESTIMATORS[name](np.array([1.5, 2.0]))
    if name in ('examples', 'classes'):
        with pytest.raises(ValueError, match='temperature: got 0'):
            make(name, temperature=0.0).draw(jax.random.key(0), PSI, 4)


def test_every_estimator_has_a_function_and_a_name():
    """A new one that is not in the table could not be trained with."""
    public = {
        function
        for name, function in vars(estimators).items()
        if callable(function)
        and not name.startswith('_')
        and getattr(function, '__module__', '') == estimators.__name__
        and not isinstance(function, type)
    }
    assert len(public) == len(ESTIMATORS)
