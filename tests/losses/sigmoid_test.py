"""The sigmoid variant is the paper's formula, optax's sigmoid at the neutral prior, and finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from balms_jax.losses import balanced_sigmoid_binary_cross_entropy


def example(batch=6, classes=5):
    """Logits, and labels between 0 and 1."""
    keys = jax.random.split(jax.random.key(0))
    logits = 3 * jax.random.normal(keys[0], (batch, classes))
    return logits, jax.nn.sigmoid(jax.random.normal(keys[1], (batch, classes)))


def test_sigmoid_variant_by_hand():
    # n = 100, C = 4, so n/C = 25: φ̂_j = σ(η − log[25/n_j · (100 − n_j)/75]).
    counts = np.array([70, 20, 8, 2])
    eta = np.array([[0.5, -1.0, 2.0, 0.0]])
    labels = np.array([[1.0, 0.0, 0.0, 1.0]])
    posterior = 1 / (1 + np.exp(-(eta - np.log(25 / counts * (100 - counts) / 75))))
    expected = -labels * np.log(posterior) - (1 - labels) * np.log(1 - posterior)
    loss = balanced_sigmoid_binary_cross_entropy(
        jnp.asarray(eta, jnp.float32), jnp.asarray(labels), (counts / 100).astype(np.float32)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_prior_of_one_over_classes_is_the_plain_sigmoid():
    logits, labels = example()
    np.testing.assert_allclose(
        balanced_sigmoid_binary_cross_entropy(logits, labels, jnp.full(5, 0.2)),
        optax.sigmoid_binary_cross_entropy(logits, labels),
        rtol=1e-5,
    )


def test_reference_prior_one_half_drops_the_constant():
    # Detection's η − log((1 − f)/f).
    logits, labels = example()
    fraction = np.array([0.3, 0.02, 0.5, 1e-4, 0.9], np.float32)
    shifted = logits - np.log((1 - fraction) / fraction)[None]
    np.testing.assert_allclose(
        balanced_sigmoid_binary_cross_entropy(logits, labels, fraction, reference_prior=0.5),
        optax.sigmoid_binary_cross_entropy(shifted, labels),
        rtol=1e-5,
        atol=1e-6,
    )


def test_background_keeps_the_plain_sigmoid():
    logits, _ = example()
    foreground = jnp.array([True, False, False, True, False, True])
    labels = jnp.where(foreground[:, None], jnp.eye(6, 5), 0)
    prior = jnp.array([0.3, 0.02, 0.0, 1e-4, 1.0])
    loss = balanced_sigmoid_binary_cross_entropy(logits, labels, prior, foreground=foreground)
    plain = optax.sigmoid_binary_cross_entropy(logits, labels)
    all_shifted = balanced_sigmoid_binary_cross_entropy(logits, labels, prior)
    np.testing.assert_allclose(loss[~foreground], plain[~foreground], rtol=1e-5)
    np.testing.assert_array_equal(loss[foreground], all_shifted[foreground])
    assert not np.allclose(loss[foreground], plain[foreground])


def test_priors_0_and_1_are_limits_with_finite_gradients():
    # φ̂ → 0: impossible as a positive, free as a negative; and the other way round.
    logits = example(batch=2, classes=2)[0]
    labels = jnp.array([[1.0, 1.0], [0.0, 0.0]])

    def total(logits):
        return balanced_sigmoid_binary_cross_entropy(
            logits, labels, jnp.array([0.0, 1.0]), reference_prior=0.5
        )

    np.testing.assert_array_equal(total(logits), [[np.inf, 0], [0, np.inf]])
    gradient = jax.grad(lambda logits: total(logits).sum())(logits)
    np.testing.assert_allclose(gradient, [[-1, 0], [0, 1]])  # φ̂ − y.
    near = jax.grad(
        lambda logits: balanced_sigmoid_binary_cross_entropy(
            logits, labels, jnp.array([1e-30, 1 - 6e-8]), reference_prior=0.5
        ).sum()
    )(logits)
    np.testing.assert_allclose(gradient, near, atol=1e-5)


@pytest.mark.parametrize('scale', [1e4, 1e30])
def test_sigmoid_of_large_logits(scale):
    logits = jnp.array([[scale, -scale]])
    labels = jnp.array([[1.0, 1.0]])
    prior = jnp.array([0.1, 0.1])
    loss, gradient = jax.value_and_grad(
        lambda x: balanced_sigmoid_binary_cross_entropy(x, labels, prior).sum()
    )(logits)
    assert loss == pytest.approx(scale, rel=1e-3)
    np.testing.assert_allclose(gradient, [[0, -1]], atol=1e-6)


def test_sigmoid_derivatives():
    with jax.enable_x64(True):
        logits = jax.random.normal(jax.random.key(0), (3, 4), jnp.float64)
        labels = jax.nn.sigmoid(jax.random.normal(jax.random.key(1), (3, 4), jnp.float64))
        prior = jnp.array([0.3, 0.02, 0.5, 0.9])
        check_grads(
            jax.jit(
                lambda logits, prior: balanced_sigmoid_binary_cross_entropy(logits, labels, prior)
            ),
            (logits, prior),
            order=2,
        )


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize('label_dtype', [jnp.bool_, jnp.int32, jnp.float32])
def test_sigmoid_types(dtype, label_dtype):
    logits = example()[0].astype(dtype)
    labels = jnp.eye(6, 5).astype(label_dtype)
    prior = np.array([0.3, 0.02, 0.5, 1e-4, 0.9])
    loss = balanced_sigmoid_binary_cross_entropy(logits, labels, prior)
    exact = balanced_sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), labels.astype(jnp.float32), prior
    )
    assert loss.dtype == dtype
    np.testing.assert_allclose(
        loss.astype(jnp.float32), exact, rtol=max(float(jnp.finfo(dtype).eps), 1e-6), atol=1e-7
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'labels': jnp.zeros(3)}, 'labels: got shape'),
        ({'prior': jnp.zeros(4)}, 'prior: got shape'),
        ({'prior': jnp.array([0.1, 0.2, 1.5])}, 'prior: got .* to 1.5'),
        ({'prior': jnp.array([0.1, 0.2, -0.5])}, 'prior: got -0.5'),
        ({'prior': jnp.array([0.1, 0.2, jnp.nan])}, 'prior: got nan'),
        ({'reference_prior': 0.0}, 'reference_prior: got 0'),
        ({'reference_prior': 1.0}, 'reference_prior: got 1'),
        ({'reference_prior': jnp.full(3, 0.5)}, 'reference_prior: got'),
        ({'foreground': jnp.ones((2, 3), bool)}, 'foreground: got shape'),
        ({'logits': jnp.zeros((2, 3), jnp.int32)}, 'logits: got int32'),
    ],
)
def test_invalid_arguments_of_the_sigmoid_are_named(arguments, message):
    valid = {'logits': jnp.zeros((2, 3)), 'labels': jnp.zeros((2, 3)), 'prior': jnp.full(3, 0.1)}
    with pytest.raises(ValueError, match=message):
        balanced_sigmoid_binary_cross_entropy(**(valid | arguments))


def test_a_single_class_has_no_reference_prior():
    # 1/C = 1, whose logit is infinite.
    logits = labels = jnp.zeros((2, 1))
    with pytest.raises(ValueError, match='reference_prior: got None for one class'):
        balanced_sigmoid_binary_cross_entropy(logits, labels, jnp.array([0.1]))
    loss = balanced_sigmoid_binary_cross_entropy(
        logits, labels, jnp.array([0.1]), reference_prior=0.5
    )
    np.testing.assert_allclose(loss, -np.log(0.9), rtol=1e-5)
