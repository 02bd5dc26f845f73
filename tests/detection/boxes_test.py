"""Boxes overlap as sets of pixels do, and encoding is undone by decoding."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from balms_jax.detection import boxes

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)


def corners(boxes_within, size=12):
    """Boxes of whole pixels, some without area, from any two corners."""
    first, second = boxes_within[:, :2], boxes_within[:, 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], 1)


WHOLE = arrays.arrays(np.float32, (3, 4), elements=st.integers(0, 12).map(float)).map(corners)


def as_pixels(box, size=12):
    """The pixels of a box of whole numbers."""
    x0, y0, x1, y1 = box.astype(int)
    pixels = np.zeros((size, size), bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


@SETTINGS
@hypothesis.given(WHOLE, WHOLE)
def test_overlaps_are_those_of_sets_of_pixels(some, others):
    # On whole numbers a box is a set of unit squares, which can be counted.
    one, two = (np.stack([as_pixels(box) for box in group]) for group in (some, others))
    shared = (one[:, None] & two[None]).sum((2, 3))
    union = (one[:, None] | two[None]).sum((2, 3))
    own = one.sum((1, 2))
    np.testing.assert_array_equal(boxes.areas(some), own)
    np.testing.assert_array_equal(boxes.intersections(some, others), shared)
    np.testing.assert_allclose(boxes.iou(some, others), shared / np.maximum(union, 1), rtol=1e-6)
    np.testing.assert_allclose(
        boxes.coverage(some, others), shared / np.maximum(own, 1)[:, None], rtol=1e-6
    )


@SETTINGS
@hypothesis.given(WHOLE, WHOLE, arrays.arrays(bool, 3))
def test_padding_overlaps_nothing(some, others, where):
    for overlap in (boxes.iou, boxes.coverage):
        expected = np.where(where[None], overlap(some, others), 0)
        np.testing.assert_array_equal(overlap(some, others, where=where), expected)


SIDED = arrays.arrays(np.float32, (5, 4), elements=st.floats(0, 100, width=32)).map(
    lambda a: np.concatenate([a[:, :2], a[:, :2] + a[:, 2:] + 1], 1)
)


@SETTINGS
@hypothesis.given(SIDED, SIDED, st.sampled_from([boxes.PROPOSAL_WEIGHTS, boxes.REGION_WEIGHTS]))
def test_decoding_undoes_encoding(wanted, references, weights):
    # For boxes of at most 101 pixels from references of at least 1: up to the largest scale, 62.5.
    wanted[:, 2:] = np.minimum(wanted[:, 2:], wanted[:, :2] + 62)
    deltas = boxes.encode(wanted, references, weights)
    found = boxes.decode(deltas, references, weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_deltas_by_hand():
    # Centres 12, 8 and 10, 10, sizes 8 × 4 and 4 × 8: (2/4, −2/8, log 2, log ½), times weights.
    deltas = boxes.encode(
        jnp.array([8.0, 6.0, 16.0, 10.0]), jnp.array([8.0, 6.0, 12.0, 14.0]), boxes.REGION_WEIGHTS
    )
    expected = [5.0, -2.5, 5 * np.log(2), -5 * np.log(2)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-6)


def test_the_largest_scale_is_62_and_a_half():
    box = boxes.decode(
        jnp.array([0.0, 0.0, 1e9, 4.0]), jnp.array([0.0, 0.0, 2.0, 2.0]), boxes.PROPOSAL_WEIGHTS
    )
    np.testing.assert_allclose(box[2] - box[0], 125, rtol=1e-6)
    np.testing.assert_allclose(box[3] - box[1], 2 * np.exp(4), rtol=1e-6)


def test_padding_gives_finite_deltas_and_gradients():
    # A NaN of a padded row would spread from the masked loss to every gradient.
    zeros, box = jnp.zeros((1, 4)), jnp.array([[1.0, 1.0, 3.0, 3.0]])
    for wanted, reference in ((zeros, zeros), (box, zeros), (zeros, box)):
        value, gradient = jax.value_and_grad(
            lambda b, r=reference: boxes.encode(b, r, boxes.REGION_WEIGHTS).sum()
        )(wanted)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


@SETTINGS
@hypothesis.given(arrays.arrays(np.float32, (4, 4), elements=st.floats(-50, 50, width=32)))
def test_clipped_boxes_lie_within_the_image_and_hold_their_part_of_it(some):
    # The clipped box is the intersection with the image, so both have the same area.
    some = corners(some)
    clipped = boxes.clip(some, (20, 30))
    assert (clipped >= 0).all()
    assert (clipped <= jnp.array([[30.0, 20.0, 30.0, 20.0]])).all()
    image = np.array([[0, 0, 30, 20]], np.float32)
    np.testing.assert_allclose(
        boxes.areas(clipped), boxes.intersections(some, image)[:, 0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: boxes.areas(jnp.zeros((2, 3))), r'boxes: got shape \(2, 3\), wanted'),
        (lambda: boxes.iou(jnp.zeros(4), jnp.zeros((1, 4))), r'boxes: got shape \(4,\)'),
        (lambda: boxes.iou(jnp.zeros((1, 4)), jnp.zeros(4)), r'others: got shape \(4,\)'),
        (
            lambda: boxes.iou(jnp.zeros((1, 4)), jnp.zeros((2, 4)), where=jnp.ones(1, bool)),
            r'where: got shape \(1,\), wanted \[others\] \(2,\)',
        ),
        (
            lambda: boxes.encode(jnp.zeros((1, 4)), jnp.zeros((2, 4)), boxes.REGION_WEIGHTS),
            r"references: got shape \(2, 4\), wanted the boxes' \(1, 4\)",
        ),
        (
            lambda: boxes.decode(jnp.zeros((1, 4)), jnp.zeros((2, 4)), boxes.REGION_WEIGHTS),
            r"references: got shape \(2, 4\), wanted the deltas' \(1, 4\)",
        ),
        (lambda: boxes.clip(jnp.zeros(4), (1, 2, 3)), r'size: got shape \(3,\), wanted \[2\]'),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
