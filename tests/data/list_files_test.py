"""A list file gives the files it names, sorted by class, or says what is wrong and where."""

import json

import numpy as np
import pytest

from balms_jax.data.list_files import (
    ListFileError,
    read_folders,
    read_inaturalist_json,
    read_list_file,
)


def lay_out(root, paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write_list(root, *lines):
    file = root / 'list.txt'
    file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return file


def test_examples_are_sorted_by_class_and_keep_their_order_within(tmp_path):
    # Draws are places in data sorted by class; a stable order makes ids the same everywhere.
    lay_out(tmp_path, ['t/z.JPEG', 't/y.JPEG', 't/with space.JPEG'])
    file = write_list(tmp_path, 't/z.JPEG 2', 't/with space.JPEG 0', '', 't/y.JPEG 2')
    images = read_list_file(file, tmp_path)
    assert images.paths == tuple(
        str(tmp_path / 't' / name) for name in ('with space.JPEG', 'z.JPEG', 'y.JPEG')
    )
    np.testing.assert_array_equal(images.labels, [0, 2, 2])
    np.testing.assert_array_equal(images.class_counts, [1, 0, 2])
    assert images.class_names == ('0', '1', '2')
    assert images.missing == ()


def test_a_prefix_is_replaced_once_and_only_at_the_beginning(tmp_path):
    # The published lists name folders that most machines lay out differently.
    lay_out(tmp_path, ['here/old/a.jpg', 'val/b.jpg'])
    file = write_list(tmp_path, 'old/old/a.jpg 0', 'val/b.jpg 1')
    images = read_list_file(file, tmp_path, prefixes={'old/': 'here/', 'here/': 'nowhere/'})
    assert images.paths == (str(tmp_path / 'here/old/a.jpg'), str(tmp_path / 'val/b.jpg'))


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (['a.jpg 0', 'b.jpg'], 'line 2: .*wanted "relative/path label"'),
        (['a.jpg -1'], 'line 1: label -1 is negative'),
        (['a.jpg 1.5'], "line 1: label '1.5' is no integer"),
        (['a.jpg 1_0'], "line 1: label '1_0' is no integer"),
        (['a.jpg 0', 'b.jpg 0', 'a.jpg 1'], 'line 3: a.jpg came before, in line 1'),
        (['a.jpg 2'], 'line 1: label 2, wanted 0 to 1'),
        ([], 'lists no image'),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path, lines, message):
    # A list of half a million lines is only mended if the line is named.
    lay_out(tmp_path, ['a.jpg', 'b.jpg'])
    with pytest.raises(ListFileError, match=message):
        read_list_file(write_list(tmp_path, *lines), tmp_path, class_names=('cat', 'dog'))


def test_missing_images_are_counted_and_named(tmp_path):
    # A wrong root must not end in an empty or smaller data set that nobody notices.
    lay_out(tmp_path, ['a.jpg'])
    file = write_list(tmp_path, 'a.jpg 0', 'gone/b.jpg 1', 'c.jpg 1')
    with pytest.raises(FileNotFoundError, match=r'2 of 3 images are not there.*b\.jpg.*c\.jpg'):
        read_list_file(file, tmp_path)


def test_skipped_images_are_reported_by_class(tmp_path):
    # The class counts, and so the prior, are those of what is left.
    lay_out(tmp_path, ['a.jpg'])
    file = write_list(tmp_path, 'a.jpg 0', 'gone/b.jpg 1', 'c.jpg 1')
    with pytest.warns(UserWarning, match=r'by class: 1: 2\); they are left out'):
        images = read_list_file(file, tmp_path, missing='skip')
    np.testing.assert_array_equal(images.class_counts, [1, 0])
    np.testing.assert_array_equal(images.missing_counts, [0, 2])
    assert images.missing == (str(tmp_path / 'gone/b.jpg'), str(tmp_path / 'c.jpg'))


def test_nothing_left_is_an_error_under_either_policy(tmp_path):
    # Skipping everything is a wrong root.
    file = write_list(tmp_path, 'a.jpg 0')
    with pytest.raises(FileNotFoundError, match='1 of 1'):
        read_list_file(file, tmp_path, missing='skip')


def test_an_unknown_policy_is_refused(tmp_path):
    # A misspelt policy must not act as another.
    lay_out(tmp_path, ['a.jpg'])
    with pytest.raises(ValueError, match='missing: got'):
        read_list_file(write_list(tmp_path, 'a.jpg 0'), tmp_path, missing='ignore')


def test_folders_are_classes_in_alphabetical_order(tmp_path):
    # The convention by which other libraries number the same folders.
    lay_out(
        tmp_path, ['n02/b.JPEG', 'n02/images/a.png', 'n01/c.jpg', 'n01/notes.txt', 'readme.txt']
    )
    images = read_folders(tmp_path)
    assert images.class_names == ('n01', 'n02')
    np.testing.assert_array_equal(images.labels, [0, 1, 1])
    with pytest.raises(ListFileError, match='lists no image'):
        read_folders(tmp_path, extensions=('.gif',))


def inaturalist(**changes):
    content = {
        'images': [{'id': 7, 'file_name': 'b.jpg'}, {'id': 3, 'file_name': 'a.jpg'}],
        'annotations': [
            {'image_id': 3, 'category_id': 0},
            {'image_id': 7, 'category_id': 1},
        ],
        'categories': [{'id': 1, 'name': 'moth'}, {'id': 0, 'name': 'oak'}],
    }
    return json.dumps(content | changes)


def test_inaturalist_json_joins_images_and_annotations_by_id(tmp_path):
    # The two lists come in different orders.
    lay_out(tmp_path, ['a.jpg', 'b.jpg'])
    (tmp_path / 'train.json').write_text(inaturalist())
    images = read_inaturalist_json(tmp_path / 'train.json', tmp_path)
    assert images.paths == (str(tmp_path / 'a.jpg'), str(tmp_path / 'b.jpg'))
    assert images.class_names == ('oak', 'moth')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'annotations': [{'image_id': 3, 'category_id': 0}]}, 'exactly one annotation'),
        ({'annotations': [{'image_id': 3}]}, "KeyError 'category_id'"),
        ({'categories': [{'id': 1, 'name': 'moth'}]}, 'ids 0 to 0'),
        ({'categories': [{'id': 0, 'name': 'oak'}]}, 'image 7: label 1, wanted 0 to 0'),
    ],
)
def test_inaturalist_json_that_does_not_fit_is_refused(tmp_path, changes, message):
    # An image without a label, or a label without a class, would shift everything after it.
    lay_out(tmp_path, ['a.jpg', 'b.jpg'])
    (tmp_path / 'train.json').write_text(inaturalist(**changes))
    with pytest.raises(ListFileError, match=message):
        read_inaturalist_json(tmp_path / 'train.json', tmp_path)
