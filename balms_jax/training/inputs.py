"""What a network takes: images read, augmented and normalised, or features of a frozen backbone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.data import augment, resident, sources
from balms_jax.models import Network
from balms_jax.training.material import Material
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any
FEATURE_BATCH = 500


class StageInputs(NamedTuple):
    """The arrays of a stage, sorted by class where they are for training, and how a step reads."""

    train: np.ndarray
    meta: np.ndarray
    test: np.ndarray
    probe: np.ndarray  # the training examples once, as at test
    read: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def stage_inputs(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    network: Network,
    current: TrainState,
    *,
    cached: bool,
) -> StageInputs:
    """Images, or features of the frozen backbone extracted once."""
    source, train_images = material.source, material.train_images
    if not cached:
        read = _image_reader(recipe, source)
        return StageInputs(
            train_images, material.meta_images, source.test_images, train_images, read
        )

    features = feature_extractor(network, current, recipe, source)

    def views(images: np.ndarray) -> np.ndarray:
        return np.stack([features(images, view) for view in range(stage.views)])

    train = meta = views(train_images)
    if material.meta_images is not train_images:
        meta = views(material.meta_images)
    test = features(source.test_images)
    return StageInputs(train, meta, test, train[0], resident.read_features)


def normalised(inputs: jax.Array, source: sources.Source) -> jax.Array:
    """Images as the network takes them; features as they are."""
    if inputs.dtype != jnp.uint8:
        return inputs
    return augment.normalise(inputs, np.asarray(source.mean), np.asarray(source.std))


def _image_reader(recipe: Recipe, source: sources.Source) -> Callable[..., jax.Array]:
    augment_images = resident.augmentation(recipe.data.augmentation)

    def read(inputs: jax.Array, examples: jax.Array, key: jax.Array) -> jax.Array:
        return normalised(augment_images(key, inputs[examples]), source)

    return read


def feature_extractor(
    network: Network, current: TrainState, recipe: Recipe, source: sources.Source
) -> Callable[..., np.ndarray]:
    """Gives (images, view = 0) → features of the frozen backbone, ``[examples, features]``.

    View 0 is the plain image, the others are augmented.
    """
    backbone, batch_stats = current.params['backbone'], current.batch_stats
    read = _image_reader(recipe, source)
    seed = jax.random.fold_in(jax.random.key(recipe.seed), 2**20)  # No stage folds in as much.

    @jax.jit
    def plain(images: jax.Array) -> jax.Array:
        return network.features(backbone, batch_stats, normalised(images, source), False)[0]

    @jax.jit
    def augmented(images: jax.Array, key: jax.Array) -> jax.Array:
        inputs = read(images, jnp.arange(images.shape[0]), key)
        return network.features(backbone, batch_stats, inputs, False)[0]

    def features(images: np.ndarray, view: int = 0) -> np.ndarray:
        def of_batch(batch: np.ndarray, start: int) -> jax.Array:
            if not view:
                return plain(batch)
            return augmented(batch, jax.random.fold_in(jax.random.fold_in(seed, view), start))

        return np.asarray(over_batches(of_batch, images))

    return features


def over_batches(of_batch: Callable[[np.ndarray, int], PyTree], images: np.ndarray) -> PyTree:
    """Puts together what a compiled function gives for equal batches; the last one is padded.

    Args:
        of_batch: (images ``[FEATURE_BATCH, ...]``, the place of the first) → arrays
            ``[FEATURE_BATCH, ...]``.
        images: ``[examples, ...]``.

    Returns:
        Arrays ``[examples, ...]``.
    """
    parts = []
    for start in range(0, len(images), FEATURE_BATCH):
        batch = images[start : start + FEATURE_BATCH]
        padding = [(0, FEATURE_BATCH - len(batch))] + [(0, 0)] * (images.ndim - 1)
        outputs, real = of_batch(np.pad(batch, padding), start), len(batch)
        parts.append(jax.tree.map(lambda leaf, n=real: np.asarray(leaf)[:n], outputs))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
