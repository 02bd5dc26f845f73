"""The losses of anchors and regions: one value each, 0 where they are padding.

Categories are told by ``targets.NO_CATEGORY`` where there is no object. With one sigmoid a category
(:func:`sigmoid_loss`, :func:`balanced_sigmoid_loss`, :func:`equalization_loss`) background is the
target of all zeros. With a softmax it is the last class, of :func:`with_background`, and every loss
of ``balms_jax.losses`` with integer labels serves.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from balms_jax.detection.matching import FOREGROUND, IGNORED
from balms_jax.losses import (
    balanced_sigmoid_binary_cross_entropy,
    equalization_sigmoid_binary_cross_entropy,
)

BETA = 1 / 9  # Where torchvision's smooth L1 loss turns from a square into a line.
EQUALIZATION_THRESHOLD = 1.77e-3


def objectness_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Whether an anchor holds an object.

    .. math:: \ell = -\log \sigma(\eta) \text{ in the foreground}, \quad
        -\log \sigma(-\eta) \text{ in the background}

    Args:
        logits: η, ``[...]``.
        labels: ``FOREGROUND``, ``BACKGROUND`` or ``IGNORED``, int, ``[...]``.

    Returns:
        The loss of every anchor in nats, ``[...]``; 0 where it is ignored.

    Raises:
        ValueError: if shapes differ.

    Example:
        >>> loss = objectness_loss(jnp.zeros(3), jnp.array([1, 0, -1]))
        >>> print(jnp.array_str(loss, precision=3))
        [0.693 0.693 0.   ]

    References:
        Ren et al., Faster R-CNN (arXiv 1506.01497), Eqn. 1.
    """
    _check_shapes(logits, labels, 'labels')
    is_object = (labels == FOREGROUND).astype(logits.dtype)
    loss = optax.losses.sigmoid_binary_cross_entropy(logits, is_object)
    return jnp.where(labels == IGNORED, 0, loss)


def box_loss(
    deltas: jax.Array, targets: jax.Array, labels: jax.Array, beta: float = BETA
) -> jax.Array:
    r"""How far the foreground's boxes are from their objects: the smooth L1 loss.

    .. math:: \ell = \sum_{i=1}^4 h(t_i - t^*_i), \qquad h(d) = \begin{cases}
        d^2 / 2 \beta & |d| < \beta \\ |d| - \beta / 2 & \text{else} \end{cases}

    Args:
        deltas: t, ``[..., 4]``.
        targets: t*, ``[..., 4]``.
        labels: ``FOREGROUND``, ``BACKGROUND`` or ``IGNORED``, int, ``[...]``.
        beta: β, above 0.

    Returns:
        The loss of every anchor or region, ``[...]``; 0 but in the foreground.

    Raises:
        ValueError: if shapes do not fit or β is not above 0.

    Example:
        >>> deltas = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
        >>> print(box_loss(deltas, jnp.zeros((2, 4)), jnp.array([1, 0]), beta=0.5))
        [0.75 0.  ]

    References:
        Girshick, Fast R-CNN (arXiv 1504.08083), Eqns. 2 and 3; β: torchvision.
    """
    if not beta > 0:
        raise ValueError(f'beta: got {beta}, wanted a number above 0')
    _check_shapes(deltas, targets, 'targets')
    _check_shapes(deltas[..., 0], labels, 'labels')
    loss = (optax.losses.huber_loss(deltas, targets, delta=beta) / beta).sum(-1)
    return jnp.where(labels == FOREGROUND, loss, 0)


def mask_loss(logits: jax.Array, targets: jax.Array, labels: jax.Array) -> jax.Array:
    r"""How far the foreground's masks are from their objects': the mean over a mask's pixels.

    .. math:: \ell = -\frac1{m^2} \sum_{uv} [y_{uv} \log \sigma(\eta_{uv})
        + (1 - y_{uv}) \log \sigma(-\eta_{uv})]

    Args:
        logits: η of the object's category, ``[..., m, m]``.
        targets: y in 0..1, ``[..., m, m]``.
        labels: ``FOREGROUND``, ``BACKGROUND`` or ``IGNORED``, int, ``[...]``.

    Returns:
        The loss of every region in nats, ``[...]``; 0 but in the foreground.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> loss = mask_loss(jnp.zeros((2, 28, 28)), jnp.ones((2, 28, 28)), jnp.array([1, 0]))
        >>> print(jnp.array_str(loss, precision=3))
        [0.693 0.   ]

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3.
    """
    _check_shapes(logits, targets, 'targets')
    _check_shapes(logits[..., 0, 0], labels, 'labels')
    loss = optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean((-2, -1))
    return jnp.where(labels == FOREGROUND, loss, 0)


def sigmoid_loss(logits: jax.Array, categories: jax.Array) -> jax.Array:
    r"""One sigmoid a category, summed over the categories.

    .. math:: \ell = \sum_j \mathrm{BCE}(\eta_j, 1[j = y])

    Args:
        logits: η, ``[..., categories]``.
        categories: y, int, ``[...]``; ``NO_CATEGORY`` for background.

    Returns:
        The loss of every region in nats, ``[...]``.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> loss = sigmoid_loss(jnp.zeros((2, 2)), jnp.array([1, -1]))
        >>> print(jnp.array_str(loss, precision=3))
        [1.386 1.386]

    References:
        BALMS (arXiv 2007.10740), §4.1: the sigmoid baseline of LVIS.
    """
    return optax.losses.sigmoid_binary_cross_entropy(logits, _one_hot(categories, logits)).sum(-1)


def balanced_sigmoid_loss(
    logits: jax.Array, categories: jax.Array, image_fractions: ArrayLike
) -> jax.Array:
    r"""Balanced Softmax's binary variant, which shifts the logits of the foreground alone.

    .. math:: \ell = \sum_j \mathrm{BCE}\Big(\eta_j - 1[\text{foreground}]
        \log \frac{1 - f_j}{f_j}, 1[j = y]\Big)

    Args:
        logits: η, ``[..., categories]``.
        categories: y, int, ``[...]``; ``NO_CATEGORY`` for background.
        image_fractions: f, the part of the training images that holds each category,
            ``[categories]``, in 0..1.

    Returns:
        The loss of every region in nats, ``[...]``.

    Raises:
        ValueError: if shapes do not fit, or a known fraction lies outside 0..1.

    Example:
        >>> fractions = jnp.array([0.9, 0.1])
        >>> loss = balanced_sigmoid_loss(jnp.zeros((2, 2)), jnp.array([0, -1]), fractions)
        >>> print(jnp.array_str(loss, precision=3))
        [0.211 1.386]

    References:
        BALMS (arXiv 2007.10740), supplementary material; its released code for LVIS.
    """
    return balanced_sigmoid_binary_cross_entropy(
        logits,
        _one_hot(categories, logits),
        image_fractions,
        reference_prior=0.5,
        foreground=categories >= 0,
    ).sum(-1)


def equalization_loss(
    logits: jax.Array,
    categories: jax.Array,
    image_fractions: ArrayLike,
    threshold: float = EQUALIZATION_THRESHOLD,
) -> jax.Array:
    r"""Equalization loss: objects of other categories are no negatives of rare ones.

    .. math:: \ell = \sum_j \big(1 - 1[\text{foreground}] \, 1[f_j < \lambda] \, 1[j \ne y]\big)
        \mathrm{BCE}(\eta_j, 1[j = y])

    Args:
        logits: η, ``[..., categories]``.
        categories: y, int, ``[...]``; ``NO_CATEGORY`` for background.
        image_fractions: f, the part of the training images that holds each category,
            ``[categories]``, in 0..1.
        threshold: λ, in 0..1.

    Returns:
        The loss of every region in nats, ``[...]``.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> fractions = jnp.array([0.9, 0.001])
        >>> loss = equalization_loss(jnp.zeros((2, 2)), jnp.array([0, -1]), fractions)
        >>> print(jnp.array_str(loss, precision=3))
        [0.693 1.386]

    References:
        Tan et al., Equalization Loss for Long-Tailed Object Recognition (arXiv 2003.05176), Eqn. 3.
    """
    return equalization_sigmoid_binary_cross_entropy(
        logits,
        _one_hot(categories, logits),
        jnp.asarray(image_fractions) < threshold,
        foreground=categories >= 0,
    ).sum(-1)


def with_background(categories: jax.Array, number: int) -> jax.Array:
    """Labels for a softmax whose last class is the background.

    Args:
        categories: 0 to C − 1 or ``NO_CATEGORY``, int, ``[...]``.
        number: C.

    Returns:
        Labels of 0 to C, int, ``[...]``.

    Example:
        >>> print(with_background(jnp.array([2, -1]), 5))
        [2 5]
    """
    return jnp.where(categories < 0, number, categories)


def _one_hot(categories: jax.Array, logits: jax.Array) -> jax.Array:
    """All zeros without a category."""
    _check_shapes(logits[..., 0], categories, 'categories')
    return jax.nn.one_hot(categories, logits.shape[-1], dtype=logits.dtype)


def _check_shapes(like: jax.Array, array: jax.Array, name: str) -> None:
    if array.shape != like.shape:
        raise ValueError(f'{name}: got shape {array.shape}, wanted {like.shape}')
