"""Which devices a plan is for: a TPU topology that need not be there, or this machine's own."""

import importlib
import os
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from balms_jax import extras
from balms_jax.planning.chips import CHIPS, Chip

LOCAL = ('cpu', 'gpu')
# libtpu would ask the metadata server of a virtual machine, which is not there, and wait; and it
# would allow one process at a time, as if each held the TPU.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Target(NamedTuple):
    """Devices to compile for."""

    topology: str
    slices: int
    mesh: Mesh
    chip: Chip | None  # what each device has; None of devices whose figures are not in the table
    chips: int

    def sharing_classes(self, class_shards: int) -> 'Target':
        """The same devices, so many of which share the classes of one classifier each.

        Raises:
            ValueError: if they cannot be shared out.
        """
        if class_shards < 1 or self.mesh.size % class_shards:
            raise ValueError(
                f'class_shards: got {class_shards}, wanted a divisor of the {self.mesh.size} '
                f'devices of {self.topology}'
            )
        return self._replace(mesh=_mesh(list(self.mesh.devices.flat), class_shards))


def find(topology: str, slices: int = 1) -> Target:
    """Finds the devices of a topology.

    A TPU topology is only described: its compiler is in libtpu, and no TPU is needed. Of v4 it
    describes two devices a chip, one a core, where hardware joins them; each has half a chip.

    Args:
        topology: chip and shape, such as ``'v5e:4x4'``; or ``'cpu'`` or ``'gpu'``: this machine's.
        slices: how many of that shape, joined by the network.

    Returns:
        The target; its mesh is cut along ``data`` alone.

    Raises:
        ValueError: if there is no such topology.
        SystemExit: if libtpu is not installed.
    """
    if slices < 1:
        raise ValueError(f'slices: got {slices}, wanted at least 1')
    if topology in LOCAL:
        return _local(topology, slices)
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f'topology: got {topology!r}, wanted one of {", ".join(CHIPS)} with a shape, such as '
            f'v5e:4x4, or {" or ".join(LOCAL)}'
        )
    with extras.needed('plan', 'a plan for TPUs'):
        importlib.import_module('libtpu')
    os.environ.update({name: os.environ.get(name, v) for name, v in _ENVIRONMENT.items()})
    several = {'num_slices': slices} if slices > 1 else {}
    try:
        devices = topologies.get_topology_desc(
            platform='tpu', topology_name=topology, **several
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f'topology: got {topology!r}, wanted a shape that the compiler knows: {error}'
        ) from error
    chips = slices * int(np.prod([int(size) for size in match[2].split('x')]))
    chip = CHIPS[match[1]].share(len(devices) / chips)
    return Target(topology, slices, _mesh(devices), chip, chips)


def _local(platform: str, slices: int) -> Target:
    if slices > 1:
        raise ValueError(f'slices: got {slices} for {platform!r}, wanted 1')
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(f'topology: got {platform!r}, and there is none here: {error}') from error
    return Target(platform, 1, _mesh(devices), None, len(devices))


def _mesh(devices: list[jax.Device], class_shards: int = 1) -> Mesh:
    cut = np.asarray(devices).reshape(-1, class_shards)
    return Mesh(cut, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
