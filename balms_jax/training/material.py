"""The data of a run: a source, the long tail cut out of it, and the meta set."""

from dataclasses import dataclass

import numpy as np

from balms_jax.data import long_tail, sources
from balms_jax.training.recipe import Data, Recipe


@dataclass(frozen=True)
class Material:
    """The data of a run."""

    source: sources.Source
    class_counts: tuple[int, ...]
    train_images: np.ndarray  # sorted by class
    meta_images: np.ndarray  # of the same counts, sorted by class; often the training images
    fingerprint: str


def load_material(recipe: Recipe) -> Material:
    """Loads the data set and cuts the long tail out of it.

    Raises:
        DataNotFoundError: if the data set is not there.
        ValueError: if it does not hold the long tail asked for.
    """
    data = recipe.data
    source = sources.load(data.name, data.data_dir or None, data.download)
    held = np.bincount(source.train_labels, minlength=source.num_classes)
    if data.head_count:
        counts = long_tail.profile(
            data.profile, data.head_count, source.num_classes, data.imbalance_factor
        )
    else:
        counts = _largest_filled(data, held)

    def subset(seed: int) -> np.ndarray:
        indices = long_tail.long_tailed_subset(
            source.train_labels, counts, seed, source.class_names
        )
        return source.train_images[indices]

    train_images = subset(data.seed)
    redraws = any(stage.meta.source == 'redraw' for stage in recipe.stages.values())
    meta_images = subset(data.seed + 1) if redraws else train_images
    return Material(
        source,
        tuple(int(n) for n in counts),
        train_images,
        meta_images,
        sources.fingerprint(train_images, counts, source.test_images, source.test_labels),
    )


def _largest_filled(data: Data, held: np.ndarray) -> np.ndarray:
    """The counts of the largest long tail that a pool, whose classes may differ, can fill."""
    for head in range(int(held.max()), 0, -1):
        counts = long_tail.profile(data.profile, head, held.size, data.imbalance_factor)
        if np.all(counts <= held):
            return counts
    raise ValueError('data.head_count: no long tail of this profile fits the data set')
