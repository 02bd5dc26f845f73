"""A mask pasted is the mask it was read from."""

import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import annotations, padding, pasting, scenes, targets


@pytest.mark.parametrize('scale', [1.0, 1.7, 0.6])
def test_a_mask_pasted_is_the_mask_it_was_read_from(scale):
    # The target of an object's own box, pasted, is the object, but for what 28 cells cannot show.
    (scene, *_) = scenes.scenes(2, 2 * np.ones(36, int), side=96, most_objects=4)
    image = annotations.parse(annotations.as_lvis([scene], scenes.CATEGORIES)).images[0]
    number = len(scene.categories)
    objects = targets.Objects(*map(jnp.asarray, padding.padded_objects(image, number, scale=scale)))
    read = targets.mask_targets(objects, jnp.arange(number), objects.boxes)
    for mask, box, pixels in zip(read, objects.boxes, scene.masks, strict=True):
        pasted = pasting.paste(mask, box, (96, 96), scale)
        shared, either = (pasted & pixels).sum(), (pasted | pixels).sum()
        assert shared / either > 0.85


def test_a_mask_beyond_the_image_is_cut():
    pasted = pasting.paste(np.ones((28, 28)), np.array([-4.2, 5.7, 2.6, 20.0]), (10, 8))
    assert pasted.shape == (10, 8)
    np.testing.assert_array_equal(pasted, np.outer(np.arange(10) >= 6, np.arange(8) < 3))
