"""Several processes that train one run: their start, who writes, and where they meet.

Each process holds some of the devices; the mesh spans them all. Every process runs the same
program on the same arguments, so what one of them decides, all decide.
"""

import functools
import hashlib
import json
import os
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from balms_jax.training import mesh

HEARTBEAT_SECONDS = 100  # A process not heard of for so long is lost, and ends the others.


def start(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the processes of a run; before anything else asks for a device.

    Args:
        coordinator: HOST:PORT of the first process; None on Cloud TPU, SLURM, GKE and Open MPI,
            where all three are found.
        count: how many processes there are.
        index: which of them this one is, from 0.
        heartbeat_seconds: after which a silent process counts as lost.

    Raises:
        ValueError: if only some of the three are given, or the index is not below the count.
        RuntimeError: if the others do not come, or nothing tells who they are.
    """
    given = {'coordinator': coordinator, 'processes': count, 'process_id': index}
    absent = [name for name, value in given.items() if value is None]
    if 0 < len(absent) < len(given):
        raise ValueError(f'{", ".join(absent)}: got nothing, wanted all of {", ".join(given)}')
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f'process_id: got {index}, wanted 0 to {count - 1}')
    # A signal is met by our own agreement, at a step that has its checkpoint.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            coordinator, count, index, heartbeat_timeout_seconds=heartbeat_seconds
        )
    except ValueError as error:
        raise RuntimeError(
            'no cluster was found here (Cloud TPU, SLURM, GKE, Open MPI); wanted --coordinator, '
            f'--processes and --process_id ({error})'
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until all processes are here.

    Args:
        name: of the place, the same for all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def leave(exit_code: int) -> None:
    """Ends this process after a failure, without waiting for the others; nothing if it is alone.

    At the usual end the processes wait for each other, which a lost one would not let them.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def check_same(name: str, value: Any) -> None:
    """Refuses to begin where the processes were not given the same.

    Args:
        name: of what is compared.
        value: this process's; anything whose ``repr`` tells it.

    Raises:
        ValueError: in every process, if they differ.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
    different = np.any(multihost_utils.process_allgather(digest) != digest, axis=1)
    if different.any():
        others = ', '.join(map(str, np.flatnonzero(different)))
        raise ValueError(
            f'{name}: process {jax.process_index()} has another than process {others}, wanted the '
            'same in all'
        )


def total(counts: Counter[str]) -> Counter[str]:
    """The sum of what the processes counted; all wait for each other.

    Args:
        counts: this process's, by name.

    Returns:
        The same in all, by name in the order of the alphabet.
    """
    if jax.process_count() == 1:
        return Counter(dict(sorted(counts.items())))
    ours = json.dumps(counts).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(ours)))))
    padded = np.frombuffer(ours.ljust(longest), np.uint8)
    summed: Counter[str] = Counter()
    for row in multihost_utils.process_allgather(padded):
        summed.update(json.loads(np.asarray(row).tobytes()))
    return Counter(dict(sorted(summed.items())))


def largest(value: int) -> jax.Array:
    """The largest of the numbers that the processes give; dispatched, not waited for.

    Args:
        value: this process's; all give one, in the same order among all else they compute.

    Returns:
        ``[]``, int32, once it is there.
    """
    ours = np.full(jax.local_device_count(), value, np.int32)
    return _largest(jax.make_array_from_process_local_data(_everywhere(), ours))


@functools.cache  # Asked at every step; the devices stay those of the processes.
def _everywhere() -> jax.sharding.NamedSharding:
    return mesh.by_example(mesh.data_mesh())


_largest = jax.jit(jnp.max)
