"""Annotations of LVIS (v0.5 and v1) and COCO: read, and written of scenes."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balms_jax.detection import run_lengths
from balms_jax.detection.scenes import Scene

FREQUENCIES = ('r', 'c', 'f')  # rare, common, frequent
RARE, COMMON = 10, 100  # Images of a category: up to 10 rare, up to 100 common, above frequent.


@dataclasses.dataclass(frozen=True)
class Category:
    """A category, and how frequent it is in training."""

    id: int
    name: str
    image_count: int
    """Images that hold it."""
    instance_count: int
    frequency: str
    """One of ``FREQUENCIES``."""


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image's annotations."""

    id: int
    file_name: str
    """As the file of annotations has it, or its address's end: ``val2017/000000000139.jpg``"""
    height: int
    width: int
    boxes: NDArray[np.float32]
    """x₀, y₀, x₁, y₁ in pixels, ``[objects, 4]``"""
    categories: NDArray[np.int32]
    """The index among the data set's categories, not its id there, ``[objects]``"""
    crowd: NDArray[np.bool_]
    """Which are crowds, ``[objects]``"""
    segmentations: tuple[Any, ...]
    """Polygons, or run lengths, as in the file; None where an object has a box alone."""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The categories of a data set, in the order of their ids, and its images."""

    categories: tuple[Category, ...]
    images: tuple[AnnotatedImage, ...]

    def image_fractions(self) -> NDArray[np.float32]:
        """The part of the images that holds each category, ``[categories]``, in 0..1."""
        holds = [np.unique(image.categories) for image in self.images]
        counts = np.bincount(np.concatenate(holds), minlength=len(self.categories))
        return (counts / len(self.images)).astype(np.float32)

    def instance_counts(self) -> NDArray[np.int64]:
        """The objects of each category, ``[categories]``."""
        every = np.concatenate([image.categories for image in self.images])
        return np.bincount(every, minlength=len(self.categories))


def frequency(image_count: int, rare: int = RARE, common: int = COMMON) -> str:
    """Whether a category is rare, common or frequent.

    Args:
        image_count: training images that hold it.
        rare: up to as many it is rare.
        common: up to as many it is common.

    Returns:
        ``'r'``, ``'c'`` or ``'f'``.

    Example:
        >>> [frequency(count) for count in (10, 11, 100, 101)]
        ['r', 'c', 'c', 'f']

    References:
        Gupta et al., LVIS (arXiv 1908.03195), §4.
    """
    return 'r' if image_count <= rare else 'c' if image_count <= common else 'f'


def read(path: Path | str) -> Annotations:
    """Reads a file of annotations.

    Args:
        path: of the JSON file.

    Returns:
        The annotations. Where the file does not say how frequent categories are, as COCO's do not,
        it is counted.

    Raises:
        ValueError: if it is no such file, or an annotation is of no image or category of it.
        OSError: if it cannot be read.
    """
    content = load(path)
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def load(path: Path | str) -> dict[str, Any]:
    """What a file of annotations holds, as it stands there.

    Args:
        path: of the JSON file.

    Returns:
        Its images, annotations and categories, as dictionaries.

    Raises:
        ValueError: if it is no such file.
        OSError: if it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path}: wanted a JSON file of LVIS or COCO ({error})') from None
    missing = {'images', 'annotations', 'categories'} - set(content)
    if missing:
        raise ValueError(f'{path}: got no {", ".join(sorted(missing))}, wanted LVIS or COCO')
    return content


def parse(content: dict[str, Any]) -> Annotations:
    """Annotations from what such a file holds.

    Args:
        content: with images, annotations and categories.

    Returns:
        The annotations.

    Raises:
        ValueError: if an annotation is of no image or category of it.

    Example:
        >>> found = parse({
        ...     'images': [{'id': 7, 'file_name': 'a.jpg', 'height': 4, 'width': 6}],
        ...     'categories': [{'id': 3, 'name': 'cup'}],
        ...     'annotations': [{'image_id': 7, 'category_id': 3, 'bbox': [1, 1, 2, 3]}]})
        >>> found.images[0].boxes.tolist(), found.categories[0].frequency
        ([[1.0, 1.0, 3.0, 4.0]], 'r')
    """
    listed = sorted(content['categories'], key=lambda category: category['id'])
    indices = {category['id']: index for index, category in enumerate(listed)}
    of_image: dict[int, list[dict[str, Any]]] = {image['id']: [] for image in content['images']}
    for annotation in content['annotations']:
        for key, known in (('image_id', of_image), ('category_id', indices)):
            if annotation[key] not in known:
                raise ValueError(f'annotations: got {key} {annotation[key]}, which is not listed')
        of_image[annotation['image_id']].append(annotation)
    images = tuple(_image(image, of_image[image['id']], indices) for image in content['images'])
    image_counts = np.zeros(len(listed), int)
    instance_counts = np.zeros(len(listed), int)
    for image in images:
        image_counts[np.unique(image.categories)] += 1
        np.add.at(instance_counts, image.categories, 1)
    categories = []
    for category, in_images, instances in zip(listed, image_counts, instance_counts, strict=True):
        in_images = category.get('image_count', int(in_images))
        categories.append(
            Category(
                category['id'],
                category['name'],
                in_images,
                category.get('instance_count', int(instances)),
                category.get('frequency', frequency(in_images)),
            )
        )
    return Annotations(tuple(categories), images)


def as_lvis(
    drawn: Iterable[Scene], names: Sequence[str], rare: int = RARE, common: int = COMMON
) -> dict[str, Any]:
    """Scenes in the format of LVIS v1, every category annotated exhaustively.

    Args:
        drawn: scenes.
        names: of the categories.
        rare: images up to which a category is rare.
        common: images up to which it is common.

    Returns:
        What its JSON file would hold. Image k is called ``k.png``; category j has the id j + 1.

    Example:
        >>> from balms_jax.detection import scenes
        >>> content = as_lvis(scenes.scenes(0, np.ones(36, int)), scenes.CATEGORIES)
        >>> len(content['annotations']), content['categories'][0]['name']
        (36, 'red disc')
        >>> parse(content).instance_counts().tolist() == [1] * 36
        True
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    every = range(1, len(names) + 1)
    for scene in drawn:
        present = set((scene.categories + 1).tolist())
        image_id, (height, width) = len(images) + 1, scene.image.shape[:2]
        images.append(
            {
                'id': image_id,
                'file_name': f'{len(images)}.png',
                'height': height,
                'width': width,
                'neg_category_ids': [category for category in every if category not in present],
                'not_exhaustive_category_ids': [],
            }
        )
        for category, pixels, box in zip(scene.categories, scene.masks, scene.boxes, strict=True):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(category) + 1,
                    'bbox': [x0, y0, x1 - x0, y1 - y0],
                    'area': int(pixels.sum()),
                    'segmentation': run_lengths.encode(pixels),
                }
            )
    counted = parse(
        {
            'images': images,
            'annotations': annotations,
            'categories': [{'id': j, 'name': name} for j, name in zip(every, names, strict=True)],
        }
    )
    categories = [
        dataclasses.asdict(category) | {'frequency': frequency(category.image_count, rare, common)}
        for category in counted.categories
    ]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def _image(
    image: dict[str, Any], annotations: list[dict[str, Any]], indices: dict[int, int]
) -> AnnotatedImage:
    corners = np.array([a['bbox'] for a in annotations], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return AnnotatedImage(
        image['id'],
        _file_name(image),
        image['height'],
        image['width'],
        corners,
        np.array([indices[a['category_id']] for a in annotations], np.int32),
        np.array([bool(a.get('iscrowd', 0)) for a in annotations], bool),
        tuple(a.get('segmentation') or None for a in annotations),
    )


def _file_name(image: dict[str, Any]) -> str:
    """Of LVIS v1, which tells addresses alone, with the folder: it mixes those of COCO."""
    told = image.get('file_name')
    return str(told) if told else '/'.join(str(image['coco_url']).split('/')[-2:])
