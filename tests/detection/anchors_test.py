"""Anchors have the areas and shapes they are named by, and stand where the features do."""

import itertools

import numpy as np
import pytest

from balms_jax.detection import anchors, boxes


def test_anchors_have_their_area_and_ratio_but_for_rounding():
    for size in anchors.SIZES:
        found = anchors.cell_anchors(size)
        width, height = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
        # Each side is rounded twice by at most half a pixel.
        np.testing.assert_allclose(np.sqrt(width * height), size, atol=1.5)
        np.testing.assert_allclose(height / width, anchors.RATIOS, rtol=2.5 / (0.7 * size))
        np.testing.assert_array_equal(found[:, :2], -found[:, 2:])


def test_order_is_rows_then_columns_then_ratios():
    # The network's outputs [rows, columns, ratios] are flattened in this order.
    (level,) = anchors.pyramid_anchors((24, 40), strides=(8,), sizes=(32.0,))
    grid = level.reshape(3, 5, 3, 4)
    for row in range(3):
        for column in range(5):
            corner = np.array([8 * column, 8 * row] * 2)
            np.testing.assert_array_equal(grid[row, column], anchors.cell_anchors(32.0) + corner)


def test_levels_fit_the_features_of_any_image():
    # Each level halves the one before it and rounds up, as a padded convolution of stride 2 does.
    for image_size in ((64, 64), (800, 1333), (65, 33)):
        shapes = anchors.grid_shapes(image_size)
        for finer, coarser in itertools.pairwise(shapes):
            assert coarser == tuple((side + 1) // 2 for side in finer)
        counts = [len(level) for level in anchors.pyramid_anchors(image_size)]
        assert counts == [3 * rows * columns for rows, columns in shapes]


def test_an_object_has_an_anchor_on_the_level_of_its_size():
    # Why there is a pyramid: what is as large as an anchor overlaps one of that level most.
    levels = anchors.pyramid_anchors((640, 640))
    for number, size in enumerate(anchors.SIZES):
        middle = np.array([[320 - size / 2, 320 - size / 2, 320 + size / 2, 320 + size / 2]])
        best = [float(boxes.iou(middle.astype(np.float32), level).max()) for level in levels]
        assert np.argmax(best) == number
        assert best[number] == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'image_size': (0, 8)}, r'image_size: got \(0, 8\)'),
        ({'strides': (0, 8)}, r'strides: got \(0, 8\)'),
        ({'sizes': (32.0,)}, 'sizes: got 1, wanted one for each of 2 strides'),
        ({'sizes': (32.0, 0.0)}, r'size: got 0\.0'),
        ({'ratios': (0.0,)}, r'ratios: got \(0\.0,\)'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {'image_size': (64, 64), 'strides': (4, 8), 'sizes': (32.0, 64.0)}
    with pytest.raises(ValueError, match=message):
        anchors.pyramid_anchors(**(valid | arguments))
