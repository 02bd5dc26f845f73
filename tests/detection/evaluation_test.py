"""Average precision is 1 for perfect detections; each kind of error costs what it should."""

import copy

import numpy as np
import pytest

from balms_jax.detection import annotations, scenes
from balms_jax.detection.evaluation import as_results, average_precision
from balms_jax.detection.inference import Detections


@pytest.fixture(scope='module')
def content():
    drawn = scenes.scenes(0, scenes.long_tailed_counts(20, 10))
    return annotations.as_lvis(drawn, scenes.CATEGORIES, rare=4, common=10)


def perfect(content):
    return [
        {key: annotation[key] for key in ('image_id', 'category_id', 'bbox', 'segmentation')}
        | {'score': 0.9}
        for annotation in content['annotations']
    ]


@pytest.mark.parametrize('kind', ['segm', 'bbox'])
@pytest.mark.parametrize('lvis', [True, False])
def test_perfect_detections_have_all_precision(content, kind, lvis):
    found = average_precision(content, perfect(content), kind, lvis=lvis)
    np.testing.assert_allclose(
        [found.all, found.at_50, found.at_75, found.rare, found.common, found.frequent], 1
    )
    np.testing.assert_allclose(found.of_categories, 1)


def test_nothing_found_is_no_precision(content):
    found = average_precision(content, [])
    assert (found.all, found.rare, found.frequent) == (0, 0, 0)


def test_groups_are_those_of_the_categories_frequency(content):
    # Rare categories are found, the others are not: AP is the rare ones' share of the categories.
    frequency = {category['id']: category['frequency'] for category in content['categories']}
    rare = [r for r in perfect(content) if frequency[r['category_id']] == 'r']
    found = average_precision(content, rare)
    assert (found.rare, found.common, found.frequent) == (1, 0, 0)
    share = np.mean([group == 'r' for group in frequency.values()])
    np.testing.assert_allclose(found.all, share)


def test_boxes_that_overlap_by_two_thirds_count_at_the_low_thresholds(content):
    # Each box is made half as wide again: IoU 2/3, above 0.5, 0.55, 0.6 and 0.65 of ten thresholds.
    wide = perfect(content)
    for result in wide:
        x, y, width, height = result['bbox']
        result['bbox'] = [x, y, 1.5 * width, height]
    found = average_precision(content, wide, 'bbox', lvis=False)
    assert found.at_50 == pytest.approx(1, abs=0.02)  # A neighbour of the category may be as near.
    assert found.at_75 == 0
    assert found.all == pytest.approx(0.4, abs=0.02)


def one_image(**image):
    """An object of category 1 of two, and a false detection of either before the true one."""
    return {
        'images': [{'id': 1, 'height': 20, 'width': 20, **image}],
        'categories': [
            {'id': 1, 'name': 'a', 'frequency': 'c'},
            {'id': 2, 'name': 'b', 'frequency': 'r'},
        ],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 1, 'area': 16, 'bbox': [2, 2, 4, 4]},
        ],
    }


def result(category, x, score):
    return {'image_id': 1, 'category_id': category, 'bbox': [x, 2, 4, 4], 'score': score}


def test_a_false_detection_before_the_true_one_halves_the_precision():
    content = one_image(neg_category_ids=[2], not_exhaustive_category_ids=[])
    results = [result(1, 12, 0.9), result(1, 2, 0.5)]
    assert average_precision(content, results, 'bbox').all == pytest.approx(0.5)
    # Where the category is not annotated exhaustively, it may be a true one that nobody marked.
    content = one_image(neg_category_ids=[2], not_exhaustive_category_ids=[1])
    assert average_precision(content, results, 'bbox').all == pytest.approx(1)
    # COCO knows no such images.
    assert average_precision(content, results, 'bbox', lvis=False).all == pytest.approx(0.5)


def test_a_category_without_object_is_not_judged():
    # Neither in the mean nor as a group: absent is not 0.
    content = one_image(neg_category_ids=[2], not_exhaustive_category_ids=[])
    found = average_precision(content, [result(1, 2, 0.5), result(2, 12, 0.9)], 'bbox')
    assert found.all == pytest.approx(1)
    assert found.rare is None
    assert np.isnan(found.of_categories[1])


def test_an_images_best_detections_count_over_all_categories():
    # With one detection a image, that of the other category takes the place.
    content = one_image(neg_category_ids=[2], not_exhaustive_category_ids=[])
    results = [result(2, 12, 0.9), result(1, 2, 0.5)]
    assert average_precision(content, results, 'bbox', most=1).all == 0
    assert average_precision(content, results, 'bbox', most=2).all == pytest.approx(1)


def test_what_is_given_is_left_as_it_was(content):
    results = perfect(content)
    before = copy.deepcopy((content, results))
    average_precision(content, results)
    assert (content, results) == before


def test_detections_become_results_of_the_original_image(content):
    # The ground truth of an image twice enlarged, as a detector would give it, is perfect again.
    images = annotations.parse(content).images
    ids = [category['id'] for category in content['categories']]
    results = []
    for image in images:
        number = len(image.boxes)
        found = Detections(
            2 * image.boxes,
            np.full(number, 0.9),
            image.categories,
            np.ones((number, 28, 28)),
            np.ones(number, bool),
        )
        padded = Detections(*[np.concatenate([a, np.zeros_like(a[:1])]) for a in found])
        results += as_results(padded, image, ids, scale=2.0)
    assert len(results) == len(content['annotations'])
    assert average_precision(content, results, 'bbox').all == pytest.approx(1)
    assert 0 < average_precision(content, results, 'segm').all < 1  # Boxes are no masks.


def test_invalid_arguments_are_named(content):
    with pytest.raises(ValueError, match="kind: got 'mask', wanted one of segm, bbox"):
        average_precision(content, [], 'mask')
    with pytest.raises(ValueError, match='results: got image_id -1'):
        average_precision(content, [result(1, 2, 0.5) | {'image_id': -1}], 'bbox')
    with pytest.raises(ValueError, match='content: got no object'):
        average_precision(one_image() | {'annotations': []}, [], lvis=False)
