"""Targets lead regions to their objects, and masks are what the region holds of the object."""

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.detection import anchors, boxes, matching, regions, targets
from balms_jax.detection.proposals import Proposals

SIDE = 48


def rectangles():
    """Two objects, a crowd and padding; masks are rectangles over the whole image."""
    corners = np.array(
        [[4, 6, 20, 18], [24, 20, 44, 40], [0, 30, 16, 48], [0, 0, 0, 0]], np.float32
    )
    masks = np.zeros((4, SIDE, SIDE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return targets.Objects(
        jnp.asarray(corners),
        jnp.array([3, 5, 7, 0]),
        jnp.asarray(masks),
        jnp.tile(jnp.array([[0.0, 0.0, SIDE, SIDE]]), (4, 1)),
        jnp.array([True, True, True, False]),
        jnp.array([False, False, True, False]),
    )


def test_foreground_anchors_decode_to_their_objects():
    objects = rectangles()
    (level,) = anchors.pyramid_anchors((SIDE, SIDE), (4,), (16.0,))
    found = jax.jit(targets.anchor_targets, static_argnums=3)(jax.random.key(0), level, objects, 64)
    foreground = found.labels == matching.FOREGROUND
    assert foreground.sum() >= 2
    decoded = boxes.decode(found.deltas, level[found.indices], boxes.PROPOSAL_WEIGHTS)
    distance = jnp.abs(decoded[:, None] - objects.boxes[None, :2]).max(-1).min(1)
    np.testing.assert_allclose(distance[foreground], 0, atol=1e-4)
    # Nothing that lies within the crowd is learned as background.
    covered = boxes.coverage(level[found.indices], objects.boxes[2:3])[:, 0]
    assert (covered[found.labels == matching.BACKGROUND] < 0.7).all()


def proposals_near(objects, key=0):
    shifts = 3 * jax.random.normal(jax.random.key(key), (40, 4))
    moved = jnp.tile(objects.boxes, (10, 1)) + shifts
    return Proposals(moved, jnp.zeros(40), jnp.tile(objects.where, 10))


def test_regions_hold_categories_and_lead_to_their_objects():
    objects = rectangles()
    found = jax.jit(targets.region_targets, static_argnums=(3, 4))(
        jax.random.key(0), proposals_near(objects), objects, 32, 0.5
    )
    foreground = np.array(found.labels) == matching.FOREGROUND
    assert 2 <= foreground.sum() <= 16
    # Foreground comes first, so that masks are computed for those slots alone.
    assert not foreground[foreground.sum() :].any()
    np.testing.assert_array_equal(found.categories[~foreground], targets.NO_CATEGORY)
    matched = found.objects[foreground]
    np.testing.assert_array_equal(found.categories[foreground], objects.categories[matched])
    assert set(np.array(found.categories[foreground]).tolist()) == {3, 5}
    decoded = boxes.decode(found.deltas, found.regions, boxes.REGION_WEIGHTS)
    np.testing.assert_allclose(decoded[foreground], objects.boxes[matched], atol=1e-4)
    # Of padding neither proposals nor objects are drawn.
    drawn = found.labels != matching.IGNORED
    is_zero = (found.regions == 0).all(1)
    assert not (is_zero & drawn).any()


def test_without_objects_regions_are_background():
    objects = rectangles()._replace(where=jnp.zeros(4, bool))
    near = proposals_near(rectangles())
    found = targets.region_targets(jax.random.key(0), near, objects, 32, 0.5)
    expected = jnp.where(jnp.arange(32) < near.where.sum(), 0, -1)
    np.testing.assert_array_equal(found.labels, expected)
    assert jnp.isfinite(found.deltas).all()


def test_masks_are_roi_align_of_the_whole_image():
    # As torchvision: the mask is an image of one channel, and regions are read at scale 1.
    objects = rectangles()
    some = jnp.array([[2.0, 5.0, 22.0, 21.5], [20.3, 18.0, 44.0, 42.0], [0.0, 0.0, 48.0, 48.0]])
    matched = jnp.array([0, 1, 1])
    found = targets.mask_targets(objects, matched, some, 14)
    for mask, region, index in zip(found, some, matched, strict=True):
        image = objects.masks[index, :, :, None].astype(jnp.float32)
        expected = regions.region_features([image], region[None], (1,), 14)[0, :, :, 0]
        np.testing.assert_allclose(mask, expected, atol=1e-5)


def test_a_masks_area_is_that_of_the_object_within_the_region():
    # The mean of the target is the covered part of the region, up to the samples' spacing.
    objects = rectangles()
    some = jnp.array([[0.0, 0.0, 40.0, 40.0], [10.0, 8.0, 30.0, 36.0]])
    for index in (0, 1):
        found = targets.mask_targets(objects, jnp.full(2, index), some, 28)
        shared = boxes.intersections(some, objects.boxes[index][None])[:, 0]
        np.testing.assert_allclose(found.mean((1, 2)), shared / boxes.areas(some), atol=0.04)


def test_a_crop_of_the_mask_serves_as_the_whole_image_does():
    # Masks stored within the object's box, at any number of cells, save the memory of images. A
    # rectangle fills its box: the mask is 1 within, and 0 out of the reach of a cell.
    whole = rectangles()
    crops = whole._replace(masks=jnp.ones((4, 56, 56)), frames=whole.boxes)
    some, matched = jnp.array([[0.0, 2.0, 28.0, 30.0], [20.0, 12.0, 48.0, 48.0]]), jnp.array([0, 1])
    of_crops, of_images = (targets.mask_targets(o, matched, some, 14) for o in (crops, whole))
    # They differ at the edges alone, by the width over which each is interpolated.
    assert jnp.abs(of_crops - of_images).max() <= 0.5
    inner = jnp.abs(of_images - 0.5) == 0.5
    assert inner.mean() > 0.7
    np.testing.assert_allclose(of_crops[inner].round(), of_images[inner])
