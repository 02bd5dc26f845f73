"""Compiles steps, and reads what the compiler says of them."""

import time
from typing import Any, NamedTuple

import jax

from balms_jax.planning import collectives
from balms_jax.planning.collectives import Collective

PyTree = Any
KINDS = ('plain', 'meta', 'evaluation')


class DoesNotFitError(ValueError):
    """The compiler finds no way to hold the step in memory; the message is its own."""


class Memory(NamedTuple):
    """Bytes of one device, by kind."""

    arguments: int  # the state and the batch
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporaries: int
    code: int
    peak: int  # what the device must hold at once


class Compiled(NamedTuple):
    """What the compiler says of one step."""

    memory: Memory
    flops: float  # of one device
    bytes_accessed: float  # of one device, main memory and what lies nearer together
    collectives: list[Collective]
    seconds: float  # that compiling took


def compile_step(lowered: Any) -> Compiled:
    """Compiles one step.

    Args:
        lowered: of ``jax.jit(…).lower``, for devices that need not be there.

    Returns:
        What the compiler says.

    Raises:
        DoesNotFitError: if the step needs more memory than the devices have.
    """
    start = time.monotonic()
    try:
        compiled, text = _readable(lowered)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise DoesNotFitError(str(error).splitlines()[0]) from error
    seconds = time.monotonic() - start
    # One table for the program, or one for each of its partitions, by version and backend.
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return Compiled(
        _memory(compiled.memory_analysis()),
        float(costs.get('flops', 0.0)),
        float(costs.get('bytes accessed', 0.0)),
        collectives.parse(text),
        seconds,
    )


def _readable(lowered: Any) -> tuple[Any, str]:
    """Compiles, and reads what came of it.

    libtpu gives some scatters to v6e's SparseCore, in a form that jaxlib 0.10 cannot read. Such a
    program is compiled again without that.
    """
    compiled = lowered.compile()
    try:
        return compiled, compiled.as_text()
    except jax.errors.JaxRuntimeError:
        compiled = lowered.compile({'xla_tpu_enable_offloading_scatter_to_sparsecore': False})
        return compiled, compiled.as_text()


def _memory(sizes: Any) -> Memory:
    arguments, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    aliased, temporaries = sizes.alias_size_in_bytes, sizes.temp_size_in_bytes
    code = sizes.generated_code_size_in_bytes
    # Not the compiler's own peak, which leaves the program out and is 0 on some backends.
    peak = arguments + outputs - aliased + temporaries + code
    return Memory(arguments, outputs, aliased, temporaries, code, peak)
