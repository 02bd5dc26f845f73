"""Which examples a streamed step takes: pure functions of the seed and the step.

They are computed on the CPU, are those of resident data for the same key, and do not depend on how
many processes or workers there are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from balms_jax import sampling, shuffling


def shuffled(seed: int, batch_size: int, num_examples: int) -> Callable[[int], NDArray[np.int32]]:
    """Every epoch visits each example once, in its own order.

    Args:
        seed: below 2³¹.
        batch_size: B, of the global batch.
        num_examples: N.

    Returns:
        Step → examples, ``[batch]``: those of ``shuffling.epoch_shuffle(jax.random.key(seed))``.

    Raises:
        ValueError: as :func:`shuffling.epoch_shuffle`, at the first step.

    Example:
        >>> draws = shuffled(seed=0, batch_size=2, num_examples=4)
        >>> print(sorted([*draws(0), *draws(1)]) == [0, 1, 2, 3])
        True
    """

    @jax.jit
    def examples(step: jax.Array) -> jax.Array:
        return shuffling.epoch_shuffle(jax.random.key(seed), step, batch_size, num_examples)

    return _on_host(examples)


def by_probabilities(
    seed: int, batch_size: int, class_counts: NDArray[Any], class_probabilities: ArrayLike
) -> Callable[[int], NDArray[np.int32]]:
    """Classes by their probabilities, then an example of each, with replacement.

    Args:
        seed: below 2³¹.
        batch_size: B, of the global batch.
        class_counts: n, ``[classes]``, whole numbers.
        class_probabilities: q, ``[classes]``, 0 for every empty class.

    Returns:
        Step → examples, ``[batch]``, of the data sorted by class.

    Raises:
        ValueError: if an empty class has a probability, or shapes do not fit.

    Example:
        >>> print(by_probabilities(0, 3, np.array([1, 1]), np.array([0.0, 1.0]))(5))
        [1 1 1]
    """
    counts, q = np.asarray(class_counts), np.asarray(class_probabilities, np.float32)
    if counts.shape != q.shape:
        raise ValueError(f'class_probabilities: got shape {q.shape}, wanted {counts.shape}')
    if np.any(q[counts == 0] > 0):
        empty = np.flatnonzero((counts == 0) & (q > 0))
        raise ValueError(f'class_probabilities: got some for the empty classes {empty[:5]}')

    @jax.jit
    def examples(step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return sampling.draw_examples(key, q, counts, batch_size)[0]

    return _on_host(examples)


def local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
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
        >>> local_rows(8, 1, 4)
        slice(2, 4, None)
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index: got {process_index}, wanted 0 to {process_count - 1}')
    if batch_size % process_count:
        raise ValueError(f'batch_size: got {batch_size}, wanted a multiple of {process_count}')
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Computes on the CPU, where a training loop may forbid transfers."""
    try:
        cpu = jax.local_devices(backend='cpu')[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out; the integers are the same elsewhere.
        cpu = jax.local_devices()[0]
    with jax.default_device(cpu), jax.transfer_guard('allow'):
        yield


def _on_host(examples: Callable[[Any], jax.Array]) -> Callable[[int], NDArray[np.int32]]:
    @functools.wraps(examples)
    def on_step(step: int) -> NDArray[np.int32]:
        with on_host():
            return np.asarray(examples(np.int32(step)))

    return on_step
