"""Seesaw loss is its formula, plain cross-entropy when turned off, and treats S as a constant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from balms_jax.losses import (
    balanced_softmax_cross_entropy_with_integer_labels,
    seesaw_cross_entropy_with_integer_labels,
)

COUNTS = np.array([900, 90, 9, 0])


def example(batch=8):
    keys = jax.random.split(jax.random.key(0))
    logits = 2 * jax.random.normal(keys[0], (batch, 4))
    return logits, jax.random.randint(keys[1], (batch,), 0, 4)


def factors(logits, labels, p, q):
    """S of the paper's Eqns. 4 and 6, entry by entry."""
    counts, share = np.maximum(COUNTS, 1), softmax(np.float64(logits), -1)
    wanted = np.ones(logits.shape)
    for b, y in enumerate(labels):
        for j in range(4):
            if counts[j] < counts[y]:
                wanted[b, j] *= (counts[j] / counts[y]) ** p
            if share[b, j] > share[b, y]:
                wanted[b, j] *= (share[b, j] / share[b, y]) ** q
    return wanted


@pytest.mark.parametrize(('p', 'q'), [(0.8, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_it_is_the_papers_formula(p, q):
    logits, labels = example()
    weights = factors(logits, labels, p, q)
    exponentials = np.exp(np.float64(logits))
    rows = np.arange(len(labels))
    expected = np.log((weights * exponentials).sum(-1) / exponentials[rows, labels])
    loss = seesaw_cross_entropy_with_integer_labels(
        logits, labels, COUNTS, mitigation=p, compensation=q
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


def test_by_hand():
    # Label 0 of 16 examples, class 1 of 1, p = ½: a quarter. φ₁/φ₀ = 2, q = 2: four times. So 1.
    logits = jnp.log(jnp.array([[1.0, 2.0]]))
    loss = seesaw_cross_entropy_with_integer_labels(
        logits, jnp.array([0]), jnp.array([16, 1]), mitigation=0.5
    )
    np.testing.assert_allclose(loss, [np.log(3)], rtol=1e-6)


def test_turned_off_it_is_the_plain_cross_entropy():
    logits, labels = example()
    np.testing.assert_allclose(
        seesaw_cross_entropy_with_integer_labels(
            logits, labels, COUNTS, mitigation=0.0, compensation=0.0
        ),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        rtol=1e-5,
    )


def test_mitigating_fully_it_is_balanced_softmax_for_the_most_frequent_class():
    # With p = 1 every other class is rarer, so that S_yj = n_j / n_y throughout.
    logits = example()[0]
    labels = jnp.zeros(8, jnp.int32)
    counts = np.array([900, 90, 9, 1])
    np.testing.assert_allclose(
        seesaw_cross_entropy_with_integer_labels(
            logits, labels, counts, mitigation=1.0, compensation=0.0
        ),
        balanced_softmax_cross_entropy_with_integer_labels(
            logits, labels, np.log(counts).astype(np.float32)
        ),
        rtol=1e-5,
    )


def test_no_gradient_passes_through_the_factors():
    # ∂ℓ/∂η_j = S_yj e^{η_j} / Σ − 1[j = y], the paper's Eqn. 3, with S held.
    logits, labels = example()
    weighted = factors(logits, labels, 0.8, 2.0) * np.exp(np.float64(logits))
    expected = weighted / weighted.sum(-1, keepdims=True) - np.eye(4)[labels]
    gradient = jax.grad(
        lambda x: seesaw_cross_entropy_with_integer_labels(x, labels, COUNTS).sum()
    )(logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_types_and_large_logits(dtype):
    logits = jnp.array([[100.0, -100.0, 0.0, 50.0]], dtype)
    loss, gradient = jax.value_and_grad(
        lambda x: seesaw_cross_entropy_with_integer_labels(x, jnp.array([1]), COUNTS).sum()
    )(logits)
    assert loss.dtype == dtype
    # The first class, 200 above the label, is weighed e⁴⁰⁰ times: the loss is 200 + 400.
    assert float(loss) == pytest.approx(600, rel=0.01)
    np.testing.assert_allclose(np.float32(gradient), [[1, -1, 0, 0]], atol=1e-3)


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('compensation', [0.0, 2.0])
def test_impossible_and_nearly_impossible_labels_are_those_of_the_plain_loss(jit, compensation):
    # The factors are then without bound, or no numbers: neither may they reach the loss, nor be
    # refused as a log prior that the caller did not give.
    inf, largest = jnp.inf, 3e38
    logits = jnp.array(
        [
            [-inf, 0.0, 1.0, -inf],
            [-largest, largest, 0.0, 0.0],
            [0.0, -inf, -inf, -inf],
            [0.0, jnp.nan, 0.0, 0.0],
            [jnp.nan, 0.0, 0.0, 0.0],
        ]
    )
    labels = jnp.zeros(5, jnp.int32)

    def loss(logits):
        return seesaw_cross_entropy_with_integer_labels(
            logits, labels, COUNTS, compensation=compensation
        )

    def both(logits):
        return loss(logits), jax.grad(lambda x: loss(x).sum())(logits)

    losses, gradients = (jax.jit(both) if jit else both)(logits)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_array_equal(losses, plain)
    np.testing.assert_array_equal(losses, [inf, inf, 0, jnp.nan, jnp.nan])
    assert jnp.all(jnp.isfinite(gradients[:3]))
    # ∂ℓ/∂η_y = −1 where nothing is left of the label.
    np.testing.assert_allclose(gradients[:2, 0], [-1, -1])


def test_a_spread_beyond_half_the_range_has_a_finite_loss_or_an_infinite_one():
    logits = jnp.array([[-1.0e38, 1.0e38], [1.0e38, -1.0e38]])
    losses = seesaw_cross_entropy_with_integer_labels(
        logits, jnp.array([0, 0]), jnp.ones(2), compensation=0.5
    )
    np.testing.assert_allclose(losses, [3e38, 0], rtol=1e-6)
    beyond = seesaw_cross_entropy_with_integer_labels(logits, jnp.array([0, 0]), jnp.ones(2))
    np.testing.assert_array_equal(beyond, [jnp.inf, 0])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'logits': jnp.zeros((2, 3), int)}, 'logits: got int32'),
        ({'labels': jnp.array([0, 3])}, 'labels: got values from 0 to 3'),
        ({'class_counts': jnp.ones(4)}, r'class_counts: got shape \(4,\)'),
        ({'class_counts': jnp.array([1.0, -1.0, jnp.nan])}, 'class_counts: got'),
        ({'mitigation': -1.0}, r'mitigation: got -1\.0'),
        ({'compensation': -1.0}, r'compensation: got -1\.0'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {
        'logits': jnp.zeros((2, 3)),
        'labels': jnp.array([0, 1]),
        'class_counts': jnp.array([3, 2, 1]),
    }
    with pytest.raises(ValueError, match=message):
        seesaw_cross_entropy_with_integer_labels(**(valid | arguments))
