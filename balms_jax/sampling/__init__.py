"""Sampling rates, draws of classes and examples, and the gradient of a draw."""

from balms_jax.sampling.draws import (
    draw_classes,
    draw_examples,
    examples_by_class,
    stratified_classes,
    systematic_classes,
    systematic_examples_by_class,
)
from balms_jax.sampling.probabilities import (
    class_probabilities,
    initial_psi,
    progressive_class_probabilities,
    rated_class_probabilities,
    rated_log_class_probabilities,
    rates,
)
from balms_jax.sampling.straight_through import (
    one_with_gradient_of,
    straight_through_over_classes,
    straight_through_over_examples,
)

__all__ = [
    'class_probabilities',
    'draw_classes',
    'draw_examples',
    'examples_by_class',
    'initial_psi',
    'one_with_gradient_of',
    'progressive_class_probabilities',
    'rated_class_probabilities',
    'rated_log_class_probabilities',
    'rates',
    'straight_through_over_classes',
    'straight_through_over_examples',
    'stratified_classes',
    'systematic_classes',
    'systematic_examples_by_class',
]
