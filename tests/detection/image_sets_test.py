"""Annotated images as rows of batches: scaled, mirrored, padded, read by worker processes."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from balms_jax.data.decoding import CorruptImageError
from balms_jax.data.streamed import Stream
from balms_jax.detection import annotations, scenes
from balms_jax.detection.image_sets import ImageSet, PixelArrays, View, locate
from balms_jax.detection.repeat_factors import epochs_of_repeats
from balms_jax.detection.steps import Batch

VIEW = View((64, 128), (48, 64), mirrored=0.5, most_objects=5, mask_size=28)


@pytest.fixture(scope='module')
def images():
    drawn = list(scenes.scenes(0, np.ones(36, int)))
    known = annotations.parse(annotations.as_lvis(drawn, scenes.CATEGORIES))
    return ImageSet(known, PixelArrays([scene.image for scene in drawn]), VIEW)


def seen(row):
    """Where the pixels of each object lie in the padded image, by its box and mask."""
    masks = []
    for box, mask in zip(row.objects.frames, row.objects.masks, strict=True):
        x0, y0, x1, y1 = np.round(box).astype(int)
        whole = np.zeros(row.images.shape[:2], bool)
        if x1 > x0:
            size = (x1 - x0, y1 - y0)
            whole[y0:y1, x0:x1] = np.asarray(Image.fromarray(mask).resize(size)) > 0.5
        masks.append(whole)
    return np.stack(masks)


def test_a_mirrored_row_shows_the_mirrored_objects(images):
    # Pixels, boxes and masks must move together, or every second image teaches wrong places.
    always = dataclasses.replace(images, view=dataclasses.replace(VIEW, mirrored=1.0))
    never = dataclasses.replace(images, view=dataclasses.replace(VIEW, mirrored=0.0))
    for place in range(4):
        row, other = (each.row(place, np.random.default_rng(place)) for each in (never, always))
        width = int(row.sizes[1])
        np.testing.assert_array_equal(other.images[:, :width], row.images[:, :width][:, ::-1])
        np.testing.assert_array_equal(other.images[:, width:], 0)
        overlap = (seen(other)[:, :, :width] & seen(row)[:, :, :width][:, :, ::-1]).sum()
        assert overlap > 0.95 * seen(row).sum()


def test_mirroring_twice_gives_the_row_back(images):
    from balms_jax.detection.padding import mirrored

    row = dataclasses.replace(images, view=dataclasses.replace(VIEW, mirrored=0.0)).row(
        0, np.random.default_rng(0)
    )
    width = float(row.sizes[1])
    again = mirrored(mirrored(row, width), width)
    jax.tree.map(np.testing.assert_array_equal, again, row)


def test_every_scale_is_drawn_and_boxes_follow_it(images):
    rows = [images.row(0, np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(row.sizes) for row in rows} == {(48.0, 48.0), (64.0, 64.0)}
    for row in rows:
        widths = row.objects.boxes[:, 2] - row.objects.boxes[:, 0]
        original = images.annotations.images[0].boxes
        expected = (original[:, 2] - original[:, 0]) * row.sizes[1] / 64
        np.testing.assert_allclose(widths[: len(original)], expected, rtol=1e-5)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_stream_gives_the_rows_that_the_seed_and_the_step_tell(images, workers):
    # Whatever the number of processes, and wherever it begins.
    draws = epochs_of_repeats(3, np.ones(len(images)), 4)
    expected = images.decoder(7)
    with Stream(images, draws, seed=7, workers=workers, step=2) as stream:
        for step in (2, 3):
            batch = next(stream)
            assert isinstance(batch.images, Batch)
            for position, example in enumerate(draws(step)):
                row, _, _ = expected.read(step, position, int(example))
                jax.tree.map(
                    lambda leaves, leaf, at=position: np.testing.assert_array_equal(
                        leaves[at], leaf
                    ),
                    batch.images,
                    row,
                )


def test_an_image_of_another_size_than_annotated_is_corrupt(images):
    # Its boxes would be of other places.
    first = images.annotations.images[0]
    wrong = dataclasses.replace(first, width=63)
    known = dataclasses.replace(images.annotations, images=(wrong,))
    broken = dataclasses.replace(images, annotations=known)
    with pytest.raises(
        CorruptImageError, match=r'0\.png: ValueError: .*64 × 63 that are annotated'
    ):
        broken[0:1]


def test_images_are_found_by_either_of_cocos_names(tmp_path):
    # LVIS v0.5 tells those of 2014, people have the folders of 2017.
    listed = {
        'images': [
            {'id': k, 'file_name': f'COCO_val2014_{k:012}.jpg', 'height': 4, 'width': 4}
            for k in (1, 2)
        ],
        'annotations': [],
        'categories': [],
    }
    known = annotations.parse(listed)
    blank = Image.new('RGB', (4, 4))
    blank.save(tmp_path / 'COCO_val2014_000000000001.jpg')
    blank.save(tmp_path / '000000000002.jpg')
    _, files = locate(known, tmp_path)
    assert [path.rsplit('/', 1)[-1] for path in files.paths] == [
        'COCO_val2014_000000000001.jpg',
        '000000000002.jpg',
    ]


def test_absent_images_are_told(tmp_path):
    known = annotations.parse(
        {
            'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 4, 'width': 4}],
            'annotations': [],
            'categories': [],
        }
    )
    with pytest.raises(FileNotFoundError, match=r'a\.jpg: is not there, as 1 of 1 images'):
        locate(known, tmp_path)
    with pytest.raises(ValueError, match='holds none of the 1 images'):
        locate(known, tmp_path, missing='skip')
    with pytest.raises(ValueError, match="missing: got 'ignore'"):
        locate(known, tmp_path, missing='ignore')
