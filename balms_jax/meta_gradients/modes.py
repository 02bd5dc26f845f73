r"""The modes: orders in which the mixed second derivative is computed.

Each gives :math:`g = \nabla_\theta L` for the real step and, once the meta loss has been
differentiated, the product :math:`u \mapsto \partial_\psi \langle u, \nabla_\theta L \rangle`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from balms_jax.meta_gradients.ghost import tapped
from balms_jax.meta_gradients.train_loss import PyTree, TrainLoss, WeightedLosses, check_range

Function = Callable[[PyTree], PyTree]


class Product(NamedTuple):
    """The mixed product, and what it is made of where ψ weighs the losses."""

    psi: PyTree  # ∂_ψ ⟨u, ∇_θ L⟩, of ψ's structure
    examples: jax.Array | None = None  # ∂_z ⟨u, ∇_θ L⟩ = ⟨u, ∇ℓ_b⟩ / B, [batch]


class InnerGradient(NamedTuple):
    """The training loss at θ, its gradient, and the mixed product."""

    loss: jax.Array
    aux: PyTree
    grads: PyTree  # ∇_θ L
    mixed_product: Callable[[PyTree], Product]  # of a direction u


class Mode(NamedTuple):
    """An order of differentiation."""

    inner_gradient: Callable[[TrainLoss, PyTree, PyTree, PyTree], InnerGradient]
    """(train_loss, params, psi, batch) → the gradient of one step"""
    directional: Callable[[Function, PyTree, PyTree], PyTree] | None = None
    """(f, x, v) → ∂f(x)·v, for K steps; None: the backward passes of all steps are kept"""
    one_step: bool = False  # Cannot look through several steps.
    exact: bool = True


def reverse(train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree) -> InnerGradient:
    """Reverse over reverse: the gradient is computed, then pulled back to ψ."""

    def gradient(psi: PyTree) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)
        return grads, (loss, aux)

    grads, pull_back, (loss, aux) = jax.vjp(gradient, psi, has_aux=True)
    return InnerGradient(loss, aux, grads, lambda u: Product(pull_back(u)[0]))


def forward_over_reverse(
    train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
) -> InnerGradient:
    r"""One backward pass gives g and ∇_ψ L; its linearisation, pushed forward, ∂_θ(∇_ψ L)·u.

    The mixed derivatives commute: :math:`\partial_\psi \langle u, \nabla_\theta L\rangle =
    \partial_\theta (\nabla_\psi L)\, u`. Where ψ enters by weights of the losses, ∇_ψ L costs one
    forward pass, and its tangent is the tangent of the losses.
    """

    def psi_grad(params: PyTree) -> tuple[PyTree, tuple[jax.Array, PyTree, PyTree]]:
        # By θ too, or a loss with rules of its own (jax.custom_vjp) would meet a tangent first.
        (loss, aux), (grads, psi_grad) = jax.value_and_grad(
            train_loss, argnums=(0, 1), has_aux=True
        )(params, psi, batch)
        return psi_grad, (loss, aux, grads)

    _, push_forward, (loss, aux, grads) = jax.linearize(psi_grad, params, has_aux=True)
    return InnerGradient(loss, aux, grads, lambda u: Product(push_forward(u)))


def recomputed(
    directional: Callable[[Function, PyTree, PyTree], PyTree],
    direction: Callable[[PyTree, PyTree], PyTree] = lambda u, grads: u,
    *,
    exact: bool = True,
) -> Callable[[TrainLoss, PyTree, PyTree, PyTree], InnerGradient]:
    r"""The product as a derivative of ∇_ψ L along u, its forward pass computed again after u.

    Nothing is kept of the first pass while the meta loss is differentiated.
    """

    def inner_gradient(
        train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
    ) -> InnerGradient:
        (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)
        along = train_loss if exact else weights_held(train_loss, params, batch)

        def psi_grad(params: PyTree) -> PyTree:
            # By θ too, as above; the compiler leaves it out.
            return jax.grad(along, argnums=(0, 1), has_aux=True)(params, psi, batch)[0][1]

        def mixed_product(u: PyTree) -> Product:
            return Product(directional(psi_grad, beside(params, u), direction(u, grads)))

        return InnerGradient(loss, aux, grads, mixed_product)

    return inner_gradient


def weights_held(train_loss: TrainLoss, params: PyTree, batch: PyTree, *carry: PyTree) -> TrainLoss:
    """The training loss of which a difference may be taken: weights do not follow θ."""
    if isinstance(train_loss, WeightedLosses):
        return train_loss.held(params, batch, *carry)
    return train_loss


def per_example(train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree) -> InnerGradient:
    r"""The losses are linearised at θ: transposed at z it gives g, pushed forward ⟨u, ∇ℓ_b⟩.

    The vector :math:`\partial L_{meta} / \partial z_b` knows no ψ. The meta-gradient of any
    weighting follows from it, :math:`(\partial z / \partial \psi)^\top \partial_z L_{meta}`.
    """
    weighted = _weighted(train_loss, 'per_example')
    values, push_forward, aux = jax.linearize(
        lambda params: weighted.losses(params, batch), params, has_aux=True
    )
    z, pull_back = jax.vjp(lambda psi: weighted.weigh(psi, batch, values), psi)
    (grads,) = jax.linear_transpose(push_forward, params)((z / z.size).astype(values.dtype))

    def mixed_product(u: PyTree) -> Product:
        examples = push_forward(u) / z.size
        return Product(pull_back(examples.astype(z.dtype))[0], examples)

    return InnerGradient(jnp.mean(z * values), aux, grads, mixed_product)


def ghost_product(
    train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
) -> InnerGradient:
    r"""The backward pass that gave g gives ⟨u, ∇ℓ_b⟩ too, with one more forward pass.

    With :math:`\delta_b` the gradient at a layer's output and :math:`x_b` what the layer took,

    .. math:: \langle u, \nabla \ell_b \rangle = \sum_{layers} \langle \delta_b, layer(x_b; u)
        \rangle

    where layer(·; u) is its derivative by the parameters, along u. That δ_b is of example b's loss
    alone holds for networks whose examples are independent; others are refused.
    """
    weighted = _weighted(train_loss, 'ghost_product')
    values, backward, aux = tapped(weighted.losses, params, batch)
    z, pull_back = jax.vjp(lambda psi: weighted.weigh(psi, batch, values), psi)
    check_range('losses', values.dtype)
    # δ_b comes out times z_b: where that is 0, it is read beside 0.
    seen = z.astype(values.dtype)
    seen = jnp.where(jnp.abs(seen) < 1e-20, 1e-20, seen)
    grads, products = backward(seen / z.size)

    def mixed_product(u: PyTree) -> Product:
        examples = products(u) / seen
        return Product(pull_back(examples.astype(z.dtype))[0], examples)

    return InnerGradient(jnp.mean(z * values), aux, grads, mixed_product)


def derivative(function: Function, at: PyTree, along: PyTree) -> PyTree:
    """∂ function(at) · along, exactly."""
    return jax.jvp(function, (at,), (along,))[1]


def finite_difference(
    scheme: str = 'central',
    step: float | jax.Array | None = None,
    precision: DTypeLike | None = None,
) -> Mode:
    r"""Differences of ∇_ψ L along u in place of its derivative; not exact.

    .. math:: \frac{\nabla_\psi L(\theta + h u) - \nabla_\psi L(\theta - h u)}{2h}
        \quad\text{or}\quad \frac{\nabla_\psi L(\theta + h u) - \nabla_\psi L(\theta)}{h},
        \qquad h = \rho\, \frac{1 + \lVert\theta\rVert}{\lVert u \rVert}

    Args:
        scheme: ``'central'`` or ``'forward'``.
        step: ρ, how far θ is moved relative to its length. By default :math:`\epsilon^{1/2}` of the
            precision. There rounding, :math:`\epsilon / \rho`, balances what grows as ρ: the
            truncation of a forward difference, and what a difference of either scheme gets wrong
            at the kinks of rectified units.
        precision: the type that ε is of; by default the parameters' own. Name the type of the
            computation where it is another.

    Returns:
        The mode, for ``value_and_meta_grad``. Weights of a :class:`WeightedLosses` are held where
        they read the losses; a ``stop_gradient`` of your own in a train loss is not seen by a
        difference.

    Raises:
        ValueError: if the scheme is unknown or the step is not above 0.

    Example:
        >>> mode = finite_difference('forward', step=1e-4)
        >>> square = lambda x: x**2
        >>> print(round(float(mode.directional(square, jnp.array(1.0), jnp.array(1.0))), 1))
        2.0

    References:
        DARTS (arXiv 1806.09055), §2.3, whose step is 0.01 / ‖u‖.
    """
    if scheme not in ('central', 'forward'):
        raise ValueError(f"scheme: got {scheme!r}, wanted 'central' or 'forward'")
    if step is not None and not isinstance(step, jax.core.Tracer) and not jnp.all(step > 0):
        raise ValueError(f'step: got {step}, wanted a number above 0')

    def difference(function: Function, at: PyTree, along: PyTree) -> PyTree:
        norm, scale = optax.tree.norm(along), 1 + optax.tree.norm(at)
        default = balanced_step(norm.dtype if precision is None else precision)
        rho = jnp.asarray(default if step is None else step, norm.dtype)
        h = rho * scale / jnp.where(norm > 0, norm, 1)

        def moved(h: jax.Array) -> PyTree:
            return function(jax.tree.map(lambda x, v: x + h.astype(x.dtype) * v, at, along))

        behind, apart = (moved(-h), 2 * h) if scheme == 'central' else (function(at), h)
        return jax.tree.map(lambda a, b: (a - b) / apart.astype(a.dtype), moved(h), behind)

    return Mode(recomputed(difference, _where_alive, exact=False), difference, exact=False)


def balanced_step(precision: DTypeLike) -> float:
    """√ε, the relative step of a difference if none is given."""
    return float(jnp.finfo(precision).eps) ** 0.5


def beside(params: PyTree, u: PyTree) -> PyTree:
    """θ + 0 u, a θ that is there only after u.

    At θ itself the compiler would merge a later pass with the first one, and keep its activations.
    """
    return jax.tree.map(lambda p, d: p + 0 * d, params, u)


def _weighted(train_loss: TrainLoss, mode: str) -> WeightedLosses:
    if not isinstance(train_loss, WeightedLosses):
        raise ValueError(
            f'train_loss: got {train_loss!r}, wanted WeightedLosses for mode {mode!r}, which '
            'differentiates the loss of every example'
        )
    return train_loss


def _where_alive(u: PyTree, grads: PyTree) -> PyTree:
    """U with 0 where g is exactly 0, unless g is 0 everywhere.

    Beside g = 0 Adam's u is huge, and what it multiplies is 0 if the unit is dead: it would only
    shrink the step of a difference. Where all of g is 0, the weights are, and not the units.
    """
    any_alive = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads)]))
    return jax.tree.map(lambda v, g: jnp.where((g == 0) & any_alive, 0, v), u, grads)


MODES: dict[str, Mode] = {
    'reverse': Mode(reverse),
    'forward_over_reverse': Mode(forward_over_reverse, derivative),
    'lean': Mode(recomputed(derivative), derivative),
    'per_example': Mode(per_example, one_step=True),
    'ghost_product': Mode(ghost_product, one_step=True),
    'finite_difference': finite_difference(),
}
