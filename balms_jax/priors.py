"""Class counts and what follows from them: log prior, shot groups, class weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def class_counts(labels: ArrayLike, num_classes: int) -> jax.Array:
    r"""Counts the examples of every class.

    .. math:: n_j = \sum_i 1[y_i = j]

    Args:
        labels: the class of every example, ``[examples]``, any integer type. Out of range, as
            padding is: an error where known, left out while traced.
        num_classes: C, at least 1.

    Returns:
        n, ``[classes]``, int32.

    Raises:
        ValueError: if ``labels`` are not integers or a known one lies outside ``0 .. C - 1``.

    Example:
        >>> print(class_counts(jnp.array([0, 2, 0, 0]), num_classes=3))
        [3 0 1]
    """
    check_labels(labels, num_classes)
    places = class_places(labels, num_classes).ravel()
    return jnp.bincount(places, length=num_classes).astype(jnp.int32)


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


def inverse_frequency_weights(class_counts: ArrayLike) -> jax.Array:
    r"""Weights of the losses under which the examples of every class weigh the same in sum.

    .. math:: w_j = C \, \frac{1 / n_j}{\sum_i 1 / n_i}

    Args:
        class_counts: n, ``[..., classes]``; only their ratios matter. An empty class gets weight 0
            and is left out of the sum and of C.

    Returns:
        w, ``[..., classes]``, in the default float type; of mean 1 over the classes with examples.

    Raises:
        ValueError: if counts are no counts (see :func:`log_prior`).

    Example:
        >>> print(jnp.array_str(inverse_frequency_weights([90, 10, 0]), precision=2))
        [0.2 1.8 0. ]

    References:
        CBW of BALMS (arXiv 2007.10740), Table 2.
    """
    check_counts(class_counts)
    has_examples = as_floats(class_counts) > 0
    # A softmax, so that the weights of tiny proportions do not overflow.
    log_weights = jnp.where(has_examples, -log_prior(class_counts), -jnp.inf)
    return _number_of(has_examples) * jax.nn.softmax(log_weights)


def class_balanced_weights(class_counts: ArrayLike, beta: float = 0.9999) -> jax.Array:
    r"""Weights of the losses by the effective number of examples of each class.

    .. math:: w_j \propto \frac{1 - \beta}{1 - \beta^{n_j}}, \qquad \sum_j w_j = C

    β = 0 weighs every class alike; β = 1, the limit, is :func:`inverse_frequency_weights`.

    Args:
        class_counts: n, ``[..., classes]``, whole numbers: proportions will not do. An empty class
            gets weight 0 and is left out of the sum and of C.
        beta: β, in 0..1.

    Returns:
        w, ``[..., classes]``, in the default float type; of mean 1 over the classes with examples.

    Raises:
        ValueError: if known counts are no whole numbers, or β lies outside 0..1.

    Example:
        >>> print(jnp.array_str(class_balanced_weights([2, 1, 0], beta=0.5), precision=2))
        [0.8 1.2 0. ]

    References:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples (arXiv 1901.05555).
    """
    check_whole_counts(class_counts)
    if not 0 <= beta <= 1:
        raise ValueError(f'beta: got {beta}, wanted a number in 0..1')
    if beta == 1:
        return inverse_frequency_weights(class_counts)
    counts = as_floats(class_counts)
    has_examples = counts > 0
    # 1 − βⁿ loses every digit at β near 1; log β is taken in float64, for float32 holds but three
    # digits of 1 − β.
    log_beta = float(np.log(beta)) if beta else -np.inf
    effective_numbers = -jnp.expm1(log_beta * jnp.where(has_examples, counts, 1))
    weights = jnp.where(has_examples, 1 / effective_numbers, 0)
    return _number_of(has_examples) * (weights / weights.sum(-1, keepdims=True))


def equalized_classes(class_counts: ArrayLike, threshold: float | jax.Array) -> jax.Array:
    r"""The tail that equalization loss protects from the gradients of other classes' examples.

    .. math:: T_\lambda(f_j) = 1[f_j < \lambda], \qquad f_j = n_j / n

    In detection f_j is the fraction of *images* with the class: compare those with λ directly.

    Args:
        class_counts: n, ``[..., classes]``; only their ratios matter.
        threshold: λ, a share of the examples in 0..1, a scalar; the paper has 0.005 for the
            softmax, and 1.77e-3 in detection.

    Returns:
        A mask, ``[..., classes]``, bool; an empty class belongs to the tail.

    Raises:
        ValueError: if counts are no counts (see :func:`log_prior`), or a known λ lies outside
            0..1.

    Example:
        >>> print(equalized_classes([900, 99, 1], threshold=0.005))
        [False False  True]

    References:
        Tan et al., Equalization Loss for Long-Tailed Object Recognition (arXiv 2003.05176).
    """
    known = concrete(threshold)
    if known is not None and (known.ndim or not 0 <= known <= 1):
        raise ValueError(f'threshold: got {known}, wanted a share in 0..1')
    check_counts(class_counts)
    counts = as_floats(class_counts)
    # Not by way of the log, whose rounding would put a share of just λ on either side.
    return counts / counts.sum(-1, keepdims=True) < jnp.asarray(threshold, counts.dtype)


def class_dependent_temperatures(class_counts: ArrayLike, gamma: float | jax.Array) -> jax.Array:
    r"""By how much CDT divides each class's logits in training: the rarer, the more.

    .. math:: a_j = \Big( \frac{\max_i n_i}{n_j} \Big)^\gamma

    Args:
        class_counts: n, ``[..., classes]``, each above 0; only their ratios matter.
        gamma: γ, a scalar: 0 is plain softmax; the paper takes up to 0.4.

    Returns:
        a, ``[..., classes]``, in the default float type; 1 for the largest class.

    Raises:
        ValueError: if known counts are zero, negative or not finite.

    Example:
        >>> print(class_dependent_temperatures([16, 4, 1], gamma=0.5))
        [1. 2. 4.]

    References:
        Ye et al., Identifying and Compensating for Feature Deviation (arXiv 2001.01385).
    """
    check_no_empty_class(class_counts)
    log_shares = log_prior(class_counts)
    return jnp.exp(gamma * (log_shares.max(-1, keepdims=True) - log_shares))


def check_labels(labels: ArrayLike, num_classes: int, *, name: str = 'labels') -> None:
    """Raises ValueError, naming the argument, where labels cannot be classes of 0 to C − 1."""
    if num_classes < 1:
        raise ValueError(f'num_classes: got {num_classes}, wanted at least 1')
    dtype = jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f'{name}: got {dtype}, wanted integers')
    known = concrete(labels)
    if known is not None and known.size and (known.min() < 0 or known.max() >= num_classes):
        raise ValueError(
            f'{name}: got values from {known.min()} to {known.max()}, wanted 0 to {num_classes - 1}'
        )


def class_places(labels: ArrayLike, num_classes: int) -> jax.Array:
    """Labels as places on an axis of classes, of their shape, int32 or int64; C for negative ones.

    Widened, for an int8 cannot be compared with more than 127 classes. Past the end a label that is
    no class is dropped or filled in; a negative one would be clipped or wrapped around to a class.
    """
    labels = jnp.asarray(labels)
    labels = labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)
    return jnp.where(labels < 0, num_classes, labels)


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


def _number_of(mask: jax.Array) -> jax.Array:
    """How many are True along the last axis, which is kept, in the default float type."""
    return mask.sum(-1, keepdims=True, dtype=jnp.result_type(float))
