"""The loop of a stage: what of it is timed."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from balms_jax.training import recipe, stages, steps
from balms_jax.training.progress import Progress

COMPILING, STEP, TEST = 100.0, 2.0, 30.0  # seconds


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Counted:
    """A state that is its step alone."""

    step: jax.Array
    tested: None = None


@pytest.fixture
def timed(monkeypatch):
    """Runs a stage under a clock of its own; gives its lines (step, images per second)."""
    now = 0.0

    def spend(seconds):
        nonlocal now
        now += seconds

    def compile_steps(*arguments, **options):
        compiled = set()

        def run(state, train, meta, *, steps):
            spend(steps * STEP + (0 if steps in compiled else COMPILING))
            compiled.add(steps)
            return Counted(state.step + steps), {'loss': jnp.ones((steps, 1))}

        return run

    def take(*, evaluation_every=0, checkpoint_every, total, steps_per_call):
        lines = []
        kept = stages.Kept(
            lambda state: spend(TEST) or {},
            types.SimpleNamespace(save=lambda state: None, wait=lambda: None),
            types.SimpleNamespace(
                write=lambda *arguments, **values: None,
                sync=lambda: None,
                throughput=lambda *line: lines.append(line),
            ),
        )
        loop = stages.Loop(
            name='stage_1',
            step=None,
            total=total,
            batch_size=8,
            evaluation_every=evaluation_every,
            records=recipe.Records(checkpoint_every=checkpoint_every),
            steps_per_call=steps_per_call,
        )
        first = Counted(jnp.int32(0))
        never = types.SimpleNamespace(agreed=lambda: 0)
        stages.run(loop, [first], lambda state: ((), ()), [kept], never, Progress(quiet=True))
        return lines

    monkeypatch.setattr(steps, 'compile_steps', compile_steps)
    monkeypatch.setattr(stages, 'time', types.SimpleNamespace(monotonic=lambda: now))
    return take


def test_the_speed_is_that_of_the_steps_alone(timed):
    """Neither of a compilation, of whichever count of steps, nor of an evaluation."""
    lines = timed(total=27, steps_per_call=4, checkpoint_every=9, evaluation_every=9)
    assert [step for step, _ in lines] == [9, 18, 27]
    assert [speed for _, speed in lines] == pytest.approx([8 / STEP] * 3)


def test_where_nothing_is_timed_no_speed_is_told(timed):
    """The first calls compile: an interval of these alone has no speed of its own."""
    assert timed(total=5, steps_per_call=4, checkpoint_every=5) == []
    assert [step for step, _ in timed(total=9, steps_per_call=4, checkpoint_every=5)] == [9]
