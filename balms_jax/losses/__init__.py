"""Losses of logits, labels and a log prior: one value an example or class, in optax's manner."""

from balms_jax.losses.balanced import (
    balanced_softmax_cross_entropy,
    balanced_softmax_cross_entropy_with_integer_labels,
    change_prior,
    prior_adjusted_log_softmax,
)
from balms_jax.losses.relatives import (
    cost_sensitive_cross_entropy_with_integer_labels,
    equalization_cross_entropy_with_integer_labels,
    equalization_sigmoid_binary_cross_entropy,
    focal_cross_entropy_with_integer_labels,
    focal_sigmoid_binary_cross_entropy,
    margin_cross_entropy_with_integer_labels,
    temperature_cross_entropy_with_integer_labels,
)
from balms_jax.losses.seesaw import seesaw_cross_entropy_with_integer_labels
from balms_jax.losses.sigmoid import balanced_sigmoid_binary_cross_entropy

__all__ = [
    'balanced_sigmoid_binary_cross_entropy',
    'balanced_softmax_cross_entropy',
    'balanced_softmax_cross_entropy_with_integer_labels',
    'change_prior',
    'cost_sensitive_cross_entropy_with_integer_labels',
    'equalization_cross_entropy_with_integer_labels',
    'equalization_sigmoid_binary_cross_entropy',
    'focal_cross_entropy_with_integer_labels',
    'focal_sigmoid_binary_cross_entropy',
    'margin_cross_entropy_with_integer_labels',
    'prior_adjusted_log_softmax',
    'seesaw_cross_entropy_with_integer_labels',
    'temperature_cross_entropy_with_integer_labels',
]
