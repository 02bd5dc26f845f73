"""Separability, confusion and target costs are their formulas, and finite on degenerate data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import cost_sensitivity
from balms_jax.cost_sensitivity import (
    class_separability,
    confusion_rates,
    moved_costs,
    target_costs,
)
from balms_jax.losses import (
    balanced_softmax_cross_entropy_with_integer_labels,
    cost_sensitive_cross_entropy_with_integer_labels,
)


def clusters(distance, num_classes=3, examples=40):
    """Unit clouds on the axes, at a distance from the origin."""
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=examples)
    features = rng.normal(size=(examples, num_classes)) + distance * np.eye(num_classes)[labels]
    return features.astype(np.float32), labels


def by_loops(features, labels, num_classes):
    separability = np.ones((num_classes, num_classes))
    for p in range(num_classes):
        for q in range(num_classes):
            ratios = []
            for i in np.flatnonzero(labels == p):
                distances = np.linalg.norm(features.astype(np.float64) - features[i], axis=1)
                distances[i] = np.inf
                ratios.append(distances[labels == p].min() / distances[labels == q].min())
            separability[p, q] = np.mean(ratios)
    return separability


# Separability


def test_separability_is_the_mean_ratio_of_nearest_distances():
    features, labels = clusters(2.0)
    np.testing.assert_allclose(
        class_separability(features, labels, 3), by_loops(features, labels, 3), rtol=1e-5
    )


def test_separability_does_not_depend_on_the_block(monkeypatch):
    features, labels = clusters(2.0)
    expected = class_separability(features, labels, 3)
    for block in (1, 7, 1000):
        monkeypatch.setattr(cost_sensitivity, '_BLOCK', block)
        np.testing.assert_allclose(class_separability(features, labels, 3), expected, rtol=1e-6)


def test_the_scale_and_the_origin_of_features_do_not_matter():
    features, labels = clusters(2.0)
    expected = class_separability(features, labels, 3)
    changed = class_separability(1000 * features + 64, labels, 3)
    np.testing.assert_allclose(changed, expected, rtol=1e-3)


def test_far_classes_are_near_0_and_mixed_ones_near_1():
    far = class_separability(*clusters(1e4), 3)
    np.testing.assert_allclose(np.diag(far), 1)
    assert np.all(far[~np.eye(3, dtype=bool)] < 1e-2)
    # A little above 1: the mean of a ratio exceeds the ratio of means.
    mixed = class_separability(*clusters(0.0, examples=300), 3)
    np.testing.assert_allclose(mixed, 1, atol=0.5)


def test_classes_without_a_neighbour_say_nothing():
    # Class 1 has one example, class 2 none: their ratios are 1; that of 0 to 1 is known.
    features = np.array([[0.0], [1.0], [5.0]], np.float32)
    separability = class_separability(features, np.array([0, 0, 1]), 3)
    np.testing.assert_allclose(
        separability, [[1, (1 / 5 + 1 / 4) / 2, 1], [1, 1, 1], [1, 1, 1]], rtol=1e-6
    )


def test_examples_on_each_other_have_finite_ratios():
    # 0 over 0 is 1; a number over 0 is over 2, the least distance above 0.
    features = np.array([[0.0], [0.0], [4.0], [0.0], [4.0], [6.0]], np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2])
    separability = class_separability(features, labels, 3)
    # Class 1's examples 4 and 0: within 4 and 4; to class 0: 4 and 0 → 2; to class 2: 0 → 2 and 4.
    np.testing.assert_allclose(separability[1], [(4 / 4 + 4 / 2) / 2, 1, (4 / 2 + 4 / 4) / 2])
    # Class 0 lies on itself and on class 1: 0 over 0 is 1; to class 2 it is 0 over 4.
    np.testing.assert_allclose(separability[0], [1, 1, 0])
    same = class_separability(np.ones((4, 2)), np.array([0, 0, 1, 1]), 2)
    np.testing.assert_array_equal(same, 1)


def test_separability_traces():
    features, labels = clusters(2.0)
    traced = jax.jit(class_separability, static_argnums=2)(features, labels, 3)
    np.testing.assert_allclose(traced, class_separability(features, labels, 3), rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_separability_of_any_real_type_is_of_the_default_float_type(dtype):
    # Whole features below 128 are exact in each; their squares are not in sixteen bits.
    features, labels = np.random.default_rng(0).integers(128, size=(12, 2)), np.arange(12) % 3
    separability = class_separability(jnp.asarray(features).astype(dtype), labels, 3)
    assert separability.dtype == jnp.float32
    np.testing.assert_allclose(separability, by_loops(features, labels, 3), rtol=1e-5)


# Confusion


def test_confusion_rates_by_hand():
    # Class 0: two of three right; class 1 taken for 2; class 2 has no example.
    rates = confusion_rates(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1]), 3)
    np.testing.assert_allclose(rates, [[2 / 3, 1 / 3, 0], [0, 0, 1], [0, 0, 0]], rtol=1e-6)


def test_true_predictions_are_not_confused():
    labels = np.array([0, 1, 1, 2], np.int8)
    rates = jax.jit(confusion_rates, static_argnums=2)(labels, labels, 3)
    np.testing.assert_array_equal(rates, np.eye(3))


@pytest.mark.parametrize('dtype', ['int8', 'uint8'])
def test_small_labels_of_many_classes(dtype):
    # 300 classes do not fit eight bits, though these labels do.
    labels = np.array([0, 0, 100, 100], dtype)
    rates = confusion_rates(labels, labels, 300)
    assert rates[0, 0] == rates[100, 100] == 1
    assert rates.sum() == 2
    features = np.array([[0.0], [1.0], [5.0], [7.0]], np.float32)
    np.testing.assert_array_equal(
        class_separability(features, labels, 300),
        class_separability(features, labels.astype(np.int32), 300),
    )


def test_traced_padding_is_confused_with_no_class():
    rates = jax.jit(confusion_rates, static_argnums=2)(np.array([-1, 1]), np.array([0, -1]), 2)
    np.testing.assert_array_equal(rates, np.zeros((2, 2)))


# Costs

COUNTS = np.array([80, 15, 5])
SEPARABILITY = np.array([[1.0, 0.2, 0.4], [0.3, 1.0, 0.5], [0.6, 0.8, 1.0]])
CONFUSION = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.5, 0.2, 0.3]])


def test_target_costs_by_hand():
    costs = target_costs(COUNTS, SEPARABILITY, CONFUSION, centers=(0.5, 0.1), widths=(0.2, 0.4))
    expected = 0.15 * np.exp(-((0.5 - 0.5) ** 2) / 0.08) * np.exp(-((0.1 - 0.1) ** 2) / 0.32)
    assert costs[1, 2] == pytest.approx(expected, rel=1e-5)
    expected = 0.8 * np.exp(-((0.6 - 0.5) ** 2) / 0.08) * np.exp(-((0.5 - 0.1) ** 2) / 0.32)
    assert costs[2, 0] == pytest.approx(expected, rel=1e-5)


def test_wide_widths_leave_the_class_frequencies():
    costs = target_costs(COUNTS, SEPARABILITY, CONFUSION, widths=(1e6, 1e6))
    shares = COUNTS / 100
    np.testing.assert_allclose(costs, np.maximum(shares[:, None], shares[None]), rtol=1e-6)


def test_centers_and_widths_are_means_and_deviations_by_default():
    given = target_costs(
        COUNTS,
        SEPARABILITY,
        CONFUSION,
        centers=(SEPARABILITY.mean(), CONFUSION.mean()),
        widths=(SEPARABILITY.std(), CONFUSION.std()),
    )
    np.testing.assert_allclose(target_costs(COUNTS, SEPARABILITY, CONFUSION), given, rtol=1e-5)


@pytest.mark.parametrize('value', [0.0, 0.1, 1.0])
def test_a_constant_matrix_is_left_out(value):
    # Its standard deviation is 0, or rounding.
    constant = np.full((3, 3), value)
    costs = target_costs(COUNTS, constant, constant)
    np.testing.assert_allclose(costs, target_costs(COUNTS, constant, constant, widths=(1, 1)))


def test_target_costs_trace():
    traced = jax.jit(target_costs)(COUNTS, SEPARABILITY, CONFUSION)
    np.testing.assert_allclose(traced, target_costs(COUNTS, SEPARABILITY, CONFUSION), rtol=1e-5)


def test_costs_move_by_the_rate():
    costs, target = np.ones((3, 3)), np.asarray(target_costs(COUNTS, SEPARABILITY, CONFUSION))
    np.testing.assert_array_equal(moved_costs(costs, target, 0.0), costs)
    np.testing.assert_allclose(moved_costs(costs, target, 1.0), target, rtol=1e-5)
    np.testing.assert_allclose(moved_costs(costs, target, 0.25), 0.75 + target / 4, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(moved_costs)(costs, target, 0.25), 0.75 + target / 4)


def test_an_epoch_of_costs_gives_a_loss():
    # From features and predictions to the loss; ξ = 1 at the start is plain cross-entropy.
    features, labels = clusters(3.0)
    costs = jnp.ones((3, 3))
    start = cost_sensitive_cross_entropy_with_integer_labels(features, labels, jnp.log(costs))
    plain = balanced_softmax_cross_entropy_with_integer_labels(features, labels, jnp.zeros(3))
    np.testing.assert_array_equal(start, plain)
    target = target_costs(
        np.bincount(labels),
        class_separability(features, labels, 3),
        confusion_rates(features.argmax(-1), labels, 3),
    )
    assert jnp.all((target > 0) & (target <= 1))
    moved = moved_costs(costs, target, 0.5)
    loss = cost_sensitive_cross_entropy_with_integer_labels(features, labels, jnp.log(moved))
    assert jnp.all(jnp.isfinite(loss))
    assert not np.allclose(loss, plain)


# Bad input


@pytest.mark.parametrize(
    ('features', 'labels', 'num_classes', 'message'),
    [
        (np.ones(2), np.array([0, 1]), 2, r'features and labels: got \(2,\) and \(2,\)'),
        (np.ones((2, 3)), np.array([0]), 2, 'features and labels: got'),
        (np.ones((0, 3)), np.zeros(0, int), 2, r'features and labels: got \(0, 3\)'),
        (np.ones((2, 3)), np.array([0, 2]), 2, 'labels: got values from 0 to 2, wanted 0 to 1'),
        (np.ones((1, 3)), np.array([0.0]), 2, 'labels: got float32, wanted integers'),
        (np.ones((1, 3)), np.array([0]), 0, 'num_classes: got 0'),
    ],
)
def test_what_has_no_separability_is_refused(features, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        class_separability(features, labels, num_classes)


@pytest.mark.parametrize(
    ('predictions', 'labels', 'message'),
    [
        ([0, 1], [0], 'predictions and labels: got'),
        ([[0]], [[0]], 'predictions and labels: got'),
        ([0, 3], [0, 1], 'predictions: got values from 0 to 3'),
        ([0, 1], [0, -1], 'labels: got values from -1 to 0'),
        ([0.5], [0], 'predictions: got float32'),
    ],
)
def test_what_cannot_be_confused_is_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_rates(np.array(predictions), np.array(labels), 3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'class_counts': [1, -1, 2]}, 'class_counts: got -1'),
        ({'class_counts': [[1, 1, 2]]}, r'class_counts: got shape \(1, 3\)'),
        ({'separability': np.ones((2, 2))}, r'separability: got shape \(2, 2\), wanted \[classes'),
        ({'confusion': np.ones(3)}, 'confusion: got shape'),
        ({'widths': (1.0, 0.0)}, r'widths: got \(1\.0, 0\.0\), wanted two numbers above 0'),
    ],
)
def test_what_has_no_target_is_refused(arguments, message):
    valid = {'class_counts': COUNTS, 'separability': SEPARABILITY, 'confusion': CONFUSION}
    with pytest.raises(ValueError, match=message):
        target_costs(**(valid | arguments))


@pytest.mark.parametrize(
    ('costs', 'target', 'rate', 'message'),
    [
        (np.ones(3), np.ones((3, 3)), 0.5, 'costs: got shape'),
        (np.ones((3, 3)), np.ones((2, 2)), 0.5, 'target: got shape'),
        (np.ones((3, 3)), np.ones((3, 3)), 1.5, r'rate: got 1\.5, wanted a number in 0\.\.1'),
    ],
)
def test_moves_out_of_range_are_refused(costs, target, rate, message):
    with pytest.raises(ValueError, match=message):
        moved_costs(costs, target, rate)
