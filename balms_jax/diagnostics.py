"""What a training run did to its classes: gradient weights, marginal likelihood, calibration."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from balms_jax.losses.logits import fitting_prior, float_logits, integer_labels
from balms_jax.priors import as_floats, class_places


def effective_gradient_weights(
    logits: ArrayLike,
    labels: ArrayLike,
    log_prior: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    r"""How much each class's examples weigh in the gradient, relative to plain softmax training.

    The gradient of the loss at a negative logit is :math:`\hat\phi_j`, that of plain softmax
    :math:`\phi_j`; their ratio is :math:`n_j^\tau` times

    .. math:: \omega(x) = \frac{\frac1C \sum_i n_i^\tau}{\sum_i n_i^\tau \phi_i(x)},
        \qquad \omega_y = \frac{q_y}{\pi_y}\, \operatorname{mean}_{x \in y}\, \omega(x)

    with q/π how much more often than instance-balanced the class is drawn, or the weight of its
    loss. At equal logits ω = 1 for every class; at zero loss ω_y ∝ 1/n_y^τ, and class-balanced
    sampling adds another 1/n_y: over-balance.

    Args:
        logits: η, ``[examples, classes]``, any float type.
        labels: y, ``[examples]``, any integer type. Out of range: an error where known, left out
            while traced.
        log_prior: log n up to a constant (counts or proportions: ``balms_jax.log_prior``),
            ``[classes]``.
        tau: τ of the loss, a scalar; 0 for plain softmax.
        class_weights: q/π or loss weights, ``[classes]``; 1 if None.

    Returns:
        ω, ``[classes]``; NaN for a class without an example.

    Raises:
        ValueError: if types or shapes do not fit, or a known label or prior is invalid.

    Example:
        >>> logits, labels = 100 * jnp.eye(2), jnp.array([0, 1])  # Zero loss.
        >>> weights = effective_gradient_weights(logits, labels, jnp.log(jnp.array([9.0, 1.0])))
        >>> print(f'{weights[1] / weights[0]:.2f}')
        9.00

    References:
        BALMS (arXiv 2007.10740), §3.2, Eqn. 12.
    """
    logits = float_logits(logits)
    if logits.ndim != 2:
        raise ValueError(f'logits: got shape {logits.shape}, wanted [examples, classes]')
    labels, num_classes = integer_labels(labels, logits, (1,)), logits.shape[1]
    logits = as_floats(logits)
    dtype, of_classes = logits.dtype, (num_classes,)
    for name, values in (('log_prior', log_prior), ('class_weights', class_weights)):
        if values is not None and jnp.shape(values) != of_classes:
            raise ValueError(
                f'{name}: got shape {jnp.shape(values)}, wanted [classes] = {of_classes}'
            )
    log_prior = fitting_prior(log_prior, logits, (1,), dtype)
    tau = jnp.asarray(tau, dtype)
    if tau.ndim:
        raise ValueError(f'tau: got shape {tau.shape}, wanted a scalar')
    adjustment = jnp.where(tau == 0, 0, tau * log_prior)  # 0⁰ = 1: τ = 0 is plain softmax.
    log_mean = jax.nn.logsumexp(adjustment) - np.log(num_classes).astype(dtype)
    expected = jax.nn.logsumexp(jax.nn.log_softmax(logits) + adjustment, axis=-1)
    omega = jnp.exp(log_mean - expected)
    totals = jax.ops.segment_sum(omega, labels, num_classes)
    weights = totals / jax.ops.segment_sum(jnp.ones_like(omega), labels, num_classes)
    return weights if class_weights is None else weights * jnp.asarray(class_weights, dtype)


def gradient_weight_exponent(weights: ArrayLike, class_counts: ArrayLike) -> float:
    r"""The slope of log weight against log count: 0 unbalanced, −1 balanced, below over-balanced.

    Args:
        weights: ω, ``[classes]``; NaN is left out.
        class_counts: n, ``[classes]``.

    Returns:
        The least-squares slope; NaN where fewer than two different counts remain.

    Example:
        >>> round(gradient_weight_exponent([1.0, 10.0, 100.0], [100, 10, 1]), 6)
        -1.0

    References:
        BALMS (arXiv 2007.10740), Eqn. 12; the authors' reply, R3Q1.
    """
    weights, counts = np.asarray(weights, np.float64), np.asarray(class_counts, np.float64)
    known = np.isfinite(weights) & (weights > 0) & (counts > 0)
    log_counts, log_weights = np.log(counts[known]), np.log(weights[known])
    deviation = log_counts - log_counts.mean() if known.any() else log_counts
    if not np.any(np.abs(deviation) > 1e-12):
        return float('nan')
    return float(deviation @ log_weights / (deviation @ deviation))


class Reliability(NamedTuple):
    """Predictions by confidence; each ``[bins]``."""

    weight: jax.Array  # of the predictions; their number where each counts 1
    confidence: jax.Array  # the sum of their confidences
    accuracy: jax.Array  # the sum of the correct ones


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike, bins: int = 15
) -> Reliability:
    """Sorts predictions into equal intervals of confidence, as sums that add over batches.

    Args:
        probabilities: ``[examples, classes]``.
        labels: ``[examples]``, any integer type.
        weights: what each example counts, ``[examples]``; 0 leaves it out, whatever it holds.
        bins: how many intervals 0..1 is cut into.

    Returns:
        Sums in each interval.

    References:
        Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), §2.
    """
    probabilities, weights = as_floats(probabilities), as_floats(weights)
    labels = class_places(labels, probabilities.shape[-1])
    # 0 · NaN is NaN: what is left out must be so before it is weighed.
    confidence = jnp.where(weights > 0, probabilities.max(-1), 0)
    correct = as_floats(probabilities.argmax(-1).astype(labels.dtype) == labels)
    place = jnp.clip((confidence * bins).astype(jnp.int32), 0, bins - 1)
    sums = (
        jax.ops.segment_sum(values, place, bins)
        for values in (weights, weights * confidence, weights * correct)
    )
    return Reliability(*sums)


def expected_calibration_error(bins: Reliability) -> float:
    r"""How far confidence and accuracy lie apart.

    .. math:: \sum_b \frac{|B_b|}{n} \big| \operatorname{acc}(B_b) - \operatorname{conf}(B_b) \big|

    Args:
        bins: sums over all examples.

    Returns:
        The error, in 0..1; NaN without an example.

    Example:
        >>> bins = reliability(jnp.array([[0.8, 0.2]]), jnp.array([0]), jnp.ones(1))
        >>> round(expected_calibration_error(bins), 3)
        0.2

    References:
        Guo et al. (arXiv 1706.04599), Eqn. 3.
    """
    weight, confidence, accuracy = (np.asarray(a, np.float64) for a in bins)
    total = weight.sum()
    return float(np.abs(accuracy - confidence).sum() / total) if total else float('nan')


def calibration_temperature(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike, temperatures: ArrayLike
) -> float:
    r"""The temperature at which predictions are as sure as they are right.

    .. math:: T = \arg\min_{T} \sum_i w_i \, \mathrm{CE}(\eta_i / T, y_i)

    Args:
        logits: η, ``[examples, classes]``, of examples that were not trained on.
        labels: y, ``[examples]``, any integer type.
        weights: w, what each example counts, ``[examples]``; 0 leaves it out, whatever it holds.
        temperatures: the T to choose from, ``[temperatures]``, above 0.

    Returns:
        The T of least loss, one of those given; the ranking of the classes is that of the plain
        logits at any.

    Raises:
        ValueError: if there is no temperature, or one is not above 0.

    Example:
        >>> logits, labels = jnp.array([[4.0, 0.0]] * 4), jnp.array([0, 0, 0, 1])
        >>> round(calibration_temperature(logits, labels, jnp.ones(4), [1.0, 3.64, 10.0]), 2)
        3.64

    References:
        Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), §4.2.
    """
    candidates = np.asarray(temperatures, np.float64)
    if candidates.ndim != 1 or not candidates.size:
        raise ValueError(f'temperatures: got shape {candidates.shape}, wanted [temperatures]')
    if not np.all(candidates > 0):
        bad = candidates[~(candidates > 0)][0]
        raise ValueError(f'temperatures: got {bad}, wanted numbers above 0')
    # Sixteen bits would neither hold the candidates nor tell their losses apart.
    logits, weights = as_floats(logits), as_floats(weights)
    labels = class_places(labels, logits.shape[-1])

    def loss(temperature: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits / temperature, labels)
        return jnp.sum(jnp.where(weights > 0, weights * losses, 0))  # 0 · NaN is NaN.

    return float(candidates[jax.lax.map(loss, as_floats(candidates)).argmin()])
