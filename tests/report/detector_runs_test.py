"""A detector's run directory is read as it stands, or refused with the file named."""

import json
import re

import numpy as np
import pytest

from balms_jax.detection.pasting import paste
from balms_jax.report import RunError
from balms_jax.report.detector_runs import read_detector_run
from balms_jax.report.runs import read_run


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_measures_are_those_of_masks_and_boxes_stand_apart(write_detector_run, tmp_path):
    # AP of masks is the field's headline; that of boxes is another number, not to be mixed up.
    folder = write_detector_run(tmp_path / 'run')
    content = json.loads((folder / 'evaluation.json').read_text())
    change(folder / 'evaluation.json', boxes=content['boxes'] | {'AP': 0.7})
    final = read_detector_run(folder).final
    assert (final['AP'], final['box_AP'], final['measured']) == (
        content['masks']['AP'],
        0.7,
        'masks',
    )
    assert final['of_categories'].tolist() == content['of_categories']['masks']
    boxes = read_detector_run(write_detector_run(tmp_path / 'boxes', has_masks=False))
    assert boxes.measured == 'boxes'
    assert boxes.final['AP'] == boxes.final['box_AP']


def test_a_group_without_category_or_object_is_lacking(write_detector_run, tmp_path):
    # No rare category; and one that the test set has no object of: neither is a precision of 0.
    run = read_detector_run(write_detector_run(tmp_path / 'none', image_counts=(400, 60, 30)))
    assert [run.lacks(field) for field in ('AP', 'AP_f', 'AP_c', 'AP_r')] == [0, 0, 0, 1]
    folder = write_detector_run(tmp_path / 'untested')
    content = json.loads((folder / 'evaluation.json').read_text())
    change(folder / 'evaluation.json', masks=content['masks'] | {'AP_f': None})
    assert read_detector_run(folder).lacks('AP_f')


def test_unfinished_run_has_what_was_last_measured(write_detector_run, tmp_path):
    run = read_detector_run(write_detector_run(tmp_path / 'run', finished=False, precision=0.2))
    assert not run.finished
    assert run.final['AP'] == pytest.approx(0.2)
    assert not run.lacks('AP_r'), 'it may still be measured'


def test_evaluations_during_training_end_in_the_final_one(write_detector_run, tmp_path):
    # A curve that ended before the table's number would contradict it.
    folder = write_detector_run(tmp_path / 'run')
    content = json.loads((folder / 'evaluation.json').read_text())
    lines = (folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (folder / 'metrics.jsonl').write_text(''.join(lines[:-1]))
    steps, values = read_detector_run(folder).series('evaluation', 'AP')
    assert steps.tolist() == [10, 20, 30, 40, 50, 60]
    assert values[-1] == content['masks']['AP']


def test_weights_are_the_last_recorded_until_the_final_ones(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run')
    np.testing.assert_allclose(read_detector_run(folder).final['weights'], 0.4)
    (folder / 'evaluation.json').unlink()
    # At step 20: 0.5 ± 0.2.
    np.testing.assert_allclose(read_detector_run(folder).final['weights'][[0, -1]], [0.3, 0.7])


def test_throughput_is_not_that_of_the_compilation(write_detector_run, tmp_path):
    # The first record of a stage holds the compilation: a mean of 24 would be nobody's speed.
    run = read_detector_run(write_detector_run(tmp_path / 'run'))
    assert run.throughput == {'stage_1': 30.0, 'stage_2': 900.0}


def test_pictures_hold_what_is_there_without_the_padding(write_detector_run, tmp_path):
    picture, _ = read_detector_run(write_detector_run(tmp_path / 'run')).pictures
    assert picture.pixels.shape == (24, 32, 3)
    assert [found.category for found in picture.found] == [1, 5]
    assert picture.there is not None
    (true,) = picture.there
    square = np.zeros((24, 32), bool)
    square[6:14, 4:12] = True
    # A frame is told by the edges of pixels, a detection's box by their centres.
    for each in (true, picture.found[0]):
        np.testing.assert_array_equal(paste(each.mask, each.frame, square.shape), square)


def test_pictures_without_truth_can_be_read(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run')
    with np.load(folder / 'pictures.npz') as content:
        arrays = {name: content[name] for name in content.files if 'true' not in name}
    np.savez_compressed(folder / 'pictures.npz', **arrays)
    assert [picture.there for picture in read_detector_run(folder).pictures] == [None, None]


@pytest.mark.parametrize(
    ('file', 'text', 'complaint'),
    [
        ('run.json', {'image_counts': None}, r'image_counts: got None, wanted list'),
        ('run.json', {'image_counts': [0] * 6}, r'image_counts: wanted whole numbers'),
        ('run.json', {'object_counts': [1]}, r'object_counts: wanted 6 whole numbers'),
        ('run.json', {'frequencies': ['x'] * 6}, r'frequencies: wanted one of f, c, r'),
        ('run.json', {'category_names': ['a']}, r'category_names: wanted 6 names'),
        ('evaluation.json', '{}', r"lacks 'boxes'"),
        ('evaluation.json', {'masks': {'AP': 0.1}}, r"masks: lacks 'AP_f'"),
        ('evaluation.json', {'masks': {'AP': 'a'}}, r'masks: AP: wanted a number'),
        ('evaluation.json', {'gradient_weights': [1]}, r'gradient_weights: got shape \[1\]'),
        ('evaluation.json', {'of_categories': {'masks': [1]}}, r'of_categories: masks: got shape'),
        ('throughput.jsonl', '{"images_per_second": "a"}\n', r'line 1: images_per_second: wanted'),
        ('metrics.jsonl', '{"kind": \n', r'line 1: broken JSON'),
        ('pictures.npz', 'no archive', r'cannot be read'),
    ],
)
def test_broken_run_is_refused_with_its_file_named(
    write_detector_run, tmp_path, file, text, complaint
):
    folder = write_detector_run(tmp_path / 'run')
    if isinstance(text, dict):
        change(folder / file, **text)
    else:
        (folder / file).write_text(text)
    with pytest.raises(RunError, match=f'{re.escape(str(folder / file))}.*{complaint}'):
        read_detector_run(folder)


def test_pictures_of_other_categories_are_refused(write_detector_run, tmp_path):
    # An index beyond the names would end in an error without a file.
    folder = write_detector_run(tmp_path / 'run')
    with np.load(folder / 'pictures.npz') as content:
        arrays = dict(content)
    arrays['true_categories'] = arrays['true_categories'] + 6
    np.savez_compressed(folder / 'pictures.npz', **arrays)
    with pytest.raises(RunError, match='true_categories: wanted indices below 6'):
        read_detector_run(folder)


def test_runs_of_the_other_kind_are_told_apart(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run')
    change(folder / 'run.json', class_counts=[1, 2])
    with pytest.raises(RunError, match='run of a detector, wanted that of a classifier'):
        read_run(folder)
    change(folder / 'run.json', kind='classifier')
    with pytest.raises(RunError, match='run of a classifier, wanted that of a detector'):
        read_detector_run(folder)
