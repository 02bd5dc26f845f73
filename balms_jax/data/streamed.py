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
import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import absl.flags
import grain
import numpy as np
from numpy.typing import NDArray

from balms_jax.data import stream_draws
from balms_jax.data.decoding import Decoded, Decoder, Fault, Task
from balms_jax.data.dispatch import LocalDispatcher, ProcessDispatcher
from balms_jax.data.list_files import ImageList
from balms_jax.data.stream_batches import Batch, CorruptImageError, StreamOptions
from balms_jax.data.stream_draws import DrawnRates, RatesBoard, StaleRatesError

Draws = str | NDArray[Any] | RatesBoard
"""``'shuffled'``, ``'class_balanced'``, class probabilities, or the board they are read from."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Planned:
    step: int
    examples: NDArray[np.int32]  # Of the local part.
    rates: DrawnRates | None


class Stream(Iterator[Batch]):
    """An endless iterator of batches, to be closed at the end (it is a context manager).

    What a batch holds is a function of the files, the seed, the step and, with a board, the rates;
    not of the number of workers. Processes draw the same global batch, and each takes its slice;
    with a board all must publish the same rates.

    Args:
        images: the files, sorted by class.
        draws: which examples are taken.
        options: the rest.

    Raises:
        ValueError: if draws do not fit the images.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> from balms_jax.data.decoding import CentreCrop
        >>> from balms_jax.data.list_files import read_folders
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for j in range(2):
        ...     (root / f'class_{j}').mkdir()
        ...     Image.new('RGB', (6, 5)).save(root / f'class_{j}' / 'image.jpg')
        >>> options = StreamOptions(batch_size=2, transform=CentreCrop(4, resize=4))
        >>> with Stream(read_folders(root), 'shuffled', options) as stream:
        ...     batch = next(stream)
        >>> print(batch.images.shape, sorted(batch.labels.tolist()))
        (2, 4, 4, 3) [0, 1]
    """

    def __init__(self, images: ImageList, draws: Draws, options: StreamOptions) -> None:
        self.images, self.draws, self.options = images, draws, options
        self.skipped: collections.Counter[str] = collections.Counter()
        """How often each corrupt file was replaced, by path."""
        self._fixed = _fixed_probabilities(draws, images)
        if isinstance(draws, RatesBoard) and draws.num_classes != images.num_classes:
            raise ValueError(f'draws: got {draws.num_classes} classes, wanted {images.num_classes}')
        self._local = stream_draws.local_slice(
            options.batch_size, options.process_index, options.process_count
        )
        self._step = 0
        self._planned: collections.deque[_Planned] = collections.deque()
        self._dispatcher: LocalDispatcher | ProcessDispatcher | None = None
        self._elements: grain.DatasetIterator[Decoded] | None = None

    def __next__(self) -> Batch:
        """Draws ahead as far as the options allow, and waits for the next batch.

        Raises:
            StaleRatesError: if the board's rates are older than the bound allows.
            CorruptImageError: if an image cannot be decoded and the policy is ``'error'``, or no
                image of its class can be.
        """
        self._start()
        self._draw_ahead()
        planned = self._planned.popleft()
        assert self._elements is not None
        parts = [next(self._elements) for _ in self._chunks(planned)]
        faults = tuple(Fault(*fault) for part in parts for fault in part.faults)
        self._check(faults)
        self.skipped.update(fault.path for fault in faults)
        self._step += 1
        rates = planned.rates
        # One worker's array may be shared memory, which a copy lets go.
        return Batch(
            images=np.concatenate([part.images for part in parts]),
            labels=self.images.labels[planned.examples],
            examples=np.concatenate([part.examples for part in parts]),
            step=planned.step,
            class_probabilities=None if rates is None else rates.class_probabilities,
            rates_version=rates.version if rates is not None and self._by_board else None,
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

    def get_state(self) -> dict[str, Any]:
        """What the next batches depend on, for JSON.

        It holds the next step and, with a board, the rates that batches ahead were drawn with.
        """
        ahead = [p.rates for p in self._planned if self._by_board and p.rates is not None]
        pending = [
            {'version': rates.version, 'class_probabilities': rates.class_probabilities.tolist()}
            for rates in ahead
        ]
        skipped = dict(self.skipped)
        return {'of': self._identity(), 'step': self._step, 'pending': pending, 'skipped': skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken; the number of processes and workers may differ.

        Raises:
            ValueError: if the state is of another stream; the message names what differs.
        """
        ours, theirs = self._identity(), state['of']
        if different := [key for key in ours if ours[key] != theirs.get(key)]:
            key = different[0]
            raise ValueError(f'state: got {key} {theirs.get(key)!r}, wanted {ours[key]!r}')
        self.close()
        self._step = state['step']
        self.skipped = collections.Counter(state['skipped'])
        self._planned.clear()
        for step, pending in enumerate(state['pending'], self._step):
            q = np.array(pending['class_probabilities'], np.float32)
            self._planned.append(self._plan(step, DrawnRates(q, pending['version'])))

    @property
    def _by_board(self) -> bool:
        return isinstance(self.draws, RatesBoard)

    def _identity(self) -> dict[str, Any]:
        options, counts = self.options, self.images.class_counts
        draws = hashlib.sha256(b'' if self._fixed is None else self._fixed.tobytes()).hexdigest()
        return {
            'seed': options.seed,
            'batch_size': options.batch_size,
            'class_counts': hashlib.sha256(counts.tobytes()).hexdigest()[:16],
            'draws': 'board' if self._by_board else f'{self.draws!s:.14}, {draws[:16]}',
            'max_staleness': options.max_staleness if self._by_board else 0,
        }

    def _draw_ahead(self) -> None:
        ahead = self.options.prefetch
        for step in range(self._step + len(self._planned), self._step + ahead + 1):
            rates = self._rates(step)
            if rates is None and self._by_board:
                break
            self._planned.append(self._plan(step, rates))
            self._send(self._planned[-1])

    def _rates(self, step: int) -> DrawnRates | None:
        """What a step is drawn with; None: shuffled, or not to be drawn yet."""
        if not isinstance(self.draws, RatesBoard):
            return None if self._fixed is None else DrawnRates(self._fixed, step)
        rates, bound = self.draws.read(), self.options.max_staleness
        if rates.version > step:
            raise ValueError(f'draws: got rates of step {rates.version} for step {step}')
        if step - rates.version <= bound:
            return rates
        if step > self._step:
            return None
        raise StaleRatesError(
            f'step {step}: the latest rates are of step {rates.version}, and may be {bound} steps '
            'old; publish newer ones first'
        )

    def _plan(self, step: int, rates: DrawnRates | None) -> _Planned:
        options, counts = self.options, self.images.class_counts
        if rates is None:
            examples = stream_draws.shuffled_examples(
                options.seed, step, options.batch_size, int(counts.sum())
            )
        else:
            examples = stream_draws.examples_by_probabilities(
                options.seed, step, options.batch_size, counts, rates.class_probabilities
            )
        return _Planned(step, examples[self._local], rates)

    def _chunks(self, planned: _Planned) -> list[Task]:
        """A task a worker, so that one batch keeps all of them busy."""
        places = np.arange(self._local.start, self._local.stop)
        size = len(places)
        parts = np.array_split(np.arange(size), min(max(1, self.options.workers), size))
        return [
            Task(planned.step, int(places[part[0]]), tuple(planned.examples[part].tolist()))
            for part in parts
        ]

    def _send(self, planned: _Planned) -> None:
        assert self._dispatcher is not None
        for worker, task in enumerate(self._chunks(planned)):
            self._dispatcher.send(worker, task)

    def _start(self) -> None:
        if self._elements is not None:
            return
        options = self.options
        # A batch smaller than the workers leaves some without a task.
        workers = min(options.workers, self._local.stop - self._local.start)
        self._dispatcher = ProcessDispatcher(workers) if workers else LocalDispatcher()
        decoder = Decoder(
            self.images.paths,
            self.images.class_counts,
            options.transform,
            options.seed,
            options.corrupt == 'skip',
        )
        # Without threads each worker takes its turns in order.
        in_order = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        data = grain.MapDataset.source(self._dispatcher.inbox).map(decoder)
        elements = data.to_iter_dataset(in_order)
        if workers:
            if not absl.flags.FLAGS.is_parsed():  # Grain reads its own, which then are defaults.
                absl.flags.FLAGS.mark_as_parsed()
            buffers = grain.MultiprocessingOptions(workers, max(1, options.prefetch))
            elements = elements.mp_prefetch(buffers)
        self._elements = iter(elements)
        for planned in self._planned:  # Those of a restored state.
            self._send(planned)

    def _check(self, faults: tuple[Fault, ...]) -> None:
        fatal = [fault for fault in faults if fault.replacement < 0]
        if fatal:
            self.close()
            raise CorruptImageError(
                f'{fatal[0].path}: {fatal[0].message}'
                + (f'; {len(fatal)} images in all' if len(fatal) > 1 else '')
            )


def _fixed_probabilities(draws: Draws, images: ImageList) -> NDArray[np.float32] | None:
    """Class probabilities that do not change; None: shuffled, or read from a board."""
    if isinstance(draws, RatesBoard):
        return None
    if isinstance(draws, str):
        if draws == 'shuffled':
            return None
        if draws != 'class_balanced':
            raise ValueError(f'draws: got {draws!r}, wanted shuffled or class_balanced')
        known = (images.class_counts > 0).astype(np.float32)
        return known / known.sum()
    q = np.asarray(draws, np.float32)
    if q.shape != (images.num_classes,) or not (q >= 0).all() or not np.isclose(q.sum(), 1):
        raise ValueError(f'draws: got {q}, wanted {images.num_classes} probabilities')
    return q
