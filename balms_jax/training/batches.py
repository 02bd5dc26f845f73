"""All examples once, batch by batch, cut over the devices; read while the last one is computed."""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from balms_jax.data.image_files import Images
from balms_jax.training import mesh

PyTree = Any


class Rows(Protocol):
    """Arrays that are made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array that they would be."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, places: slice) -> np.ndarray:
        """Makes those at some places."""


Inputs = Images | np.ndarray
"""What a network takes: images or features, ``[examples, ...]``."""
FEATURE_BATCH = 512  # A power of two, which most meshes cut evenly.


class Batch(NamedTuple):
    """A batch of equal size, whose last rows may be zeros."""

    start: int  # the place of its first example
    real: int  # how many rows are examples
    inputs: jax.Array  # [size, ...]


def batches(
    inputs: Inputs | Rows,
    size: int,
    devices: Mesh | None = None,
    read: Callable[[slice], np.ndarray] | None = None,
) -> Iterator[Batch]:
    """Gives all examples in order; the next batch is read while one is worked on.

    Args:
        inputs: images or features, ``[examples, ...]``; files are decoded, by every process its
            rows.
        size: of a batch.
        devices: the mesh it is cut over; None: the default device alone.
        read: gives the examples of some places; by default the inputs there.

    Yields:
        The batches.
    """
    count, row = len(inputs), tuple(inputs.shape[1:])
    read_rows = inputs.__getitem__ if read is None else read

    def at(start: int) -> Batch:
        real = min(size, count - start)

        def rows(part: slice) -> np.ndarray:
            wanted = part.stop - part.start
            there = read_rows(slice(start + part.start, min(start + part.stop, count)))
            padding = [(0, wanted - len(there))] + [(0, 0)] * len(row)
            return np.pad(there, padding)

        return Batch(start, real, mesh.lay_out_rows(devices, (size, *row), rows))

    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        coming = reader.submit(at, 0) if count else None
        for start in range(size, count + size, size):
            assert coming is not None
            batch = coming.result()
            if start < count:
                coming = reader.submit(at, start)
            yield batch


def over_batches(
    of_batch: Callable[[jax.Array, int], PyTree],
    inputs: Inputs,
    devices: Mesh | None = None,
    read: Callable[[slice], np.ndarray] | None = None,
) -> PyTree:
    """Puts together what a compiled function gives for equal batches.

    Args:
        of_batch: (inputs ``[FEATURE_BATCH, ...]``, the place of the first) → arrays
            ``[FEATURE_BATCH, ...]``.
        inputs: as of :func:`batches`, at least one.
        devices: as of :func:`batches`.
        read: as of :func:`batches`.

    Returns:
        Arrays ``[examples, ...]``, on the host of every process.
    """
    parts, before = [], None

    def fetched(outputs: PyTree, real: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[:real], mesh.gathered(outputs))

    for batch in batches(inputs, FEATURE_BATCH, devices, read):
        outputs = of_batch(batch.inputs, batch.start)
        if before is not None:  # Fetched while the device is busy with the next.
            parts.append(fetched(*before))
        before = outputs, batch.real
    assert before is not None, 'no inputs'
    parts.append(fetched(*before))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
