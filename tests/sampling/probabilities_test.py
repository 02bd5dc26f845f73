"""Rates and probabilities are their formulas, at any size of counts and power."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import sampling

COUNTS = np.array([60, 25, 10, 5])


def test_rates_by_hand():
    np.testing.assert_allclose(sampling.rates(jnp.array([0.0, np.log(3.0)])), [0.5, 0.75])


@pytest.mark.parametrize('power', [0.0, 0.1, 0.3, 0.5, 1.0, 2.0, -0.5])
def test_initial_psi_is_its_formula(power):
    proportions = COUNTS / COUNTS.sum()
    weights = proportions**-power
    rates = weights / (weights.min() + weights.max())
    for counts in (COUNTS, proportions, COUNTS.astype(np.int8)):
        psi = sampling.initial_psi(counts, power)
        np.testing.assert_allclose(sampling.rates(psi), rates, rtol=1e-5)
    extremes = jnp.array([psi.min(), psi.max()])
    assert extremes.sum() == pytest.approx(0, abs=1e-5)


def test_initial_power_0_is_instance_balanced_and_1_class_balanced():
    for power, expected in ((0.0, COUNTS / 100), (1.0, [0.25] * 4)):
        psi = sampling.initial_psi(COUNTS, power)
        probabilities = sampling.rated_class_probabilities(psi, COUNTS)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


@pytest.mark.parametrize('power', [1.0, 5.0, 100.0, -100.0])
@pytest.mark.parametrize('counts', [[10**9, 1], [1e30, 1e-30, 1.0], [1, 1]])
def test_initial_psi_of_huge_powers_and_counts_is_finite(power, counts):
    # Its ends are ± what spans the log weights, exact where 1 − s would be rounded to 0.
    psi = sampling.initial_psi(np.array(counts), power)
    assert jnp.all(jnp.isfinite(psi))
    log_counts = np.log(np.array(counts, np.float64))
    span = abs(power) * (log_counts.max() - log_counts.min())
    np.testing.assert_allclose([psi.min(), psi.max()], [-span, span], rtol=1e-5)


def test_initial_psi_needs_an_example_of_every_class_only_for_a_power():
    np.testing.assert_array_equal(sampling.initial_psi([3, 0]), [0, 0])
    with pytest.raises(ValueError, match='class_counts: got 0 for class 1'):
        sampling.initial_psi([3, 0], power=0.5)


@pytest.mark.parametrize(
    ('power', 'expected'),
    [(1.0, [0.64, 0.36, 0.0]), (0.5, [8 / 14, 6 / 14, 0.0]), (0.0, [0.5, 0.5, 0.0])],
)
def test_class_probabilities_by_hand(power, expected):
    counts = np.array([64, 36, 0])
    np.testing.assert_allclose(sampling.class_probabilities(counts, power), expected, rtol=1e-6)
    traced = jax.jit(sampling.class_probabilities)(counts, power)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)


def test_class_probabilities_of_huge_powers_are_finite():
    probabilities = sampling.class_probabilities(np.array([5_000_000_000, 3, 0]), 50.0)
    np.testing.assert_array_equal(probabilities, [1, 0, 0])


def test_progressive_draws_go_from_instances_to_classes():
    counts = np.array([60, 40, 0])
    progressive = sampling.progressive_class_probabilities
    np.testing.assert_allclose(progressive(counts, 0.0), [0.6, 0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(progressive(counts, 1), [0.5, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(progressive)(counts, 0.25), [0.575, 0.425, 0], rtol=1e-6)


def test_rated_class_probabilities_by_hand():
    # n s = 3 · 1/2 and 1 · 3/4.
    probabilities = sampling.rated_class_probabilities(jnp.array([0.0, np.log(3.0)]), [3, 1])
    np.testing.assert_allclose(probabilities, [2 / 3, 1 / 3], rtol=1e-6)
    probabilities = sampling.rated_class_probabilities(
        jnp.array([-1000.0, -1000.0, 9.0]), [3, 1, 0]
    )
    np.testing.assert_allclose(probabilities, [0.75, 0.25, 0], rtol=1e-4)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_log_probabilities_are_those_of_the_probabilities_and_go_further(dtype):
    psi = jnp.array([0.0, -3.0, 1.0], dtype)
    counts = np.array([30, 0, 5])
    logs = sampling.rated_log_class_probabilities(psi, counts)
    assert logs.dtype == dtype
    np.testing.assert_allclose(
        jnp.exp(logs).astype(float),
        sampling.rated_class_probabilities(psi, counts).astype(float),
        rtol=float(4 * jnp.finfo(dtype).eps),
    )
    # Where the probability itself is rounded to 0.
    tiny = sampling.rated_log_class_probabilities(jnp.array([0.0, -500.0], dtype), [1, 1])
    assert tiny[1] == pytest.approx(-500, abs=3)


@pytest.mark.parametrize('bad', [[-1, 2], [np.nan, 2.0], []])
def test_counts_that_are_no_counts_are_refused(bad):
    for function in (
        sampling.initial_psi,
        functools.partial(sampling.initial_psi, power=1.0),
        sampling.class_probabilities,
        functools.partial(sampling.progressive_class_probabilities, progress=0.5),
        functools.partial(sampling.rated_class_probabilities, np.zeros(2, np.float32)),
        functools.partial(sampling.rated_log_class_probabilities, np.zeros(2, np.float32)),
        functools.partial(sampling.examples_by_class, jax.random.key(0), np.array([0])),
        functools.partial(sampling.systematic_examples_by_class, jax.random.key(0), np.array([0])),
    ):
        with pytest.raises(ValueError, match='class_counts: got'):
            function(class_counts=np.array(bad))
