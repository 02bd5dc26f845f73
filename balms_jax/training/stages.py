"""The loop of a stage: steps, records, evaluations, checkpoints. It never waits for the device.

But for a first call, which compiles and is not timed; and a save it waits for only before the next
one, and at the end.

Runs that differ in their seed alone are taken through it together.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from balms_jax.training import recipe, steps
from balms_jax.training.checkpoints import Checkpoints
from balms_jax.training.interruption import Interrupted, Interruption
from balms_jax.training.progress import Progress
from balms_jax.training.records import Records
from balms_jax.training.state import TrainState, stack, unstack

PyTree = Any


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite."""


class Kept(NamedTuple):
    """What is measured of one run in a stage, and where it is kept."""

    evaluate: Callable[[TrainState], dict[str, Any]]
    checkpoints: Checkpoints  # of this stage
    records: Records  # opened for this stage, at the state's step
    beside: Callable[[], None] | None = None
    """What else is written when a checkpoint is; by all processes at once."""


@dataclass(frozen=True)
class Loop:
    """What a stage's loop needs beside its states."""

    name: str
    step: steps.Step
    total: int  # steps
    batch_size: int  # images of a step
    evaluation_every: int  # steps; 0: at the end alone
    records: recipe.Records
    steps_per_call: int = 1
    evaluates_ends: bool = True
    """Whether it is evaluated before the first step and after the last one too."""
    own_inputs: bool = False
    """Whether each of several runs has inputs of its own, stacked."""
    between: Callable[[TrainState], TrainState] | None = None
    """What is done to a state at the end of every epoch."""
    epoch: int = 0  # in steps


def run(
    loop: Loop,
    states: Sequence[TrainState],
    given: Callable[[TrainState], tuple[PyTree, PyTree]],
    kept: Sequence[Kept],
    interruption: Interruption,
    progress: Progress,
) -> list[TrainState]:
    """Runs a stage to its end, from wherever its states are.

    Args:
        loop: the stage.
        states: where to start, one a run, all at the same step; donated.
        given: the state → what its next step, or steps, are given of training and meta set.
        kept: what is kept of each run.
        interruption: tells of a signal.
        progress: shows how far it is.

    Returns:
        The states after the last step, which are checkpointed too.

    Raises:
        NonFiniteLossError: if a loss is not finite; the last checkpoint is from before.
        Interrupted: after a signal; a checkpoint was written.
        CheckpointError: if one could not be written, at the next one or at the end.
    """
    runs = len(states)
    total = loop.total
    step, state = int(states[0].step), stack(states)
    stays = jax.tree.map(lambda leaf: leaf.sharding, state)
    run_steps = steps.compile_steps(loop.step, runs, own_inputs=loop.own_inputs, stays=stays)
    pending: tuple[int, dict[str, jax.Array]] | None = None
    compiled: set[int] = set()  # counts of steps

    def evaluate() -> None:
        for each, files in zip(unstack(state, runs), kept, strict=True):
            files.records.write('evaluation', step, **files.evaluate(each.tested))

    def settle() -> None:
        nonlocal pending
        if pending is not None:
            _write_metrics([each.records for each in kept], *pending, loop.records.rates_every)
            pending = None

    if step == 0 and loop.evaluates_ends:
        evaluate()
    clock, clock_step = time.monotonic(), step
    with progress.stage(loop.name, total, step, runs * loop.batch_size) as show:
        while step < total:
            # Boundaries are absolute, so that a resumed run makes the same compiled calls.
            boundary = min(_next(step, loop.evaluation_every), total)
            boundary = min(boundary, _next(step, loop.records.checkpoint_every))
            if loop.between is not None:
                boundary = min(boundary, _next(step, loop.epoch))
            whole = step % loop.steps_per_call == 0 and step + loop.steps_per_call <= boundary
            count = loop.steps_per_call if whole else 1
            compiles = count not in compiled
            if compiles:
                settle()  # Or the rest of the call before would not be timed either.
                begun = time.monotonic()
            state, metrics = run_steps(state, *given(state), steps=count)
            if compiles:
                jax.block_until_ready(metrics)
                compiled.add(count)
                clock += time.monotonic() - begun
                clock_step += count
            # The metrics of the call before are fetched while the device is busy with this one.
            settle()
            step += count
            pending = (step, metrics)
            if loop.between is not None and _due(step, loop.epoch):
                state = stack([loop.between(each) for each in unstack(state, runs)])
            ends = step == total and loop.evaluates_ends
            idle = 0.0
            if ends or _due(step, loop.evaluation_every):
                settle()
                begun = time.monotonic()
                evaluate()
                idle = time.monotonic() - begun
                # A test is no training; that of a detector takes minutes.
                clock += idle
            stopping = interruption.agreed()
            if stopping or step == total or _due(step, loop.records.checkpoint_every):
                settle()
                now = time.monotonic()
                images = (step - clock_step) * loop.batch_size
                for each, files in zip(unstack(state, runs), kept, strict=True):
                    files.records.sync()
                    files.checkpoints.save(each)
                    if files.beside is not None:
                        files.beside()
                    if images:
                        files.records.throughput(step, images / max(now - clock, 1e-9))
                clock, clock_step = time.monotonic(), step
            if stopping or step == total:
                for files in kept:
                    files.checkpoints.wait()
            if stopping:
                raise Interrupted(
                    stopping,
                    f'stopped by signal {stopping} at step {step} of {loop.name}; '
                    'the same command goes on from there',
                )
            show(step, idle)
    return unstack(state, runs)


def _write_metrics(
    of_runs: Sequence[Records], last: int, metrics: dict[str, jax.Array], rates_every: int
) -> None:
    fetched = jax.device_get(metrics)
    for run, records in enumerate(of_runs):
        values = {name: value[:, run] for name, value in fetched.items()}
        first = last - len(values['loss']) + 1
        scalars = [name for name, value in values.items() if value.ndim == 1]
        vectors = [name for name, value in values.items() if value.ndim == 2]
        for i in range(len(values['loss'])):
            record = {name: float(values[name][i]) for name in scalars}
            for name, value in record.items():
                if not math.isfinite(value):
                    raise NonFiniteLossError(
                        f'{name} is {value} at step {first + i} of {records.workdir}; earlier '
                        'checkpoints are intact. A lower learning rate or a longer warm-up may help'
                    )
            records.write('train', first + i, **record)
            if vectors and (first + i) % rates_every == 0:
                records.write(
                    'rates', first + i, **{name: values[name][i].tolist() for name in vectors}
                )


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every if every else 2**62


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
