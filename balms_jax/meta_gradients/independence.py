"""Does an example's loss depend on that example alone? Read off the traced operations.

Every value of the program has an *axis*: the one along which examples lie; none where all examples
share the value; or coupled, where entries of one example may depend on another. An operation that
has no rule here is taken to couple what it is given.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

SHARED = None


class Coupled(NamedTuple):
    """Examples may depend on each other."""

    reason: str


Axis = int | Coupled | None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _names(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh digamma div eq eq_to erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma
    log log1p logistic lt lt_to max min mul name ne neg nextafter not or polygamma
    population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt
    select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin
    sinh sqrt square stop_gradient sub tan tanh xor zeta"""
)
_REDUCTIONS = _names(
    """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor"""
)
_CUMULATIVE = _names('cumlogsumexp cummax cummin cumprod cumsum')
_WINDOWS = _names(
    """reduce_window reduce_window_max reduce_window_min reduce_window_sum
    select_and_gather_add"""
)
_CALLS = {
    'jit': 'jaxpr',
    'pjit': 'jaxpr',
    'closed_call': 'call_jaxpr',
    'checkpoint': 'jaxpr',
    'remat2': 'jaxpr',
}
_CUSTOM = {'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr'}


def aval(atom: Any) -> Any:
    """The shape and type of a value of the program."""
    return atom.aval


def apply(eqn: core.JaxprEqn, arrays: Sequence[Any]) -> list[Any]:
    """Runs an operation."""
    out = eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def called_jaxpr(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """What a plain call runs; None for other operations."""
    return _closed(eqn, _CALLS)


def axes_of_outputs(
    eqn: core.JaxprEqn, axes: Sequence[Axis], differentiated: bool = True
) -> list[Axis]:
    """The axes of what an operation gives, from those of what it takes.

    A function with a derivative of its own couples what its derivative couples; not differentiated,
    only what it computes counts.
    """
    if all(axis is SHARED for axis in axes):
        return [SHARED] * len(eqn.outvars)
    called = called_jaxpr(eqn)
    if called is not None:
        return axes_of_jaxpr(called, axes, differentiated)
    if eqn.primitive.name in _CUSTOM:
        return _custom(eqn, axes, differentiated)
    if eqn.primitive.name == 'scan':
        return _scan(eqn, axes, differentiated)
    if eqn.primitive.name == 'optimization_barrier':
        return list(axes)
    if eqn.primitive.name == 'cond':
        return _cond(eqn, axes, differentiated)
    coupled = [axis for axis in axes if isinstance(axis, Coupled)]
    if coupled:
        return [coupled[0]] * len(eqn.outvars)
    axis = _axis_of_output(eqn, axes)
    if axis is None:
        return [Coupled(f'{eqn.primitive.name}{_place(eqn)}')] * len(eqn.outvars)
    return [int(axis)] * len(eqn.outvars)


def axes_of_jaxpr(
    jaxpr: core.ClosedJaxpr, axes: Sequence[Axis], differentiated: bool = True
) -> list[Axis]:
    """The axes of what a program gives."""
    inner = jaxpr.jaxpr
    known: dict[Any, Axis] = dict.fromkeys(inner.constvars, SHARED)
    known.update(zip(inner.invars, axes, strict=True))

    def read(atom: Any) -> Axis:
        return SHARED if isinstance(atom, core.Literal) else known[atom]

    for eqn in inner.eqns:
        outputs = axes_of_outputs(eqn, [read(atom) for atom in eqn.invars], differentiated)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in inner.outvars]


def _axis_of_output(eqn: core.JaxprEqn, axes: Sequence[Axis]) -> int | None:
    """Where examples lie afterwards; None if they may have met."""
    name, params = eqn.primitive.name, eqn.params
    given = [(i, axis) for i, axis in enumerate(axes) if axis is not SHARED]
    first, axis = given[0]
    same = all(other == axis for _, other in given)
    assert isinstance(axis, int)
    if name in _ELEMENTWISE:
        return axis if same else None
    if name in _REDUCTIONS:
        return None if axis in params['axes'] else axis - sum(a < axis for a in params['axes'])
    if name in _CUMULATIVE:
        return None if params['axis'] == axis else axis
    if name in _WINDOWS:
        return axis if same and _window_is_one(params, axis) else None
    rule = _RULES.get(name)
    if rule is None:
        return None
    if name in ('conv_general_dilated', 'dot_general', 'gather'):
        return rule(eqn, axes)
    shape, out = aval(eqn.invars[first]).shape, aval(eqn.outvars[0]).shape
    return rule(params, axis, shape, out) if same else None


def _reshape(params: Any, axis: int, shape: Any, out: Any) -> int | None:
    if params['dimensions'] is not None:
        return None
    before = int(np.prod(shape[:axis]))
    for j, extent in enumerate(out):
        if extent == shape[axis] and int(np.prod(out[:j])) == before:
            return j
    return None


def _conv(eqn: core.JaxprEqn, axes: Sequence[Axis]) -> int | None:
    numbers = eqn.params['dimension_numbers']
    images, kernel = axes
    plain = images == numbers.lhs_spec[0] and eqn.params['batch_group_count'] == 1
    return numbers.out_spec[0] if plain and kernel is SHARED else None


def _whole(params: Any, axis: int, shape: Any, out: Any) -> int | None:
    strides = params.get('strides') or (1,) * len(shape)
    return axis if shape[axis] == out[axis] and strides[axis] == 1 else None


def _dot_general(eqn: core.JaxprEqn, axes: Sequence[Axis]) -> int | None:
    (contracted, batched) = eqn.params['dimension_numbers']
    places = []
    for side, axis in enumerate(axes[:2]):
        if not isinstance(axis, int):
            continue
        if axis in contracted[side]:
            return None
        if axis in batched[side]:
            places.append(tuple(batched[side]).index(axis))
            continue
        free = [
            [
                d
                for d in range(len(aval(eqn.invars[s]).shape))
                if d not in (*contracted[s], *batched[s])
            ]
            for s in (0, 1)
        ]
        before = len(batched[0]) + (len(free[0]) if side else 0)
        places.append(before + free[side].index(axis))
    return places[0] if len(set(places)) == 1 else None


def _gather(eqn: core.JaxprEqn, axes: Sequence[Axis]) -> int | None:
    numbers, operand, indices = eqn.params['dimension_numbers'], axes[0], axes[1]
    rank = len(aval(eqn.outvars[0]).shape)
    batch_dims = [d for d in range(rank) if d not in numbers.offset_dims]
    if operand is SHARED:  # Each example looks up its own entries.
        assert isinstance(indices, int)
        return batch_dims[indices] if indices < len(batch_dims) else None
    assert isinstance(operand, int)
    if operand in numbers.operand_batching_dims:
        at = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(operand)]
        return batch_dims[at] if indices in (SHARED, at) else None
    kept = [
        d
        for d in range(len(aval(eqn.invars[0]).shape))
        if d not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    ]
    whole = eqn.params['slice_sizes'][operand] == aval(eqn.invars[0]).shape[operand]
    # A lone example can only look up its own.
    own = indices is SHARED or aval(eqn.invars[0]).shape[operand] == 1
    if own and whole and operand in kept and operand not in numbers.start_index_map:
        return numbers.offset_dims[kept.index(operand)]
    return None


_RULES: dict[str, Callable[..., int | None]] = {
    'broadcast_in_dim': lambda params, axis, *_: params['broadcast_dimensions'][axis],
    'concatenate': lambda params, axis, *_: None if params['dimension'] == axis else axis,
    'conv_general_dilated': _conv,
    'dot_general': _dot_general,
    'dynamic_slice': _whole,
    'gather': _gather,
    'pad': lambda params, axis, *_: (
        axis if tuple(params['padding_config'][axis]) == (0, 0, 0) else None
    ),
    'reshape': _reshape,
    'rev': lambda params, axis, *_: None if axis in params['dimensions'] else axis,
    'slice': _whole,
    'sort': lambda params, axis, *_: None if params['dimension'] == axis else axis,
    'split': lambda params, axis, *_: None if params['axis'] == axis else axis,
    'stack': lambda params, axis, *_: axis + (params['axis'] <= axis),
    'squeeze': lambda params, axis, *_: (
        None if axis in params['dimensions'] else axis - sum(d < axis for d in params['dimensions'])
    ),
    'tile': lambda params, axis, *_: axis if params['reps'][axis] == 1 else None,
    'top_k': lambda params, axis, *_: None if params['axis'] == axis else axis,
    'transpose': lambda params, axis, *_: tuple(params['permutation']).index(axis),
    'unstack': lambda params, axis, *_: (
        None if params['axis'] == axis else axis - (params['axis'] < axis)
    ),
}


def _window_is_one(params: Any, axis: int) -> bool:
    return (
        params['window_dimensions'][axis] == 1
        and params['window_strides'][axis] == 1
        and params['base_dilation'][axis] == 1
        and tuple(params['padding'][axis]) == (0, 0)
    )


def _custom(eqn: core.JaxprEqn, axes: Sequence[Axis], differentiated: bool) -> list[Axis]:
    called = _closed(eqn, _CUSTOM)
    assert called is not None
    outputs = axes_of_jaxpr(called, axes, False)
    if differentiated and _derivative_couples(eqn, axes, outputs):
        return [Coupled(f'the derivative of {eqn.primitive.name}{_place(eqn)}')] * len(outputs)
    return outputs


def _derivative_couples(eqn: core.JaxprEqn, axes: Sequence[Axis], outputs: Sequence[Axis]) -> bool:
    """Whether a function's own derivative may couple what the function keeps apart."""
    taken, given = _floats(eqn.invars), _floats(eqn.outvars)
    backwards = eqn.primitive.name == 'custom_vjp_call'

    def derivative(operands: list[Any], along: list[Any]) -> Any:
        def function(*floats: Any) -> list[Any]:
            known = dict(zip(taken, floats, strict=True))
            out = apply(eqn, [known.get(i, operand) for i, operand in enumerate(operands)])
            return [out[i] for i in given]

        at = [operands[i] for i in taken]
        return jax.vjp(function, *at)[1](along) if backwards else jax.jvp(function, at, along)[1]

    ins, outs = [axes[i] for i in taken], [outputs[i] for i in given]
    along, wanted = (outs, ins) if backwards else (ins, outs)
    directions = [eqn.outvars[i] for i in given] if backwards else [eqn.invars[i] for i in taken]
    jaxpr = jax.make_jaxpr(derivative)(_avals(eqn.invars), _avals(directions))
    found = axes_of_jaxpr(jaxpr, [*axes, *along], False)
    # The cotangent of what is shared is a sum over the examples, as it should be.
    return any(
        f is not SHARED and f != w and not (backwards and w is SHARED)
        for f, w in zip(found, wanted, strict=True)
    )


def _floats(atoms: Sequence[Any]) -> list[int]:
    return [i for i, a in enumerate(_avals(atoms)) if jnp.issubdtype(a.dtype, jnp.inexact)]


def _avals(atoms: Sequence[Any]) -> list[Any]:
    return [aval(atom) for atom in atoms]


def _scan(eqn: core.JaxprEqn, axes: Sequence[Axis], differentiated: bool) -> list[Axis]:
    params = eqn.params
    consts, carries = params['num_consts'], params['num_carry']
    carry, xs = list(axes[consts : consts + carries]), list(axes[consts + carries :])
    here = Coupled(f'scan over the examples{_place(eqn)}')
    rows: list[Axis] = [(here if x == 0 else x - 1) if isinstance(x, int) else x for x in xs]
    while True:  # Until the carry's axes stay as they are.
        out = axes_of_jaxpr(params['jaxpr'], [*axes[:consts], *carry, *rows], differentiated)
        joined = [_joined(a, b, eqn) for a, b in zip(carry, out[:carries], strict=True)]
        if joined == carry:
            ys: list[Axis] = [y + 1 if isinstance(y, int) else y for y in out[carries:]]
            return [*carry, *ys]
        carry = joined


def _cond(eqn: core.JaxprEqn, axes: Sequence[Axis], differentiated: bool) -> list[Axis]:
    if axes[0] is not SHARED:
        return [Coupled(f'cond on an example{_place(eqn)}')] * len(eqn.outvars)
    branches = [
        axes_of_jaxpr(branch, axes[1:], differentiated) for branch in eqn.params['branches']
    ]
    joined = branches[0]
    for branch in branches[1:]:
        joined = [_joined(a, b, eqn) for a, b in zip(joined, branch, strict=True)]
    return joined


def _joined(a: Axis, b: Axis, eqn: core.JaxprEqn) -> Axis:
    """The axis of a value that may be one or the other."""
    if a is SHARED or a == b:
        return b
    return (
        a
        if b is SHARED or isinstance(a, Coupled)
        else Coupled(f'{eqn.primitive.name}{_place(eqn)}')
    )


def _closed(eqn: core.JaxprEqn, calls: dict[str, str]) -> core.ClosedJaxpr | None:
    if eqn.primitive.name not in calls:
        return None
    jaxpr = eqn.params[calls[eqn.primitive.name]]
    return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())


def _place(eqn: core.JaxprEqn) -> str:
    """Where the operation is written: the innermost line outside of libraries."""
    traceback = eqn.source_info.traceback
    frames: Sequence[Any] = traceback.frames if traceback else ()
    for frame in frames:
        path = Path(frame.file_name)
        if 'site-packages' not in path.parts and path.parent != Path(__file__).parent:
            return f' ({path.name}, line {frame.line_num})'
    return ''
