"""Saves run in the background, and nothing is lost by it: whole or not there, and never silent."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax.training import interruption, job, stages, state
from balms_jax.training.checkpoints import CheckpointError, Checkpoints

pytestmark = pytest.mark.usefixtures('standard_promotion')

BOUND = 120  # seconds that anything may take, on a busy machine


@contextlib.contextmanager
def writing_of_arrays(before):
    """Calls a function before the arrays of a save are written, in the thread that writes them."""
    from orbax.checkpoint._src.serialization import jax_array_handlers as handlers

    write = handlers._async_serialize_replica_slices

    async def told(*arguments, **options):
        before()
        return await write(*arguments, **options)

    handlers._async_serialize_replica_slices = told
    try:
        yield
    finally:
        handlers._async_serialize_replica_slices = write


class Gate:
    """Holds a save up until it is opened."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self):
        self.reached.set()
        assert self.opened.wait(BOUND), 'nobody has gone on while the save was held up'


def state_at(step, fill=1.0):
    optimizer = optax.sgd(0.1, 0.9)
    first = state.create(
        jax.random.key(0), {'w': jnp.full((64, 64), fill)}, {}, {}, optimizer, None, optax.sgd(0.1)
    )
    return dataclasses.replace(first, step=jnp.asarray(step, jnp.int32))


def opened(folder, keep=2):
    return Checkpoints(folder, keep=keep, identity={'seed': 0})


next_state = jax.jit(
    lambda s: dataclasses.replace(
        s, step=s.step + 1, trained=jax.tree.map(lambda leaf: 2 * leaf + 1, s.trained)
    ),
    donate_argnums=0,
)


def test_steps_are_taken_while_a_save_is_written_and_do_not_reach_it(tmp_path):
    """The state is donated to the next step: its memory must not be that of the save.

    A save that were not in the background would wait for a gate that is opened after it.
    """
    gate, checkpoints = Gate(), opened(tmp_path / 'stage_1')
    current = next_state(state_at(4))
    with writing_of_arrays(gate):
        checkpoints.save(current)
        for _ in range(3):
            current = next_state(current)
        jax.block_until_ready(current)
        assert not (tmp_path / 'stage_1' / '5').exists()
        gate.opened.set()
        checkpoints.wait()
    checkpoints.close()
    restored = opened(tmp_path / 'stage_1').restore(state_at(0))
    assert int(restored.step) == 5
    np.testing.assert_array_equal(restored.trained['w'], np.full((64, 64), 3.0))
    np.testing.assert_array_equal(current.trained['w'], np.full((64, 64), 31.0))


def test_only_whole_checkpoints_are_seen(tmp_path):
    """Another process may look while one is written; the one that writes waits for itself."""
    gate, checkpoints = Gate(), opened(tmp_path / 'stage_1')
    checkpoints.save(state_at(1))
    checkpoints.wait()
    with writing_of_arrays(gate):
        checkpoints.save(state_at(2))
        assert gate.reached.wait(BOUND)
        assert opened(tmp_path / 'stage_1').latest_step == 1
        gate.opened.set()
        assert checkpoints.latest_step == 2
    checkpoints.close()


def refuse():
    raise OSError('no space left on device')


@pytest.mark.parametrize('notice', ['save', 'wait', 'close', 'latest_step'])
def test_a_save_that_fails_in_the_background_is_told(notice, tmp_path):
    """By whatever is asked next, and once; the checkpoint before it stays the last."""
    checkpoints = opened(tmp_path / 'stage_1')
    checkpoints.save(state_at(1))
    checkpoints.wait()
    ask = {
        'save': lambda: checkpoints.save(state_at(3)),
        'wait': checkpoints.wait,
        'close': checkpoints.close,
        'latest_step': lambda: checkpoints.latest_step,
    }[notice]
    with writing_of_arrays(refuse):
        checkpoints.save(state_at(2))
        with pytest.raises(CheckpointError, match=r'stage_1/2: .* not be written: no space left'):
            ask()
    checkpoints.close()
    again = opened(tmp_path / 'stage_1')
    assert again.latest_step == 1
    assert int(again.restore(state_at(0)).step) == 1


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
import checkpoints_test as here
with here.jax.numpy_dtype_promotion('standard'), here.jax.numpy_rank_promotion('allow'):
    checkpoints = here.opened(here.pathlib.Path(sys.argv[1]))
    checkpoints.save(here.state_at(1, fill=7.0))
    checkpoints.wait()
    gate = here.Gate()
    with here.writing_of_arrays(gate):
        checkpoints.save(here.state_at(2))
        gate.reached.wait()
        print('saving', flush=True)
        gate.opened.wait(here.BOUND)
"""


def test_a_process_killed_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    """Half a checkpoint under a name of its own is no checkpoint, nor in the way of the next."""
    folder = tmp_path / 'stage_1'
    process = subprocess.Popen(
        [sys.executable, '-c', KILLED, str(folder), str(pathlib.Path(__file__).parent)],
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'saving\n'
    process.kill()
    assert process.wait(BOUND) == -signal.SIGKILL
    process.stdout.close()
    assert {path.name for path in folder.iterdir()} > {'1'}, 'something half was left'
    checkpoints = opened(folder)
    assert checkpoints.latest_step == 1
    restored = checkpoints.restore(state_at(0))
    np.testing.assert_array_equal(restored.trained['w'], np.full((64, 64), 7.0))
    checkpoints.save(state_at(2))
    checkpoints.close()
    assert opened(folder).latest_step == 2


def test_the_loop_goes_on_while_a_save_is_written_and_ends_when_it_is(
    small_recipe, tmp_path, monkeypatch
):
    """Saves at 5, 10 and 12: the first is held up until step 7 is recorded."""
    gate, noted = Gate(), stages._write_metrics

    def note(records, last, *rest):
        if last == 7:
            assert gate.reached.wait(BOUND)
            gate.opened.set()
        noted(records, last, *rest)

    monkeypatch.setattr(stages, '_write_metrics', note)
    with writing_of_arrays(gate):
        job.train(small_recipe('softmax'), tmp_path)
    saved = {path.name for path in (tmp_path / 'checkpoints' / 'stage_1').iterdir()}
    assert saved == {'10', '12'}


@pytest.mark.parametrize(('failing', 'step'), [(1, 5), (3, 12)])
def test_a_run_ends_at_a_save_that_failed(failing, step, small_recipe, tmp_path):
    """At the next one, or at the end: a run that seems finished and is not saved is lost."""
    saves = []

    def fail_once():
        saves.append(None)
        if len(saves) == failing:
            refuse()

    recipe = small_recipe('softmax')
    told = rf'stage_1/{step}: the checkpoint could not be written: no space left'
    with writing_of_arrays(fail_once), pytest.raises(CheckpointError, match=told):
        job.train(recipe, tmp_path)
    assert not (tmp_path / 'evaluation.json').exists()
    job.train(recipe, tmp_path)
    assert len((tmp_path / 'metrics.jsonl').read_text().split('"train"')) == 13


def test_a_stop_waits_for_its_checkpoint(small_recipe, tmp_path, monkeypatch):
    """What is told to go on from a step must find the step."""
    noted = stages._write_metrics

    def note_and_stop(records, last, *rest):
        noted(records, last, *rest)
        if last == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(stages, '_write_metrics', note_and_stop)
    slowly = threading.Event()
    with (
        writing_of_arrays(lambda: slowly.wait(1)),
        pytest.raises(interruption.Interrupted, match=r'at step 3 '),
    ):
        job.train(small_recipe('softmax'), tmp_path)
    folder = tmp_path / 'checkpoints' / 'stage_1' / '3'
    assert json.loads((folder / 'identity' / 'metadata').read_text())['identity']
