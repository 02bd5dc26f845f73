"""What is each step of a detector's stage given: images of a stream, or regions that are kept?"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from balms_jax.data.streamed import Stream
from balms_jax.detection import region_sources, repeat_factors
from balms_jax.detection.steps import Batch
from balms_jax.detection_training import evaluation
from balms_jax.detection_training.evaluation import Compiled
from balms_jax.detection_training.material import Material
from balms_jax.detection_training.recipe import Recipe, Stage
from balms_jax.training import mesh
from balms_jax.training.state import TrainState

PyTree = Any


class Cached(NamedTuple):
    """Regions of all training images, and how often each image is drawn; on the host."""

    regions: region_sources.CachedRegions
    factors: np.ndarray
    meta_factors: np.ndarray


def cached_regions(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    devices: Mesh,
    functions: Compiled,
    state: TrainState,
) -> Cached:
    """Reads the regions of all training images once, in as many views as the stage says.

    Args:
        recipe: the recipe.
        stage: that trains the class layer alone.
        material: with the images.
        devices: the mesh that batches are cut over.
        functions: of the detector.
        state: whose network reads them.

    Returns:
        The regions, one view of all images after another.
    """
    still, places = evaluation.unvaried(material), np.arange(len(material.train))
    numbered: list[np.ndarray] = []

    def read(params: PyTree, batch_stats: PyTree, batch: Batch, keys: jax.Array) -> Any:
        found = mesh.gathered(functions.read(params, batch_stats, batch, keys[0]))
        return jax.tree.map(lambda array: array[None], found)

    def views() -> Iterator[Batch]:
        for view in range(stage.views):
            # The first view is as at test, the others as training sees the images.
            source = still if view == 0 else material
            for batch, real in evaluation.train_batches(
                source, places, stage.batch_size, devices, seed=2 * recipe.seed + view
            ):
                numbered.append(real)
                yield batch

    key = jax.random.fold_in(state.key, stage.steps)  # Of no step.
    regions = region_sources.cache(read, key, state.params, state.batch_stats, views())
    is_first = np.concatenate(numbered)
    shape = (stage.views, -1)

    def of_slots(factors: np.ndarray) -> np.ndarray:
        slots = is_first.reshape(shape)
        padded = np.zeros(slots.shape, np.float32)
        padded[slots] = np.tile(factors, stage.views)
        return padded.reshape(-1)

    return Cached(regions, of_slots(material.factors), of_slots(material.meta_factors))


def resident(cached: Cached, devices: Mesh) -> Callable[[TrainState], tuple[PyTree, PyTree]]:
    """What every step is given: the same regions, on every device.

    Args:
        cached: the regions.
        devices: the mesh.

    Returns:
        State → ((regions, factors), factors in the meta set).
    """
    regions, factors, meta_factors = mesh.lay_out(devices, cached)
    return lambda state: ((regions, factors), meta_factors)


@contextlib.contextmanager
def streams(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    devices: Mesh,
    first: int,
    skipped: Counter[str],
) -> Iterator[Callable[[TrainState], tuple[PyTree, PyTree]]]:
    """Opens the streams of images of a stage; what is drawn is a function of seed and step.

    Args:
        recipe: the recipe.
        stage: which of its stages.
        material: with the images.
        devices: the mesh that a batch is cut over.
        first: the step to begin or go on with.
        skipped: counts how often each corrupt image was replaced, by name.

    Yields:
        The function (the state before a step; every step's in turn) → what the step is given: a
        training batch and, with a rebalancer, a meta batch. It raises CorruptImageError for an
        image that cannot be read, where nothing may take its place.
    """
    with contextlib.ExitStack() as opened:

        def opened_stream(draws: Callable[[int], Any], size: int, seed: int) -> Stream:
            return opened.enter_context(
                Stream(
                    material.train,
                    draws,
                    step=first,
                    seed=seed,
                    workers=recipe.data.workers,
                    prefetch=recipe.data.prefetch,
                    rows=mesh.own_rows(devices, size),
                )
            )

        def batch(stream: Stream, size: int) -> Batch:
            read = next(stream)
            skipped.update(fault.path for fault in read.faults)
            sharding = mesh.by_example(devices)
            laid: Batch = jax.tree.map(
                lambda leaf: jax.make_array_from_process_local_data(
                    sharding, leaf, (size, *leaf.shape[1:])
                ),
                read.images,
            )
            return laid

        seed = 2 * (recipe.seed % 2**30)  # Two for each of the run's.
        size = stage.batch_size
        train = opened_stream(
            repeat_factors.epochs_of_repeats(seed, material.factors, size), size, seed
        )
        meta = None
        if stage.meta.rebalancer != 'none':
            meta_size = stage.meta.batch_size
            draws = repeat_factors.independent_draws(seed + 1, material.meta_factors, meta_size)
            meta = opened_stream(draws, meta_size, seed + 1)

        def given(state: TrainState) -> tuple[PyTree, PyTree]:
            del state
            meta_batch = () if meta is None else batch(meta, stage.meta.batch_size)
            return batch(train, size), meta_batch

        yield given
