"""Balanced Softmax's binary logistic variant, for detection and for several labels an example."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax import priors
from balms_jax.losses.logits import (
    binary_labels,
    compute_dtype,
    float_logits,
    foreground_of_every_class,
)


def balanced_sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    prior: ArrayLike,
    *,
    reference_prior: ArrayLike | None = None,
    foreground: ArrayLike | None = None,
) -> jax.Array:
    r"""Balanced Softmax's binary logistic variant: one sigmoid a class, each with its own prior.

    .. math:: \hat\phi_j = \sigma\Big(\eta_j - \log\Big[
        \frac{n/C}{n_j} \cdot \frac{n - n_j}{n - n/C}\Big]\Big)
        = \sigma(\eta_j + \operatorname{logit} \pi_j - \operatorname{logit} \pi_0),
        \quad \ell_j = -y_j \log \hat\phi_j - (1 - y_j) \log(1 - \hat\phi_j)

    with π₀ = 1/C. In detection π_j = f_j, the fraction of images that hold the class, the constant
    is dropped (π₀ = 1/2), and background samples keep the plain sigmoid.

    Args:
        logits: η, ``[..., classes]``, any float type, without a background class.
        labels: y in 0..1, of the logits' shape, any float, integer or bool type; all zero for
            background.
        prior: π, how often each class is positive in training, ``[classes]``, in 0..1.
        reference_prior: π₀, a scalar in (0, 1), at which plain η is right; 1/C if None.
        foreground: which samples' logits are shifted, bool, the logits' shape without the
            classes; all if None.

    Returns:
        The loss of every class in nats, of the logits' shape and type, as
        ``optax.sigmoid_binary_cross_entropy``: sum it over the classes. +inf, with a finite
        gradient, where a class with prior 0 is positive.

    Raises:
        ValueError: if types or shapes do not fit, a known prior lies outside 0..1 or a known
            reference prior outside (0, 1), as 1/C does for a single class.

    Example:
        >>> logits, labels = jnp.zeros([1, 2]), jnp.array([[1.0, 0.0]])
        >>> loss = balanced_sigmoid_binary_cross_entropy(logits, labels, jnp.array([0.5, 0.1]))
        >>> print(jnp.array_str(loss, precision=3))
        [[0.693 0.105]]

    References:
        BALMS (arXiv 2007.10740), supplementary material: the multi-binary logistic regression.
    """
    logits = float_logits(logits)
    labels, prior = binary_labels(labels, logits), jnp.asarray(prior)
    foreground = foreground_of_every_class(foreground, logits)
    num_classes = logits.shape[-1]
    if prior.shape != (num_classes,):
        raise ValueError(f'prior: got shape {prior.shape}, wanted [classes] = ({num_classes},)')
    known = priors.concrete(prior)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f'prior: got {known.min()} to {known.max()}, wanted probabilities')
    if reference_prior is None:
        if num_classes == 1:
            raise ValueError('reference_prior: got None for one class, wanted a number in (0, 1)')
        reference_prior = 1 / num_classes
    known = priors.concrete(reference_prior)
    if known is not None and (known.ndim or not 0 < known < 1):
        raise ValueError(f'reference_prior: got {known}, wanted a number in (0, 1)')
    dtype = compute_dtype(logits)
    eta, prior = logits.astype(dtype), prior.astype(dtype)
    reference = jnp.asarray(reference_prior, dtype)
    shift = jnp.log(prior) - jnp.log1p(-prior) - (jnp.log(reference) - jnp.log1p(-reference))
    shift = jnp.broadcast_to(shift, eta.shape)
    if foreground is not None:
        shift = jnp.where(foreground, shift, 0)
    # Where the prior is 0 or 1 the shift is infinite: then −log φ̂ and −log(1 − φ̂) are 0 or +inf.
    # The infinity is a constant beside a loss with the limit's slope, so gradients stay finite.
    never, always = shift == -jnp.inf, shift == jnp.inf
    shifted = eta + jnp.where(never | always, 0, shift)
    positive = jnp.where(never, jnp.inf - shifted, jnp.where(always, 0, jax.nn.softplus(-shifted)))
    negative = jnp.where(always, jnp.inf + shifted, jnp.where(never, 0, jax.nn.softplus(shifted)))
    loss = jnp.where(labels == 0, 0, labels * positive)
    loss = loss + jnp.where(labels == 1, 0, (1 - labels) * negative)
    return loss.astype(logits.dtype)
