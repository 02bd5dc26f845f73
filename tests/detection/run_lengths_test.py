"""A mask is the same pixels in each of its forms."""

import numpy as np
import pytest

from balms_jax.detection import run_lengths

SQUARE = [[10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0]]


def test_polygons_and_run_lengths_are_the_same_pixels():
    # A polygon along the pixels' edges holds exactly those pixels; run lengths go down the columns.
    pixels = np.zeros((50, 60), bool)
    pixels[20:40, 10:30] = True
    runs = [10 * 50 + 20] + [20, 30] * 19 + [20, 50 * 60 - (29 * 50 + 40)]
    for segmentation in (
        SQUARE,
        {'size': [50, 60], 'counts': runs},
        run_lengths.encode(pixels),
    ):
        np.testing.assert_array_equal(run_lengths.decode(segmentation, 50, 60), pixels)
    with pytest.raises(ValueError, match=r'segmentation: got size \[50, 60\], wanted \[60, 50\]'):
        run_lengths.decode({'size': [50, 60], 'counts': runs}, 60, 50)
