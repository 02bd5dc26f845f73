"""Padded images and objects hold what was in the image, at its scale."""

import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import annotations, padding, scenes, targets


def test_an_image_is_scaled_until_it_fits():
    # The shorter side decides, unless the longer one would not fit.
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for shape, shortest, scale in (((64, 64), 30, 0.5), ((64, 45), 60, 0.5), ((64, 96), 60, 1.0)):
        padded = padding.padded_image(pixels, shape, shortest)
        assert padded.scale == scale
        np.testing.assert_array_equal(padded.size, [60 * scale, 90 * scale])
        height, width = padded.size.astype(int)
        assert padded.pixels.shape == (*shape, 3)
        assert not padded.pixels[height:].any()
        assert not padded.pixels[:, width:].any()
    np.testing.assert_array_equal(padded.pixels[:60, :90], pixels)  # Unscaled, it is unchanged.


def test_padded_objects_hold_the_masks_of_the_image():
    # Read back over a region, a stored crop is the mask at its own pixels.
    (scene, *_) = scenes.scenes(2, 2 * np.ones(36, int), most_objects=4)
    image = annotations.parse(annotations.as_lvis([scene], scenes.CATEGORIES)).images[0]
    number = len(scene.categories)
    objects = padding.padded_objects(image, 6, mask_size=64)
    np.testing.assert_array_equal(objects.where, np.arange(6) < number)
    np.testing.assert_array_equal(objects.boxes[:number], scene.boxes)
    whole = targets.mask_targets(
        targets.Objects(*map(jnp.asarray, objects)),
        jnp.arange(number),
        jnp.tile(jnp.array([[0.0, 0.0, 64.0, 64.0]]), (number, 1)),
        size=64,
        samples=1,
    )
    # Regions are read half a pixel further on than masks are drawn, as torchvision has it.
    shifted = (scene.masks[:, 1:, 1:].astype(float) + scene.masks[:, :-1, :-1]) / 2
    assert np.abs(np.array(whole)[:, :-1, :-1] - shifted).mean() < 0.02
    with pytest.raises(ValueError, match=r'number: got 0, wanted at least the \d of 0\.png'):
        padding.padded_objects(image, 0)


def test_a_scaled_image_has_scaled_objects():
    (scene, *_) = scenes.scenes(2, 2 * np.ones(36, int), most_objects=4)
    image = annotations.parse(annotations.as_lvis([scene], scenes.CATEGORIES)).images[0]
    plain, doubled = (padding.padded_objects(image, 6, scale=scale) for scale in (1.0, 2.0))
    np.testing.assert_allclose(doubled.boxes, 2 * plain.boxes)
    np.testing.assert_allclose(doubled.frames, 2 * plain.frames)
    np.testing.assert_array_equal(doubled.masks, plain.masks)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'pixels': np.zeros((4, 4), np.uint8)}, r'pixels: got shape \(4, 4\)'),
        ({'shape': (0, 4)}, r'shape: got \(0, 4\)'),
        ({'shortest': 0}, r'shape: got \(8, 8\) and shortest 0'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {'pixels': np.zeros((4, 4, 3), np.uint8), 'shape': (8, 8), 'shortest': 8}
    with pytest.raises(ValueError, match=message):
        padding.padded_image(**(valid | arguments))
