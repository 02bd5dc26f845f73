"""Seesaw loss: rare classes are spared as negatives, unless they are what a class is taken for."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax import priors
from balms_jax.losses.balanced import balanced_softmax_cross_entropy_with_integer_labels
from balms_jax.losses.logits import compute_dtype, float_logits, integer_labels


def seesaw_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    class_counts: ArrayLike,
    *,
    mitigation: float = 0.8,
    compensation: float = 2.0,
) -> jax.Array:
    r"""Seesaw loss. Predict with the plain logits.

    .. math:: \ell = -\log \frac{e^{\eta_y}}{\sum_j S_{yj} e^{\eta_j}}, \qquad
        S_{yj} = \min\Big(1, \frac{n_j}{n_y}\Big)^p
        \max\Big(1, \frac{\phi_j}{\phi_y}\Big)^q, \qquad \phi = \mathrm{softmax}(\eta)

    The first factor mitigates a rarer class's punishment by the many examples of a frequent one;
    the second compensates it where the example is taken for that class. S is a constant: no
    gradient passes through it.

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y, ``[...]``, any integer type. Out of range: an error where known, a NaN loss
            while traced.
        class_counts: n, the examples of each class that training has seen so far, ``[classes]``;
            below 1 they count as 1.
        mitigation: p, at least 0; 0 turns that factor off.
        compensation: q, at least 0; 0 turns that factor off.

    Returns:
        The loss of every example in nats, ``[...]``, in the logits' type; +inf for an impossible
        label, of logit −inf.

    Raises:
        ValueError: if types or shapes do not fit, or a known label or count or a power is invalid.

    Example:
        >>> logits, labels = jnp.log(jnp.array([[1.0, 2.0], [1.0, 1.0]])), jnp.array([1, 0])
        >>> loss = seesaw_cross_entropy_with_integer_labels(
        ...     logits, labels, jnp.array([8, 1]), mitigation=1.0)
        >>> print(jnp.array_str(loss, precision=3))  # log 3/2 and log 9/8
        [0.405 0.118]

    References:
        Wang et al., Seesaw Loss for Long-Tailed Instance Segmentation (arXiv 2008.10032), Eqns. 2
        to 6.
    """
    logits = float_logits(logits)
    labels = integer_labels(labels, logits, (logits.ndim - 1,))
    for name, power in (('mitigation', mitigation), ('compensation', compensation)):
        if not power >= 0:
            raise ValueError(f'{name}: got {power}, wanted a number of at least 0')
    counts = jnp.asarray(class_counts)
    if counts.shape != logits.shape[-1:]:
        raise ValueError(
            f'class_counts: got shape {counts.shape}, wanted [classes] = {logits.shape[-1:]}'
        )
    known = priors.concrete(class_counts)
    if known is not None and not np.all((known >= 0) & np.isfinite(known)):
        raise ValueError(f'class_counts: got {known}, wanted finite numbers of at least 0')
    eta = jax.lax.stop_gradient(logits.astype(compute_dtype(logits)))
    log_counts = jnp.log(jnp.maximum(counts.astype(eta.dtype), 1))
    log_counts = jnp.broadcast_to(log_counts, eta.shape)

    def over_label(values: jax.Array) -> jax.Array:
        of_label = jnp.take_along_axis(values, labels[..., None], axis=-1, mode='fill')
        return values - of_label

    log_factors = mitigation * jnp.minimum(over_label(log_counts), 0)
    # Over an impossible label the excess is infinite, or ∞ − ∞. The loss is then +inf by its
    # logits, as it is NaN by a NaN one: the factors need only be numbers.
    log_factors += jnp.nan_to_num(compensation * jnp.maximum(over_label(eta), 0))
    return balanced_softmax_cross_entropy_with_integer_labels(
        logits, labels, jax.lax.stop_gradient(log_factors)
    )
