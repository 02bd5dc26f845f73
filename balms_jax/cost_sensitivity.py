r"""CoSen's costs: what the classes' sizes, distances and confusions ask of ξ between two epochs.

An epoch trains with ``losses.cost_sensitive_cross_entropy_with_integer_labels`` under log ξ, which
starts at ξ = 1. After it :func:`class_separability` and :func:`confusion_rates` are measured,
:func:`target_costs` makes T of them, and :func:`moved_costs` moves ξ toward T.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.priors import as_floats, check_counts, check_labels, class_places, concrete

# Rows of the distance matrix that are held at a time.
_BLOCK = 64


def class_separability(features: ArrayLike, labels: ArrayLike, num_classes: int) -> jax.Array:
    r"""How much nearer the examples of a class lie to each other than to those of another class.

    .. math:: S_{pq} = \frac{1}{n_p} \sum_{i : y_i = p} \frac{d_i(p)}{d_i(q)}, \qquad
        d_i(q) = \min_{k \ne i : y_k = q} \lVert f_i - f_k \rVert

    Near 0 where p lies far from q, about 1 where it cannot be told from q, and 1 for q = p. A
    class of one example has no distance of its own and an empty one no distance at all: such
    ratios are 1, which says nothing. An example that lies on one of q but on none of p has that 0
    replaced by the least distance above 0, to keep its ratio finite; where both are 0 the ratio
    is 1.

    Args:
        features: f, ``[examples, features]``, any real type.
        labels: y, ``[examples]``, any integer type.
        num_classes: C, at least 1.

    Returns:
        S, ``[classes, classes]``, in the default float type. The time is that of all distances,
        the memory that of a block of them: a few thousand examples are a matter of seconds.

    Raises:
        ValueError: if shapes do not fit, there is no example, or known labels are not classes.

    Example:
        >>> features = jnp.array([[0.0], [1.0], [5.0], [7.0]])
        >>> separability = class_separability(features, jnp.array([0, 0, 1, 1]), num_classes=2)
        >>> print(jnp.array_str(separability, precision=3))
        [[1.    0.225]
         [0.417 1.   ]]

    References:
        Khan et al., Cost-Sensitive Learning of Deep Feature Representations from Imbalanced Data
        (arXiv 1508.03422), the class-to-class separability.
    """
    check_labels(labels, num_classes)
    features, labels = as_floats(features), class_places(labels, num_classes)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not labels.size:
        raise ValueError(
            f'features and labels: got {features.shape} and {labels.shape}, wanted '
            '[examples, features] and [examples], with an example'
        )
    return _separability(features, labels, num_classes)


def confusion_rates(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> jax.Array:
    r"""How often the examples of one class are taken for those of another.

    .. math:: R_{pq} = \frac{1}{n_p} \sum_{i : y_i = p} 1[\hat y_i = q]

    Args:
        predictions: ŷ, ``[examples]``, any integer type.
        labels: y, ``[examples]``, any integer type.
        num_classes: C, at least 1.

    Returns:
        R, ``[classes, classes]``, in the default float type: rows of sum 1, or of zeros for a class
        without an example.

    Raises:
        ValueError: if shapes differ, or known labels or predictions are not classes.

    Example:
        >>> print(confusion_rates(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), num_classes=2))
        [[0.5 0.5]
         [0.  1. ]]

    References:
        Khan et al. (arXiv 1508.03422).
    """
    check_labels(labels, num_classes)
    check_labels(predictions, num_classes, name='predictions')
    predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f'predictions and labels: got {predictions.shape} and {labels.shape}, wanted '
            '[examples] twice'
        )
    places = (class_places(labels, num_classes), class_places(predictions, num_classes))
    counts = jnp.zeros((num_classes, num_classes), jnp.int32).at[places].add(1)
    totals = counts.sum(-1, keepdims=True)
    return as_floats(counts) / as_floats(jnp.maximum(totals, 1))


def target_costs(
    class_counts: ArrayLike,
    separability: ArrayLike,
    confusion: ArrayLike,
    *,
    centers: tuple[float, float] | None = None,
    widths: tuple[float, float] | None = None,
) -> jax.Array:
    r"""The costs that the data ask for.

    .. math:: T = H \circ e^{-(S - \mu_1)^2 / 2 \sigma_1^2} \circ e^{-(R - \mu_2)^2 / 2 \sigma_2^2},
        \qquad H_{pq} = \max(h_p, h_q), \quad h = n_j / n

    Args:
        class_counts: n, ``[classes]``; only their ratios matter.
        separability: S, ``[classes, classes]``: :func:`class_separability`.
        confusion: R, ``[classes, classes]``: :func:`confusion_rates`.
        centers: (μ₁, μ₂), in the units of S and R. The paper takes them from cross-validation; if
            None they are the means over all entries.
        widths: (σ₁, σ₂), each above 0; if None the standard deviations over all entries. A matrix
            whose entries are all the same is then left out.

    Returns:
        T, ``[classes, classes]``, in the default float type, in 0..1.

    Raises:
        ValueError: if shapes do not fit, or known counts or widths are invalid.

    Example:
        >>> costs = target_costs([9, 1], jnp.ones([2, 2]), jnp.eye(2))
        >>> print(jnp.array_str(costs, precision=3))
        [[0.546 0.546]
         [0.546 0.061]]

    References:
        Khan et al. (arXiv 1508.03422).
    """
    check_counts(class_counts)
    counts = as_floats(class_counts)
    if counts.ndim != 1:
        raise ValueError(f'class_counts: got shape {counts.shape}, wanted [classes]')
    separability = _matrix(separability, counts.size, 'separability')
    confusion = _matrix(confusion, counts.size, 'confusion')
    if widths is not None and not all(width > 0 for width in widths):
        raise ValueError(f'widths: got {widths}, wanted two numbers above 0')
    shares = counts / counts.sum()
    costs = jnp.maximum(shares[:, None], shares[None, :])
    for place, matrix in enumerate((separability, confusion)):
        center = matrix.mean() if centers is None else centers[place]
        width = _deviation(matrix) if widths is None else widths[place]
        costs = costs * jnp.exp(-(((matrix - center) / width) ** 2) / 2)
    return costs


def moved_costs(costs: ArrayLike, target: ArrayLike, rate: float | jax.Array) -> jax.Array:
    r"""One step of the costs toward their target.

    .. math:: \xi \leftarrow \xi + \gamma_\xi (T - \xi)

    Args:
        costs: ξ, ``[classes, classes]``; all 1 at the start.
        target: T, ``[classes, classes]``: :func:`target_costs`.
        rate: γ_ξ, a scalar in 0..1, which in the paper decays with the validation error.

    Returns:
        ξ, ``[classes, classes]``, in the default float type. Its log is what the loss takes.

    Raises:
        ValueError: if shapes do not fit, or a known rate lies outside 0..1, where costs could turn
            negative.

    Example:
        >>> print(moved_costs(jnp.ones([2, 2]), jnp.array([[0.5, 0.5], [0.5, 0.0]]), rate=0.5))
        [[0.75 0.75]
         [0.75 0.5 ]]

    References:
        Khan et al. (arXiv 1508.03422).
    """
    known = concrete(rate)
    if known is not None and (known.ndim or not 0 <= known <= 1):
        raise ValueError(f'rate: got {known}, wanted a number in 0..1')
    costs = as_floats(costs)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise ValueError(f'costs: got shape {costs.shape}, wanted [classes, classes]')
    target = _matrix(target, costs.shape[0], 'target')
    return costs + jnp.asarray(rate, costs.dtype) * (target - costs)


def _separability(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    def nearest(i: jax.Array) -> jax.Array:
        # Differences, not ‖a‖² + ‖b‖² − 2ab, whose rounding gives equal features a distance.
        squared = jnp.sum((features - features[i][None]) ** 2, -1)
        return jax.ops.segment_min(squared.at[i].set(jnp.inf), labels, num_classes)

    places = jnp.arange(labels.size)
    distances = jnp.sqrt(jax.lax.map(nearest, places, batch_size=_BLOCK))  # [examples, classes]
    within = jnp.take_along_axis(distances, labels[:, None], -1)
    least = jnp.min(distances, initial=jnp.inf, where=distances > 0)
    is_known = jnp.isfinite(within) & jnp.isfinite(distances) & ((within > 0) | (distances > 0))
    ratio = jnp.where(is_known, within / jnp.where(distances > 0, distances, least), 1)
    totals = jax.ops.segment_sum(ratio, labels, num_classes)
    counts = jax.ops.segment_sum(jnp.ones_like(within), labels, num_classes)
    return jnp.where(counts > 0, totals / jnp.maximum(counts, 1), 1)


def _deviation(matrix: jax.Array) -> jax.Array:
    """The standard deviation; 1 where rounding is all that there is of it."""
    deviation, largest = matrix.std(), jnp.abs(matrix).max()
    return jnp.where(deviation > 1e-6 * largest, deviation, 1)


def _matrix(values: ArrayLike, num_classes: int, name: str) -> jax.Array:
    values = as_floats(values)
    if values.shape != (num_classes, num_classes):
        raise ValueError(
            f'{name}: got shape {values.shape}, wanted [classes, classes] = '
            f'({num_classes}, {num_classes})'
        )
    return values
