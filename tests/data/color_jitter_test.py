"""Colour jitter computes what torchvision's does on Pillow images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from balms_jax.data.color_jitter import JitterStrengths, apply_jitter, color_jitter

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2


def test_hand_numbers():
    # Pixels (200, 100, 0) and (40, 40, 40), whose grey levels are 118 (0.299 · 200 + 0.587 · 100 =
    # 118.5, in fixed point 118) and 40, mean 79.
    image = jnp.array([[[200, 100, 0], [40, 40, 40]]], jnp.uint8)

    def only(operation, factor):
        factors = jnp.ones(3).at[operation].set(factor)
        return np.asarray(apply_jitter(image, jnp.arange(3), factors))[0].tolist()

    assert only(BRIGHTNESS, 1.5) == [[255, 150, 0], [60, 60, 60]]
    grey = 118 + (only(SATURATION, 0.0)[0][0] == 119)
    mean = round((grey + 40) / 2 + 1e-6)
    assert only(SATURATION, 0.0) == [[grey] * 3, [40] * 3]
    assert only(CONTRAST, 0.0) == [[mean] * 3] * 2
    assert only(CONTRAST, 0.5)[1] == [int(mean + 0.5 * (40 - mean))] * 3


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_every_order_gives_pillows_integers(order):
    # Clipping makes the order matter, and torchvision draws it anew for every image.
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    factors = (1.3, 0.7, 1.4)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    image = Image.fromarray(pixels)
    for operation in order:
        image = enhancers[operation](image).enhance(factors[operation])
    ours = apply_jitter(jnp.asarray(pixels), jnp.array(order), jnp.array(factors))
    np.testing.assert_array_equal(ours, np.asarray(image))


def test_factors_span_the_range_and_no_more():
    # A grey image of level 100 shows the brightness factor itself.
    images = jnp.full((2000, 1, 1, 3), 100, jnp.uint8)
    values = np.asarray(color_jitter(jax.random.key(0), images, JitterStrengths(0.4, 0.0, 0.0)))
    assert 60 <= values.min() <= 61
    assert 138 <= values.max() <= 140
    assert abs(values.mean() - 99.5) < 1.5


def test_strength_above_one_does_not_invert():
    # torchvision's range begins at max(0, 1 − s).
    images = jnp.full((500, 1, 1, 3), 100, jnp.uint8)
    values = color_jitter(jax.random.key(0), images, JitterStrengths(2.0, 0.0, 0.0))
    assert int(values.min()) <= 5


@pytest.mark.parametrize(
    ('images', 'strengths', 'message'),
    [
        (np.zeros((1, 2, 2, 3), np.float32), JitterStrengths(), 'images: got float32'),
        (np.zeros((1, 2, 2, 1), np.uint8), JitterStrengths(), 'images: got uint8'),
        (np.zeros((1, 2, 2, 3), np.uint8), JitterStrengths(-0.1), 'strengths'),
    ],
)
def test_what_is_no_image_batch_is_refused(images, strengths, message):
    # Normalised images would be clipped to black.
    with pytest.raises(ValueError, match=message):
        color_jitter(jax.random.key(0), jnp.asarray(images), strengths)
