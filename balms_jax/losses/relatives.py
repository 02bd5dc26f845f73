"""The losses that Balanced Softmax is compared with: focal, margins, temperatures, EQL, CoSen.

One sum over the classes serves all those that adjust the logits, with the numerics of
``losses.balanced``. Where a method is random, what was drawn is an argument.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from balms_jax import priors
from balms_jax.losses.balanced import balanced_softmax_cross_entropy_with_integer_labels
from balms_jax.losses.logits import (
    binary_labels,
    compute_dtype,
    float_logits,
    foreground_of_every_class,
    integer_labels,
)


def focal_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, *, gamma: ArrayLike = 2.0
) -> jax.Array:
    r"""Focal loss with a softmax: what is already certain weighs less.

    .. math:: \ell = -(1 - \phi_y)^\gamma \log \phi_y, \qquad \phi = \mathrm{softmax}(\eta)

    Class-balanced focal loss is this times the labels' ``priors.class_balanced_weights``.

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y, ``[...]``, any integer type. Out of range: an error where known, a NaN loss
            while traced.
        gamma: γ, a scalar of at least 0; 0 is the plain cross-entropy.

    Returns:
        The loss of every example in nats, ``[...]``, in the logits' type. An impossible label, of
        logit −inf, has loss +inf and no gradient.

    Raises:
        ValueError: if types or shapes do not fit, or a known label or γ is invalid.

    Example:
        >>> loss = focal_cross_entropy_with_integer_labels(jnp.log(jnp.array([0.9, 0.1])), 0)
        >>> print(f'{loss:.6f}')  # 0.1² · −log 0.9
        0.001054

    References:
        Lin et al., Focal Loss (arXiv 1708.02002); Cui et al. (arXiv 1901.05555).
    """
    logits = float_logits(logits)
    labels = integer_labels(labels, logits, (logits.ndim - 1,))
    log_odds = _log_odds_of_label(logits.astype(compute_dtype(logits)), labels)
    # Where the outcome is certain, a constant: no gradient may meet the infinity.
    is_certain = jnp.isinf(log_odds)
    finite = jnp.where(is_certain, 0, log_odds)
    # 1 − φ is taken in the log, so that its powers have all derivatives where it vanishes.
    loss = optax.losses.sigmoid_focal_loss(
        finite, jnp.ones_like(finite), gamma=_focusing(gamma, finite.dtype)
    )
    certain_loss = jnp.where(log_odds > 0, 0, jnp.inf).astype(loss.dtype)
    return jnp.where(is_certain, certain_loss, loss).astype(logits.dtype)


def focal_sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, gamma: ArrayLike = 2.0
) -> jax.Array:
    r"""Focal loss with one sigmoid a class: every class is a yes or a no of its own.

    .. math:: \ell_j = -(1 - p_j)^\gamma \,
        [y_j \log \sigma(\eta_j) + (1 - y_j) \log \sigma(-\eta_j)], \qquad
        p_j = y_j \sigma(\eta_j) + (1 - y_j) \sigma(-\eta_j)

    It is ``optax.losses.sigmoid_focal_loss`` with sixteen bits widened and its arguments checked.
    Class-balanced focal loss is this times the labels' ``priors.class_balanced_weights``.

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y in 0..1, of the logits' shape, any float, integer or bool type.
        gamma: γ, a scalar of at least 0; 0 is the plain binary cross-entropy.

    Returns:
        The loss of every class in nats, of the logits' shape and type: sum it over the classes.

    Raises:
        ValueError: if types or shapes do not fit, or a known γ is invalid.

    Example:
        >>> logits, labels = jnp.zeros(2), jnp.array([1, 0])
        >>> loss = focal_sigmoid_binary_cross_entropy(logits, labels, gamma=1.0)
        >>> print(jnp.array_str(loss, precision=3))
        [0.347 0.347]

    References:
        Lin et al., Focal Loss (arXiv 1708.02002); Cui et al. (arXiv 1901.05555).
    """
    logits = float_logits(logits)
    dtype = compute_dtype(logits)
    loss = optax.losses.sigmoid_focal_loss(
        logits.astype(dtype), binary_labels(labels, logits), gamma=_focusing(gamma, dtype)
    )
    return loss.astype(logits.dtype)


def margin_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, margins: ArrayLike, *, scale: ArrayLike = 1.0
) -> jax.Array:
    r"""Cross-entropy that asks each class for a margin: LDAM.

    .. math:: \ell = -\log \frac{e^{s (\eta_y - \Delta_y)}}
        {e^{s (\eta_y - \Delta_y)} + \sum_{j \ne y} e^{s \eta_j}}

    LDAM has it on the cosines of features and class weights, with s = 30; predict with plain η.

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y, ``[...]``, any integer type. Out of range: an error where known, a NaN loss
            while traced.
        margins: Δ, ``[classes]``, in the units of η; LDAM's are
            ``bounds.label_distribution_margins``.
        scale: s, a scalar, in nats for a unit of η.

    Returns:
        The loss of every example in nats, ``[...]``, in the logits' type.

    Raises:
        ValueError: if types or shapes do not fit, or a known label, margin or scale is
            invalid.

    Example:
        >>> margins, labels = jnp.array([0.0, 1.0]), jnp.array([0, 1])
        >>> loss = margin_cross_entropy_with_integer_labels(jnp.eye(2), labels, margins)
        >>> print(jnp.array_str(loss, precision=3))
        [0.313 0.693]

    References:
        Cao et al., LDAM (arXiv 1906.07413), §3.
    """
    logits = float_logits(logits)
    labels = integer_labels(labels, logits, (logits.ndim - 1,))
    dtype = compute_dtype(logits)
    known = priors.concrete(scale)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f'scale: got {known}, wanted a finite number')
    scale = _scalar(scale, 'scale', dtype)
    margins = _of_every_class(margins, logits, 'margins', dtype)
    known = priors.concrete(margins)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f'margins: got {known.min()} to {known.max()}, wanted finite numbers')
    # As a prior it is added only after the peak is taken, and large logits do not swallow it.
    adjustment = jnp.where(_is_label(labels, logits), -scale * margins, 0)
    return balanced_softmax_cross_entropy_with_integer_labels(
        _centred(scale * logits.astype(dtype)), labels, adjustment
    ).astype(logits.dtype)


def temperature_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, temperatures: ArrayLike
) -> jax.Array:
    r"""Cross-entropy with a temperature for each class: CDT. Predict with the plain logits.

    .. math:: \ell = -\log \frac{e^{\eta_y / a_y}}{\sum_j e^{\eta_j / a_j}}

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y, ``[...]``, any integer type. Out of range: an error where known, a NaN loss
            while traced.
        temperatures: a, ``[classes]``, above 0; CDT's are ``priors.class_dependent_temperatures``.

    Returns:
        The loss of every example in nats, ``[...]``, in the logits' type.

    Raises:
        ValueError: if types or shapes do not fit, or a known label or temperature is invalid.

    Example:
        >>> logits, temperatures = jnp.array([1.0, 1.0]), jnp.array([1.0, 2.0])
        >>> print(f'{temperature_cross_entropy_with_integer_labels(logits, 1, temperatures):.3f}')
        0.974

    References:
        Ye et al., Identifying and Compensating for Feature Deviation (arXiv 2001.01385).
    """
    logits = float_logits(logits)
    dtype = compute_dtype(logits)
    temperatures = _of_every_class(temperatures, logits, 'temperatures', dtype)
    known = priors.concrete(temperatures)
    if known is not None and not np.all((known > 0) & np.isfinite(known)):
        raise ValueError(
            f'temperatures: got {known.min()} to {known.max()}, wanted finite numbers above 0'
        )
    uniform = np.zeros(logits.shape[-1])
    return balanced_softmax_cross_entropy_with_integer_labels(
        _centred(logits.astype(dtype) / temperatures), labels, uniform
    ).astype(logits.dtype)


def equalization_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, ignored: ArrayLike
) -> jax.Array:
    r"""Softmax equalization loss: the tail is spared the gradients of other classes' examples.

    .. math:: \ell = -\log \frac{e^{\eta_y}}{\sum_j w_j e^{\eta_j}}, \qquad
        w_j = 1 - r_j (1 - 1[j = y])

    The paper's r = ρ T_λ(f): the tail ``priors.equalized_classes``, each time with probability
    0.9. The draw ρ is the caller's.

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y, ``[...]``, any integer type. Out of range: an error where known, a NaN loss
            while traced.
        ignored: r, the classes to ignore as negatives, ``[classes]`` or of the logits' shape; bool,
            or any real type in 0..1.

    Returns:
        The loss of every example in nats, ``[...]``, in the logits' type; 0 where every class is
        ignored.

    Raises:
        ValueError: if types or shapes do not fit, or a known label or share is invalid.

    Example:
        >>> logits, tail = jnp.zeros([2, 3]), jnp.array([False, False, True])
        >>> drawn = jax.random.bernoulli(jax.random.key(1), 0.9, (2, 1)) & tail[None]
        >>> print(drawn.tolist())
        [[False, False, True], [False, False, True]]
        >>> labels = jnp.array([0, 2])
        >>> loss = equalization_cross_entropy_with_integer_labels(logits, labels, drawn)
        >>> print(jnp.array_str(loss, precision=3))
        [0.693 1.099]

    References:
        Tan et al., Equalization Loss for Long-Tailed Object Recognition (arXiv 2003.05176).
    """
    logits = float_logits(logits)
    labels = integer_labels(labels, logits, (logits.ndim - 1,))
    shares = jnp.where(_is_label(labels, logits), 0, _shares(ignored, logits, 'ignored'))
    # Classes ignored whole are those of an empty class; no gradient may meet log 0.
    is_whole = shares >= 1
    log_weights = jnp.where(is_whole, -jnp.inf, jnp.log1p(-jnp.where(is_whole, 0, shares)))
    return balanced_softmax_cross_entropy_with_integer_labels(logits, labels, log_weights)


def equalization_sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    ignored: ArrayLike,
    *,
    foreground: ArrayLike | None = None,
) -> jax.Array:
    r"""Equalization loss with one sigmoid a class, for detection.

    .. math:: \ell_j = [1 - E\, r_j (1 - y_j)]\, \mathrm{BCE}(\eta_j, y_j)

    The paper's r = T_λ(f): the classes that fewer than λ = 1.77e-3 of the images hold.

    Args:
        logits: η, ``[..., classes]``, any float type, without a background class.
        labels: y in 0..1, of the logits' shape, any float, integer or bool type; all zero for
            background.
        ignored: r, the classes to ignore as negatives, ``[classes]`` or of the logits' shape; bool,
            or any real type in 0..1.
        foreground: E, the samples that hold an object, ``[...]``, bool: background stays a negative
            of every class. All if None.

    Returns:
        The loss of every class in nats, of the logits' shape and type: sum it over the classes.

    Raises:
        ValueError: if types or shapes do not fit, or a known share is invalid.

    Example:
        >>> logits, labels = jnp.zeros([2, 2]), jnp.array([[1, 0], [0, 0]])
        >>> foreground = jnp.array([True, False])
        >>> loss = equalization_sigmoid_binary_cross_entropy(
        ...     logits, labels, jnp.array([False, True]), foreground=foreground
        ... )
        >>> print(jnp.array_str(loss, precision=3))
        [[0.693 0.   ]
         [0.693 0.693]]

    References:
        Tan et al., Equalization Loss for Long-Tailed Object Recognition (arXiv 2003.05176).
    """
    logits = float_logits(logits)
    labels = binary_labels(labels, logits)
    shares = _shares(ignored, logits, 'ignored')
    foreground = foreground_of_every_class(foreground, logits)
    if foreground is not None:
        shares = jnp.where(foreground, shares, 0)
    loss = optax.sigmoid_binary_cross_entropy(logits.astype(labels.dtype), labels)
    return ((1 - shares * (1 - labels)) * loss).astype(logits.dtype)


def cost_sensitive_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, log_costs: ArrayLike
) -> jax.Array:
    r"""Cross-entropy with a cost for each pair of classes: CoSen. Predict with the plain logits.

    .. math:: \ell = -\log \frac{\xi_{y,y} e^{\eta_y}}{\sum_j \xi_{y,j} e^{\eta_j}}

    Only ratios within a row of ξ matter. ξ_{y,j} = n_j is Balanced Softmax; ``cost_sensitivity``
    learns ξ.

    Args:
        logits: η, ``[..., classes]``, any float type.
        labels: y, ``[...]``, any integer type. Out of range: an error where known, a NaN loss
            while traced.
        log_costs: log ξ, ``[classes, classes]``, a row for each label; −inf where a cost is 0.

    Returns:
        The loss of every example in nats, ``[...]``, in the logits' type.

    Raises:
        ValueError: if types or shapes do not fit, or a known label or cost is invalid.

    Example:
        >>> log_costs = jnp.log(jnp.array([[1.0, 1.0], [3.0, 1.0]]))
        >>> logits, labels = jnp.zeros([2, 2]), jnp.array([0, 1])
        >>> loss = cost_sensitive_cross_entropy_with_integer_labels(logits, labels, log_costs)
        >>> print(jnp.array_str(loss, precision=3))
        [0.693 1.386]

    References:
        Khan et al., Cost-Sensitive Learning of Deep Feature Representations from Imbalanced Data
        (arXiv 1508.03422).
    """
    logits = float_logits(logits)
    labels = integer_labels(labels, logits, (logits.ndim - 1,))
    num_classes = logits.shape[-1]
    known = priors.concrete(log_costs)
    log_costs = jnp.asarray(log_costs)
    if not jnp.issubdtype(log_costs.dtype, jnp.floating):
        raise ValueError(f'log_costs: got {log_costs.dtype}, wanted logs, of a float type')
    if log_costs.shape != (num_classes, num_classes):
        raise ValueError(
            f'log_costs: got shape {log_costs.shape}, wanted [classes, classes] = '
            f'({num_classes}, {num_classes})'
        )
    if known is not None and np.any(np.isnan(known) | (known == np.inf)):
        raise ValueError('log_costs: got NaN or +inf, wanted finite numbers or -inf')
    if known is not None and np.any(np.all(known == -np.inf, axis=-1)):
        raise ValueError('log_costs: got -inf for a whole row, wanted one class with a cost')
    return balanced_softmax_cross_entropy_with_integer_labels(logits, labels, log_costs[labels])


def _log_odds_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The label's log φ_y − log(1 − φ_y), ``[...]``: exact at both ends of the softmax."""
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode='fill')[..., 0]
    others = jnp.where(_is_label(labels, logits), -jnp.inf, logits)
    peak = jax.lax.stop_gradient(others.max(-1, keepdims=True))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    total = jnp.sum(jnp.exp(others - peak), -1)
    # Without another class, or where none is possible, the label is certain: log 0, a constant.
    log_total = jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)))
    # The peak first: rounding would swallow the sum beside large logits.
    return (at_label - peak[..., 0]) - log_total


def _centred(scaled: jax.Array) -> jax.Array:
    """The logits less their largest, which is then 0 to the last bit.

    In a fused multiply-add a product is not rounded as its maximum was. Beside logits of 1e10 the
    difference is a large number, and its exponential infinite, unless it is kept at 0 or below.
    """
    peak = jax.lax.stop_gradient(scaled.max(-1, keepdims=True))
    centred = scaled - jnp.where(jnp.isfinite(peak), peak, 0)
    excess = jnp.where(scaled == peak, centred, jnp.maximum(centred, 0))
    return centred - jax.lax.stop_gradient(excess)


def _is_label(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Which class is the label, of the logits' shape, bool."""
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)


def _scalar(value: ArrayLike, name: str, dtype: jnp.dtype) -> jax.Array:
    value = jnp.asarray(value, dtype)
    if value.ndim:
        raise ValueError(f'{name}: got shape {value.shape}, wanted a scalar')
    return value


def _focusing(gamma: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    known = priors.concrete(gamma)
    if known is not None and not np.all(known >= 0):
        raise ValueError(f'gamma: got {known}, wanted a number of at least 0')
    return _scalar(gamma, 'gamma', dtype)


def _of_every_class(values: ArrayLike, logits: jax.Array, name: str, dtype: jnp.dtype) -> jax.Array:
    """A number of each class, ``[classes]``, at the logits' rank."""
    values = jnp.asarray(values)
    if values.shape != logits.shape[-1:]:
        raise ValueError(
            f'{name}: got shape {values.shape}, wanted [classes] = {logits.shape[-1:]}'
        )
    return jnp.expand_dims(values.astype(dtype), range(logits.ndim - 1))


def _shares(values: ArrayLike, logits: jax.Array, name: str) -> jax.Array:
    """Numbers of 0..1, ``[classes]`` or of the logits' shape, at the logits' rank."""
    known = priors.concrete(values)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f'{name}: got {known.min()} to {known.max()}, wanted numbers in 0..1')
    values, dtype = jnp.asarray(values), compute_dtype(logits)
    if values.shape == logits.shape:
        return values.astype(dtype)
    return _of_every_class(values, logits, name, dtype)
