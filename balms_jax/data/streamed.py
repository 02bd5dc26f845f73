"""Batches decoded from image files while training runs. The only place that imports Grain.

The parent process decides which examples a batch holds, and Grain's worker processes decode them.
So sampling rates need no sharing, and the draws are the same for every number of workers. Workers
are spawned: a script that makes a stream with workers guards its main part by
``if __name__ == '__main__'``.
"""

import collections
import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol

import absl.flags
import grain
import jax
import numpy as np
from numpy.typing import NDArray

from balms_jax.data.decoding import Decoded, Decoder, Fault, Task, check_faults
from balms_jax.data.dispatch import LocalDispatcher, ProcessDispatcher

FREEING_SECONDS = 0.2
Draws = Callable[[int], NDArray[np.int32] | None]
"""Step → the examples of the global batch, ``[batch]``; None: they cannot be drawn yet."""


class Source(Protocol):
    """Examples that workers decode."""

    def __len__(self) -> int:
        """How many there are."""

    def decoder(self, seed: int) -> Decoder:
        """What decodes them, for a stream of this seed; it is sent to the workers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """The rows of a global batch that this process decodes, all of them by default.

    Attributes:
        images: ``[rows, size, size, 3]``, uint8; of another source the tree of arrays,
            ``[rows, ...]``, that it reads.
        examples: places in the source, ``[rows]``, int32; a corrupt image's is that of the other
            that took its place.
        step: of the batch.
        faults: images that could not be decoded, and what took their places.
    """

    images: Any
    examples: NDArray[np.int32]
    step: int
    faults: tuple[Fault, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Planned:
    step: int
    examples: NDArray[np.int32]  # Of this process's rows.


class Stream(Iterator[Batch]):
    """An endless iterator of batches, to be closed at the end (it is a context manager).

    What a batch holds is a function of the files, the seed, the draws and the step; not of the
    number of workers. Processes that are given the same draws and their own rows decode the parts
    of one global batch. Nothing but the step is to be kept to go on later.

    Args:
        images: the files and how they are read, such as :class:`image_files.ImageFiles`.
        draws: which examples a step takes.
        step: the first one.
        seed: of the crops, 0 to 2³¹ − 1.
        workers: processes that decode; 0: the calling one.
        prefetch: how many batches are decoded ahead of the one asked for, where they can be drawn.
        rows: of the global batch, that are decoded here; by default all.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> from balms_jax.data.decoding import CentreCrop
        >>> from balms_jax.data.image_files import ImageFiles
        >>> from balms_jax.data.list_files import read_folders
        >>> from balms_jax.data.stream_draws import shuffled
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for j in range(2):
        ...     (root / f'class_{j}').mkdir()
        ...     Image.new('RGB', (6, 5)).save(root / f'class_{j}' / 'image.jpg')
        >>> images = ImageFiles(read_folders(root), CentreCrop(4, resize=4))
        >>> with Stream(images, shuffled(seed=0, batch_size=2, num_examples=2)) as stream:
        ...     batch = next(stream)
        >>> print(batch.images.shape, sorted(batch.examples.tolist()))
        (2, 4, 4, 3) [0, 1]
    """

    def __init__(
        self,
        images: Source,
        draws: Draws,
        *,
        step: int = 0,
        seed: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        rows: slice | None = None,
    ) -> None:
        for name, value in {'step': step, 'workers': workers, 'prefetch': prefetch}.items():
            if value < 0:
                raise ValueError(f'{name}: got {value}, wanted at least 0')
        if not 0 <= seed < 2**31:
            raise ValueError(f'seed: got {seed}, wanted 0 to 2^31 - 1')
        self.images, self.draws, self.step = images, draws, step
        self._workers, self._prefetch = workers, prefetch
        self._rows = slice(None) if rows is None else rows
        self._decoder = images.decoder(seed)
        self._planned: collections.deque[_Planned] = collections.deque()
        self._dispatcher: LocalDispatcher | ProcessDispatcher | None = None
        self._elements: grain.DatasetIterator[Decoded] | None = None

    def __next__(self) -> Batch:
        """Draws ahead as far as it can and may, and waits for the next batch.

        Raises:
            ValueError: if the draws of this step cannot be made yet, or are no batch of the files.
            CorruptImageError: if an image cannot be decoded and the policy is ``'error'``, or no
                image of its class can be.
        """
        self._draw_ahead()
        if not self._planned:
            raise ValueError(f'draws: got None for step {self.step}, wanted its examples by now')
        planned = self._planned.popleft()
        assert self._elements is not None
        parts = [next(self._elements) for _ in self._chunks(planned)]
        faults = tuple(Fault(*fault) for part in parts for fault in part.faults)
        if any(fault.replacement < 0 for fault in faults):
            self.close()
        check_faults(faults)
        self.step += 1
        # One worker's array may be shared memory, which a copy lets go.
        return Batch(
            images=jax.tree.map(
                lambda *leaves: np.concatenate(leaves), *[part.rows for part in parts]
            ),
            examples=np.concatenate([part.examples for part in parts]),
            step=planned.step,
            faults=faults,
        )

    def __enter__(self) -> 'Stream':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, when they have decoded what they were sent."""
        if self._elements is not None:
            # Taken, so that Grain gives their shared memory back; a dead worker has none to give.
            with contextlib.suppress(Exception):
                for planned in self._planned:
                    for _ in self._chunks(planned):
                        next(self._elements)
            assert self._dispatcher is not None
            self._dispatcher.close()  # First: a worker that waits for a task sees no other stop.
            self._elements.close()
            self._dispatcher = self._elements = None
            # Grain's iterators are a circle that holds the last element's shared memory.
            gc.collect()
            time.sleep(FREEING_SECONDS)  # It is freed in a thread, which an exit would cut off.
        self._planned.clear()

    def _draw_ahead(self) -> None:
        for step in range(self.step + len(self._planned), self.step + self._prefetch + 1):
            examples = self.draws(step)
            if examples is None:
                return
            count = len(self.images)
            if examples.ndim != 1 or not ((examples >= 0) & (examples < count)).all():
                raise ValueError(
                    f'draws: got {examples} for step {step}, wanted places below {count}, [batch]'
                )
            self._planned.append(_Planned(step, examples[self._rows]))
            self._send(self._planned[-1])

    def _chunks(self, planned: _Planned) -> list[Task]:
        """A task a worker, so that one batch keeps all of them busy."""
        size, first = len(planned.examples), self._rows.start or 0
        parts = np.array_split(np.arange(size), min(max(1, self._workers), size))
        return [
            Task(planned.step, first + int(part[0]), tuple(planned.examples[part].tolist()))
            for part in parts
        ]

    def _send(self, planned: _Planned) -> None:
        chunks = self._chunks(planned)
        if self._dispatcher is None:
            self._start(len(chunks))
        assert self._dispatcher is not None
        for worker, task in enumerate(chunks):
            self._dispatcher.send(worker, task)

    def _start(self, chunks: int) -> None:
        workers = min(self._workers, chunks)  # A batch smaller than the workers needs no more.
        self._dispatcher = ProcessDispatcher(workers) if workers else LocalDispatcher()
        # Without threads each worker takes its turns in order.
        in_order = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        data = grain.MapDataset.source(self._dispatcher.inbox).map(self._decoder)
        elements = data.to_iter_dataset(in_order)
        if workers:
            if not absl.flags.FLAGS.is_parsed():  # Grain reads its own, which then are defaults.
                absl.flags.FLAGS.mark_as_parsed()
            buffers = grain.MultiprocessingOptions(workers, max(1, self._prefetch))
            elements = elements.mp_prefetch(buffers)
        self._elements = iter(elements)
