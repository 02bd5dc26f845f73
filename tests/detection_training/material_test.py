"""What a detector's run is made of: drawn scenes, or files of LVIS and COCO."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from balms_jax.detection import annotations, scenes
from balms_jax.detection_training.material import load_material
from balms_jax.detection_training.recipe import Data, Recipe


@pytest.fixture
def folder(tmp_path):
    """Twelve scenes as image files with LVIS's annotations, the same ones to train and test on."""
    drawn = list(scenes.scenes(0, np.ones(36, int), side=48))
    content = annotations.as_lvis(drawn, scenes.CATEGORIES)
    (tmp_path / 'images').mkdir()
    for k, scene in enumerate(drawn):
        Image.fromarray(scene.image).save(tmp_path / 'images' / f'{k}.png')
    (tmp_path / 'all.json').write_text(json.dumps(content))
    return tmp_path


def of_files(folder, **changes):
    data = Data(
        name='shapes',
        data_dir=str(folder),
        train='all.json',
        test='all.json',
        train_images='images',
        test_images='images',
        height=64,
        width=64,
        shortest=(64,),
        shortest_at_test=64,
    )
    return Recipe(data=dataclasses.replace(data, **changes))


def test_files_give_the_images_with_their_objects(folder):
    material = load_material(of_files(folder))
    known = annotations.read(folder / 'all.json')
    assert len(material.train) == len(material.test) == len(known.images)
    np.testing.assert_array_equal(material.fractions, known.image_fractions())
    # At test every image is there, enlarged to fill the padded shape.
    assert material.test[:2].shape == (2, 64, 64, 3)
    sizes, scales = material.test.sizes()
    assert (sizes == 64).all()
    assert np.allclose(scales, 64 / 48)


def test_a_test_set_is_told_how_frequent_categories_are_in_training(folder):
    # A balanced test set would else call every category rare, and AP_f would be of none.
    content = json.loads((folder / 'all.json').read_text())
    for category in content['categories']:
        category['frequency'] = 'f'
    (folder / 'train.json').write_text(json.dumps(content))
    material = load_material(of_files(folder, train='train.json'))
    assert {category['frequency'] for category in material.test_content['categories']} == {'f'}


def test_missing_images_are_an_error_or_are_left_out_of_the_ground_truth(folder):
    # An image that is not there cannot be searched: its objects must not count as missed.
    (folder / 'images' / '3.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'3\.png: is not there, as 1 of \d+ images'):
        load_material(of_files(folder))
    material = load_material(of_files(folder, missing='skip'))
    names = {image['file_name'] for image in material.test_content['images']}
    assert '3.png' not in names
    assert len(names) == len(material.test)
    kept = {image['id'] for image in material.test_content['images']}
    assert {a['image_id'] for a in material.test_content['annotations']} <= kept


def test_images_without_objects_are_tested_on_but_not_trained_on(folder):
    # They hold nothing to learn a category from; at test they show false alarms.
    content = json.loads((folder / 'all.json').read_text())
    first = content['images'][0]['id']
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != first]
    (folder / 'all.json').write_text(json.dumps(content))
    material = load_material(of_files(folder))
    assert material.dropped.images == 1
    assert len(material.train) == len(material.test) - 1
    # The pixels are still those of their annotations.
    kept = material.train.annotations.images[0].file_name
    with Image.open(folder / 'images' / kept) as image:
        np.testing.assert_array_equal(material.train.pixels(0), np.asarray(image))


def test_other_categories_at_test_are_refused(folder):
    content = json.loads((folder / 'all.json').read_text())
    content['categories'] = content['categories'][1:]
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 1]
    (folder / 'test.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'data\.test: got categories 2, 3, .*wanted those of'):
        load_material(of_files(folder, test='test.json'))


def test_the_fingerprint_tells_annotations_apart_and_not_folders(folder, tmp_path):
    # A run goes on where its data moved to, and not on other data.
    before = load_material(of_files(folder)).fingerprint
    (folder / 'images').rename(folder / 'moved')
    moved = of_files(folder, train_images='moved', test_images='moved')
    assert load_material(moved).fingerprint == before
    content = json.loads((folder / 'all.json').read_text())
    content['annotations'][0]['bbox'][2] -= 1
    (folder / 'all.json').write_text(json.dumps(content))
    assert load_material(moved).fingerprint != before


def test_a_threshold_of_zero_draws_all_images_alike(smallest):
    recipe = smallest()
    rare = dataclasses.replace(recipe.data, repeat_threshold=0.5)
    assert load_material(dataclasses.replace(recipe, data=rare)).factors.max() > 1
    alike = dataclasses.replace(recipe.data, repeat_threshold=0.0)
    assert set(load_material(dataclasses.replace(recipe, data=alike)).factors) == {1.0}
