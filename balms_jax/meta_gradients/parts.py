"""Batches in micro-batches, one after another, so that the activations of one are in memory.

Losses are means over examples: what is linear in them, a gradient or a mixed product, is the mean
of the micro-batches'. The backward pass of a micro-batch cannot be kept until the meta loss has
been differentiated, so its forward pass is computed again for the product, whatever the mode.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from balms_jax.meta_gradients.modes import InnerGradient, Mode, Product, beside
from balms_jax.meta_gradients.train_loss import MetaLoss, PyTree, TrainLoss, WeightedLosses

OfPart = Callable[[int, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]
"""(which, micro-batch, carry) → (what is averaged, what is stacked, the next carry)"""


def accumulate(
    of_part: OfPart, batch: PyTree, parts: int, carry: PyTree = None, *, name: str = 'batch'
) -> tuple[PyTree, PyTree, PyTree]:
    r"""Computes something of each micro-batch, and keeps the mean alone.

    .. math:: \frac1K \sum_k f(batch_k)

    Args:
        of_part: (which, micro-batch, carry) → (what is averaged, what is stacked, the next carry).
        batch: arrays ``[batch, ...]``. The k-th micro-batch has every K-th example from the k-th,
            so that each device has its share of each, and sorted classes are spread over them.
        parts: K.
        carry: of the first micro-batch.
        name: what an error calls the batch.

    Returns:
        The mean, what was stacked as ``[parts, ...]``, and the last carry.

    Raises:
        ValueError: if an array of the batch cannot be cut so, or is not as long as the others: what
            examples share would be cut too.

    Example:
        >>> squares = lambda which, x, carry: (jnp.mean(x**2), x, carry)
        >>> mean, examples, _ = accumulate(squares, jnp.arange(4.0), 2)
        >>> print(mean, together(examples))
        3.5 [0. 1. 2. 3.]
    """
    _check(batch, parts, name)
    total: PyTree = None
    stacked: list[PyTree] = []
    # Not a scan, in which XLA runs convolutions some ten times slower on the CPU.
    for which in range(parts):
        part = jax.tree.map(lambda leaf, k=which: leaf[k::parts], batch)
        if which:
            part = _behind((total, stacked[-1]), part)
        value, beside_it, carry = of_part(which, part, carry)
        stacked.append(beside_it)
        total = value if total is None else jax.tree.map(jnp.add, total, value)
    mean = jax.tree.map(lambda leaf: leaf / parts, total)
    return mean, jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacked), carry


def together(stacked: jax.Array) -> jax.Array:
    """What is of each example of each micro-batch, ``[parts, batch / parts]``, as ``[batch]``."""
    return stacked.T.reshape(-1)


def mode_in_parts(mode: Mode, parts: int, carry: tuple = ()) -> Mode:
    """A mode whose inner gradient, and then its product, is computed micro-batch by micro-batch.

    Weights of a :class:`WeightedLosses` are those of the whole batch. Where they read its losses,
    these are computed first, in a forward pass of their own.

    Args:
        mode: how a micro-batch is differentiated.
        parts: K.
        carry: of one or none: the last argument of the first micro-batch's training loss, whose aux
            is the next one's. It is a constant to ψ.
    """

    def inner_gradient(
        train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
    ) -> InnerGradient:
        loss_of = _losses_of_parts(train_loss, params, batch, parts, carry)

        def gradient(which: int, part: PyTree, carry: tuple) -> tuple[PyTree, PyTree, tuple]:
            inner = mode.inner_gradient(loss_of(which, carry), params, psi, part)
            return (inner.loss, inner.grads), inner.aux, _next(carry, inner.aux)

        (loss, grads), aux, last = accumulate(gradient, batch, parts, carry)

        def mixed_product(u: PyTree) -> Product:
            after = beside(params, u)

            def product(which: int, part: PyTree, carry: tuple) -> tuple[PyTree, PyTree, tuple]:
                inner = mode.inner_gradient(loss_of(which, carry), after, psi, part)
                of_psi, examples = inner.mixed_product(u)
                return of_psi, examples, _next(carry, inner.aux)

            of_psi, examples, _ = accumulate(product, batch, parts, carry)
            # A micro-batch's are of the mean over its own examples.
            return Product(of_psi, None if examples is None else together(examples) / parts)

        return InnerGradient(loss, last[0] if carry else aux, grads, mixed_product)

    return mode._replace(inner_gradient=inner_gradient)


def meta_gradient(
    meta_loss: MetaLoss, params: PyTree, meta_batch: PyTree, parts: int, carry: tuple = ()
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """((L_meta, aux stacked), ∇L_meta) of the meta batch in micro-batches."""

    def of_part(which: int, part: PyTree, nothing: None) -> tuple[PyTree, PyTree, None]:
        (loss, aux), grads = jax.value_and_grad(meta_loss, has_aux=True)(params, part, *carry)
        return (loss, grads), aux, nothing

    (loss, grads), aux, _ = accumulate(of_part, meta_batch, parts, name='meta_batch')
    return (loss, aux), grads


def _losses_of_parts(
    train_loss: TrainLoss, params: PyTree, batch: PyTree, parts: int, carry: tuple
) -> Callable[[int, tuple], TrainLoss]:
    """(which, carry) → the training loss of a micro-batch."""
    if not isinstance(train_loss, WeightedLosses):
        return lambda which, carry: lambda params, psi, part: train_loss(params, psi, part, *carry)

    def values(which: int, part: PyTree, carry: tuple) -> tuple[PyTree, PyTree, tuple]:
        values, aux = train_loss.losses(params, part, *carry)
        return (), values, _next(carry, aux)

    # Weights that read no losses leave this pass unused, and the compiler leaves it out.
    at = together(accumulate(values, batch, parts, carry)[1])

    def of_part(which: int, carry: tuple) -> TrainLoss:
        return WeightedLosses(
            lambda params, part: train_loss.losses(params, part, *carry),
            lambda psi, part, values: train_loss.weigh(psi, batch, at)[which::parts],
        )

    return of_part


def _next(carry: tuple, aux: PyTree) -> tuple:
    return (aux,) if carry else ()


def _behind(done: PyTree, part: PyTree) -> PyTree:
    """A micro-batch that is there only after what was made of those before.

    Else the compiler may compute several at once, and keep the activations of all; a barrier of its
    own it drops before it settles the order.
    """
    known = [
        leaf.reshape(-1)[0].astype(jnp.float32)
        for leaf in jax.tree.leaves(done)
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    entry = sum(known, jnp.zeros([]))
    # Never so, also where an aux holds NaN; but the compiler cannot know.
    never = jnp.isnan(entry) & jnp.isinf(entry)
    return jax.tree.map(lambda leaf: jnp.where(never, jnp.zeros_like(leaf), leaf), part)


def _check(batch: PyTree, parts: int, name: str) -> None:
    first = None
    for path, leaf in jax.tree.leaves_with_path(batch):
        shape: Any = jnp.shape(leaf)
        this = name + jax.tree_util.keystr(path)
        if not shape or shape[0] % parts:
            raise ValueError(
                f'{this}: got shape {shape}, wanted a leading axis of a multiple of the {parts} '
                'parts'
            )
        first = first or (this, shape[0])
        if shape[0] != first[1]:
            raise ValueError(
                f'{this}: got shape {shape}, wanted a leading axis of {first[1]}, as {first[0]} '
                'has; an array that the examples share would be cut: close over it'
            )
