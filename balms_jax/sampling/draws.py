r"""Draws of classes by their probabilities, and of examples of the classes drawn.

Drawing an *example* with weight :math:`s_{y_i}` is drawing a *class* with probability
:math:`q_j \propto n_j s_j` and then one of its examples uniformly: every draw here is over classes,
so that it costs nothing per example of the data set.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax.priors import as_floats, check_labels, check_whole_counts, concrete


def draw_classes(key: jax.Array, class_probabilities: ArrayLike, batch_size: int) -> jax.Array:
    """Draws classes independently.

    Args:
        key: a PRNG key.
        class_probabilities: q, ``[classes]``, as a function of ``sampling.probabilities`` gives it.
        batch_size: how many, B.

    Returns:
        Classes, ``[batch]``, int32; one of probability 0 is never drawn.

    Example:
        >>> print(draw_classes(jax.random.key(0), jnp.array([0.0, 1.0]), batch_size=3))
        [1 1 1]
    """
    logits = jnp.log(jnp.asarray(class_probabilities))
    return jax.random.categorical(key, logits, shape=(batch_size,)).astype(jnp.int32)


def systematic_classes(
    key: jax.Array, class_probabilities: ArrayLike, batch_size: int
) -> jax.Array:
    r"""Draws classes as often as their probabilities say, up to rounding.

    .. math:: c_i = \min \{j : q_0 + \dots + q_j > (u + i) / B\}, \quad i = 0 \dots B - 1, \quad
        u \sim \operatorname{Uniform}[0, 1)

    Class j is drawn ⌊B q_j⌋ or ⌈B q_j⌉ times, B q_j times in expectation. So a sum over the batch
    of any function of the class has the mean that it has under independent draws.

    Args:
        key: a PRNG key.
        class_probabilities: q, ``[classes]``, as a function of ``sampling.probabilities`` gives it.
        batch_size: how many, B.

    Returns:
        Classes, ``[batch]``, int32, in ascending order; one of probability 0 is never drawn.

    Example:
        >>> print(systematic_classes(jax.random.key(0), jnp.array([0.5, 0.25, 0.25]), 4))
        [0 0 1 2]

    References:
        Madow, On the Theory of Systematic Sampling II (1949).
    """
    q = as_floats(class_probabilities)  # Sixteen bits cannot count a batch.
    # A parallel sum rounds each entry by itself: entries must not fall, nor rise where q is 0.
    cumulative = jax.lax.cummax(jnp.where(q > 0, jnp.cumsum(q), 0))
    points = (
        jnp.arange(batch_size, dtype=q.dtype) + jax.random.uniform(key, (), q.dtype)
    ) / batch_size
    points = jnp.minimum(points, 1 - jnp.finfo(q.dtype).epsneg)  # The last may round to 1.
    classes = jnp.searchsorted(cumulative / cumulative[-1], points, side='right')
    return classes.astype(jnp.int32)


def stratified_classes(key: jax.Array, num_classes: int, batch_size: int) -> jax.Array:
    """Draws a class-balanced batch with as equal a number of every class as its size allows.

    Each class gets ⌊B/C⌋ places; the remaining ones go to classes drawn without replacement.

    Args:
        key: a PRNG key.
        num_classes: C.
        batch_size: B, at least C.

    Returns:
        Classes, ``[batch]``, int32, in ascending order but for the remainder at the end.

    Raises:
        ValueError: if the batch is smaller than the number of classes.

    Example:
        >>> print(stratified_classes(jax.random.key(0), num_classes=2, batch_size=4))
        [0 0 1 1]

    References:
        The meta batch of BALMS' released code.
    """
    if batch_size < num_classes:
        raise ValueError(
            f'batch_size: got {batch_size}, wanted one of each of {num_classes} classes'
        )
    whole, rest = divmod(batch_size, num_classes)
    lucky = jax.random.permutation(key, num_classes)[:rest]
    return jnp.concatenate([jnp.repeat(jnp.arange(num_classes), whole), lucky]).astype(jnp.int32)


def examples_by_class(key: jax.Array, classes: ArrayLike, class_counts: ArrayLike) -> jax.Array:
    """Draws an example of each class given from a data set sorted by class.

    Args:
        key: a PRNG key.
        classes: ``[batch]``, integers, of classes that are not empty.
        class_counts: n, ``[classes]``, whole numbers that sum to less than 2³¹.

    Returns:
        Places in the sorted data set, ``[batch]``, int32, uniform within each class, with
        replacement.

    Raises:
        ValueError: if counts are no whole numbers or too many, or a known class to draw from is
            empty or none.

    Example:
        >>> print(examples_by_class(jax.random.key(0), jnp.array([0, 1, 1]), [1, 1]))
        [0 1 1]
    """
    classes, starts, counts = _sorted_by_class(classes, class_counts)
    size = counts[classes]
    return starts[classes] + jax.random.randint(key, size.shape, 0, size, jnp.int32)


def draw_examples(
    key: jax.Array, class_probabilities: ArrayLike, class_counts: ArrayLike, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draws classes by their probabilities, then an example of each, with replacement.

    Args:
        key: a PRNG key.
        class_probabilities: q, ``[classes]``, 0 for every empty class.
        class_counts: n, ``[classes]``, whole numbers that sum to less than 2³¹.
        batch_size: how many.

    Returns:
        Places in the data set sorted by class, and the classes; each ``[batch]``, int32.

    Raises:
        ValueError: as :func:`examples_by_class`.

    Example:
        >>> examples, classes = draw_examples(jax.random.key(0), [0.0, 1.0], [3, 1], 2)
        >>> print(examples, classes)
        [3 3] [1 1]
    """
    class_key, example_key = jax.random.split(key)
    classes = draw_classes(class_key, class_probabilities, batch_size)
    return examples_by_class(example_key, classes, class_counts), classes


def systematic_examples_by_class(
    key: jax.Array, classes: ArrayLike, class_counts: ArrayLike
) -> jax.Array:
    r"""Draws examples of each class given that are spread evenly over the class.

    .. math:: i_k = (r_j + \lfloor k\, n_j / m_j \rfloor) \bmod n_j, \quad k = 0 \dots m_j - 1,
        \quad r_j \sim \operatorname{Uniform}\{0 \dots n_j - 1\}

    where the batch holds class j m_j times. Every draw is uniform within its class, as one of
    :func:`examples_by_class` is, but no example comes twice before each of its class came once.

    Args:
        key: a PRNG key.
        classes: ``[batch]``, integers in ascending order, of classes that are not empty; at most
            46340 of them.
        class_counts: n, ``[classes]``, whole numbers that sum to less than 2³¹.

    Returns:
        Places in the sorted data set, ``[batch]``, int32.

    Raises:
        ValueError: if counts are no whole numbers or too many, classes are too many, or known ones
            are empty, none, or not in ascending order.

    Example:
        >>> print(systematic_examples_by_class(jax.random.key(0), jnp.array([0, 1, 1, 1]), [1, 3]))
        [0 1 2 3]

    References:
        Madow, On the Theory of Systematic Sampling II (1949).
    """
    known = concrete(classes)
    if known is not None and np.any(known[1:] < known[:-1]):
        raise ValueError('classes: got them in another order than ascending')
    classes, starts, counts = _sorted_by_class(classes, class_counts)
    if classes.size > 46_340:
        raise ValueError(f'classes: got {classes.size}, wanted at most 46340')
    size = counts[classes]
    first, end = (jnp.searchsorted(classes, classes, side=side) for side in ('left', 'right'))
    k, m = jnp.arange(classes.size, dtype=jnp.int32) - first, end - first
    # k n / m, where n = whole × m + rest: these products fit, k × rest by the check above.
    whole, rest = size // m, size % m
    place = k * whole + k * rest // m
    r = jax.random.randint(key, counts.shape, 0, jnp.maximum(counts, 1), jnp.int32)[classes]
    place = place - (size - r)  # r + place − n, which is below 2³¹ where r + place may not be
    return starts[classes] + jnp.where(place < 0, place + size, place)


def _sorted_by_class(
    classes: ArrayLike, class_counts: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Classes to draw from, and every class's first place and size, checked; all int32."""
    check_whole_counts(class_counts)
    known = concrete(class_counts)
    if known is not None and known.sum() >= 2**31:
        raise ValueError(f'class_counts: got {known.sum()} examples, wanted less than 2^31')
    counts = jnp.asarray(class_counts).astype(jnp.int32)
    check_labels(classes, counts.size, name='classes')
    classes = jnp.asarray(classes).astype(jnp.int32)
    known = concrete(counts[classes])
    if known is not None and (known == 0).any():
        raise ValueError('classes: got a class without examples, wanted classes to draw from')
    return classes, (jnp.cumsum(counts) - counts).astype(jnp.int32), counts
