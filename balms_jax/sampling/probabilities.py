"""Sampling rates, and how often each class is drawn by them or by counts."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.priors import as_floats, check_counts, check_no_empty_class


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
    return jax.nn.softmax(log_weights(jnp.asarray(psi), class_counts))


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
    return jax.nn.log_softmax(log_weights(jnp.asarray(psi), class_counts))


def log_weights(psi: jax.Array, class_counts: ArrayLike) -> jax.Array:
    r"""The logarithm of how often each class is drawn at the rates of ψ, not normalised.

    .. math:: \log n_j \sigma(\psi_j)

    Args:
        psi: ψ, ``[classes]``.
        class_counts: n, ``[classes]``.

    Returns:
        Of the shape and type of ψ; −inf for an empty class.

    Raises:
        ValueError: if counts are no counts, or not as many as ψ has entries.

    Example:
        >>> print(jnp.array_str(log_weights(jnp.zeros(2), [2, 0]), precision=1))
        [  0. -inf]
    """
    check_counts(class_counts)
    counts = as_floats(class_counts)
    if counts.shape != psi.shape:
        raise ValueError(f'class_counts: got shape {counts.shape}, wanted that of psi, {psi.shape}')
    # The logarithm comes first, for float16 ends at 65504.
    return jnp.log(counts).astype(psi.dtype) + jax.nn.log_sigmoid(psi)
