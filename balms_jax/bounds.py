r"""The generalisation bound behind Balanced Softmax, and the margins that minimise it.

The chain that leads from the bound to a loss: Theorem 2 bounds the error on a balanced test set
by margins γ; :func:`optimal_margins` γ* minimise it; the loss that asks class j for its margin,
ℓ_j + γ*_j, is approximated by CE(η − log γ*) = CE(η + τ log n) with τ = :func:`optimal_tau`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.priors import as_floats, check_labels, check_no_empty_class, log_prior


def optimal_margins(
    class_counts: ArrayLike, total_margin: float | jax.Array = 1.0, rate: float | jax.Array = 0.5
) -> jax.Array:
    r"""The margins of a given sum that minimise the balanced error bound.

    With a generalisation gap of order n^{-r}, the bound's first term is Σ_j n_j^{-r} / γ_j. By
    Cauchy-Schwarz it is least, among the margins with Σ_j γ_j = β, at

    .. math:: \gamma^*_j = \beta \frac{n_j^{-r/2}}{\sum_i n_i^{-r/2}}
        = \beta \, \mathrm{softmax}(-\tau \log n)_j, \qquad \tau = r / 2

    Args:
        class_counts: n, ``[..., classes]``, each above 0; only their ratios matter.
        total_margin: β, in the units of the loss (nats).
        rate: r; the paper's 1/2 gives n^{-1/4}, and 2 gives 1/n.

    Returns:
        γ*, ``[..., classes]``, in the units of ``total_margin``.

    Raises:
        ValueError: if known counts are zero, negative or not finite.

    Example:
        >>> print(optimal_margins([10_000, 16, 1], total_margin=1.6).round(3))
        [0.1 0.5 1. ]

    References:
        BALMS (arXiv 2007.10740), Corollary 2.1; Cao et al., LDAM (arXiv 1906.07413), §3.1.
    """
    check_no_empty_class(class_counts)
    return total_margin * jax.nn.softmax(-optimal_tau(rate) * log_prior(class_counts))


def label_distribution_margins(
    class_counts: ArrayLike, largest: float | jax.Array = 0.5
) -> jax.Array:
    r"""LDAM's margins: the optimal ones of rate 1/2, by their largest instead of their sum.

    .. math:: \Delta_j = \Delta_{max} \, (n_j / n_{min})^{-1/4}

    Args:
        class_counts: n, ``[..., classes]``, each above 0; only their ratios matter.
        largest: Δ_max, the smallest class's margin, in logits before their scale s: a difference of
            cosines.

    Returns:
        Δ, ``[..., classes]``, in the units of ``largest``.

    Raises:
        ValueError: if known counts are zero, negative or not finite.

    Example:
        >>> print(label_distribution_margins([10_000, 16, 1]).round(3))
        [0.05 0.25 0.5 ]

    References:
        Cao et al., LDAM (arXiv 1906.07413), §3.
    """
    margins = optimal_margins(class_counts)
    return largest * (margins / margins.max(-1, keepdims=True))


def optimal_tau(rate: float | jax.Array) -> float | jax.Array:
    r"""The strength τ of the logit adjustment whose margins are the optimal ones.

    .. math:: \mathrm{CE}(\eta - \log \gamma^*) = \mathrm{CE}(\eta + \tau \log n),
        \qquad \tau = r / 2

    Args:
        rate: r, where the generalisation gap of a class falls as n^{-r}.

    Returns:
        τ: 1/4 at the theorem's r = 1/2, and 1, Balanced Softmax, at r = 2.

    Example:
        >>> optimal_tau(0.5), optimal_tau(2.0)
        (0.25, 1.0)

    References:
        BALMS (arXiv 2007.10740), Corollary 2.1, for r = 1/2.
    """
    return rate / 2


def balanced_error_bound(
    margins: ArrayLike, class_counts: ArrayLike, complexity: float | jax.Array = 1.0
) -> jax.Array:
    r"""The right side of Theorem 2: how large the error on a balanced test set may be.

    .. math:: \frac{1}{C} \sum_j \Big( \frac{1}{\gamma_j} \sqrt{\frac{c}{n_j}}
        + \frac{\log n}{\sqrt{n_j}} \Big), \qquad n = \sum_j n_j

    It holds up to a constant factor, so that bounds compare while their values mean little.

    Args:
        margins: γ, ``[..., classes]``, in the units of the loss (nats).
        class_counts: n_j, ``[..., classes]``, each above 0, in examples.
        complexity: c, a measure of the hypothesis class, in the units of γ² · examples.

    Returns:
        The bound, ``[...]``, in the default float type; +inf, a bound of nothing, if any margin is
        0 or negative.

    Raises:
        ValueError: if known counts are zero, negative or not finite.

    Example:
        >>> print(f'{balanced_error_bound([0.5, 0.5], [100, 1]):.3f}')
        3.638

    References:
        BALMS (arXiv 2007.10740), Theorem 2; Cao et al., LDAM (arXiv 1906.07413), Theorem 2.
    """
    check_no_empty_class(class_counts)
    counts, margins = as_floats(class_counts), as_floats(margins)
    log_total = jnp.log(counts.sum(-1, keepdims=True))
    complexity_term = jnp.sqrt(complexity / counts) / jnp.maximum(margins, 0)
    return jnp.mean(complexity_term + log_total / jnp.sqrt(counts), axis=-1)


def margins_from_losses(
    losses: ArrayLike, labels: ArrayLike, num_classes: int, threshold: float | jax.Array
) -> jax.Array:
    r"""The margin of every class: how far its worst training example stays below t.

    .. math:: \gamma_j = t - \max_{i : y_i = j} \ell_i

    Args:
        losses: ℓ, ``[examples]``, of the training set, in nats.
        labels: y, ``[examples]``, integers of 0 to C − 1.
        num_classes: C, at least 1.
        threshold: t, the loss above which an example counts as an error, in nats.

    Returns:
        γ, ``[classes]``, in nats: negative where an example is an error, +inf for a class
        without examples.

    Raises:
        ValueError: if shapes differ, or known labels are not classes.

    Example:
        >>> print(margins_from_losses([0.1, 0.5, 0.75], [0, 0, 1], num_classes=2, threshold=1.0))
        [0.5  0.25]

    References:
        BALMS (arXiv 2007.10740), Theorem 2.
    """
    losses, labels = jnp.asarray(losses), jnp.asarray(labels)
    if losses.ndim != 1 or losses.shape != labels.shape:
        raise ValueError(
            f'losses and labels: got {losses.shape} and {labels.shape}, wanted [examples] twice'
        )
    check_labels(labels, num_classes)  # Unchecked, segment_max would drop them.
    return threshold - jax.ops.segment_max(losses, labels, num_classes)
