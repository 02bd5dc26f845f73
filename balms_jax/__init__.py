"""Balanced Meta-Softmax for long-tailed recognition, as pure functions in JAX.

Importing this needs only jax and optax; ``balms_jax.data``, ``models``, ``report`` and
``training`` need the ``train`` extra.
"""

from balms_jax import meta_gradients, rebalancers, sampling
from balms_jax.bounds import optimal_margins
from balms_jax.diagnostics import effective_gradient_weights
from balms_jax.losses import (
    balanced_sigmoid_binary_cross_entropy,
    balanced_softmax_cross_entropy,
    balanced_softmax_cross_entropy_with_integer_labels,
    change_prior,
    prior_adjusted_log_softmax,
)
from balms_jax.priors import class_counts, log_prior, shot_groups

__all__ = [
    'balanced_sigmoid_binary_cross_entropy',
    'balanced_softmax_cross_entropy',
    'balanced_softmax_cross_entropy_with_integer_labels',
    'change_prior',
    'class_counts',
    'effective_gradient_weights',
    'log_prior',
    'meta_gradients',
    'optimal_margins',
    'prior_adjusted_log_softmax',
    'rebalancers',
    'sampling',
    'shot_groups',
]
