"""What a detector's run is made of: annotated images, how often each is drawn, first weights."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balms_jax.data import sources
from balms_jax.detection import annotations, repeat_factors, scenes
from balms_jax.detection.annotations import Annotations, Category
from balms_jax.detection.curation import Dropped, curated
from balms_jax.detection.image_sets import ImageSet, PixelArrays, Pixels, View, locate
from balms_jax.detection_training.recipe import Data, Recipe
from balms_jax.models.weights import WeightsError


@dataclass(frozen=True)
class Material:
    """The data of a run."""

    categories: tuple[Category, ...]
    """As frequent as they are in training."""
    train: ImageSet
    dropped: Dropped
    """What is left out of the training set."""
    test: ImageSet
    test_content: dict[str, Any]
    """What the test set's file holds, of the images that are there."""
    fractions: NDArray[np.float32]
    """f, the part of the training images that holds each category, ``[categories]``"""
    object_counts: NDArray[np.int64]
    """Training objects of each category, ``[categories]``"""
    factors: NDArray[np.float64]
    """How often each training image is drawn, ``[images]``"""
    meta_factors: NDArray[np.float64]
    """The same in the meta set, ``[images]``"""
    fingerprint: str
    weights_fingerprint: str = ''
    """Of the file that the detector starts from, if any."""


def load_material(recipe: Recipe) -> Material:
    """Draws the scenes, or reads the annotations and finds the images.

    Raises:
        ConfigError: if a drawn scene cannot have so few pixels.
        FileNotFoundError: if a file of annotations or an image is not there.
        ValueError: if a file is not of LVIS or COCO, the test set has other categories, or no image
            is left to train on.
    """
    data = recipe.data
    if data.name == 'scenes':
        train_content, train_pixels = _drawn(data, test=False)
        test_content, test_pixels = _drawn(data, test=True)
        train_known = annotations.parse(train_content)
    else:
        train_content, test_content = (_loaded(data, key) for key in ('train', 'test'))
        train_known, train_pixels = _located(data, data.train, train_content, data.train_images)
        test_known, test_pixels = _located(data, data.test, test_content, data.test_images)
        test_content = _of_images(test_content, test_known)
    listed = [category.id for category in train_known.categories]
    of_test = sorted(category['id'] for category in test_content['categories'])
    if of_test != listed:
        raise ValueError(
            f'data.test: got categories {_some(of_test)}, wanted those of data.train: '
            f'{_some(listed)}'
        )
    # How frequent a category is, the training set says.
    test_content = test_content | {
        'categories': [dataclasses.asdict(category) for category in train_known.categories]
    }
    kept, dropped = curated(train_known, data.most_objects)
    shape = (data.height, data.width)
    view = View(shape, data.shortest, data.mirrored, data.most_objects, data.mask_size)
    fractions = kept.image_fractions()
    held = [image.categories for image in kept.images]
    factors = np.ones(len(held))
    if data.repeat_threshold:
        factors = repeat_factors.repeat_factors(held, fractions, data.repeat_threshold)
    return Material(
        train_known.categories,
        ImageSet(kept, _chosen(train_pixels, train_known, kept), view, data.corrupt),
        dropped,
        ImageSet(
            annotations.parse(test_content), test_pixels, View(shape, (data.shortest_at_test,))
        ),
        test_content,
        fractions,
        kept.instance_counts(),
        factors,
        repeat_factors.meta_repeat_factors(held, fractions),
        sources.fingerprint(_identity(train_content), _identity(test_content)),
        _of_file(recipe.detector.weights) if recipe.detector.weights else '',
    )


def _loaded(data: Data, key: str) -> dict[str, Any]:
    path = Path(data.data_dir) / getattr(data, key)
    try:
        return annotations.load(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'data.{key}: {path} is not there, wanted a JSON file of LVIS or COCO in data.data_dir '
            f'({data.data_dir or "not given"})'
        ) from None


def _drawn(data: Data, *, test: bool) -> tuple[dict[str, Any], Pixels]:
    """Scenes in the format of LVIS; those of the test set have as many of each category."""
    counts = scenes.long_tailed_counts(data.head_count, data.imbalance_factor)
    if test:
        counts = np.full_like(counts, data.test_count)
    side = min(data.height, data.width)
    drawn = list(scenes.scenes(2 * data.seed + test, counts, side))
    content = annotations.as_lvis(drawn, scenes.CATEGORIES)
    return content, PixelArrays([scene.image for scene in drawn])


def _located(
    data: Data, file: str, content: dict[str, Any], folder: str
) -> tuple[Annotations, Pixels]:
    try:
        known = annotations.parse(content)
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from None
    return locate(known, Path(data.data_dir) / folder, data.missing)


def _of_images(content: dict[str, Any], known: Annotations) -> dict[str, Any]:
    """What a file holds of some of its images alone."""
    kept = {image.id for image in known.images}
    return content | {
        'images': [image for image in content['images'] if image['id'] in kept],
        'annotations': [a for a in content['annotations'] if a['image_id'] in kept],
    }


def _chosen(pixels: Pixels, known: Annotations, kept: Annotations) -> Pixels:
    """The pixels of the images that were kept."""
    place = {image.id: place for place, image in enumerate(known.images)}
    return ChosenPixels(pixels, tuple(place[image.id] for image in kept.images))


@dataclass(frozen=True, eq=False)
class ChosenPixels:
    """Some of the images, by their places among all."""

    pixels: Pixels
    places: tuple[int, ...]

    def __call__(self, place: int) -> NDArray[np.uint8]:
        """Reads one."""
        return self.pixels(self.places[place])


def _identity(content: dict[str, Any]) -> NDArray[np.generic]:
    """What tells annotated images apart from others; pixels are known by their names."""
    told = json.dumps(
        [
            sorted((i['id'], i['height'], i['width']) for i in content['images']),
            sorted((a['image_id'], a['category_id'], a['bbox']) for a in content['annotations']),
        ]
    )
    return np.frombuffer(told.encode(), np.uint8)


def _of_file(path: str) -> str:
    try:
        return sources.fingerprint(np.frombuffer(Path(path).read_bytes(), np.uint8))
    except OSError as error:
        raise WeightsError(f'detector.weights: {error}') from error


def _some(ids: list[int]) -> str:
    shown = ', '.join(map(str, ids[:5]))
    return f'{shown} … ({len(ids)})' if len(ids) > 5 else shown
