"""What a run is made of: a source, the long tail cut out of it, the meta set, first weights."""

import dataclasses
import os
from dataclasses import dataclass, field

import numpy as np

from balms_jax.data import image_files, list_files, long_tail, sources, tfds_records
from balms_jax.data.decoding import CentreCrop, RandomResizedCrop
from balms_jax.data.image_files import Images, subset
from balms_jax.data.list_files import ImageList
from balms_jax.models import weights as weight_files
from balms_jax.training.recipe import SOURCES, ConfigError, Data, Recipe


@dataclass(frozen=True)
class Material:
    """The data of a run."""

    source: sources.Source
    class_counts: tuple[int, ...]  # of the training images
    train_images: Images  # sorted by class
    meta_counts: tuple[int, ...]
    meta_images: Images  # sorted by class; often the training images
    held_out_counts: tuple[int, ...]
    held_out_images: Images  # sorted by class; often none
    fingerprint: str
    weights: weight_files.Weights | None = None  # that the network starts from
    weights_fingerprint: str = ''
    missing_images: dict[str, int] = field(default_factory=dict)
    """How many listed files of the training and of the test set are not there; of files alone."""


def load_material(recipe: Recipe) -> Material:
    """Loads the data set, cuts the long tail out of it, and loads the weights to start from.

    Raises:
        DataNotFoundError: if the data set is not there.
        ListFileError, FileNotFoundError: if lists of image files are not as they should be.
        CorruptImageError: if image files that are read at once are not either.
        ConfigError: if they do not fit into memory.
        ValueError: if it does not hold the long tail asked for.
        WeightsError: if there is no file of weights where the recipe says.
    """
    first = weight_files.load(recipe.model.weights) if recipe.model.weights else None
    data = recipe.data
    source, missing = _load_source(data)
    held = np.bincount(source.train_labels, minlength=source.num_classes)
    if data.profile == 'given':
        counts = held
    elif data.head_count:
        counts = long_tail.profile(
            data.profile, data.head_count, source.num_classes, data.imbalance_factor
        )
    else:
        counts = _largest_filled(data, held)

    chosen = long_tail.long_tailed_subset(
        source.train_labels, counts, data.seed, source.class_names
    )
    images = subset(source.train_images, chosen)
    apart, is_apart = np.zeros_like(counts), np.zeros(len(images), bool)
    if data.held_out:
        is_apart = long_tail.held_out(counts, data.held_out, data.seed)
        apart = np.bincount(np.repeat(np.arange(counts.size), counts)[is_apart])
    kept = counts - apart
    train = (subset(images, np.flatnonzero(~is_apart)), kept)
    held_out = (subset(images, np.flatnonzero(is_apart)), apart)

    def redraw() -> tuple[Images, np.ndarray]:
        """A second subset of the pool, but for what is held out, as large as that allows."""
        pool = np.setdiff1d(np.arange(source.train_labels.size), chosen[is_apart])
        labels = source.train_labels[pool]
        left = np.minimum(counts, np.bincount(labels, minlength=counts.size))
        again = long_tail.long_tailed_subset(labels, left, data.seed + 1, source.class_names)
        return subset(source.train_images, pool[again]), left

    meta = {
        'train': lambda: train,
        'redraw': redraw,
        'held_out': lambda: held_out,
    }[meta_source(recipe)]()
    shown = image_files.identity
    return Material(
        source=source,
        class_counts=_whole(kept),
        train_images=train[0],
        meta_counts=_whole(meta[1]),
        meta_images=meta[0],
        held_out_counts=_whole(apart),
        held_out_images=held_out[0],
        fingerprint=sources.fingerprint(
            shown(train[0]), kept, shown(source.test_images), source.test_labels
        ),
        weights=first,
        weights_fingerprint=weight_files.fingerprint(first) if first else '',
        missing_images=missing,
    )


def meta_source(recipe: Recipe) -> str:
    """Where the meta set of a run comes from."""
    wanted = {s.meta.source for s in recipe.stages.values() if s.meta.rebalancer != 'none'}
    if len(wanted) > 1:
        raise ValueError(f'meta.source: got {sorted(wanted)} in one run, wanted one of them')
    return wanted.pop() if wanted else 'train'


def _load_source(data: Data) -> tuple[sources.Source, dict[str, int]]:
    """The source, and how many of its files are not there, by part."""
    if data.name in SOURCES:
        return sources.load(data.name, data.data_dir or None, data.download), {}
    files = data.files
    train, test = (_listed(where, data) for where in (files.train, files.test))
    source = sources.of_files(
        data.name,
        train,
        test,
        crop=CentreCrop(files.size, files.resize),
        varied=RandomResizedCrop(files.size) if files.crop == 'random_resized' else None,
        corrupt=files.corrupt,
        threads=max(1, files.workers),
    )
    missing = {'train': len(train.missing), 'test': len(test.missing)}
    return source if files.streamed else _in_memory(source), missing


def _listed(where: str, data: Data) -> ImageList:
    """The images of a list, a folder, or ``tfds:NAME:SPLIT``."""
    root = data.data_dir or os.curdir
    kind, _, rest = where.partition(':')
    if kind == 'tfds':
        name, _, split = rest.partition(':')
        return tfds_records.read_tfds(name, split, root)
    return list_files.read(where, root, data.files.prefixes, data.files.missing)


def _in_memory(source: sources.Source) -> sources.Source:
    """The source with its images decoded."""
    parts = (source.train_images, source.test_images)
    needed = sum(int(np.prod(images.shape)) for images in parts)
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if needed > memory / 3:  # The long tail is a copy, and the device may be this very memory.
        raise ConfigError(
            f'data.files.streamed: got False for images of {needed / 1e9:.1f} GB, which do not '
            f'fit well into the {memory / 1e9:.1f} GB of memory: wanted True'
        )
    train, test = (np.asarray(images[:]) for images in parts)
    return dataclasses.replace(source, train_images=train, test_images=test)


def _whole(counts: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in counts)


def _largest_filled(data: Data, held: np.ndarray) -> np.ndarray:
    """The counts of the largest long tail that a pool, whose classes may differ, can fill."""
    for head in range(int(held.max()), 0, -1):
        counts = long_tail.profile(data.profile, head, held.size, data.imbalance_factor)
        if np.all(counts <= held):
            return counts
    raise ValueError('data.head_count: no long tail of this profile fits the data set')
