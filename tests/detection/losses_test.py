"""Detection's losses are their formulas, region by region, and 0 for what is ignored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax.detection import losses

FRACTIONS = np.array([0.6, 0.1, 1e-3, 0.0], np.float32)
CATEGORIES = jnp.array([0, 2, 1, -1, -1])


def logits_of(*shape):
    return 2 * jax.random.normal(jax.random.key(0), shape)


def test_smooth_l1_by_hand():
    # β = ½: 0.25² / 1 within, |d| − ¼ beyond; each region's four are summed.
    deltas = jnp.array([[0.25, -0.25, 2.0, 0.0]] * 3)
    loss = losses.box_loss(deltas, jnp.zeros((3, 4)), jnp.array([1, 0, -1]), beta=0.5)
    np.testing.assert_allclose(loss, [2 * 0.0625 + 1.75, 0, 0], rtol=1e-6)


def test_what_is_ignored_has_no_gradient():
    # Padding must not train: neither by its logits nor by what stands in its targets.
    labels, logits = jnp.array([1, 0, -1, 1]), logits_of(4)
    gradient = jax.grad(lambda x: losses.objectness_loss(x, labels).sum())(logits)
    np.testing.assert_allclose(
        gradient,
        np.where(labels < 0, 0, jax.nn.sigmoid(logits) - jnp.float32(labels == 1)),
        atol=1e-6,
    )
    for loss, shape in ((losses.box_loss, (4, 4)), (losses.mask_loss, (4, 6, 6))):
        gradient = jax.grad(lambda x, loss=loss: loss(x, 0 * x, labels).sum())(logits_of(*shape))
        touched = (gradient != 0).reshape(4, -1).any(1)
        np.testing.assert_array_equal(touched, labels == 1)


def test_a_masks_loss_is_the_mean_over_its_pixels():
    logits, labels = logits_of(3, 5, 5), jnp.array([1, 1, 0])
    targets = jax.random.uniform(jax.random.key(1), (3, 5, 5))
    pixels = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
    expected = [pixels[0].mean(), pixels[1].mean(), 0]
    np.testing.assert_allclose(losses.mask_loss(logits, targets, labels), expected, rtol=1e-6)


def test_the_foreground_is_shifted_and_background_is_plain():
    logits = logits_of(5, 4)
    fractions = np.maximum(FRACTIONS, 1e-6)
    shift = np.log((1 - fractions) / fractions)[None]
    shifted = losses.sigmoid_loss(logits - shift, CATEGORIES)
    plain = losses.sigmoid_loss(logits, CATEGORIES)
    found = losses.balanced_sigmoid_loss(logits, CATEGORIES, fractions)
    np.testing.assert_allclose(found, np.where(CATEGORIES >= 0, shifted, plain), rtol=1e-5)


def test_fractions_of_one_half_are_the_plain_sigmoid():
    logits = logits_of(5, 4)
    np.testing.assert_allclose(
        losses.balanced_sigmoid_loss(logits, CATEGORIES, jnp.full(4, 0.5)),
        losses.sigmoid_loss(logits, CATEGORIES),
        rtol=1e-5,
    )


def test_a_category_of_no_image_stays_finite():
    # A category may be missing in a training subset; it is a free negative in the foreground.
    value, gradient = jax.value_and_grad(
        lambda x: losses.balanced_sigmoid_loss(x, CATEGORIES, FRACTIONS).sum()
    )(logits_of(5, 4))
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:3, 3], 0)


def test_rare_categories_are_spared_by_objects_of_others_alone():
    # Categories 2 and 3 are below λ: no negatives of regions 0 and 2, which hold other objects.
    logits = logits_of(5, 4)
    gradient = jax.grad(lambda x: losses.equalization_loss(x, CATEGORIES, FRACTIONS).sum())(logits)
    plain = jax.grad(lambda x: losses.sigmoid_loss(x, CATEGORIES).sum())(logits)
    spared = np.zeros((5, 4), bool)
    spared[:3, 2:] = True
    spared[1, 2] = False  # Its own category.
    np.testing.assert_allclose(gradient, np.where(spared, 0, plain), atol=1e-6)


NONE = jnp.zeros(2, jnp.int32)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: losses.objectness_loss(jnp.zeros(3), NONE),
            r'labels: got shape \(2,',
        ),
        (
            lambda: losses.box_loss(jnp.zeros((3, 4)), jnp.zeros((2, 4)), jnp.zeros(3, int)),
            r'targets: got shape \(2, 4\)',
        ),
        (
            lambda: losses.box_loss(jnp.zeros((3, 4)), jnp.zeros((3, 4)), jnp.zeros(3, int), 0.0),
            r'beta: got 0\.0',
        ),
        (
            lambda: losses.mask_loss(jnp.zeros((3, 2, 2)), jnp.zeros((3, 2, 2)), NONE),
            r'labels: got shape \(2,\), wanted \(3,\)',
        ),
        (
            lambda: losses.sigmoid_loss(jnp.zeros((3, 2)), NONE),
            'categories: got shape',
        ),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
