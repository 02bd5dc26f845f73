r"""K inner steps, then the meta loss, pulled back through all of them in little memory.

Three things keep memory small. Each step's gradient is differentiated in *mixed mode*: with
cotangent v of the gradient, what is pulled back is

.. math:: \nabla_{\theta,\psi} \langle v, \nabla_\theta L\rangle =
    \partial_\theta (\nabla_{\theta,\psi} L)\, v

one derivative along v, which needs the gradient's inputs and nothing of its backward pass (Scalable
Meta-Learning via Mixed-Mode Differentiation, arXiv 2505.00793). The steps are cut into √K segments,
of which only the first state is kept; the others are computed again. And all that a later pass
reads is made to come after v, or the compiler merges the passes and keeps what they share.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from balms_jax.meta_gradients.modes import Mode, beside, weights_held
from balms_jax.meta_gradients.train_loss import PyTree, TrainLoss
from balms_jax.meta_gradients.update import Update

Train = Callable[..., tuple[PyTree, jax.Array, PyTree]]
State = tuple[PyTree, PyTree, tuple]  # θ, the optimizer's, the carry as a tuple of one or none
Material = tuple[PyTree, list]  # the batches of all steps, what the loss closes over


def train_steps(
    train_loss: TrainLoss,
    update: Update,
    mode: Mode,
    steps: int,
    segment: int | None = None,
    scan: bool = False,
) -> Callable[[PyTree, State, PyTree], tuple[State, Any]]:
    """Makes (ψ, state, batches) → (state after K steps, losses and aux of each), differentiable.

    Args:
        train_loss: (params, psi, batch, *carry) → (scalar, aux); with a carry aux is the next one.
        update: the optimizer's, from ``differentiable_update``.
        mode: how a gradient is differentiated.
        steps: K.
        segment: how many steps a segment has, of which only the first state is kept; ⌈√K⌉ if None.
            0 keeps the state of every step, and computes none again.
        scan: run a segment's steps as a loop of the compiler.
    """
    length = math.isqrt(steps - 1) + 1 if segment is None else segment or steps

    def loss_at(params: PyTree, psi: PyTree, batch: PyTree, here: PyTree, *carry: PyTree) -> Any:
        loss = train_loss if mode.exact else weights_held(train_loss, here, batch, *carry)
        return loss(params, psi, batch, *carry)

    def run(psi: PyTree, state: State, batches: PyTree) -> tuple[State, Any]:
        params, _, carry = state
        first = _batch((batches, []), 0)[0]
        closed, constants = _closed(loss_at, params, psi, first, params, *carry)
        several = _several(_gradient(closed, mode), update, scan)
        kept = several if segment == 0 else _computed_again(several)
        recorded = []
        for start in range(0, steps, length):
            ks = jnp.arange(start, min(start + length, steps), dtype=jnp.int32)
            state, records = kept(psi, state, (batches, constants), ks)
            recorded.append(records)
        return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *recorded)

    return run


def check_batches(batches: PyTree, steps: int) -> None:
    """Raises ValueError if an array of the batches has no leading axis of the steps."""
    for leaf in jax.tree.leaves(batches):
        if jnp.shape(leaf)[:1] != (steps,):
            raise ValueError(
                f'batch: got an array of shape {jnp.shape(leaf)}, wanted a leading axis of the '
                f'{steps} steps'
            )


def _several(gradient: Train, update: Update, scan: bool) -> Callable[..., tuple[State, Any]]:
    """(ψ, state, material, ks) → (state after the steps ks, losses and aux of each)."""

    def one_step(psi: PyTree, state: State, material: Material, k: Any) -> tuple[State, Any]:
        params, opt_state, carry = state
        grads, loss, aux = gradient(params, psi, carry, material, k)
        params, opt_state = update(grads, opt_state, params, psi)
        return (params, opt_state, (aux,) if carry else ()), (loss, None if carry else aux)

    def several(psi: PyTree, state: State, material: Material, ks: jax.Array) -> tuple[State, Any]:
        if scan:
            return jax.lax.scan(lambda state, k: one_step(psi, state, material, k), state, ks)
        # A loop in Python: XLA runs convolutions inside a scan many times slower on the CPU.
        recorded = []
        for k in ks:
            state, record = one_step(psi, state, material, k)
            recorded.append(record)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *recorded)

    return several


def _gradient(train_loss: TrainLoss, mode: Mode) -> Train:
    """(params, psi, carry, material, k) → (∇_θ L, L, aux), whose derivative is taken by the mode.

    The train loss takes after its batch the θ that a difference is taken about.

    It takes all batches and which one, so that a later pass does not keep a copy of its batch.
    """

    def gradient(
        params: PyTree, psi: PyTree, carry: tuple, material: Material, k: jax.Array
    ) -> Any:
        value_and_grad = jax.value_and_grad(train_loss, has_aux=True)
        batch = _batch(material, _after(params, k))
        (loss, aux), grads = value_and_grad(params, psi, batch, params, *carry)
        return grads, loss, aux

    directional = mode.directional
    if directional is None:
        return gradient

    def forward(*inputs: Any) -> tuple[Any, Any]:
        return gradient(*inputs), inputs

    def backward(inputs: Any, cotangents: Any) -> tuple[PyTree, PyTree, PyTree, None, None]:
        params, psi, carry, material, k = inputs
        v, _, aux_cotangent = cotangents
        batch = _batch(material, _after(v, k))
        # The next carry is pulled back by the same derivative: ∇⟨c, s⟩ = ∂_t ∇(L + t⟨c, s⟩).
        c = aux_cotangent if carry else ()
        here = params

        def gradients(at: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
            params, c = at

            def loss(params: PyTree, psi: PyTree, carry: tuple) -> jax.Array:
                value, aux = train_loss(params, psi, batch, here, *carry)
                return value + (_inner(c, aux) if carry else 0)

            return jax.grad(loss, argnums=(0, 1, 2))(params, psi, carry)

        at = beside(params, v), jax.tree.map(jnp.zeros_like, c)
        return *directional(gradients, at, (v, c)), None, None

    mixed = jax.custom_vjp(gradient)
    mixed.defvjp(forward, backward)
    return mixed


def _computed_again(several: Callable[..., tuple[State, Any]]) -> Callable[..., tuple[State, Any]]:
    """The same steps, which keep what they start from and are run again to be pulled back.

    As ``jax.checkpoint``, but the second run comes after the cotangent: the compiler would drop a
    barrier, merge the runs, and keep every state again.
    """

    def forward(*inputs: Any) -> tuple[Any, Any]:
        return several(*inputs), inputs

    def backward(inputs: Any, cotangents: Any) -> tuple[PyTree, PyTree, None, None]:
        psi, (params, *others), material, ks = inputs
        v = cotangents[0][0]
        state, ks = (beside(params, v), *others), _after(v, ks)
        _, pull_back = jax.vjp(lambda psi, state: several(psi, state, material, ks), psi, state)
        return *pull_back(cotangents), None, None

    again = jax.custom_vjp(several)
    again.defvjp(forward, backward)
    return again


def _after(v: PyTree, ks: jax.Array) -> jax.Array:
    """The same numbers, there only after v."""
    entry = jax.tree.leaves(v)[0].ravel()[0]
    return ks + (jnp.isnan(entry) & jnp.isinf(entry)).astype(ks.dtype)


def _closed(train_loss: TrainLoss, *example: PyTree) -> tuple[TrainLoss, list]:
    """The loss of (batch, constants), and the constants: the arrays that it closes over.

    A rule of differentiation inside a compiled loop takes arrays as arguments only.
    """
    traced, shapes = jax.make_jaxpr(lambda *inputs: train_loss(*inputs), return_shape=True)(
        *example
    )

    def closed(params: PyTree, psi: PyTree, material: Material, *carry: PyTree) -> Any:
        batch, constants = material
        inputs = jax.tree.leaves((params, psi, batch, *carry))
        outputs = core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, constants))(*inputs)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return closed, list(traced.consts)


def _batch(material: Material, k: jax.Array | int) -> Material:
    batches, constants = material
    one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, k, keepdims=False), batches)
    return one, constants


def _inner(a: PyTree, b: PyTree) -> jax.Array:
    products: Sequence[jax.Array] = jax.tree.leaves(jax.tree.map(jnp.vdot, a, b))
    return sum(products, start=jnp.zeros(()))
