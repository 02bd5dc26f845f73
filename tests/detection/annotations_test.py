"""Annotations are read as they were written, in each of the formats, into the arrays they mean."""

import json

import numpy as np
import pytest

from balms_jax.detection import annotations, run_lengths, scenes

SQUARE = [[10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0]]


def lvis_v1():
    """Two images, of which the first has no object; ids with gaps, as COCO's."""
    return {
        'images': [
            {'id': 4, 'coco_url': 'http://images/val2017/0004.jpg', 'height': 50, 'width': 60},
            {'id': 9, 'file_name': 'nine.jpg', 'height': 50, 'width': 60},
        ],
        'categories': [
            {'id': 8, 'name': 'b', 'frequency': 'f', 'image_count': 700, 'instance_count': 800},
            {'id': 2, 'name': 'a', 'frequency': 'c', 'image_count': 70, 'instance_count': 71},
        ],
        'annotations': [
            {'image_id': 9, 'category_id': 8, 'bbox': [10, 20, 20, 20], 'segmentation': SQUARE},
            {'image_id': 9, 'category_id': 2, 'bbox': [0, 0, 5, 5], 'iscrowd': 1},
            {'image_id': 9, 'category_id': 8, 'bbox': [0, 0, 6, 5], 'segmentation': []},
        ],
    }


def test_boxes_categories_and_names(tmp_path):
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(lvis_v1()))
    found = annotations.read(path)
    assert [(c.id, c.name, c.frequency, c.image_count) for c in found.categories] == [
        (2, 'a', 'c', 70),
        (8, 'b', 'f', 700),
    ]
    empty, image = found.images
    assert (empty.file_name, image.file_name) == ('val2017/0004.jpg', 'nine.jpg')
    assert empty.boxes.shape == (0, 4)
    np.testing.assert_array_equal(image.boxes, [[10, 20, 30, 40], [0, 0, 5, 5], [0, 0, 6, 5]])
    np.testing.assert_array_equal(image.categories, [1, 0, 1])
    np.testing.assert_array_equal(image.crowd, [False, True, False])
    assert image.segmentations == (SQUARE, None, None)
    np.testing.assert_allclose(found.image_fractions(), [0.5, 0.5])
    np.testing.assert_array_equal(found.instance_counts(), [1, 2])


def test_frequencies_are_counted_where_the_file_has_none():
    content = lvis_v1()
    content['categories'] = [{'id': 8, 'name': 'b'}, {'id': 2, 'name': 'a'}]
    found = annotations.parse(content)
    assert [(c.image_count, c.instance_count, c.frequency) for c in found.categories] == [
        (1, 1, 'r'),
        (1, 2, 'r'),
    ]


def test_scenes_survive_the_way_through_a_file(tmp_path):
    drawn = list(scenes.scenes(1, np.ones(36, int)))
    path = tmp_path / 'scenes.json'
    path.write_text(json.dumps(annotations.as_lvis(drawn, scenes.CATEGORIES)))
    found = annotations.read(path)
    assert [c.name for c in found.categories] == list(scenes.CATEGORIES)
    for scene, image in zip(drawn, found.images, strict=True):
        np.testing.assert_array_equal(image.categories, scene.categories)
        np.testing.assert_array_equal(image.boxes, scene.boxes)
        for segmentation, pixels in zip(image.segmentations, scene.masks, strict=True):
            np.testing.assert_array_equal(run_lengths.decode(segmentation, 64, 64), pixels)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / 'other.json'
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r'other.json: got no annotations, categories'):
        annotations.read(path)
    path.write_text('no json')
    with pytest.raises(ValueError, match=r'other.json: wanted a JSON file'):
        annotations.read(path)
    content = lvis_v1()
    content['annotations'][0]['category_id'] = 3
    with pytest.raises(ValueError, match='annotations: got category_id 3, which is not listed'):
        annotations.parse(content)
