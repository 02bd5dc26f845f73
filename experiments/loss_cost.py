"""What does the prior cost? Time and memory of Balanced Softmax beside optax's cross-entropy.

Command   python -m experiments.loss_cost [--repetitions 100]
Cost      about a minute on two CPU cores
Expected  at most 1.05 times optax's time and memory, forward alone and with the gradient; the
          prior adds one addition to each exponential
Found     forward 1.06 and 1.09 times the time, with the gradient 1.02 and 1.05, at [4096, 1000] and
          [512, 30000], on two CPU cores busy with other work (the same loss twice differs by up to
          0.05 there); memory 1.001 to 1.008 times
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table

from balms_jax.losses import balanced_softmax_cross_entropy_with_integer_labels

SHAPES = ((4096, 1000), (512, 30_000))

Compiled = Callable[..., object]


def plain(logits: jax.Array, labels: jax.Array, log_prior: jax.Array) -> jax.Array:
    """Optax's loss, with the balanced one's arguments."""
    del log_prior
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


LOSSES = {'optax': plain, 'balanced': balanced_softmax_cross_entropy_with_integer_labels}


def arguments_of(batch: int, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, labels and a long-tailed log prior."""
    keys = jax.random.split(jax.random.key(0))
    logits = 3 * jax.random.normal(keys[0], (batch, classes))
    labels = jax.random.randint(keys[1], (batch,), 0, classes)
    return logits, labels, jax.nn.log_softmax(-5 / classes * jnp.arange(classes, dtype=jnp.float32))


def compile_with_memory(function: Compiled, *arguments: jax.Array) -> tuple[Compiled, int]:
    """The compiled function and the bytes of its arguments, outputs and temporaries."""
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, 'the compiler does not say'
    return compiled, (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )


def seconds(functions: list[Compiled], arguments: tuple, repetitions: int) -> np.ndarray:
    """The time of every run, ``[repetitions, functions]``; interleaved, for machines drift."""
    times = np.zeros((repetitions, len(functions)))
    for repetition in range(repetitions):
        # By turns in either order: each finds the caches as the other left them.
        order = range(len(functions))
        for i in order if repetition % 2 else reversed(order):
            start = time.perf_counter()
            jax.block_until_ready(functions[i](*arguments))
            times[repetition, i] = time.perf_counter() - start
    return times[1:]


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--repetitions', type=int, default=100)
    repetitions = parser.parse_args().repetitions
    table = rich.table.Table(
        'logits', 'pass', 'optax ms', 'balanced ms', 'time ratio', 'of medians', 'memory ratio'
    )
    for shape in SHAPES:
        arguments = arguments_of(*shape)
        forward = list(LOSSES.values())
        both = [
            jax.value_and_grad(lambda *arguments, loss=loss: loss(*arguments).mean())
            for loss in forward
        ]
        for name, losses in (('forward', forward), ('forward and backward', both)):
            functions, sizes = zip(
                *(compile_with_memory(loss, *arguments) for loss in losses), strict=True
            )
            times = 1000 * seconds(list(functions), arguments, repetitions + 1)
            (optax_ms, balanced_ms), medians = times.min(0), np.median(times, 0)
            table.add_row(
                str(list(shape)),
                name,
                f'{optax_ms:.2f}',
                f'{balanced_ms:.2f}',
                f'{balanced_ms / optax_ms:.3f}',
                f'{medians[1] / medians[0]:.3f}',
                f'{sizes[1] / sizes[0]:.3f}',
            )
    console = rich.console.Console()
    console.print(table)
    console.print(
        f'{jax.devices()[0].device_kind}; the least of {repetitions} interleaved repetitions'
    )


if __name__ == '__main__':
    main()
