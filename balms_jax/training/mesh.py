"""Where arrays live: the batch is cut over the devices of all processes, and classes if asked."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from balms_jax.models import Network

PyTree = Any


def data_mesh(devices: int = 0, class_shards: int = 1) -> Mesh:
    """The mesh of the first so many devices, all if 0.

    Args:
        devices: how many.
        class_shards: how many of them share the classes of one classifier.

    Returns:
        A mesh of axes ``data``, which the batch is cut over, and ``model``, which classes are.

    Raises:
        ValueError: if there are fewer, some are left out and there are several processes, or they
            cannot be shared out.
    """
    available = jax.devices()
    if devices > len(available):
        raise ValueError(f'devices: got {devices}, wanted at most the {len(available)} present')
    if 0 < devices < len(available) and jax.process_count() > 1:
        raise ValueError(
            f'devices: got {devices}, wanted 0 or all {len(available)} of several processes'
        )
    chosen = available[: devices or len(available)]
    if class_shards < 1 or len(chosen) % class_shards:
        raise ValueError(
            f'class_shards: got {class_shards}, wanted a divisor of the {len(chosen)} devices'
        )
    # Auto: with Explicit axes, indexing and bincount of sharded labels are refused.
    return jax.make_mesh(
        (len(chosen) // class_shards, class_shards),
        ('data', 'model'),
        axis_types=(AxisType.Auto,) * 2,
        devices=chosen,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The leading axis, the batch's, is cut over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def placed_by_example(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """Gives the function that cuts a batch over the devices within a compiled step."""
    return lambda batch: jax.lax.with_sharding_constraint(batch, by_example(mesh))


def dealt_out(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """Gives the function that deals a batch's arrays out to the devices like cards.

    A draw is often sorted by class. Cut as it is, a device's share would hold few of the classes.

    Args:
        mesh: of the devices, G along ``data``.

    Returns:
        arrays ``[batch, ...]`` → the same, the g-th share made of every G-th example from the g-th.

    Example:
        >>> print(dealt_out(data_mesh(1))(jnp.arange(4)))
        [0 1 2 3]
    """
    devices = mesh.shape['data']

    def dealt(leaf: jax.Array) -> jax.Array:
        rounds = leaf.reshape(-1, devices, *leaf.shape[1:])
        return jnp.swapaxes(rounds, 0, 1).reshape(leaf.shape)

    return lambda batch: jax.tree.map(dealt, batch)


def normalised_by_device(mesh: Mesh, network: Network) -> Network:
    r"""The network whose batch norm sees each device's share of a batch by itself.

    Of G devices along ``data``, whose share has the statistics :math:`\mu_g, \sigma^2_g`,

    .. math:: y_b = \gamma \frac{x_b - \mu_{g(b)}}{\sqrt{\sigma^2_{g(b)} + \epsilon}} + \beta,
        \qquad \hat\mu \leftarrow m \hat\mu + (1 - m) \frac1G \sum_g \mu_g

    and the running variance likewise. In training no device waits for another within the network;
    at test, and without batch norm, nothing changes.

    Args:
        mesh: of the devices; those of the axis ``model`` share one share of the batch.
        network: its functions.

    Returns:
        The same functions, but for ``features`` in training. It takes images
        ``[batch, height, width, channels]`` whose batch is a multiple of the devices.
    """
    cut, whole = PartitionSpec('data'), PartitionSpec()

    def of_share(params: PyTree, batch_stats: PyTree, images: jax.Array) -> tuple:
        features, batch_stats = network.features(params, batch_stats, images, True)
        return features, jax.lax.pmean(batch_stats, 'data')

    apart = jax.shard_map(of_share, mesh=mesh, in_specs=(whole, whole, cut), out_specs=(cut, whole))

    def features(
        params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if not (train and jax.tree.leaves(batch_stats)):
            return network.features(params, batch_stats, images, train)
        return apart(params, batch_stats, images)

    return network._replace(features=features)


def by_device(mesh: Mesh) -> Callable[..., Callable[..., Any]]:
    """Gives the twin of ``jax.vmap`` that keeps every device to its own examples.

    The compiler cuts most functions of a batch so by itself. Sorting it does not: ``top_k`` would
    gather the whole batch on every device. A batch that cannot be cut evenly is left to it.

    Args:
        mesh: of the devices.

    Returns:
        (function, ``in_axes``: a tuple of numbers and None, ``out_axes``: a number) → the function
        of a batch.

    Example:
        >>> largest = by_device(data_mesh(1))(jnp.max, in_axes=(0,))
        >>> print(largest(jnp.array([[1, 3], [5, 2]])))
        [3 5]
    """

    def cut(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, 'data')

    def mapped(
        function: Callable[..., Any], in_axes: tuple[int | None, ...], out_axes: int = 0
    ) -> Callable[..., Any]:
        whole = jax.vmap(function, in_axes, out_axes)
        apart = jax.shard_map(
            whole,
            mesh=mesh,
            in_specs=tuple(cut(axis) for axis in in_axes),
            out_specs=cut(out_axes),
            check_vma=False,  # Loops begin at constants, which are of no device.
        )

        def of_batch(*arguments: Any) -> Any:
            sizes = {
                leaf.shape[axis]
                for axis, argument in zip(in_axes, arguments, strict=True)
                if axis is not None
                for leaf in jax.tree.leaves(argument)
            }
            even = not any(size % mesh.shape['data'] for size in sizes)
            return (apart if even else whole)(*arguments)

        return of_batch

    return mapped


def by_class(mesh: Mesh, axes: int) -> NamedSharding:
    """The last of the axes, that of the classes, is cut over the devices that share them.

    The others are left to the compiler.
    """
    free = [PartitionSpec.UNCONSTRAINED] * (axes - 1)
    return NamedSharding(mesh, PartitionSpec(*free, 'model'))


def of_state(mesh: Mesh, state: PyTree) -> PyTree:
    """The sharding of every array of a state.

    A classifier's arrays, its optimizer's among them, are cut by class; all others are whole on
    every device.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        cut = mesh.shape['model'] > 1 and 'classifier' in jax.tree_util.keystr(path)
        axes = [None] * (leaf.ndim - 1)
        return NamedSharding(mesh, PartitionSpec(*axes, 'model')) if cut else replicated(mesh)

    return jax.tree.map_with_path(of_leaf, state)


def of(tree: PyTree) -> Mesh | None:
    """The mesh that arrays are laid out on; None: they are on no mesh."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            mesh = leaf.sharding.mesh
            return mesh if isinstance(mesh, Mesh) else None
    return None


def lay_out_rows(
    mesh: Mesh | None, shape: tuple[int, ...], rows: Callable[[slice], np.ndarray]
) -> jax.Array:
    """Cuts a batch over the devices; each process reads only its own rows.

    Args:
        mesh: of the devices; None: the default one alone.
        shape: of the whole batch.
        rows: gives those of a part of the batch.

    Returns:
        The batch; whole on every device where it cannot be cut evenly.
    """
    if mesh is None:
        return jnp.asarray(rows(slice(0, shape[0])))
    even = shape[0] % mesh.shape['data'] == 0
    sharding = by_example(mesh) if even else replicated(mesh)
    read = functools.cache(lambda start, stop: rows(slice(start, stop)))

    def of_device(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        return read(start, stop)

    return jax.make_array_from_callback(shape, sharding, of_device)


def of_features(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of features ``[..., examples, features]``: by example, where that is even."""
    if shape[-2] % mesh.shape['data']:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 2), 'data'))


def own_rows(mesh: Mesh, size: int) -> slice:
    """The rows of a batch, cut over the devices, that this process holds.

    Raises:
        ValueError: if they are not consecutive.
    """
    held = by_example(mesh).addressable_devices_indices_map((size,)).values()
    parts = sorted({index[0].indices(size)[:2] for index in held if index is not None})
    if any(before[1] != after[0] for before, after in itertools.pairwise(parts)):
        raise ValueError(f'mesh: got rows {parts} in one process, wanted consecutive ones')
    return slice(parts[0][0], parts[-1][1])


def gathered(tree: PyTree) -> PyTree:
    """Arrays of any layout on a mesh, on the host of every process."""
    mesh = of(tree)
    if mesh is not None and jax.process_count() > 1:
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def lay_out(mesh: Mesh, tree: PyTree, shardings: PyTree = None) -> PyTree:
    """Puts arrays, the same in every process, on the devices of the mesh.

    Args:
        mesh: of the devices.
        tree: arrays.
        shardings: of each; None: all are whole on every device.

    Returns:
        The arrays there.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        # Not device_put, which would gather the array of every process to compare them.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    if shardings is None:
        shardings = jax.tree.map(lambda _: replicated(mesh), tree)
    return jax.tree.map(put, tree, shardings)
