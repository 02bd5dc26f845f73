"""What a detector cannot be trained on is left out, and counted."""

import numpy as np
import pytest

from balms_jax.detection.annotations import AnnotatedImage, Annotations
from balms_jax.detection.curation import curated

SQUARE = [1.0, 1.0, 4.0, 1.0, 4.0, 4.0]


def image(boxes, crowd=None, segmentations=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    number = len(boxes)
    return AnnotatedImage(
        7,
        'seven.jpg',
        10,
        10,
        boxes,
        np.arange(number, dtype=np.int32),
        np.array(crowd if crowd is not None else [False] * number, bool),
        tuple(segmentations if segmentations is not None else [None] * number),
    )


def test_boxes_without_area_are_left_out():
    # An anchor's overlap with them is 0 / 0, and no offset leads to them.
    kept, dropped = curated(Annotations((), (image([[1, 1, 1, 5], [2, 2, 6, 6]]),)), 10)
    assert kept.images[0].categories.tolist() == [1]
    assert dropped.empty_boxes == 1


def test_of_too_many_objects_the_largest_stay_in_their_order():
    # A padded image has room for so many; a large object hides less in the background than many.
    boxes = [[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 1, 1], [0, 0, 5, 5]]
    kept, dropped = curated(Annotations((), (image(boxes),)), 2)
    assert kept.images[0].categories.tolist() == [1, 3]
    assert dropped.crowded_out == 2


def test_degenerate_polygons_are_left_out_and_a_lone_one_leaves_its_box():
    # Two corners enclose nothing: the run lengths of such a polygon are empty or refused.
    segmentations = [[SQUARE, [1.0, 1.0, 2.0, 2.0]], [[3.0, 3.0]]]
    given = image([[1, 1, 4, 4], [2, 2, 6, 6]], segmentations=segmentations)
    kept, dropped = curated(Annotations((), (given,)), 10)
    assert kept.images[0].segmentations == ([SQUARE], None)
    assert dropped.degenerate_polygons == 2


def test_crowds_stay_but_are_nothing_to_find():
    # Regions over them are ignored in training, so they have to be known.
    mixed = image([[0, 0, 9, 9], [1, 1, 3, 3]], crowd=[True, False])
    alone = image([[0, 0, 9, 9]], crowd=[True])
    kept, dropped = curated(Annotations((), (mixed, alone)), 10)
    assert len(kept.images) == 1
    assert kept.images[0].crowd.tolist() == [True, False]
    assert dropped.images == 1


def test_nothing_to_find_is_an_error():
    with pytest.raises(ValueError, match='annotations: got no object to be found'):
        curated(Annotations((), (image([]),)), 10)
    with pytest.raises(ValueError, match='most_objects: got 0'):
        curated(Annotations((), (image([[1, 1, 4, 4]]),)), 0)
