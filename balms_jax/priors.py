"""Class counts and what follows from them: the log prior and the shot groups."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def class_counts(labels: ArrayLike, num_classes: int) -> jax.Array:
    r"""Counts the examples of every class.

    .. math:: n_j = \sum_i 1[y_i = j]

    Args:
        labels: the class of every example, ``[examples]``, any integer type.
        num_classes: C, at least 1.

    Returns:
        n, ``[classes]``, int32.

    Raises:
        ValueError: if ``labels`` are not integers or a known one lies outside ``0 .. C - 1``.

    Example:
        >>> print(class_counts(jnp.array([0, 2, 0, 0]), num_classes=3))
        [3 0 1]
    """
    labels = jnp.asarray(labels)
    if num_classes < 1:
        raise ValueError(f'num_classes: got {num_classes}, wanted at least 1')
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'labels: got {labels.dtype}, wanted integers')
    known = concrete(labels)
    if known is not None and known.size and (known.min() < 0 or known.max() >= num_classes):
        raise ValueError(
            f'labels: got values from {known.min()} to {known.max()}, wanted 0 to {num_classes - 1}'
        )
    # Widened, for an int8 cannot be compared with more than 127 classes.
    labels = labels.ravel().astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)
    return jnp.bincount(labels, length=num_classes).astype(jnp.int32)


def log_prior(class_counts: ArrayLike) -> jax.Array:
    r"""The log of the training set's class proportions.

    .. math:: \log \pi_j = \log n_j - \log \sum_i n_i

    Args:
        class_counts: examples of each class, ``[..., classes]``: counts or proportions of any
            real type; only their ratios matter. A class may be empty, not all of them.

    Returns:
        log π, ``[..., classes]``, in the default float type; −inf for an empty class.

    Raises:
        ValueError: if known counts are negative, NaN, infinite, all zero, or there are none.

    Example:
        >>> print(jnp.array_str(log_prior([90, 9, 1, 0]), precision=3))
        [-0.105 -2.408 -4.605   -inf]

    References:
        BALMS (arXiv 2007.10740), Theorem 1.
    """
    check_counts(class_counts)
    counts = as_floats(class_counts)
    # By the largest first, so that the sum of huge counts does not overflow.
    shares = counts / counts.max(-1, keepdims=True)
    return jnp.log(shares) - jnp.log(shares.sum(-1, keepdims=True))


class ShotGroups(NamedTuple):
    """Which classes are many-, medium- and few-shot; each ``[classes]``, bool."""

    many: jax.Array
    medium: jax.Array
    few: jax.Array


def shot_groups(class_counts: ArrayLike, many: float = 100, few: float = 20) -> ShotGroups:
    """Splits the classes by how many training examples they have.

    Many: n > 100; medium: 20 ≤ n ≤ 100; few: n < 20.

    Args:
        class_counts: examples of each class, ``[classes]``.
        many: classes with more examples than this are many-shot.
        few: classes with fewer examples than this are few-shot.

    Returns:
        Three masks, each ``[classes]``, that cover every class once.

    Raises:
        ValueError: if counts are no counts (see :func:`log_prior`) or ``few`` exceeds ``many``.

    Example:
        >>> [group.tolist() for group in shot_groups([5000, 100, 20, 19])]
        [[True, False, False, False], [False, True, True, False], [False, False, False, True]]

    References:
        Liu et al., Large-Scale Long-Tailed Recognition in an Open World (arXiv 1904.05160), §4.
    """
    check_counts(class_counts)
    if few > many:
        raise ValueError(f'few: got {few}, wanted at most many = {many}')
    counts = as_floats(class_counts)
    is_many, is_few = counts > many, counts < few
    return ShotGroups(is_many, ~is_many & ~is_few, is_few)


def check_counts(class_counts: ArrayLike, *, name: str = 'class_counts') -> None:
    """Raises ValueError, naming the argument, where known counts cannot be counts."""
    counts = concrete(class_counts)
    if counts is None:
        return
    if counts.ndim == 0 or counts.shape[-1] == 0:
        raise ValueError(f'{name}: got shape {counts.shape}, wanted [..., classes] with a class')
    if not np.all(np.isfinite(counts)) or np.any(counts < 0):
        bad = counts[~(np.isfinite(counts) & (counts >= 0))].ravel()[0]
        raise ValueError(f'{name}: got {bad}, wanted finite numbers of at least 0')
    if np.any(counts.sum(-1) == 0):
        raise ValueError(f'{name}: got only empty classes, wanted at least one example')


def check_no_empty_class(class_counts: ArrayLike, *, name: str = 'class_counts') -> None:
    """Raises ValueError, naming the class, where a known count is 0."""
    check_counts(class_counts, name=name)
    counts = concrete(class_counts)
    if counts is not None and np.any(counts == 0):
        empty = np.argwhere(counts == 0)[0, -1]
        raise ValueError(f'{name}: got 0 for class {empty}, wanted an example of every class')


def check_whole_counts(class_counts: ArrayLike, *, name: str = 'class_counts') -> None:
    """Raises ValueError where known counts are no whole numbers, as a draw needs."""
    check_counts(class_counts, name=name)
    counts = concrete(class_counts)
    if counts is not None and np.any(counts != np.round(counts)):
        bad = counts[counts != np.round(counts)].ravel()[0]
        raise ValueError(f'{name}: got {bad}, wanted whole numbers of examples')


def as_floats(counts: ArrayLike) -> jax.Array:
    """Counts of any real type in the default float type; an int32 would wrap beyond 2³¹."""
    return jnp.asarray(counts, jnp.result_type(float))


def concrete(array: ArrayLike) -> np.ndarray | None:
    """The values of an array, in float64 or whole numbers; None while it is being traced."""
    if isinstance(array, jax.core.Tracer):
        return None
    values = np.asarray(array)
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.float64)
