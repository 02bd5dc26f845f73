"""What is asked of a stream of images, and what it gives."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from balms_jax.data import stream_draws
from balms_jax.data.decoding import Fault, Transform

CORRUPT_POLICIES = ('error', 'skip')


class CorruptImageError(RuntimeError):
    """An image cannot be decoded; the message names the file."""


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """How a stream makes its batches.

    Attributes:
        batch_size: B, of the global batch, a multiple of ``process_count``.
        transform: the crop and resize of each image.
        seed: of draws and crops, 0 to 2³¹ − 1.
        workers: processes that decode; 0: the calling one.
        prefetch: how many batches are drawn and decoded ahead of the one asked for.
        max_staleness: with a board, how many steps a batch may be ahead of the rates that it is
            drawn with; 0: drawn when it is asked for.
        corrupt: where an image cannot be decoded, ``'error'`` or ``'skip'``, which takes another
            of its class and says so in :attr:`Batch.faults`.
        process_index: p, of the JAX process.
        process_count: P.
    """

    batch_size: int
    transform: Transform
    seed: int = 0
    workers: int = 0
    prefetch: int = 2
    max_staleness: int = 0
    corrupt: str = 'error'
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        for name in ('workers', 'prefetch', 'max_staleness'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name}: got {getattr(self, name)}, wanted at least 0')
        if not 0 <= self.seed < 2**31:
            raise ValueError(f'seed: got {self.seed}, wanted 0 to 2^31 - 1')
        if self.corrupt not in CORRUPT_POLICIES:
            raise ValueError(f'corrupt: got {self.corrupt!r}, wanted error or skip')
        stream_draws.local_slice(self.batch_size, self.process_index, self.process_count)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A process's part of a global batch; b = B / P.

    Attributes:
        images: ``[b, size, size, 3]``, uint8.
        labels: ``[b]``, int32.
        examples: ids, ``[b]``, int32: places in the :class:`ImageList`.
        step: of the batch.
        class_probabilities: q that it was drawn with, ``[classes]``; None if it was shuffled.
        rates_version: the step that q is of; None without a board.
        faults: images of this part that could not be decoded, and what took their places.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    examples: NDArray[np.int32]
    step: int
    class_probabilities: NDArray[np.float32] | None
    rates_version: int | None
    faults: tuple[Fault, ...]

    @property
    def staleness(self) -> int:
        """How many steps the rates are older than the batch; 0 without a board."""
        return 0 if self.rates_version is None else self.step - self.rates_version
