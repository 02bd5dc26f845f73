"""Which examples a streamed step takes: pure functions of the seed, the step and the rates.

They are computed on the CPU, are those of resident data for the same key, and do not depend on how
many processes or workers there are.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from balms_jax import sampling, shuffling


class StaleRatesError(RuntimeError):
    """A batch is asked for whose rates would be older than the stream's bound allows."""


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnRates:
    """Class probabilities that a batch was or will be drawn with.

    Attributes:
        class_probabilities: q, ``[classes]``, float32.
        version: the step they are of.
    """

    class_probabilities: NDArray[np.float32]
    version: int


class RatesBoard:
    """Where training publishes the current sampling rates, and the stream reads them.

    Args:
        num_classes: C.

    Example:
        >>> board = RatesBoard(num_classes=2)
        >>> board.publish(np.array([0.5, 0.5]), version=0)
        >>> board.version
        0
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._latest: tuple[ArrayLike, int] | None = None

    @property
    def version(self) -> int | None:
        """The step of the latest rates; None before the first."""
        return None if self._latest is None else self._latest[1]

    def publish(self, class_probabilities: ArrayLike, version: int) -> None:
        """Replaces the rates.

        A device array is not waited for until a batch is drawn with it. It must not be donated.

        Args:
            class_probabilities: q, ``[classes]``, as ``sampling.rated_class_probabilities`` gives
                it; rates s_j give q_j ∝ n_j s_j.
            version: the step they are of: how many steps of ψ were taken.

        Raises:
            ValueError: if the shape is not ``[classes]``, or the version is below the latest one.
        """
        if np.shape(class_probabilities) != (self.num_classes,):
            raise ValueError(
                f'class_probabilities: got shape {np.shape(class_probabilities)}, wanted '
                f'({self.num_classes},)'
            )
        if version < 0 or (self.version is not None and version < self.version):
            raise ValueError(f'version: got {version}, wanted at least {self.version or 0}')
        self._latest = class_probabilities, version

    def read(self) -> DrawnRates:
        """The latest rates, on the host.

        Raises:
            StaleRatesError: if there are none.
            ValueError: if they are no probabilities.
        """
        if self._latest is None:
            raise StaleRatesError('no rates were published yet, and a batch was to be drawn')
        values, version = self._latest
        q = np.asarray(jax.device_get(values), np.float32)
        if not (np.all(q >= 0) and np.isclose(q.sum(), 1, atol=1e-3)):
            raise ValueError(f'class_probabilities: got {q} of version {version}, wanted sum 1')
        return DrawnRates(q, version)


def shuffled_examples(
    seed: int, step: int, batch_size: int, num_examples: int
) -> NDArray[np.int32]:
    """The examples of a step when every epoch visits each example once, in its own order.

    Args:
        seed: below 2³¹.
        step: how many steps came before.
        batch_size: B, of the global batch.
        num_examples: N.

    Returns:
        Examples, ``[batch]``, int32: those of ``shuffling.epoch_shuffle(jax.random.key(seed))``.

    Raises:
        ValueError: as :func:`shuffling.epoch_shuffle`.

    Example:
        >>> print(sorted(shuffled_examples(0, 0, 2, 4)) != sorted(shuffled_examples(0, 1, 2, 4)))
        True
    """
    with _on_host():
        return np.asarray(_shuffled(jax.random.key(seed), np.int32(step), batch_size, num_examples))


def examples_by_probabilities(
    seed: int,
    step: int,
    batch_size: int,
    class_counts: NDArray[Any],
    class_probabilities: ArrayLike,
) -> NDArray[np.int32]:
    """Classes by their probabilities, then an example of each, with replacement.

    Args:
        seed: below 2³¹.
        step: how many steps came before.
        batch_size: B, of the global batch.
        class_counts: n, ``[classes]``, whole numbers.
        class_probabilities: q, ``[classes]``, 0 for every empty class.

    Returns:
        Examples, ``[batch]``, int32, of the data sorted by class.

    Raises:
        ValueError: if an empty class has a probability, or shapes do not fit.

    Example:
        >>> print(examples_by_probabilities(0, 0, 3, np.array([1, 1]), np.array([0.0, 1.0])))
        [1 1 1]
    """
    counts, q = np.asarray(class_counts), np.asarray(class_probabilities, np.float32)
    if counts.shape != q.shape:
        raise ValueError(f'class_probabilities: got shape {q.shape}, wanted {counts.shape}')
    if np.any(q[counts == 0] > 0):
        empty = np.flatnonzero((counts == 0) & (q > 0))
        raise ValueError(f'class_probabilities: got some for the empty classes {empty[:5]}')
    with _on_host():
        key = jax.random.key(seed)
        return np.asarray(_independent(key, np.int32(step), q, counts.astype(np.int32), batch_size))


def importance_weights(
    current: ArrayLike, drawn: ArrayLike, labels: NDArray[Any]
) -> NDArray[np.float32]:
    r"""What corrects a batch that was drawn with older rates.

    .. math:: w_b = q_{y_b} / q'_{y_b}

    with q the current and q′ the probabilities of the draw. The weighted batch has in expectation
    the sum that one drawn now would have, if q′ is above 0 wherever q is.

    Args:
        current: q, ``[classes]``.
        drawn: q′, ``[classes]``.
        labels: y, ``[batch]``, each of a class with q′ above 0.

    Returns:
        w, ``[batch]``, float32.

    Raises:
        ValueError: if shapes differ, or a label's q′ is 0.

    Example:
        >>> print(importance_weights([0.5, 0.5], [0.25, 0.75], np.array([0, 1])))
        [2.        0.6666667]
    """
    q, before = np.asarray(current, np.float32), np.asarray(drawn, np.float32)
    if q.shape != before.shape:
        raise ValueError(f'drawn: got shape {before.shape}, wanted {q.shape}')
    if np.any(before[labels] <= 0):
        raise ValueError('drawn: got probability 0 for a class that was drawn')
    return q[labels] / before[labels]


def local_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    """The contiguous part of each global batch that is a process's own.

    Args:
        batch_size: B, a multiple of P.
        process_index: p, 0 to P − 1.
        process_count: P.

    Returns:
        Positions p B / P to (p + 1) B / P − 1.

    Raises:
        ValueError: if P does not divide B, or p is out of its range.

    Example:
        >>> local_slice(8, 1, 4)
        slice(2, 4, None)
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index: got {process_index}, wanted 0 to {process_count - 1}')
    if batch_size % process_count:
        raise ValueError(f'batch_size: got {batch_size}, wanted a multiple of {process_count}')
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _shuffled(key: jax.Array, step: jax.Array, batch_size: int, num_examples: int) -> jax.Array:
    return shuffling.epoch_shuffle(key, step, batch_size, num_examples)


@functools.partial(jax.jit, static_argnums=4)
def _independent(
    key: jax.Array, step: jax.Array, q: jax.Array, counts: jax.Array, batch_size: int
) -> jax.Array:
    class_key, example_key = jax.random.split(jax.random.fold_in(key, step))
    classes = sampling.draw_classes(class_key, q, batch_size)
    return sampling.examples_by_class(example_key, classes, counts)


@contextlib.contextmanager
def _on_host() -> Iterator[None]:
    """Computes on the CPU, where a training loop may forbid transfers."""
    try:
        cpu = jax.local_devices(backend='cpu')[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out; the integers are the same elsewhere.
        cpu = jax.local_devices()[0]
    with jax.default_device(cpu), jax.transfer_guard('allow'):
        yield
