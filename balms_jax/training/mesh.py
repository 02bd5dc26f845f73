"""Where arrays live: one mesh axis, ``data``, over the devices of all processes."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any


def data_mesh(devices: int = 0) -> Mesh:
    """The mesh of the first so many devices, all if 0.

    Raises:
        ValueError: if there are fewer, or some are left out and there are several processes.
    """
    available = jax.devices()
    if devices > len(available):
        raise ValueError(f'devices: got {devices}, wanted at most the {len(available)} present')
    if 0 < devices < len(available) and jax.process_count() > 1:
        raise ValueError(
            f'devices: got {devices}, wanted 0 or all {len(available)} of several processes'
        )
    chosen = available[: devices or len(available)]
    # Auto: with Explicit axes, indexing and bincount of sharded labels are refused.
    return jax.make_mesh((len(chosen),), ('data',), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The leading axis, the batch's, is cut over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Puts arrays, the same in every process, on every device of the mesh."""
    sharding = replicated(mesh)

    def on_all(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = on_all(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        # Not device_put, which would gather the array of every process to compare them.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(on_all, tree)
