"""The loss of every example of a batch, as a recipe names it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import bounds, losses, priors
from balms_jax.training.recipe import Loss

Targets = jax.Array  # labels [batch], or distributions [batch, classes]
ExampleLosses = Callable[..., jax.Array]
"""(logits, targets, spared [batch], adjustment = None) → [batch]

logits: ``[batch, classes]``, or ``[batch, experts, classes]`` for the mean of the experts' losses.

adjustment: what is learned of it, ``[classes]``; of the cost-sensitive loss log ξ, one row a label.
spared: which examples spare the tail their gradients, the draw of the equalization loss.
"""


def make_example_losses(settings: Loss, class_counts: tuple[int, ...]) -> ExampleLosses:
    """Makes the function from logits and targets to losses, class weights included."""
    of_class = class_weights(settings, class_counts)
    log_prior = priors.log_prior(label_mass(settings, np.asarray(class_counts)))

    def example_losses(
        logits: jax.Array,
        targets: Targets,
        spared: jax.Array,
        adjustment: jax.Array | None = None,
    ) -> jax.Array:
        soft = targets.ndim == 2 or settings.label_smoothing > 0
        if soft:
            targets = _soft(settings, of_class, targets, logits)
        if settings.name == 'balanced_softmax':
            loss = (
                losses.balanced_softmax_cross_entropy
                if soft
                else losses.balanced_softmax_cross_entropy_with_integer_labels
            )
            if logits.ndim == 3:
                taus = expert_taus(settings, logits.shape[1])
                by_expert = [
                    loss(logits[:, e], targets, log_prior, tau=tau) for e, tau in enumerate(taus)
                ]
                values = jnp.mean(jnp.stack(by_expert), 0)
            elif adjustment is None:
                values = loss(logits, targets, log_prior, tau=settings.tau)
            else:
                known = settings.tau * log_prior if settings.tau else jnp.zeros_like(log_prior)
                values = loss(logits, targets, known + adjustment)
        elif settings.name == 'cost_sensitive':
            assert adjustment is not None, 'its costs are the adjustment'
            values = losses.cost_sensitive_cross_entropy_with_integer_labels(
                logits, targets, adjustment
            )
        else:
            values = _of_labels(settings, class_counts)(logits, targets, spared)
        if of_class is None or soft:  # The weights of distributions are in them.
            return values
        return values * of_class.astype(values.dtype)[targets]

    return example_losses


def label_mass(settings: Loss, class_counts: np.ndarray) -> np.ndarray:
    r"""What the classes weigh in the targets, ``[classes]``, up to a factor.

    Their counts; with smoothed labels :math:`(1 - \epsilon) n_j + \epsilon\, n / C`, whose log
    is the prior to adjust by.
    """
    epsilon = settings.label_smoothing
    return (1 - epsilon) * class_counts + epsilon * class_counts.mean() if epsilon else class_counts


def _soft(
    settings: Loss, of_class: jax.Array | None, targets: Targets, logits: jax.Array
) -> jax.Array:
    """Targets as distributions, smoothed, and as heavy as their classes, ``[batch, classes]``."""
    classes, dtype = logits.shape[-1], logits.dtype
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, classes, dtype=dtype)
    if of_class is not None:
        targets = targets * of_class.astype(dtype)[None]
    mass = targets.sum(-1, keepdims=True)
    epsilon = settings.label_smoothing
    return (1 - epsilon) * targets + epsilon / classes * mass


def expert_taus(settings: Loss, experts: int) -> tuple[float, ...]:
    """The τ of every expert: ``expert_spread`` apart, ``tau`` their mean."""
    middle = (experts - 1) / 2
    return tuple(settings.tau + settings.expert_spread * (e - middle) for e in range(experts))


def class_weights(settings: Loss, class_counts: tuple[int, ...]) -> jax.Array | None:
    """How much the losses of each class weigh, ``[classes]``; None: all alike."""
    counts = np.asarray(class_counts)
    if settings.class_weights == 'inverse_frequency':
        return priors.inverse_frequency_weights(counts)
    if settings.class_weights == 'class_balanced':
        return priors.class_balanced_weights(counts, settings.beta)
    return None


def _of_labels(
    settings: Loss, class_counts: tuple[int, ...]
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """(logits, labels, spared) → [batch], of the losses that take no distributions."""
    counts = np.asarray(class_counts)

    def focal(logits: jax.Array, labels: jax.Array, spared: jax.Array) -> jax.Array:
        return losses.focal_cross_entropy_with_integer_labels(logits, labels, gamma=settings.gamma)

    def focal_sigmoid(logits: jax.Array, labels: jax.Array, spared: jax.Array) -> jax.Array:
        is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return losses.focal_sigmoid_binary_cross_entropy(
            logits, is_label, gamma=settings.gamma
        ).sum(-1)

    def margin(logits: jax.Array, labels: jax.Array, spared: jax.Array) -> jax.Array:
        margins = bounds.label_distribution_margins(counts, settings.margin)
        return losses.margin_cross_entropy_with_integer_labels(logits, labels, margins)

    def temperature(logits: jax.Array, labels: jax.Array, spared: jax.Array) -> jax.Array:
        temperatures = priors.class_dependent_temperatures(counts, settings.gamma)
        return losses.temperature_cross_entropy_with_integer_labels(logits, labels, temperatures)

    def equalization(logits: jax.Array, labels: jax.Array, spared: jax.Array) -> jax.Array:
        tail = priors.equalized_classes(counts, settings.threshold)
        return losses.equalization_cross_entropy_with_integer_labels(
            logits, labels, spared[:, None] & tail[None]
        )

    return {
        'focal': focal,
        'focal_sigmoid': focal_sigmoid,
        'margin': margin,
        'temperature': temperature,
        'equalization': equalization,
    }[settings.name]
