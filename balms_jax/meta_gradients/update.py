"""The optimizer's update as a function that can be differentiated, whatever the optimizer."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]
)
"""A transformation, or ψ ↦ a transformation whose hyperparameters ψ sets."""
Update = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def differentiable_update(optimizer: Optimizer) -> Update:
    r"""Makes (g, optimizer state, θ, ψ) → (θ after the step, state), differentiated beside g = 0.

    Where an entry of g is exactly 0, as a dead unit's is, the derivative of some updates (Adam's
    root, a norm) reads 0/0 as written. Beside 0 it has its limit.
    """

    def take(grads: PyTree, opt_state: PyTree, params: PyTree, psi: PyTree) -> tuple:
        transformation = optimizer
        if not isinstance(transformation, optax.GradientTransformation):
            transformation = transformation(psi)
        updates, new_state = transformation.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_state

    @jax.custom_jvp
    def update(grads: PyTree, opt_state: PyTree, params: PyTree, psi: PyTree) -> tuple:
        return take(grads, opt_state, params, psi)

    @update.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        grads, *others = primals
        return take(*primals), jax.jvp(take, (_off_zero(grads), *others), tangents)[1]

    return update


def reads_psi(optimizer: Optimizer) -> bool:
    """Whether ψ sets hyperparameters of the update."""
    return not isinstance(optimizer, optax.GradientTransformation)


def _off_zero(grads: PyTree) -> PyTree:
    """Moves entries of exactly 0: no norm notices, and no root's derivative overflows.

    To 4.2e-12 in float32 and bfloat16; float16, where it would be 0.05, is refused.
    """

    def move(grad: jax.Array) -> jax.Array:
        return jnp.where(grad == 0, float(jnp.finfo(grad.dtype).tiny) ** 0.3, grad)

    return jax.tree.map(move, grads)
