"""What is differentiated: the forms a training loss and a meta loss may have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
TrainLoss = Callable[..., tuple[jax.Array, PyTree]]
"""(params, psi, batch) → (scalar, aux); or (params, psi, batch, carry) → (scalar, carry)"""
MetaLoss = Callable[..., tuple[jax.Array, PyTree]]
"""(params, meta_batch) → (scalar, aux); with a carry (params, meta_batch, carry)"""


@dataclass(frozen=True)
class WeightedLosses:
    r"""A training loss in which ψ weighs the losses of the examples.

    .. math:: L(\theta, \psi) = \frac1B \sum_b z_b(\psi)\, \ell_b(\theta)

    It is called as any training loss. Modes that differentiate one loss an example read its parts.
    z may depend on the losses' values (Meta-Weight-Net's does); it is not differentiated by them.

    Args:
        losses: ℓ: (params, batch) → (``[batch]``, aux).
        weights: z: (psi, batch, losses ``[batch]``) → ``[batch]``.

    Example:
        >>> squares = lambda w, x: ((w - x) ** 2, None)
        >>> train_loss = WeightedLosses(squares, lambda psi, x, losses: psi)
        >>> print(train_loss(jnp.array(1.0), jnp.array([1.0, 3.0]), jnp.zeros(2))[0])
        2.0
    """

    losses: Callable[..., tuple[jax.Array, PyTree]]
    weights: Callable[[PyTree, PyTree, jax.Array], jax.Array]

    def __call__(self, params: PyTree, psi: PyTree, batch: PyTree, *carry: PyTree) -> tuple:
        """L(θ, ψ), a scalar, and the losses' aux."""
        values, aux = self.losses(params, batch, *carry)
        weights = self.weigh(psi, batch, jax.lax.stop_gradient(values))
        return jnp.mean(weights * values), aux

    def weigh(self, psi: PyTree, batch: PyTree, values: jax.Array) -> jax.Array:
        """z(ψ), ``[batch]``.

        Raises:
            ValueError: if losses and weights are not one number an example each.
        """
        weights = jnp.asarray(self.weights(psi, batch, values))
        if values.ndim != 1 or weights.shape != values.shape:
            raise ValueError(
                f'weights and losses: got shapes {weights.shape} and {values.shape}, wanted one of '
                'each for every example, [batch]'
            )
        return weights

    def held(self, params: PyTree, batch: PyTree, *carry: PyTree) -> 'WeightedLosses':
        """The same, but the weights see the losses at θ wherever the losses are taken.

        A difference of ∇_ψ L along θ would else differentiate the weights by the losses too.
        """
        at = jax.lax.stop_gradient(self.losses(params, batch, *carry)[0])
        return WeightedLosses(self.losses, lambda psi, batch, values: self.weights(psi, batch, at))


def check_range(name: str, kind: jnp.dtype) -> None:
    """Raises ValueError for float16, beside whose zeros no derivative can be taken.

    What stands in for a 0 must be small beside everything, and its square no 0.
    """
    if float(jnp.finfo(kind).tiny) > 1e-30:
        raise ValueError(
            f'{name}: got {kind}, wanted bfloat16, float32 or float64: the squares of small '
            f'gradients are 0 in {kind}'
        )
