"""The gradient of a meta loss through an optimizer's update."""

from balms_jax.meta_gradients.ghost import CoupledExamplesError
from balms_jax.meta_gradients.implicit import ImplicitGradient, implicit_meta_grad
from balms_jax.meta_gradients.modes import MODES, InnerGradient, Mode, Product, finite_difference
from balms_jax.meta_gradients.step import MetaStep, value_and_meta_grad
from balms_jax.meta_gradients.train_loss import WeightedLosses

__all__ = [
    'MODES',
    'CoupledExamplesError',
    'ImplicitGradient',
    'InnerGradient',
    'MetaStep',
    'Mode',
    'Product',
    'WeightedLosses',
    'finite_difference',
    'implicit_meta_grad',
    'value_and_meta_grad',
]
