"""Moments by enumeration and quadrature are those of the library's code, and as the theory says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from balms_jax.estimators import ESTIMATORS
from experiments import exact_moments
from experiments.exact_moments import Problem, classifier_problem

UNBIASED = [name for name in ESTIMATORS if name not in ('examples', 'classes')]
PSI = np.array([-0.7, 0.4, 1.1])
PROBLEM = classifier_problem((4, 2, 1), seed=0, learning_rate=0.5, batch_size=3)


def linear_problem(influences, class_counts, batch_size=3):
    """Example i moves the only parameter by −influence: L_meta = θ after a step of rate 1."""
    slopes = -np.asarray(influences, np.float64)
    return Problem(
        np.asarray(class_counts),
        lambda params: slopes * params,
        lambda params: params[0],
        np.zeros(1),
        1.0,
        batch_size,
    )


def total_variance(problem, psi, name):
    return np.trace(exact_moments.moments(problem, psi, name).covariance)


# The gradient that is estimated


def expected_meta_loss(problem, psi):
    """The same expectation, written out as loops over plain numbers."""
    rates = 1 / (1 + np.exp(-psi))
    each = np.repeat(rates, problem.class_counts)
    each /= each.sum()
    gradients = np.asarray(jax.jacobian(problem.losses)(jnp.asarray(problem.params)))
    meta_loss = jax.jit(problem.meta_loss)
    total = 0.0
    for batch in itertools.product(range(each.size), repeat=problem.batch_size):
        step = problem.learning_rate * gradients[list(batch)].mean(0)
        total += np.prod(each[list(batch)]) * float(meta_loss(problem.params - step))
    return total


def test_the_exact_gradient_is_a_difference_of_expectations():
    problem = classifier_problem((2, 1, 1), batch_size=2, learning_rate=2.0)
    with jax.enable_x64(True):
        differences = [
            (expected_meta_loss(problem, PSI + h) - expected_meta_loss(problem, PSI - h)) / 2e-4
            for h in 1e-4 * np.eye(3)
        ]
    np.testing.assert_allclose(
        exact_moments.exact_gradient(problem, PSI), differences, rtol=1e-5, atol=1e-9
    )


def test_the_linearised_gradient_is_the_limit_of_small_steps():
    """Their difference is of second order in the rate, so halved relative to either by half."""

    def difference(rate):
        problem = PROBLEM._replace(learning_rate=rate)
        exact = exact_moments.exact_gradient(problem, PSI)
        linear = exact_moments.exact_gradient(exact_moments.linearised(problem), PSI)
        return np.linalg.norm(exact - linear) / np.linalg.norm(linear)

    assert difference(1e-3) < 1e-2
    assert difference(1e-3) / difference(5e-4) == pytest.approx(2, rel=1e-2)


# Means


@pytest.mark.parametrize('name', UNBIASED)
@pytest.mark.parametrize('psi', [np.zeros(3), PSI])
def test_the_unbiased_are_unbiased_to_first_order(name, psi):
    """Each identity of the docstrings, over every draw that there is."""
    problem = exact_moments.linearised(PROBLEM)
    exact = exact_moments.exact_gradient(problem, psi)
    mean = exact_moments.moments(problem, psi, name).mean
    assert np.linalg.norm(exact) > 1e-3
    np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-10 * np.linalg.norm(exact))


@pytest.mark.parametrize('name', ['score', 'score_leave_one_out'])
def test_the_bias_of_a_score_is_of_second_order_in_the_step(name):
    """Independent draws estimate the very expectation that is differentiated."""

    def bias(rate):
        problem = PROBLEM._replace(learning_rate=rate)
        exact = exact_moments.exact_gradient(problem, PSI)
        return np.linalg.norm(exact_moments.moments(problem, PSI, name).mean - exact)

    assert bias(1e-2) / bias(5e-3) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ('name', 'psi'),
    [('examples', np.full(3, 0.3)), ('classes', scipy.special.logit([0.1, 0.2, 0.4]))],
)
def test_a_gumbel_estimator_of_equal_outcomes_is_the_score_but_for_its_scale(
    name, psi, temperature
):
    """Examples of equal rates, or classes of equal probability: all but the drawn one are alike."""
    ours = exact_moments.moments(PROBLEM, psi, name, temperature).mean
    score = exact_moments.moments(PROBLEM, psi, 'score').mean
    scale = ours @ score / (score @ score)
    np.testing.assert_allclose(ours, scale * score, rtol=0, atol=1e-8 * np.linalg.norm(ours))
    assert 0 < scale < 1
    # Not so elsewhere.
    ours = exact_moments.moments(PROBLEM, -PSI, name, temperature).mean
    score = exact_moments.moments(PROBLEM, -PSI, 'score').mean
    cosine = ours @ score / np.linalg.norm(ours) / np.linalg.norm(score)
    assert cosine < 1 - 1e-6


# Covariances


def test_leaving_one_out_is_better_where_influences_share_a_constant():
    """The constant estimates nothing: the score carries its noise, a baseline takes it out."""
    influences = np.array([1.0, -0.5, 0.3, 0.8, -1.0, 0.2])
    counts, psi = (3, 2, 1), np.array([0.0, 0.5, 1.0])
    shifted = linear_problem(influences + 5, counts)
    score, left_out = (
        total_variance(shifted, psi, name) for name in ('score', 'score_leave_one_out')
    )
    assert left_out < 0.1 * score
    plain = linear_problem(influences, counts)
    np.testing.assert_allclose(
        exact_moments.moments(shifted, psi, 'score_leave_one_out').covariance,
        exact_moments.moments(plain, psi, 'score_leave_one_out').covariance,
        rtol=1e-10,
        atol=1e-12,
    )


def test_less_left_to_chance_is_less_variance():
    """Where influences are those of the class, then of the example too."""
    psi = np.array([0.0, 0.5, 1.0])
    by_class = linear_problem(np.repeat([1.0, -2.0, 4.0], (3, 2, 1)), (3, 2, 1))
    assert total_variance(by_class, psi, 'systematic') < 0.5 * total_variance(
        by_class, psi, 'score'
    )
    # The batch holds every class once, and of a class all examples are the same.
    assert total_variance(by_class, psi, 'expectation') < 1e-20
    # The batch holds every example once.
    whole = linear_problem([1.0, -0.5, 0.3, 0.8], (2, 2), batch_size=4)
    assert total_variance(whole, np.zeros(2), 'systematic_examples') < 1e-20
    assert total_variance(whole, np.zeros(2), 'systematic') > 1e-3


# The quadrature


@pytest.mark.parametrize('temperature', [0.4, 1.0, 3.0])
def test_two_outcomes_by_another_quadrature(temperature):
    """Of two, only E_d / E_c = 1 + W Y / (w_d M) matters, and M / (M + Y) is uniform."""
    rates = np.array([0.7, 2.0])
    for drawn, other in ((0, 1), (1, 0)):
        mean, second = exact_moments.soft_sample_moments(
            rates, np.array([1, 1]), drawn, temperature
        )

        def product(v, power, other=other):
            ratio = (v / (v + rates.sum() / rates[other] * (1 - v))) ** (1 / temperature)
            return (ratio / (1 + ratio) ** 2) ** power

        for power, ours in ((1, mean[other]), (2, second[other, other])):
            theirs = scipy.integrate.quad(product, 0, 1, (power,), epsabs=1e-12, epsrel=1e-12)[0]
            assert ours == pytest.approx(theirs, rel=1e-8)
        assert mean[drawn] == second[drawn, drawn] == second[0, 1] == 0


def test_classes_of_one_example_are_the_examples():
    """Then both Gumbel estimators are the same, and so are their moments."""
    problem = classifier_problem((1, 1, 1), batch_size=2)
    ours, theirs = (exact_moments.moments(problem, PSI, name) for name in ('examples', 'classes'))
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-10)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-10)


def test_outcomes_of_a_class_are_counted_as_if_apart():
    """Three outcomes of one class have the moments of three classes of one, added up."""
    together = exact_moments.soft_sample_moments(np.array([0.5, 1.5]), np.array([3, 2]), 1)
    apart = exact_moments.soft_sample_moments(
        np.array([0.5, 0.5, 0.5, 1.5, 1.5]), np.ones(5, int), 4
    )
    assert together[0][0] == pytest.approx(apart[0][:3].sum(), rel=1e-10)
    assert together[1][0, 0] == pytest.approx(apart[1][:3, :3].sum(), rel=1e-10)


# The library's own draws


@pytest.mark.parametrize(
    ('name', 'temperature'),
    [*((name, 1.0) for name in ESTIMATORS), ('examples', 0.5), ('classes', 0.5)],
)
def test_moments_are_those_of_the_draws_of_the_library(name, temperature):
    """By chance, within four standard errors; and the chance is fixed."""
    draws = 20_000
    with jax.enable_x64(True):
        psi = jnp.asarray(PSI)
        estimator = ESTIMATORS[name](PROBLEM.class_counts, temperature=temperature)
        keys = jax.random.split(jax.random.key(0), draws)
        batches = jax.jit(jax.vmap(lambda key: estimator.draw(key, psi, PROBLEM.batch_size)))(keys)
        values = np.asarray(exact_moments.psi_gradients(PROBLEM, psi, estimator, batches))
    mean, covariance = exact_moments.moments(PROBLEM, PSI, name, temperature)
    error = values.std(0) / np.sqrt(draws)
    assert np.all(np.abs(values.mean(0) - mean) < 4 * error)
    squares = ((values - mean) ** 2).sum(1)
    assert abs(squares.mean() - np.trace(covariance)) < 4 * squares.std() / np.sqrt(draws)
    products = (values[:, 0] - mean[0]) * (values[:, 1] - mean[1])
    assert abs(products.mean() - covariance[0, 1]) < 4 * products.std() / np.sqrt(draws)
