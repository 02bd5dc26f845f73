r"""One product an example, from the backward pass that gave the gradient of all.

The losses are traced. Wherever an operation takes both parameters and an example's values, a *tap*,
a zero, is added to what it gives: its gradient is δ_b. With what the operation took, which the
backward pass keeps as well, :math:`\langle u, \nabla\ell_b\rangle` is the sum over operations of
⟨δ_b, its derivative by the parameters, along u⟩: one forward pass more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from balms_jax.meta_gradients.independence import (
    SHARED,
    Axis,
    Coupled,
    apply,
    aval,
    axes_of_outputs,
    called_jaxpr,
)

PyTree = Any
Products = Callable[[PyTree], jax.Array]


class CoupledExamplesError(ValueError):
    """One example's loss depends on another example."""


class _Value(NamedTuple):
    """A value of the traced program."""

    array: Any  # None where it is not wanted
    axis: Axis
    of_params: bool

    @property
    def is_weight(self) -> bool:
        return self.of_params and self.axis is SHARED


class _Meeting(NamedTuple):
    """An operation that takes parameters and an example's values."""

    eqn: core.JaxprEqn
    weights: list[bool]  # which operands
    axes: list[Axis]  # of what it gives

    def taps(self) -> list[jax.Array | None]:
        """A zero for each output of examples."""
        return [
            jnp.zeros(aval(v).shape, aval(v).dtype)
            if isinstance(axis, int) and jnp.issubdtype(aval(v).dtype, jnp.inexact)
            else None
            for v, axis in zip(self.eqn.outvars, self.axes, strict=True)
        ]


def tapped(
    losses: Callable[[PyTree, PyTree], tuple[jax.Array, PyTree]], params: PyTree, batch: PyTree
) -> tuple[jax.Array, Callable[[jax.Array], tuple[PyTree, Products]], PyTree]:
    r"""The losses, and a backward pass that can be asked for every example's part.

    Args:
        losses: (params, batch) → (ℓ ``[batch]``, aux). Arrays of the batch that are as long as ℓ
            hold examples; what else is in it, or closed over, is shared by all.
        params: θ.
        batch: the batch.

    Returns:
        ℓ; a function of its cotangent c that gives :math:`\sum_b c_b \nabla\ell_b` and
        :math:`u \mapsto c_b \langle u, \nabla\ell_b\rangle`, ``[batch]``; and aux.

    Raises:
        CoupledExamplesError: naming the operation, if a loss may depend on another example.
    """
    jaxpr, shapes = jax.make_jaxpr(losses, return_shape=True)(params, batch)
    if len(shapes[0].shape) != 1:
        raise ValueError(f'losses: got shape {shapes[0].shape}, wanted [batch]')
    size = shapes[0].shape[0]

    def run(params: PyTree, meet: Callable[[_Meeting, list[Any], list[Any]], Any]) -> list[_Value]:
        inputs = [_Value(leaf, SHARED, True) for leaf in jax.tree.leaves(params)]
        for leaf in jax.tree.leaves(batch):
            inputs.append(_Value(leaf, 0 if jnp.shape(leaf)[:1] == (size,) else SHARED, False))
        return _interpret(jaxpr, inputs, meet)

    meetings: list[_Meeting] = []

    def survey(params: PyTree) -> None:
        def meet(meeting: _Meeting, operands: list[Any], outputs: list[Any]) -> list[Any]:
            meetings.append(meeting)
            return outputs

        _check(run(params, meet)[0].axis)

    jax.eval_shape(survey, params)

    def forward(params: PyTree, taps: list[list[jax.Array]]) -> tuple[jax.Array, Any]:
        taken: list[list[Any]] = []

        def meet(meeting: _Meeting, operands: list[Any], outputs: list[Any]) -> list[Any]:
            tap = taps[len(taken)]
            taken.append([None if w else x for x, w in zip(operands, meeting.weights, strict=True)])
            return [y if t is None else y + t for y, t in zip(outputs, tap, strict=True)]

        arrays = [value.array for value in run(params, meet)]
        out, aux = jax.tree.unflatten(jax.tree.structure(shapes), arrays)
        return out, (taken, aux)

    def weights_and_nothing_else(params: PyTree) -> list[list[Any]]:
        weights: list[list[Any]] = []

        def meet(meeting: _Meeting, operands: list[Any], outputs: list[Any]) -> list[Any]:
            weights.append([w for w, is_w in zip(operands, meeting.weights, strict=True) if is_w])
            return [
                y if axis is SHARED else None for y, axis in zip(outputs, meeting.axes, strict=True)
            ]

        run(params, meet)
        return weights

    taps = [meeting.taps() for meeting in meetings]
    values, pull_back, (taken, aux) = jax.vjp(forward, params, taps, has_aux=True)

    def backward(cotangent: jax.Array) -> tuple[PyTree, Products]:
        grads, deltas = pull_back(cotangent)

        def products(u: PyTree) -> jax.Array:
            weights, along = jax.jvp(weights_and_nothing_else, (params,), (u,))
            total = jnp.zeros_like(values)
            for meeting, w, dw, x, delta in zip(
                meetings, weights, along, taken, deltas, strict=True
            ):
                total += _product(meeting, w, dw, x, delta).astype(total.dtype)
            return total

        return grads, products

    return values, backward, aux


def _product(
    meeting: _Meeting, weights: list[Any], along: list[Any], taken: list[Any], delta: list[Any]
) -> jax.Array:
    """⟨δ_b, ∂ operation / ∂ weights · along⟩, ``[batch]``."""

    def operation(weights: list[Any]) -> list[Any]:
        rest = iter(weights)
        operands = [next(rest) if w else x for x, w in zip(taken, meeting.weights, strict=True)]
        return apply(meeting.eqn, operands)

    _, changes = jax.jvp(operation, (weights,), (along,))
    total: Any = 0.0
    for change, d, axis in zip(changes, delta, meeting.axes, strict=True):
        if d is not None:
            axes = tuple(a for a in range(d.ndim) if a != axis)
            total += jnp.sum(change * d, axes)
    return total


def _interpret(
    jaxpr: core.ClosedJaxpr, inputs: list[_Value], meet: Callable[..., list[Any]]
) -> list[_Value]:
    """Runs a program; plain calls are opened, and `meet` may change what a meeting gives."""
    known: dict[Any, _Value] = {}
    known.update(
        zip(jaxpr.jaxpr.constvars, (_Value(c, SHARED, False) for c in jaxpr.consts), strict=True)
    )
    known.update(zip(jaxpr.jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Value:
        return _Value(atom.val, SHARED, False) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        called = called_jaxpr(eqn)
        outputs = (
            _step(eqn, operands, meet) if called is None else _interpret(called, operands, meet)
        )
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _step(
    eqn: core.JaxprEqn, operands: list[_Value], meet: Callable[..., list[Any]]
) -> list[_Value]:
    of_params = any(operand.of_params for operand in operands)
    axes = axes_of_outputs(eqn, [operand.axis for operand in operands])
    if not of_params:  # Data alone may be shared in any way: it is constant.
        axes = [SHARED if isinstance(axis, Coupled) else axis for axis in axes]
    arrays = [operand.array for operand in operands]
    absent = any(array is None for array in arrays)
    if absent and SHARED in axes:  # No example's value enters what is shared.
        arrays = [
            jnp.zeros(aval(atom).shape, aval(atom).dtype) if array is None else array
            for array, atom in zip(arrays, eqn.invars, strict=True)
        ]
        shared = zip(apply(eqn, arrays), axes, strict=True)
        outputs = [array if axis is SHARED else None for array, axis in shared]
    else:
        outputs = [None] * len(eqn.outvars) if absent else apply(eqn, arrays)
    weights = [operand.is_weight for operand in operands]
    if any(weights) and any(isinstance(axis, int) for axis in axes):
        outputs = meet(_Meeting(eqn, weights, axes), arrays, outputs)
    return [_Value(array, axis, of_params) for array, axis in zip(outputs, axes, strict=True)]


def _check(axis: Axis) -> None:
    if isinstance(axis, Coupled):
        raise CoupledExamplesError(
            f'losses: examples may be coupled by {axis.reason}; freeze batch statistics, or take '
            "the mode 'per_example', 'forward_over_reverse' or 'lean'"
        )
    if axis is SHARED:
        raise ValueError('losses: depend on no array of the batch, wanted one loss an example')
