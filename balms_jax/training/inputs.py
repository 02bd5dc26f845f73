"""What a network takes: images read, augmented and normalised, or features of a frozen backbone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from balms_jax.data import augment, resident, sources
from balms_jax.data.image_files import ImageFiles, Images
from balms_jax.models import Network
from balms_jax.training import mesh
from balms_jax.training.batches import Inputs, over_batches
from balms_jax.training.checkpoints import Checkpoints
from balms_jax.training.draws import Streamed
from balms_jax.training.material import Material
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any


class StageInputs(NamedTuple):
    """The data of a stage, sorted by class where they are for training, and how a step reads.

    Features to train on are ``[views, examples, features]``.
    """

    train: Inputs
    meta: Inputs
    test: Inputs
    probe: Inputs  # the training examples once, as at test
    read: Callable[[Any, jax.Array, jax.Array], jax.Array]


def stage_inputs(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    network: Network,
    current: TrainState,
    *,
    cached: bool,
    kept: Checkpoints | None = None,
) -> StageInputs:
    """Images, or features of the frozen backbone extracted once.

    Args:
        recipe: of the run.
        stage: that takes them.
        material: the data.
        network: whose features they are.
        current: the state that the stage starts from.
        cached: whether they are features.
        kept: where those are kept, if they are there already or are to be; None: nowhere.

    Returns:
        Whole on the host of every process.
    """
    source, train_images = material.source, material.train_images
    if not cached:
        read = _image_reader(recipe, source)
        return StageInputs(
            train_images, material.meta_images, source.test_images, train_images, read
        )

    if kept is None:
        found = _features(recipe, stage, material, network, current)
    else:
        devices = mesh.of(current.params)
        assert devices is not None, 'current: is on no mesh'
        if kept.latest_step is None:
            found = _features(recipe, stage, material, network, current)
            cut = {name: mesh.of_features(devices, array.shape) for name, array in found.items()}
            kept.save_arrays(0, mesh.lay_out(devices, found, cut))
            kept.wait()
        else:
            like = _features_like(stage, material, network, current, devices)
            found = mesh.gathered(kept.restore_arrays(like))
    train, test = found['train'], found['test']
    return StageInputs(train, found.get('meta', train), test, train[0], resident.read_features)


def _features(
    recipe: Recipe, stage: Stage, material: Material, network: Network, current: TrainState
) -> dict[str, np.ndarray]:
    """The views of the training and meta set, ``[views, examples, features]``, and the test set."""
    of_images = feature_extractor(network, current, recipe, material.source)

    def features(images: Images, views: int) -> np.ndarray:
        if not views:
            return of_images(images)
        return np.stack([of_images(images, view) for view in range(views)])

    return {name: features(*part) for name, part in _parts(stage, material).items()}


def _features_like(
    stage: Stage, material: Material, network: Network, current: TrainState, devices: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of :func:`_features`, cut over the devices."""
    backbone, stats = current.params['backbone'], current.batch_stats
    image = jnp.zeros((1, *material.train_images.shape[1:]))
    one = jax.eval_shape(lambda: network.features(backbone, stats, image, False)[0])

    def like(images: Images, views: int) -> jax.ShapeDtypeStruct:
        shape = (*([views] if views else []), len(images), one.shape[1])
        sharding = mesh.of_features(devices, shape)
        return jax.ShapeDtypeStruct(shape, one.dtype, sharding=sharding)

    return {name: like(*part) for name, part in _parts(stage, material).items()}


def _parts(stage: Stage, material: Material) -> dict[str, tuple[Images, int]]:
    """The images whose features a stage takes, and in how many views; 0: once, as at test."""
    parts = {
        'train': (material.train_images, stage.views),
        'test': (material.source.test_images, 0),
    }
    if material.meta_images is not material.train_images:
        parts['meta'] = (material.meta_images, stage.views)
    return parts


def normalised(inputs: jax.Array, source: sources.Source) -> jax.Array:
    """Images as the network takes them; features as they are."""
    if inputs.dtype != jnp.uint8:
        return inputs
    return augment.normalise(inputs, np.asarray(source.mean), np.asarray(source.std))


def _image_reader(recipe: Recipe, source: sources.Source) -> Callable[..., jax.Array]:
    augment_images = resident.augmentation(recipe.data.augmentation)

    def read(given: jax.Array | Streamed, examples: jax.Array, key: jax.Array) -> jax.Array:
        images = given.inputs if isinstance(given, Streamed) else given[examples]
        return normalised(augment_images(key, images), source)

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
    def plain(backbone: PyTree, batch_stats: PyTree, images: jax.Array) -> jax.Array:
        return network.features(backbone, batch_stats, normalised(images, source), False)[0]

    @jax.jit
    def augmented(
        backbone: PyTree, batch_stats: PyTree, images: jax.Array, key: jax.Array
    ) -> jax.Array:
        inputs = read(images, jnp.arange(images.shape[0]), key)
        return network.features(backbone, batch_stats, inputs, False)[0]

    def features(images: Images, view: int = 0) -> np.ndarray:
        def of_batch(batch: jax.Array, start: int) -> jax.Array:
            if not view:
                return plain(backbone, batch_stats, batch)
            key = jax.random.fold_in(jax.random.fold_in(seed, view), start)
            return augmented(backbone, batch_stats, batch, key)

        def read_view(places: slice) -> np.ndarray:
            return images.view(places, view) if isinstance(images, ImageFiles) else images[places]

        return np.asarray(over_batches(of_batch, images, mesh.of(backbone), read_view))

    return features
