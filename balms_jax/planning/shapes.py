"""What a run consists of, as shapes alone: no image is decoded and no parameter is drawn."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from balms_jax.data import long_tail
from balms_jax.data.sources import Source
from balms_jax.models import Network
from balms_jax.training import learners, material, mesh, recipe, stage_states
from balms_jax.training.material import Material
from balms_jax.training.recipe import ConfigError, Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any


class Shape(NamedTuple):
    """A data set from outside."""

    image: tuple[int, int, int]  # height, width, channels; uint8
    classes: int
    head: int  # images of the largest class of its long tail, where a config names none
    factor: float = 1.0  # n_max / n_min of a published list, whose counts a Pareto profile is near


SHAPES = {
    'digits': Shape((8, 8, 1), 10, 128),
    'cifar10': Shape((32, 32, 3), 10, 5000),
    'cifar100': Shape((32, 32, 3), 100, 500),
    'imagenet_lt': Shape((224, 224, 3), 1000, 1280, 256.0),
    'places_lt': Shape((224, 224, 3), 365, 4980, 996.0),
    'inaturalist18': Shape((224, 224, 3), 8142, 1000, 500.0),
}


def empty_material(data: recipe.Data, of_meta_set: str) -> Material:
    """The data of a run without its examples: their shape, and how many each class has.

    Args:
        data: the config's data block; its name is one of :data:`SHAPES`.
        of_meta_set: where the meta set comes from, as :func:`material.meta_source` says.

    Returns:
        Material whose arrays hold no example.

    Raises:
        ConfigError: if there is no such data set.

    Example:
        >>> held = empty_material(recipe.Data('cifar10', imbalance_factor=100.0), 'train')
        >>> held.train_images.shape, held.class_counts[:3]
        ((0, 32, 32, 3), (5000, 2997, 1796))
    """
    if data.name not in SHAPES:
        raise ConfigError(f'data.name: got {data.name!r}, wanted one of {", ".join(SHAPES)}')
    shape = SHAPES[data.name]
    profile, factor, image = data.profile, data.imbalance_factor, shape.image
    if data.profile == 'given':
        profile, factor, image = 'pareto', shape.factor, (data.files.size, data.files.size, 3)
    counts = long_tail.profile(profile, data.head_count or shape.head, shape.classes, factor)
    apart = np.zeros_like(counts)
    if data.held_out:
        is_apart = long_tail.held_out(counts, data.held_out, data.seed)
        places = np.repeat(np.arange(counts.size), counts)
        apart = np.bincount(places[is_apart], minlength=counts.size)
    kept = counts - apart
    meta = {'train': kept, 'redraw': counts, 'held_out': apart}[of_meta_set]
    images, labels = np.empty((0, *image), np.uint8), np.empty(0, np.int32)
    channels = image[-1]
    names = tuple(str(j) for j in range(shape.classes))
    source = Source(
        data.name, images, labels, images, labels, names, (0.5,) * channels, (0.25,) * channels
    )

    def whole(counts: np.ndarray) -> tuple[int, ...]:
        return tuple(counts.tolist())

    return Material(source, whole(kept), images, whole(meta), images, whole(apart), images, '')


class Whole(NamedTuple):
    """A recipe with all that its steps are made of."""

    recipe: Recipe
    material: Material
    network: Network


def whole(recipe: Recipe) -> Whole:
    """Builds the network of a recipe, for its data's shape."""
    if recipe.data.name in SHAPES:
        data = empty_material(recipe.data, material.meta_source(recipe))
    else:
        data = material.load_material(_streamed(recipe))  # Of files: they are listed, not decoded.
    return Whole(recipe, data, stage_states.build_network(recipe, data))


def _streamed(recipe: Recipe) -> Recipe:
    files = dataclasses.replace(recipe.data.files, streamed=True)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, files=files))


def first_state(of: Whole, name: str, stage: Stage) -> TrainState:
    """The shapes of the state that a stage starts from.

    Args:
        of: the run.
        name: of the stage.
        stage: its settings, which may differ from the run's.

    Returns:
        A state of ``jax.ShapeDtypeStruct``.
    """
    current: TrainState | None = None
    for each, settings in of.recipe.stages.items():
        used = stage if each == name else settings
        rebalancer = learners.make_rebalancer(used.meta, of.material.class_counts)

        def first(
            key: jax.Array, earlier: TrainState | None, used: Stage = used, r: Any = rebalancer
        ) -> TrainState:
            return stage_states.first_state(of.network, used, key, of.material, earlier, r)

        current = jax.eval_shape(first, jax.random.key(0), current)
        if each == name:
            break
    assert current is not None
    return current


def bytes_of_device(devices: Mesh, state: PyTree) -> int:
    """The bytes of one device's part of a state, or of a part of it.

    Example:
        >>> devices = mesh.data_mesh(2, class_shards=2)
        >>> whole = jax.ShapeDtypeStruct((3, 4), np.float32)
        >>> bytes_of_device(devices, {'backbone': whole, 'classifier': whole})
        72
    """

    def of_leaf(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, state, mesh.of_state(devices, state))))


def placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """A tree of shapes where they lie: each by its own sharding, or all by one."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
