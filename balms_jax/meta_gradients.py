r"""The gradient of a meta loss through an optimizer's update.

With a training loss :math:`L(\theta, \psi)` and any optax transformation, one real step is

.. math:: g = \nabla_\theta L(\theta, \psi), \qquad \tilde\theta(\psi) = \theta + U(g)

and what is sought is :math:`\nabla_\psi L_{meta}(\tilde\theta(\psi))`. By the chain rule it is

.. math:: u = \Big(\frac{\partial U}{\partial g}\Big)^{\!\top} \nabla L_{meta}(\tilde\theta),
    \qquad \nabla_\psi = \frac{\partial}{\partial \psi}
    \big\langle u, \nabla_\theta L(\theta, \psi) \big\rangle

The modes differ only in how they take the last product, a mixed second derivative. g and θ̃ are
also the real step's: they are computed once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
TrainLoss = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]
MetaLoss = Callable[[PyTree, PyTree], tuple[jax.Array, PyTree]]


class MetaStep(NamedTuple):
    """One real step of θ and the meta-gradient through it."""

    meta_loss: jax.Array  # L_meta(θ̃), a scalar
    psi_grad: PyTree  # ∇_ψ L_meta(θ̃(ψ)), of ψ's structure
    train_loss: jax.Array  # L(θ, ψ), a scalar
    params: PyTree  # θ̃, after the real step
    opt_state: PyTree  # after the real step
    train_aux: PyTree
    meta_aux: PyTree


class InnerGradient(NamedTuple):
    """The training loss at θ, its gradient, and the mixed product."""

    loss: jax.Array
    aux: PyTree
    grads: PyTree  # ∇_θ L
    mixed_product: Callable[[PyTree], PyTree]  # u ↦ ∂_ψ ⟨u, ∇_θ L⟩


def value_and_meta_grad(
    train_loss: TrainLoss,
    meta_loss: MetaLoss,
    optimizer: optax.GradientTransformation,
    *,
    mode: str = 'reverse',
) -> Callable[..., MetaStep]:
    r"""Makes the function that takes one step of θ and the meta-gradient of ψ through it.

    .. math:: \theta, \psi \mapsto \tilde\theta(\psi),\ \nabla_\psi L_{meta}(\tilde\theta(\psi))

    Modes, in units of one forward pass at equal batches (a plain step costs 3):

    - ``'reverse'``: the inner gradient is differentiated again in reverse; 8 units where ψ enters
      through weights of the losses. Exact.
    - ``'forward_over_reverse'``: the loss is linearised once; its transpose gives g, its tangent in
      direction u, through ∇_ψ L, the product; 8 units. Exact.
    - ``'finite_difference'``: a central difference of ∇_ψ L in direction u, two forward passes
      more; 8 units, but the memory of a plain step. Its error is about √ε of the working precision
      or more where the network has kinks.

    Args:
        train_loss: L: (params, psi, batch) → (scalar, aux). Batch statistics belong into aux.
        meta_loss: (params, meta_batch) → (scalar, aux).
        optimizer: any optax transformation; frozen parameters by its masks.
        mode: one of the above.

    Returns:
        f(psi, params, opt_state, batch, meta_batch) → :class:`MetaStep`. ψ is any pytree.

    Raises:
        ValueError: if the mode is unknown.

    Example:
        >>> import optax
        >>> def train_loss(w, psi, x): return jnp.mean(psi * (w - x) ** 2), None
        >>> def meta_loss(w, x): return jnp.mean((w - x) ** 2), None
        >>> step = value_and_meta_grad(train_loss, meta_loss, optax.sgd(0.5))
        >>> w, psi, x = jnp.array(0.0), jnp.ones(2), jnp.array([1.0, -1.0])
        >>> out = step(psi, w, optax.sgd(0.5).init(w), x, jnp.array([1.0]))
        >>> print(out.params, out.psi_grad)  # More of the first example, less of the second.
        0.0 [-1.  1.]

    Note:
        Where an entry of g is exactly 0, as a dead unit's is, the derivative of some updates
        (Adam's root, a norm) reads 0/0 as written. It is taken beside 0, where it has its limit.

    References:
        BALMS (arXiv 2007.10740), Algorithm 1; Eqn. 10.
    """
    if mode not in MODES:
        raise ValueError(f'mode: got {mode!r}, wanted one of {", ".join(MODES)}')
    inner_gradient = MODES[mode]

    def step(
        psi: PyTree, params: PyTree, opt_state: PyTree, batch: PyTree, meta_batch: PyTree
    ) -> MetaStep:
        inner = inner_gradient(train_loss, params, psi, batch)

        def update(grads: PyTree) -> tuple[PyTree, PyTree]:
            updates, new_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), new_state

        new_params, new_state = update(inner.grads)
        _, update_vjp = jax.vjp(lambda grads: update(grads)[0], _off_zero(inner.grads))
        (loss, meta_aux), meta_grads = jax.value_and_grad(meta_loss, has_aux=True)(
            new_params, meta_batch
        )
        (u,) = update_vjp(meta_grads)
        psi_grad = inner.mixed_product(u)
        return MetaStep(loss, psi_grad, inner.loss, new_params, new_state, inner.aux, meta_aux)

    return step


def reverse(train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree) -> InnerGradient:
    """Reverse over reverse: the gradient is computed, then pulled back to ψ."""

    def gradient(psi: PyTree) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)
        return grads, (loss, aux)

    grads, pull_back, (loss, aux) = jax.vjp(gradient, psi, has_aux=True)
    return InnerGradient(loss, aux, grads, lambda u: pull_back(u)[0])


def forward_over_reverse(
    train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
) -> InnerGradient:
    r"""One linearisation at θ: transposed it gives g, pushed forward ∂_θ(∇_ψ L)·u.

    The mixed derivatives commute: :math:`\partial_\psi \langle u, \nabla_\theta L\rangle =
    \partial_\theta (\nabla_\psi L)\, u`. Where ψ enters by weights of the losses, ∇_ψ L costs one
    forward pass, and its tangent is the tangent of the losses.
    """

    def loss_and_psi_grad(params: PyTree) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        (loss, aux), psi_grad = jax.value_and_grad(train_loss, argnums=1, has_aux=True)(
            params, psi, batch
        )
        return (loss, psi_grad), aux

    (loss, psi_grad), push_forward, aux = jax.linearize(loss_and_psi_grad, params, has_aux=True)
    transposed = jax.linear_transpose(push_forward, params)
    (grads,) = transposed((jnp.ones_like(loss), jax.tree.map(jnp.zeros_like, psi_grad)))
    return InnerGradient(loss, aux, grads, lambda u: push_forward(u)[1])


def finite_difference(
    train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
) -> InnerGradient:
    r"""A central difference along u.

    .. math:: \frac{\nabla_\psi L(\theta + h u) - \nabla_\psi L(\theta - h u)}{2h},
        \quad h = \epsilon^{1/3} \frac{1 + \lVert\theta\rVert}{\lVert u \rVert}
    """
    (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)

    def mixed_product(u: PyTree) -> PyTree:
        # Where g is 0, Adam's u is huge and what it multiplies is 0: it would only shrink h.
        u = jax.tree.map(lambda entry, grad: jnp.where(grad == 0, 0, entry), u, grads)
        norm, scale = optax.tree.norm(u), 1 + optax.tree.norm(params)
        epsilon = jnp.finfo(norm.dtype).eps
        h = epsilon ** (1 / 3) * scale / jnp.where(norm > 0, norm, 1)

        def psi_grad(h: jax.Array) -> PyTree:
            moved = jax.tree.map(lambda p, d: p + h.astype(p.dtype) * d, params, u)
            return jax.grad(train_loss, argnums=1, has_aux=True)(moved, psi, batch)[0]

        return jax.tree.map(lambda a, b: (a - b) / (2 * h), psi_grad(h), psi_grad(-h))

    return InnerGradient(loss, aux, grads, mixed_product)


MODES: dict[str, Callable[[TrainLoss, PyTree, PyTree, PyTree], InnerGradient]] = {
    'reverse': reverse,
    'forward_over_reverse': forward_over_reverse,
    'finite_difference': finite_difference,
}


def _off_zero(grads: PyTree) -> PyTree:
    """Moves entries of exactly 0 by less than any norm or root of a square notices."""

    def move(grad: jax.Array) -> jax.Array:
        return jnp.where(grad == 0, float(jnp.finfo(grad.dtype).tiny) ** 0.4, grad)

    return jax.tree.map(move, grads)
