"""Test images that are kept with what is found in them, for the page."""

from pathlib import Path
from typing import Any

import numpy as np

from balms_jax.detection.inference import Detections
from balms_jax.detection.padding import padded_objects
from balms_jax.detection_training.material import Material

PICTURES = 'pictures.npz'
TRUE_MASK_SIZE = 56  # rows and columns of a true object's mask


def keep_pictures(file: Path, material: Material, pictures: list[tuple[int, Detections]]) -> None:
    """Keeps the first test images, what is found in them and what is there, for the page."""
    if not pictures:
        return
    places, found = zip(*pictures, strict=True)
    sizes, scales = material.test.sizes()
    annotated = [material.test.annotations.images[place] for place in places]
    most = max(len(image.boxes) for image in annotated)
    there = [
        padded_objects(image, most, TRUE_MASK_SIZE, float(scales[place]))
        for place, image in zip(places, annotated, strict=True)
    ]
    arrays: dict[str, Any] = {
        'images': np.concatenate([material.test[place : place + 1] for place in places]),
        'sizes': sizes[list(places)],
        'scales': scales[list(places)],
        'places': np.array(places),
        **{name: np.stack([getattr(each, name) for each in found]) for name in Detections._fields},
        **{
            f'true_{name}': np.stack([getattr(each, name) for each in there])
            for name in ('boxes', 'categories', 'masks', 'frames', 'where')
        },
    }
    for name in ('masks', 'true_masks'):
        arrays[name] = np.round(255 * arrays[name]).astype(np.uint8)
    np.savez_compressed(file, **arrays)
