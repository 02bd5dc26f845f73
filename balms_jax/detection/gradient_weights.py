"""How much does each category's foreground weigh in training the class layer?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from balms_jax.detection.steps import CategoryLoss


def foreground_gradients(
    logits: jax.Array,
    categories: jax.Array,
    category_loss: CategoryLoss,
    weights: jax.Array | None = None,
) -> jax.Array:
    r"""How strongly the foreground of each category pulls its own logit up.

    .. math:: g_j = \sum_{b: y_b = j} w_j \, \Big|\frac{\partial \ell_b}{\partial \eta_{bj}}\Big|

    Args:
        logits: η, ``[regions, categories]``, and the background's last if there is one.
        categories: y, int, ``[regions]``; ``NO_CATEGORY`` for background and padding.
        category_loss: ℓ of a region.
        weights: w, of the losses of each category, ``[categories]``; 1 if None.

    Returns:
        g, ``[categories]``, of as many as the logits have; sums of parts of the regions add up.

    Example:
        >>> from balms_jax.detection.losses import sigmoid_loss
        >>> print(foreground_gradients(jnp.zeros((3, 2)), jnp.array([0, 0, -1]), sigmoid_loss))
        [1. 0.]
    """
    slopes = jax.grad(lambda eta: category_loss(eta, categories).sum())(logits)
    place = jnp.maximum(categories, 0)
    own = jnp.abs(jnp.take_along_axis(slopes, place[:, None], axis=1)[:, 0])
    if weights is not None:
        own = own * weights[place]
    return jax.ops.segment_sum(jnp.where(categories >= 0, own, 0), place, logits.shape[-1])


def relative_gradients(
    categories: int, category_loss: CategoryLoss, plain_loss: CategoryLoss
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    r"""Builds the function of a batch's gradients beside those of plain training.

    The ratio of their sums over all regions is the effective gradient weight,

    .. math:: \omega_j = \frac{\sum_{y_b = j} w_j |\partial \hat\ell_b / \partial \eta_{bj}|}
        {\sum_{y_b = j} |\partial \ell_b / \partial \eta_{bj}|}

    whose slope against the counts, both in logarithms, says whether rare categories are balanced
    (−1) or over-balanced (below); ``diagnostics.gradient_weight_exponent`` takes it.

    Args:
        categories: C.
        category_loss: ℓ̂, that is trained with.
        plain_loss: ℓ, of the plain sigmoid or softmax.

    Returns:
        (logits, categories of the regions, w or None) → both sums, ``[2, C]``.

    Example:
        >>> from balms_jax.detection.losses import sigmoid_loss
        >>> sums = relative_gradients(2, sigmoid_loss, sigmoid_loss)
        >>> found = sums(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([1.0, 3.0]))
        >>> print(found[0] / found[1])
        [1. 3.]

    References:
        BALMS (arXiv 2007.10740), Eqn. 12; the authors' reply, R3Q1.
    """

    def sums(logits: jax.Array, of_regions: jax.Array, weights: jax.Array | None) -> jax.Array:
        trained = foreground_gradients(logits, of_regions, category_loss, weights)
        plain = foreground_gradients(logits, of_regions, plain_loss)
        return jnp.stack([trained, plain])[:, :categories]

    return sums
