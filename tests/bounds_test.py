"""The optimal margins are optimal; the bound and the margins are what Theorem 2 says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from balms_jax import bounds

COUNTS = np.array([5000, 800, 120, 17, 3])


@pytest.mark.parametrize('scale', [0.01, 0.3, 3.0])
def test_no_other_margins_of_the_same_sum_have_a_lower_bound(scale):
    best = bounds.optimal_margins(COUNTS, total_margin=2.0)
    noise = scale * jax.random.normal(jax.random.key(0), (200, 5))
    others = 2.0 * jax.nn.softmax(jnp.log(best)[None] + noise)
    counts = np.broadcast_to(COUNTS, others.shape)
    least = bounds.balanced_error_bound(best, COUNTS)
    assert jnp.all(bounds.balanced_error_bound(others, counts) >= least * (1 - 1e-6))


@pytest.mark.parametrize('rate', [0.25, 0.5, 1.0, 2.0])
def test_at_the_optimum_a_little_margin_is_worth_as_much_to_every_class(rate):
    # Lagrange: the first term's derivative -n_j^-r / γ_j² is the same for all j.
    margins = bounds.optimal_margins(COUNTS, 3.0, rate)
    worth = COUNTS.astype(np.float32) ** -rate / margins**2
    np.testing.assert_allclose(worth, worth[0], rtol=1e-5)
    assert margins.sum() == pytest.approx(3.0, rel=1e-6)


def test_least_bound_has_the_closed_form_of_cauchy_schwarz():
    # Σ a_j² / γ_j >= (Σ a_j)² / Σ γ_j, with equality at the optimum; a_j = n_j^-1/4.
    beta, complexity = 1.5, 7.0
    bound = bounds.balanced_error_bound(bounds.optimal_margins(COUNTS, beta), COUNTS, complexity)
    first = np.sqrt(complexity) * np.sum(COUNTS**-0.25) ** 2 / beta / 5
    second = np.mean(np.log(COUNTS.sum()) / np.sqrt(COUNTS))
    assert bound == pytest.approx(first + second, rel=1e-5)


def test_uniform_counts_give_uniform_margins():
    np.testing.assert_allclose(bounds.optimal_margins([30] * 4, 2.0), [0.5] * 4, rtol=1e-6)


@pytest.mark.parametrize(('rate', 'power'), [(0.5, -0.25), (2.0, -1.0), (0.0, 0.0)])
def test_margins_are_a_power_of_the_counts(rate, power):
    # The paper's fourth root at its rate of 1/2; one over n, as Balanced Softmax has it, at 2.
    expected = COUNTS.astype(np.float64) ** power
    margins = bounds.optimal_margins(COUNTS, rate=rate)
    np.testing.assert_allclose(margins, expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize('rate', [0.5, 1.0, 2.0])
def test_margins_enter_the_loss_as_logit_adjustment_with_the_optimal_tau(rate):
    logits = jax.random.normal(jax.random.key(1), (7, 5))
    by_margin = jax.nn.log_softmax(
        logits - jnp.log(bounds.optimal_margins(COUNTS, 4.0, rate))[None]
    )
    log_counts = jnp.log(COUNTS.astype(np.float32))[None]
    by_count = jax.nn.log_softmax(logits + bounds.optimal_tau(rate) * log_counts)
    np.testing.assert_allclose(by_margin, by_count, atol=1e-5)


def test_counts_and_proportions_give_the_same_margins():
    np.testing.assert_allclose(
        bounds.optimal_margins(COUNTS),
        bounds.optimal_margins((COUNTS / COUNTS.sum()).astype(np.float32)),
        rtol=1e-5,
    )


def test_extreme_counts_give_finite_margins():
    # n^-r/2 itself would underflow: (10^30)^-1.5 is 10^-45.
    margins = bounds.optimal_margins(np.array([1e30, 1e28], np.float32), rate=3.0)
    np.testing.assert_allclose(margins, [1e-3 / 1.001, 1 / 1.001], rtol=1e-4)


def test_label_distribution_margins_by_hand():
    # n^-1/4 = (1/10, 1/2, 1), and the largest is 1/2.
    margins = bounds.label_distribution_margins([10_000, 16, 1])
    np.testing.assert_allclose(margins, [0.05, 0.25, 0.5], rtol=1e-5)
    np.testing.assert_allclose(bounds.label_distribution_margins([7, 7], 2.0), 2.0)


@pytest.mark.parametrize('largest', [0.1, 0.5])
def test_label_distribution_margins_are_the_optimal_ones_of_another_size(largest):
    # LDAM's constant is free; the minimum of the bound is along the same direction.
    margins = bounds.label_distribution_margins(COUNTS, largest)
    assert margins.max() == pytest.approx(largest, rel=1e-6)
    optimal = bounds.optimal_margins(COUNTS, margins.sum())
    np.testing.assert_allclose(margins, optimal, rtol=1e-5)
    batch = np.stack([COUNTS, 10 * COUNTS[::-1]])
    traced = jax.jit(bounds.label_distribution_margins)(batch, largest)
    np.testing.assert_allclose(traced, np.stack([margins, margins[::-1]]), rtol=1e-5)


def test_margins_and_bound_differentiate_and_trace():
    counts = COUNTS.astype(np.float32)
    check_grads(lambda b, r: bounds.optimal_margins(counts, b, r), (2.0, 0.5), order=2, rtol=0.02)
    margins = bounds.optimal_margins(counts)
    check_grads(
        lambda m, c: bounds.balanced_error_bound(m, counts, c), (10 * margins, 2.0), 1, rtol=0.02
    )
    np.testing.assert_allclose(jax.jit(bounds.optimal_margins)(counts), margins, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(bounds.balanced_error_bound)(margins, COUNTS),
        bounds.balanced_error_bound(margins, COUNTS),
        rtol=1e-6,
    )


def test_bound_by_hand():
    # (1/2) [(1/2) √(4/16) + ln 20 / 4  +  (1/0.5) √(4/4) + ln 20 / 2]
    bound = bounds.balanced_error_bound([2.0, 0.5], [16, 4], complexity=4.0)
    assert bound == pytest.approx((0.25 + np.log(20) / 4 + 2 + np.log(20) / 2) / 2, rel=1e-6)


@pytest.mark.parametrize(
    'counts', [np.array([3_000_000_000, 5]), np.array([60_000, 60_000], np.float16)]
)
def test_bound_of_large_counts_of_narrow_types_is_that_of_floats(counts):
    # 3 · 10⁹ does not fit an int32, nor the sum of the others sixteen bits.
    margins = np.full(2, 0.5, np.float16)
    expected = bounds.balanced_error_bound([0.5, 0.5], counts.astype(np.float32))
    assert jnp.isfinite(expected)
    np.testing.assert_allclose(bounds.balanced_error_bound(margins, counts), expected, rtol=1e-6)


def test_bound_takes_whole_margins():
    assert bounds.balanced_error_bound([1, 2], [16, 4]) == bounds.balanced_error_bound(
        [1.0, 2.0], [16.0, 4.0]
    )


@pytest.mark.parametrize('margin', [0.0, -0.5])
def test_without_a_margin_there_is_no_bound(margin):
    # 1 / γ would turn a margin below 0 into credit.
    assert bounds.balanced_error_bound([1.0, margin], [16, 4]) == np.inf


def test_margins_from_losses_are_the_distance_of_the_worst_example():
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=60).astype(np.float32)
    labels = rng.integers(4, size=60)
    margins = bounds.margins_from_losses(losses, labels, num_classes=4, threshold=2.0)
    expected = [2.0 - losses[labels == j].max() for j in range(4)]
    np.testing.assert_allclose(margins, expected, rtol=1e-6)
    jitted = jax.jit(bounds.margins_from_losses, static_argnums=2)(losses, labels, 4, 2.0)
    np.testing.assert_array_equal(jitted, margins)


def test_class_without_examples_has_an_infinite_margin():
    margins = bounds.margins_from_losses([0.25, 1.5], [0, 2], num_classes=3, threshold=1.0)
    np.testing.assert_array_equal(margins, [0.75, np.inf, -0.5])


@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        ([5, 0, 2], 'class_counts: got 0 for class 1'),
        ([5, -1], 'class_counts: got -1'),
        ([5.0, float('nan')], 'class_counts: got nan'),
        ([], 'class_counts: got shape'),
    ],
)
def test_counts_that_have_no_bound_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        bounds.optimal_margins(counts)
    with pytest.raises(ValueError, match=message):
        bounds.label_distribution_margins(counts)
    with pytest.raises(ValueError, match=message):
        bounds.balanced_error_bound(np.ones(len(counts)), counts)


@pytest.mark.parametrize(
    ('losses', 'labels', 'num_classes', 'message'),
    [
        ([0.1, 0.2], [0], 2, 'losses and labels: got'),
        ([[0.1]], [[0]], 2, 'losses and labels: got'),
        ([0.1], [0], 0, 'num_classes: got 0'),
        ([0.1], [0.0], 2, 'labels: got float32'),
        ([0.1, 0.2], [0, 2], 2, 'labels: got values from 0 to 2, wanted 0 to 1'),
        ([0.1, 0.2], [-1, 1], 2, 'labels: got values from -1 to 1'),
    ],
)
def test_malformed_losses_and_labels_are_refused(losses, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        bounds.margins_from_losses(losses, labels, num_classes, threshold=1.0)
