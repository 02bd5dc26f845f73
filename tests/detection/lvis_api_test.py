"""The published evaluator of LVIS judges detections as ours does, where it is installed."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest

from balms_jax.detection import annotations, run_lengths, scenes
from balms_jax.detection.evaluation import average_precision

lvis = pytest.importorskip('lvis', reason='pip install lvis')


def incomplete(content, random):
    """As LVIS is: some categories are not known of an image, or not all of their objects."""
    for image in content['images']:
        negatives = image['neg_category_ids']
        image['neg_category_ids'] = random.choice(negatives, 6, replace=False).tolist()
        present = [a['category_id'] for a in content['annotations'] if a['image_id'] == image['id']]
        image['not_exhaustive_category_ids'] = present[:1] if random.random() < 0.3 else []
    return content


def guesses(content, random, side=64):
    """True masks that are moved and sometimes called otherwise, and masks of nothing."""
    results = []
    for annotation in content['annotations']:
        pixels = run_lengths.decode(annotation['segmentation'], side, side)
        for _ in range(random.integers(0, 3)):
            moved = np.roll(pixels, random.integers(-3, 4, 2), axis=(0, 1))
            category = annotation['category_id']
            if random.random() < 0.3:
                category = int(random.integers(1, 37))
            results.append(result(annotation['image_id'], category, moved, random))
    for _ in range(len(results) // 3):
        image = content['images'][random.integers(len(content['images']))]
        noise = np.zeros((side, side), bool)
        y, x = random.integers(0, side - 12, 2)
        noise[y : y + 12, x : x + 12] = True
        results.append(result(image['id'], int(random.integers(1, 37)), noise, random))
    return results


def result(image, category, pixels, random):
    box = scenes.boxes_of(pixels[None])[0]
    return {
        'image_id': image,
        'category_id': category,
        'segmentation': run_lengths.encode(pixels),
        'bbox': [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
        'score': float(random.random()),
    }


@pytest.mark.parametrize('kind', ['segm', 'bbox'])
@pytest.mark.filterwarnings('default')
def test_the_published_evaluator_finds_the_same(tmp_path, kind, monkeypatch):
    # AP over images with unknown categories and incomplete annotations has many rules.
    monkeypatch.setattr(np, 'float', float, raising=False)  # It is of a NumPy that had this name.
    random = np.random.default_rng(0)
    drawn = list(scenes.scenes(0, np.full(36, 4)))
    content = incomplete(annotations.as_lvis(drawn, scenes.CATEGORIES, rare=3, common=4), random)
    for annotation in content['annotations']:
        annotation.setdefault('iscrowd', 0)
    results = guesses(content, random)
    ours = average_precision(content, results, kind)
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = lvis.LVIS(str(tmp_path / 'truth.json'))
        theirs = lvis.LVISEval(truth, lvis.LVISResults(truth, results, max_dets=300), kind)
        theirs.run()
    logging.disable(logging.NOTSET)
    found = theirs.get_results()
    for name, value in {
        'AP': ours.all,
        'AP50': ours.at_50,
        'AP75': ours.at_75,
        'APr': ours.rare,
        'APc': ours.common,
    }.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
