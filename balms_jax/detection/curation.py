"""Which images and objects is a detector trained on, of all that are annotated?"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from balms_jax.detection.annotations import AnnotatedImage, Annotations

LEAST_SIDE = 1e-3  # of a box, in pixels
LEAST_POLYGON = 6  # numbers: three corners


class Dropped(NamedTuple):
    """What is left out of training."""

    empty_boxes: int
    """Objects whose box has no area."""
    crowded_out: int
    """Objects beyond the number that a padded image holds: its smallest ones."""
    degenerate_polygons: int
    """Polygons of fewer than three corners. Without another the mask is the box."""
    images: int
    """Without an object that is left, or with crowds alone."""


def curated(annotations: Annotations, most_objects: int) -> tuple[Annotations, Dropped]:
    """Leaves out what a detector cannot be trained on.

    Crowds stay: what overlaps them is neither foreground nor background.

    Args:
        annotations: as they were read.
        most_objects: of an image, at least 1.

    Returns:
        The others, and what was left out. How frequent categories are stays as it was told.

    Raises:
        ValueError: if no image is left, or ``most_objects`` is below 1.

    Example:
        >>> image = AnnotatedImage(1, 'a.jpg', 8, 8, np.float32([[2, 2, 6, 4], [3, 3, 3, 5]]),
        ...     np.int32([0, 0]), np.zeros(2, bool), ([[2, 2, 6, 2, 6, 4]], None))
        >>> kept, dropped = curated(Annotations((), (image,)), most_objects=5)
        >>> len(kept.images[0].boxes), dropped.empty_boxes
        (1, 1)
    """
    if most_objects < 1:
        raise ValueError(f'most_objects: got {most_objects}, wanted at least 1')
    images: list[AnnotatedImage] = []
    dropped = Dropped(0, 0, 0, 0)
    for image in annotations.images:
        found, of_image = _of_image(image, most_objects)
        has_object = bool((~found.crowd).any())
        images += [found] if has_object else []
        counts = of_image._replace(images=int(not has_object))
        dropped = Dropped(*(a + b for a, b in zip(dropped, counts, strict=True)))
    if not images:
        raise ValueError('annotations: got no object to be found in any image, wanted some')
    return dataclasses.replace(annotations, images=tuple(images)), dropped


def _of_image(image: AnnotatedImage, most_objects: int) -> tuple[AnnotatedImage, Dropped]:
    sides = image.boxes[:, 2:] - image.boxes[:, :2]
    whole = np.flatnonzero((sides > LEAST_SIDE).all(1))
    largest_first = whole[np.argsort(-sides[whole].prod(1), kind='stable')]
    kept = np.sort(largest_first[:most_objects])
    polygons = [_whole_polygons(image.segmentations[k]) for k in kept]
    found = dataclasses.replace(
        image,
        boxes=image.boxes[kept],
        categories=image.categories[kept],
        crowd=image.crowd[kept],
        segmentations=tuple(segmentation for segmentation, _ in polygons),
    )
    degenerate = sum(number for _, number in polygons)
    return found, Dropped(len(sides) - len(whole), len(whole) - len(kept), degenerate, 0)


def _whole_polygons(segmentation: Any) -> tuple[Any, int]:
    """A segmentation without its degenerate polygons, and their number."""
    if not isinstance(segmentation, list):
        return segmentation, 0
    whole = [polygon for polygon in segmentation if len(polygon) >= LEAST_POLYGON]
    return whole or None, len(segmentation) - len(whole)
