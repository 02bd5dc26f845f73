"""Balanced Softmax, and the change of prior behind it.

Train with the prior, predict with plain logits: the losses here take the log prior of the
*training* set; at test the network's own logits η are already right for a balanced set.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.losses.logits import (
    compute_dtype,
    fitting_prior,
    fitting_where,
    float_logits,
    integer_labels,
)

Axis = int | tuple[int, ...]


def prior_adjusted_log_softmax(
    logits: ArrayLike,
    log_prior: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The log posterior on data whose classes have the given prior.

    .. math:: \log \hat\phi_j = \log \frac{\pi_j^\tau e^{\eta_j}}{\sum_i \pi_i^\tau e^{\eta_i}}

    Args:
        logits: η, ``[..., classes, ...]``, any float type.
        log_prior: log π up to a constant, ``[classes]`` or of the logits' rank and broadcastable
            to them; −inf for an empty class, whose probability is 0 (if τ ≠ 0; 0⁰ = 1).
        tau: τ, a scalar: 0 plain softmax, 1 Balanced Softmax, 1/4 the bound's variant.
        axis: the axis (or axes, taken as one) of the classes.
        where: classes to include, of the logits' shape; the others get −inf.

    Returns:
        log φ̂, of the logits' shape and type.

    Raises:
        ValueError: if ``logits`` are not floats, ``log_prior`` does not fit them, or is known and
            NaN, +inf, or empty everywhere.

    Example:
        >>> log_prior = jnp.log(jnp.array([0.9, 0.1]))
        >>> probabilities = jnp.exp(prior_adjusted_log_softmax(jnp.zeros(2), log_prior))
        >>> print(jnp.array_str(probabilities, precision=2))
        [0.9 0.1]

    References:
        BALMS (arXiv 2007.10740), Theorem 1; the family in τ: Menon et al. (arXiv 2007.07314).
    """
    logits = float_logits(logits)
    axes = _class_axes(axis, logits.ndim)
    terms = _Terms.of(logits, log_prior, tau, axes, where)
    log_probabilities = terms.centred - terms.log_normaliser[..., None] + terms.emptiness
    if terms.where is not None:
        log_probabilities = jnp.where(terms.where, log_probabilities, -jnp.inf)
    class_shape = tuple(logits.shape[a] for a in axes)
    unflattened = log_probabilities.reshape(log_probabilities.shape[:-1] + class_shape)
    return jnp.moveaxis(unflattened, range(-len(axes), 0), axes).astype(logits.dtype)


def balanced_softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    log_prior: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Balanced Softmax cross-entropy: train with it, predict with the plain logits.

    .. math:: \ell = -\log \frac{n_y^\tau e^{\eta_y}}{\sum_j n_j^\tau e^{\eta_j}}

    Equal to ``optax.softmax_cross_entropy_with_integer_labels(logits + tau * log_prior, labels)``,
    but exact where that loses the prior to rounding or meets an empty class.

    Args:
        logits: η, ``[..., classes, ...]``, any float type.
        labels: y, the logits' shape without ``axis``, any integer type. Out of range: an error
            where known, a NaN loss while traced; anything where ``where`` excludes the example.
        log_prior: log n up to a constant (counts or proportions: ``balms_jax.log_prior``),
            ``[classes]``, or of the logits' rank and broadcastable to them.
        tau: τ, a scalar: 0 plain softmax, 1 Balanced Softmax, 1/4 the bound's variant.
        axis: the axis of the classes; several count as one, labels then being flat indices.
        where: elements to include, of the logits' or the labels' shape, as in optax; an example
            without any has loss 0.

    Returns:
        The loss of every example in nats, of the labels' shape and the logits' type. Where the
        label's class is empty it is +inf, with the finite gradient φ̂ − 1[j = y].

    Raises:
        ValueError: if types or shapes do not fit, or an included known label or the known prior is
            invalid.

    Example:
        >>> log_prior = jnp.log(jnp.array([900.0, 100.0]))
        >>> logits, labels = jnp.zeros([2, 2]), jnp.array([0, 1])
        >>> loss = balanced_softmax_cross_entropy_with_integer_labels(logits, labels, log_prior)
        >>> print(jnp.array_str(loss, precision=3))
        [0.105 2.303]

    References:
        BALMS (arXiv 2007.10740), Eqn. 4; Corollary 2.1 for τ = 1/4.
    """
    logits = float_logits(logits)
    axes = _class_axes(axis, logits.ndim)
    where = fitting_where(where, logits, axes)
    labels = integer_labels(labels, logits, axes, where)
    terms = _Terms.of(logits, log_prior, tau, axes, where)

    def at_label(array: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array, labels[..., None], axis=-1, mode='fill')[..., 0]

    # Taken before the sum, so that no array of the logits' size is kept for the sake of one entry.
    eta = at_label(_flatten_classes_last(logits, axes).astype(terms.eta.dtype))
    label_term = (eta - terms.peak[..., 0]) + at_label(terms.shift)
    loss = terms.log_normaliser - label_term - at_label(terms.emptiness)
    return _zero_where_nothing(loss, terms.where).astype(logits.dtype)


def balanced_softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    log_prior: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Balanced Softmax cross-entropy against distributions: mixup, label smoothing, teachers.

    .. math:: \ell = -\sum_j y_j \log \hat\phi_j

    with φ̂ of :func:`prior_adjusted_log_softmax`.

    Args:
        logits: η, ``[..., classes, ...]``, any float type.
        labels: y, distributions over the classes, of the logits' shape, any float type.
        log_prior: log n up to a constant (counts or proportions: ``balms_jax.log_prior``),
            ``[classes]``, or of the logits' rank and broadcastable to them.
        tau: τ, a scalar: 0 plain softmax, 1 Balanced Softmax, 1/4 the bound's variant.
        axis: the axis (or axes, taken as one) of the classes.
        where: elements to include, of the logits' shape or without ``axis``, as in optax.

    Returns:
        The loss of every example in nats, the logits' shape without ``axis``, in their type;
        +inf, with a finite gradient, where an empty class has a share of the label.

    Raises:
        ValueError: if types or shapes do not fit, or a known prior is invalid.

    Example:
        >>> log_prior = jnp.log(jnp.array([900.0, 100.0]))
        >>> loss = balanced_softmax_cross_entropy(jnp.zeros(2), jnp.array([0.5, 0.5]), log_prior)
        >>> print(f'{loss:.3f}')
        1.204

    References:
        BALMS (arXiv 2007.10740), Eqn. 4.
    """
    logits = float_logits(logits)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise ValueError(
            f'labels: got {labels.dtype}, wanted float distributions; for integer labels call '
            'balanced_softmax_cross_entropy_with_integer_labels'
        )
    if labels.shape != logits.shape:
        raise ValueError(f"labels: got shape {labels.shape}, wanted the logits' {logits.shape}")
    axes = _class_axes(axis, logits.ndim)
    terms = _Terms.of(logits, log_prior, tau, axes, where)
    labels = _flatten_classes_last(labels, axes).astype(terms.eta.dtype)
    surprise = terms.log_normaliser[..., None] - terms.centred
    # 0 log 0 = 0: a class without a share of the label costs nothing, however impossible it is.
    surprise = jnp.where((labels == 0) & ~jnp.isfinite(surprise), 0, surprise)
    impossible = jnp.where(labels == 0, 0, -terms.emptiness)
    loss = jnp.sum(labels * surprise + impossible, axis=-1, where=terms.where)
    return loss.astype(logits.dtype)


def change_prior(
    logits: ArrayLike,
    *,
    trained_log_prior: ArrayLike | None = None,
    test_log_prior: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
) -> jax.Array:
    r"""Moves logits from the class prior they were trained under to that of a test set.

    .. math:: \eta'_j = \eta_j - \tau \log \pi^{train}_j + \log \pi^{test}_j

    A network trained with plain softmax has learned its training prior: subtract it (post-hoc
    logit adjustment). One trained with Balanced Softmax has not: leave it out. A uniform test
    prior adds nothing.

    Args:
        logits: η, ``[..., classes]``.
        trained_log_prior: log π of the training set if the logits contain it, ``[classes]``.
        test_log_prior: log π of the test set, ``[classes]``; uniform if None.
        tau: τ, a scalar, the strength of the correction for the training prior.

    Returns:
        η', of the logits' shape and type. A class without training examples keeps its logit; one
        without test examples gets −inf.

    Raises:
        ValueError: if types or shapes do not fit, or a known prior is invalid.

    Example:
        >>> log_prior = jnp.log(jnp.array([0.9, 0.1]))
        >>> logits = change_prior(jnp.zeros(2), trained_log_prior=log_prior)
        >>> print(jnp.array_str(logits, precision=2))
        [0.11 2.3 ]

    References:
        Menon et al. (arXiv 2007.07314), Eqn. 9; Hong et al. (arXiv 2012.00321), Eqn. 4.
    """
    logits = float_logits(logits)
    dtype, axes = compute_dtype(logits), (logits.ndim - 1,)
    changed = logits.astype(dtype)
    if trained_log_prior is not None:
        trained = fitting_prior(trained_log_prior, logits, axes, dtype, 'trained_log_prior')
        changed = changed - jnp.asarray(tau, dtype) * jnp.where(trained == -jnp.inf, 0, trained)
    if test_log_prior is not None:
        changed = changed + fitting_prior(test_log_prior, logits, axes, dtype, 'test_log_prior')
    return changed.astype(logits.dtype)


class _Terms(NamedTuple):
    """What every form of the loss is made of; classes last, in the type of the computation.

    The exponent of class j is centred + emptiness = (η_j − peak) + τ log π_j up to a constant. The
    peak is subtracted *before* the prior is added, or rounding would swallow log π beside large
    logits. Shift and emptiness split τ log π into a finite part, which carries gradients, and a
    constant 0 or −inf, so that no gradient ever meets an infinity.
    """

    eta: jax.Array  # [..., classes]; the peak at excluded ones
    peak: jax.Array  # [..., 1]
    shift: jax.Array  # [..., classes], of rank eta, each axis full or 1; at most 0
    emptiness: jax.Array  # like shift: 0, or −inf for an empty class
    where: jax.Array | None  # [..., classes] or [..., 1]

    @classmethod
    def of(
        cls,
        logits: jax.Array,
        log_prior: ArrayLike,
        tau: ArrayLike,
        axes: tuple[int, ...],
        where: ArrayLike | None,
    ) -> '_Terms':
        dtype = compute_dtype(logits)
        eta = _flatten_classes_last(logits, axes)
        log_prior = _flatten_classes_last(fitting_prior(log_prior, logits, axes, dtype), axes)
        tau = jnp.asarray(tau, dtype)
        if tau.ndim:
            raise ValueError(f'tau: got shape {tau.shape}, wanted a scalar')
        is_empty = (log_prior == -jnp.inf) & (tau != 0)  # 0⁰ = 1: τ = 0 is plain softmax.
        emptiness = jnp.where(is_empty, -jnp.inf, 0).astype(dtype)
        shift = tau * jnp.where(log_prior == -jnp.inf, 0, log_prior)
        # The prior's scale is free: its head class is placed at 0.
        shift = shift - jax.lax.stop_gradient((shift + emptiness).max(-1, keepdims=True))
        where = fitting_where(where, logits, axes)
        if where is not None:
            where = _flatten_classes_last(where, axes)
        peak = _peak(eta, shift + emptiness, where)
        eta = eta.astype(dtype)
        if where is not None:
            # A sum that leaves an exponential out still multiplies it, in the gradient, by 0. At
            # the peak no exponent is above 0.
            eta = jnp.where(where, eta, peak)
        return cls(eta, peak, shift, emptiness, where)

    @property
    def centred(self) -> jax.Array:
        return (self.eta - self.peak) + self.shift

    @property
    def log_normaliser(self) -> jax.Array:
        """[...]; 0 where nothing is included."""
        exponent = (self.eta - self.peak) + (self.shift + self.emptiness)
        total = jnp.sum(jnp.exp(exponent), -1, where=self.where)
        return jnp.log(jnp.where(total == 0, 1, total))


def _peak(eta: jax.Array, adjustment: jax.Array, where: jax.Array | None) -> jax.Array:
    """What to subtract from the logits, ``[..., 1]``, a constant, that no exponent overflows.

    The largest included logit does: the exponents are then at most 0, and the largest logit's is
    that of its own prior. Only where a prior is so small that its exponential would vanish must the
    maximum look at the prior. XLA keeps a copy of the logits for that, so the common case goes
    without.
    """
    eta, adjustment = jax.lax.stop_gradient((eta, adjustment))
    initial = None if where is None else -jnp.inf

    def largest(array: jax.Array) -> jax.Array:
        peak = jnp.max(array, -1, keepdims=True, where=where, initial=initial)
        return jnp.where(jnp.isfinite(peak), peak, 0).astype(adjustment.dtype)

    def largest_adjusted(eta: jax.Array) -> jax.Array:
        eta = eta.astype(adjustment.dtype)
        emptiness = jnp.where(adjustment == -jnp.inf, -jnp.inf, 0).astype(eta.dtype)
        possible = largest(eta + emptiness)
        return possible + largest((eta - possible) + adjustment)

    # Of 60, exp(−60) is a normal number, and what vanishes beside it, below exp(−87), is nothing.
    return jax.lax.cond(jnp.any(adjustment < -60), largest_adjusted, largest, eta)


def _zero_where_nothing(loss: jax.Array, where: jax.Array | None) -> jax.Array:
    return loss if where is None else jnp.where(jnp.any(where, -1), loss, 0)


def _class_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f'axis: got {axis}, wanted axes of logits of rank {ndim}')
    axes = tuple(a % ndim for a in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f'axis: got {axis}, wanted each axis once')
    return axes


def _flatten_classes_last(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if axes == (array.ndim - 1,):
        return array
    moved = jnp.moveaxis(array, axes, range(-len(axes), 0))
    if len(axes) == 1:
        return moved
    return moved.reshape(*moved.shape[: -len(axes)], -1)
