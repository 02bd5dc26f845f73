"""Where arrays live: one mesh axis, ``data``, over the devices."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = object


def data_mesh(devices: int = 0) -> Mesh:
    """The mesh of the first so many devices, all if 0.

    Raises:
        ValueError: if there are fewer.
    """
    available = jax.devices()
    if devices > len(available):
        raise ValueError(f'devices: got {devices}, wanted at most the {len(available)} present')
    chosen = available[: devices or len(available)]
    # Auto: with Explicit axes, indexing and bincount of sharded labels are refused.
    return jax.make_mesh((len(chosen),), ('data',), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The leading axis, the batch's, is cut over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))
