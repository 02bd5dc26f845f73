r"""Sampling rates, draws of classes and examples, and the gradient of a draw.

Drawing an *example* with weight :math:`s_{y_i}` is drawing a *class* with probability
:math:`q_j \propto n_j s_j` and then one of its examples uniformly: every draw here is over classes,
so that it costs nothing per example of the data set.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax.priors import (
    as_floats,
    check_counts,
    check_no_empty_class,
    check_whole_counts,
    concrete,
)


def rates(psi: ArrayLike) -> jax.Array:
    r"""The sampling rates of the classes.

    .. math:: s_j = \sigma(\psi_j)

    Args:
        psi: ψ, ``[classes]``.

    Returns:
        s, ``[classes]``, in 0..1: weights of an example's draw, not probabilities.

    Example:
        >>> print(rates(jnp.zeros(2)))
        [0.5 0.5]

    References:
        BALMS (arXiv 2007.10740), §3.2; the released code's sigmoid parameterisation.
    """
    return jax.nn.sigmoid(jnp.asarray(psi))


def initial_psi(class_counts: ArrayLike, power: float = 0.0) -> jax.Array:
    r"""The ψ that training starts from.

    .. math:: s_j = \frac{\pi_j^{-p}}{\min_i \pi_i^{-p} + \max_i \pi_i^{-p}},
        \quad \psi = \operatorname{logit} s

    The rarest class and the largest have rates that sum to 1. Power 0 gives ψ = 0, which is
    instance-balanced; power 1 is class-balanced.

    Args:
        class_counts: n, ``[classes]``, counts or proportions.
        power: p, how strongly rare classes are favoured at the start.

    Returns:
        ψ, ``[classes]``, in the default float type.

    Raises:
        ValueError: if counts are no counts, or a class is empty while ``power`` is not 0.

    Example:
        >>> psi = initial_psi([900, 100], power=1.0)
        >>> print(jnp.array_str(rated_class_probabilities(psi, [900, 100]), precision=2))
        [0.5 0.5]

    References:
        BALMS' released code; its powers: 0 for CIFAR-LT, 0.1 ImageNet-LT, 0.3 Places-LT.
    """
    if power:
        check_no_empty_class(class_counts)
    else:
        check_counts(class_counts)
    counts = as_floats(class_counts)
    if not power:
        return jnp.zeros_like(counts)
    # logit s = log w − log(min w + max w − w), of w / max w and in logs so that no power overflows.
    log_weights = -power * jnp.log(counts)
    log_weights = log_weights - log_weights.max()
    log_rest = jnp.log(-jnp.expm1(log_weights))  # log(1 − w), −inf for the largest
    return log_weights - jnp.logaddexp(log_rest, log_weights.min())


def class_probabilities(class_counts: ArrayLike, power: ArrayLike = 1.0) -> jax.Array:
    r"""How often each class is drawn when counts enter by a power.

    .. math:: q_j = n_j^p / \sum_i n_i^p

    Args:
        class_counts: n, ``[classes]``, counts or proportions.
        power: p, a scalar: 1 instance-balanced, 1/2 square-root, 0 class-balanced.

    Returns:
        q, ``[classes]``; an empty class is never drawn.

    Raises:
        ValueError: if counts are no counts.

    Example:
        >>> print(jnp.array_str(class_probabilities([900, 100], power=0.5), precision=2))
        [0.75 0.25]

    References:
        Kang et al., Decoupling Representation and Classifier (arXiv 1910.09217), Eqn. 1.
    """
    check_counts(class_counts)
    counts = as_floats(class_counts)
    log_counts = jnp.log(jnp.where(counts > 0, counts, 1))
    return jax.nn.softmax(jnp.asarray(power, counts.dtype) * log_counts, where=counts > 0)


def progressive_class_probabilities(class_counts: ArrayLike, progress: ArrayLike) -> jax.Array:
    r"""From instance-balanced to class-balanced as training proceeds.

    .. math:: q_j = (1 - t/T) \frac{n_j}{N} + \frac{t}{T} \frac1C

    Args:
        class_counts: n, ``[classes]``.
        progress: t/T, a scalar in 0..1.

    Returns:
        q, ``[classes]``.

    Raises:
        ValueError: if counts are no counts.

    Example:
        >>> print(jnp.array_str(progressive_class_probabilities([90, 10], 0.5), precision=2))
        [0.7 0.3]

    References:
        Kang et al. (arXiv 1910.09217), Eqn. 2.
    """
    instance, balanced = (class_probabilities(class_counts, power) for power in (1.0, 0.0))
    progress = jnp.asarray(progress, instance.dtype)
    return (1 - progress) * instance + progress * balanced


def rated_class_probabilities(psi: ArrayLike, class_counts: ArrayLike) -> jax.Array:
    r"""How often each class is drawn at the rates of ψ.

    .. math:: q_j = \frac{n_j \sigma(\psi_j)}{\sum_i n_i \sigma(\psi_i)}

    Args:
        psi: ψ, ``[classes]``.
        class_counts: n, ``[classes]``.

    Returns:
        q, ``[classes]``; an empty class is never drawn.

    Raises:
        ValueError: if counts are no counts.

    Example:
        >>> probabilities = rated_class_probabilities(jnp.zeros(2), [3, 1])
        >>> print(jnp.array_str(probabilities, precision=2))
        [0.75 0.25]

    References:
        BALMS (arXiv 2007.10740), §3.2.
    """
    return jax.nn.softmax(_log_weights(jnp.asarray(psi), class_counts))


def rated_log_class_probabilities(psi: ArrayLike, class_counts: ArrayLike) -> jax.Array:
    r"""The logarithm of :func:`rated_class_probabilities`, exact where they are next to 0.

    .. math:: \log q_j = \log n_j \sigma(\psi_j) - \log \sum_i n_i \sigma(\psi_i)

    Args:
        psi: ψ, ``[classes]``.
        class_counts: n, ``[classes]``.

    Returns:
        log q, ``[classes]``; −inf for an empty class.

    Raises:
        ValueError: if counts are no counts.

    Example:
        >>> log_probabilities = rated_log_class_probabilities(jnp.array([0.0, -200.0]), [1, 1])
        >>> print(jnp.array_str(log_probabilities, precision=1))
        [   0.  -199.3]

    References:
        BALMS (arXiv 2007.10740), §3.2.
    """
    return jax.nn.log_softmax(_log_weights(jnp.asarray(psi), class_counts))


def one_with_gradient_of(x: jax.Array) -> jax.Array:
    r"""Ones that are differentiated as if they were x.

    .. math:: 1 + (x - \operatorname{stop}(x))

    Args:
        x: finite numbers of any shape.

    Returns:
        The same shape and type; the value is exactly 1 in any precision.

    Example:
        >>> print(jax.value_and_grad(lambda x: one_with_gradient_of(x**2))(3.0))
        (Array(1., dtype=float32, weak_type=True), Array(6., dtype=float32, weak_type=True))
    """
    # In this order: (1 + x) − x is not 1 in sixteen bits.
    return 1 + (x - jax.lax.stop_gradient(x))


def straight_through_over_classes(
    psi: ArrayLike,
    class_counts: ArrayLike,
    gumbel: ArrayLike,
    temperature: float = 1.0,
    *,
    drawn: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Draws classes at the rates of ψ, with a gradient: Gumbel-softmax over the classes.

    .. math:: c_b = \arg\max_j\, (\log n_j s_j + g_{bj}), \quad
        z_b = 1 + (p_b - \operatorname{stop}(p_b)), \quad
        p_b = \operatorname{softmax}_j\big((\log n_j s_j + g_{bj}) / T\big)_{c_b}

    The classes have the distribution of :func:`straight_through_over_examples`; the gradient is
    that of another soft sample. Its cost does not depend on the number of examples.

    Args:
        psi: ψ, ``[classes]``.
        class_counts: n, ``[classes]``.
        gumbel: standard Gumbel noise g, ``[batch, classes]``.
        temperature: T of the soft sample, above 0.
        drawn: classes, ``[batch]``, integers, drawn with this noise at another ψ, to be kept; None:
            those of this ψ.

    Returns:
        The classes c, ``[batch]``, int32, and z, ``[batch]``, whose value is exactly 1 and whose
        gradient is the soft sample's.

    Raises:
        ValueError: if shapes do not fit, counts are no counts, or T is not above 0.

    Example:
        >>> gumbel = jax.random.gumbel(jax.random.key(0), [4, 2])
        >>> classes, z = straight_through_over_classes(jnp.zeros(2), [1, 0], gumbel)
        >>> print(classes, z)
        [0 0 0 0] [1. 1. 1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2; Jang et al., Gumbel-Softmax (arXiv 1611.01144).
    """
    psi, gumbel = jnp.asarray(psi), jnp.asarray(gumbel)
    if gumbel.ndim != 2 or gumbel.shape[1:] != psi.shape:
        raise ValueError(f'gumbel: got shape {gumbel.shape}, wanted [batch, {psi.shape[0]}]')
    return _straight_through(_log_weights(psi, class_counts), gumbel, temperature, drawn)


def straight_through_over_examples(
    psi: ArrayLike,
    example_labels: ArrayLike,
    gumbel: ArrayLike,
    temperature: float = 1.0,
    *,
    drawn: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Draws examples at the rates of ψ, with a gradient: the official estimator.

    .. math:: i_b = \arg\max_i\, (\log s_{y_i} + g_{bi}), \quad
        z_b = 1 + (p_b - \operatorname{stop}(p_b)), \quad
        \frac{\partial z_b}{\partial \psi_j} = (1 - s_j)\, p_b\, (1[y_{i_b} = j] - P_{bj})

    with :math:`p_b` the drawn example's entry of the soft sample and :math:`P_{bj}` class j's mass
    in it. It needs noise for every example of the data set.

    Args:
        psi: ψ, ``[classes]``.
        example_labels: y, ``[examples]``, any integer type.
        gumbel: standard Gumbel noise g, ``[batch, examples]``.
        temperature: T of the soft sample, above 0.
        drawn: examples, ``[batch]``, integers, drawn with this noise at another ψ, to be kept;
            None: those of this ψ.

    Returns:
        The examples i, ``[batch]``, int32, and z, ``[batch]``, whose value is exactly 1 and whose
        gradient is the soft sample's.

    Raises:
        ValueError: if shapes do not fit, labels are no integers or a known one is no class, or T
            is not above 0.

    Example:
        >>> gumbel = jax.random.gumbel(jax.random.key(0), [2, 3])
        >>> labels = jnp.array([0, 0, 1])
        >>> examples, z = straight_through_over_examples(jnp.zeros(2), labels, gumbel)
        >>> print(examples.shape, z)
        (2,) [1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2, and its released code.
    """
    psi, labels, gumbel = jnp.asarray(psi), jnp.asarray(example_labels), jnp.asarray(gumbel)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'example_labels: got {labels.dtype}, wanted integers')
    if gumbel.ndim != 2 or gumbel.shape[1:] != labels.shape:
        raise ValueError(f'gumbel: got shape {gumbel.shape}, wanted [batch, {labels.size}]')
    known = concrete(example_labels)
    if known is not None and known.size and (known.min() < 0 or known.max() >= psi.size):
        raise ValueError(
            f'example_labels: got values from {known.min()} to {known.max()}, wanted 0 to '
            f'{psi.size - 1}'
        )
    return _straight_through(jax.nn.log_sigmoid(psi)[labels], gumbel, temperature, drawn)


def draw_classes(key: jax.Array, class_probabilities: ArrayLike, batch_size: int) -> jax.Array:
    """Draws classes independently.

    Args:
        key: a PRNG key.
        class_probabilities: q, ``[classes]``, as the functions above give it.
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
        class_probabilities: q, ``[classes]``, as the functions above give it.
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
        ValueError: as :func:`draw_classes` and :func:`examples_by_class`.

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


def _sorted_by_class(
    classes: ArrayLike, class_counts: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Classes to draw from, and every class's first place and size, checked; all int32."""
    check_whole_counts(class_counts)
    known = concrete(class_counts)
    if known is not None and known.sum() >= 2**31:
        raise ValueError(f'class_counts: got {known.sum()} examples, wanted less than 2^31')
    counts = jnp.asarray(class_counts).astype(jnp.int32)
    known = concrete(classes)
    classes = jnp.asarray(classes)
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f'classes: got {classes.dtype}, wanted integers')
    if known is not None and known.size and (known.min() < 0 or known.max() >= counts.size):
        raise ValueError(
            f'classes: got values from {known.min()} to {known.max()}, wanted 0 to '
            f'{counts.size - 1}'
        )
    classes = classes.astype(jnp.int32)
    known = concrete(counts[classes])
    if known is not None and (known == 0).any():
        raise ValueError('classes: got a class without examples, wanted classes to draw from')
    return classes, (jnp.cumsum(counts) - counts).astype(jnp.int32), counts


def _log_weights(psi: jax.Array, class_counts: ArrayLike) -> jax.Array:
    """Log n_j s_j, the unnormalised log probability of drawing class j."""
    check_counts(class_counts)
    counts = as_floats(class_counts)
    if counts.shape != psi.shape:
        raise ValueError(f'class_counts: got shape {counts.shape}, wanted that of psi, {psi.shape}')
    # The logarithm comes first, for float16 ends at 65504.
    return jnp.log(counts).astype(psi.dtype) + jax.nn.log_sigmoid(psi)


def _straight_through(
    log_weights: jax.Array, gumbel: jax.Array, temperature: float, drawn: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f'temperature: got {temperature}, wanted a number above 0')
    scores = log_weights[None, :] + gumbel
    drawn = jnp.argmax(scores, axis=-1) if drawn is None else jnp.asarray(drawn)
    if drawn.shape != scores.shape[:1] or not jnp.issubdtype(drawn.dtype, jnp.integer):
        raise ValueError(
            f'drawn: got {drawn.dtype}{list(drawn.shape)}, wanted integers, [{scores.shape[0]}]'
        )
    drawn = drawn.astype(jnp.int32)
    soft = jax.nn.softmax(scores / temperature, axis=-1)
    p = jnp.take_along_axis(soft, drawn[:, None], axis=-1)[:, 0]
    return drawn, one_with_gradient_of(p)
