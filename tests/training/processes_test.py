"""Several processes train one run: the same run as one process trains, and nothing is lost."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from balms_jax.training import processes

STEPS = 12
BOUND = 120  # seconds that any process may take, on a busy machine


DIGITS = ('configs/digits_lt.py:method=balms_end_to_end',)


class Cluster:
    """Processes of one run, started by the command that users type."""

    def __init__(self, workdir, count, devices, seeds=(0, 0), steps=STEPS, config=DIGITS):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        flags = (  # The last word counts.
            f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices} '
            '--xla_cpu_multi_thread_eigen=false'
        )
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, '-m', 'balms_jax', '--workdir', str(workdir)),
                    *('--config', *config),
                    f'--config.stage_1.steps={steps}',
                    '--config.stage_1.batch_size=16',
                    '--config.stage_1.meta.batch_size=16',
                    '--config.model.width=4',
                    '--config.evaluation.every=8',
                    '--config.records.checkpoint_every=5',
                    '--config.records.tensorboard=false',
                    f'--config.seed={seeds[index % 2]}',
                    f'--coordinator=localhost:{port}',
                    f'--processes={count}',
                    f'--process_id={index}',
                    '--heartbeat_seconds=10',
                ],
                env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(count)
        ]

    def ends(self):
        """The exit code and the output of every process."""
        try:
            outputs = [process.communicate(timeout=BOUND)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], outputs


def train(workdir, count, devices, **options):
    codes, outputs = Cluster(workdir, count, devices, **options).ends()
    assert codes == [0] * count, outputs
    return workdir


def final_arrays(workdir, step=STEPS, stage='stage_1'):
    import orbax.checkpoint as ocp

    folder = workdir / 'checkpoints' / stage / str(step)
    with ocp.StandardCheckpointer() as reader:
        whole = jax_arrays_of(reader, folder / 'state')
    return {name: np.asarray(value) for name, value in whole.items()}


def jax_arrays_of(reader, path):
    """Laid out on one device, however many there were when they were saved."""
    import jax

    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = reader.metadata(path).item_metadata
    wanted = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=one)
        for name, array in saved.items()
    }
    return reader.restore(path, wanted)


def wait_for(workdir, condition):
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, sorted(workdir.rglob('*'))
        time.sleep(0.05)


def steps_recorded(workdir):
    path = workdir / 'metrics.jsonl'
    return path.read_text().count('"train"') if path.exists() else 0


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    """A run of two processes that nothing has disturbed."""
    return train(tmp_path_factory.mktemp('undisturbed') / 'run', 2, 1)


def test_one_two_and_four_processes_train_alike(two_processes, tmp_path):
    """Randomness is of the seed and the step alone, sums are over the global batch."""
    others = [train(tmp_path / '1', 1, 2), train(tmp_path / '4', 4, 1)]
    wanted = final_arrays(two_processes)
    for other in others:
        for name, value in final_arrays(other).items():
            np.testing.assert_allclose(value, wanted[name], rtol=2e-3, atol=2e-4, err_msg=name)
    record = json.loads((two_processes / 'run.json').read_text())
    assert record['device'] == '2 x cpu'
    assert (two_processes / 'report.html').exists()
    assert steps_recorded(two_processes) == STEPS, 'one process writes, and once'


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_a_smaller_job_goes_on(
    two_processes, tmp_path
):
    """Preemption tells some processes first; saved at different steps nothing could go on."""
    run = tmp_path / 'run'
    cluster = Cluster(run, 2, 1)
    wait_for(run, lambda: steps_recorded(run) >= 2)
    cluster.processes[1].send_signal(signal.SIGTERM)
    codes, outputs = cluster.ends()
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    stops = [out[out.index('stopped by signal') :].splitlines()[0] for out in outputs]
    assert stops[0] == stops[1]
    assert steps_recorded(run) < STEPS
    train(run, 1, 1)
    wanted = final_arrays(two_processes)
    for name, value in final_arrays(run).items():
        np.testing.assert_allclose(value, wanted[name], rtol=2e-3, atol=2e-4, err_msg=name)
    assert steps_recorded(run) == STEPS


def test_killed_processes_end_the_others_and_the_run_goes_on_bit_identical(two_processes, tmp_path):
    """A hang would cost a pod's hours; a half-written checkpoint would cost the run.

    One process is killed at a random moment, or in the middle of a save, as often as
    BALMS_JAX_KILLS says, once if it says nothing.
    """
    kills, chance = int(os.environ.get('BALMS_JAX_KILLS', '1')), random.Random(0)
    steps, run = STEPS * kills, tmp_path / 'run'
    undisturbed = two_processes if kills == 1 else train(tmp_path / 'whole', 2, 1, steps=steps)
    saves = run / 'checkpoints' / 'stage_1'
    for kill in range(kills):
        begun, before = time.time(), steps_recorded(run)
        cluster = Cluster(run, 2, 1, steps=steps)
        wait_for(run, lambda n=before: steps_recorded(run) > n)
        if kill % 2:
            wait_for(run, lambda t=begun: any(p.stat().st_mtime > t for p in saves.glob('*tmp*')))
        else:
            time.sleep(chance.uniform(0, 0.5))
        killed = chance.randrange(2)
        cluster.processes[killed].kill()
        codes, outputs = cluster.ends()
        assert codes[killed] == -signal.SIGKILL
        assert codes[1 - killed] not in (0, 128 + signal.SIGTERM), outputs
        assert 'rror' in outputs[1 - killed], outputs
    train(run, 2, 1, steps=steps)
    wanted = final_arrays(undisturbed, steps)
    for name, value in final_arrays(run, steps).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)
    assert (run / 'metrics.jsonl').read_text() == (undisturbed / 'metrics.jsonl').read_text()


def test_processes_that_decode_their_own_rows_train_alike(tmp_path):
    """Streamed images, features that are extracted over the mesh, and evaluation: each process
    reads its part, and together they are what one process computes.
    """
    rng = np.random.default_rng(0)
    for part, counts in (('train', (16, 8)), ('test', (4, 4))):
        for j, count in enumerate(counts):
            (tmp_path / part / f'class_{j}').mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(90 * j, 90 * j + 120, (10, 12, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / f'class_{j}' / f'{i}.png')
    for i in range(6):
        (tmp_path / 'train' / 'class_0' / f'broken_{i}.png').write_text('no image')
    config = (
        'configs/custom_lt.py:train=train,test=test,size=8,network=digits_net,method=balms,batch_size=16',
        f'--config.data.data_dir={tmp_path}',
        '--config.data.files.streamed',
        '--config.data.files.crop=random_resized',
        '--config.data.files.workers=1',
        '--config.data.files.corrupt=skip',
        f'--config.stage_1.optimizer.warmup_steps={STEPS // 2}',
        f'--config.stage_2.steps={STEPS}',
        '--config.stage_2.views=2',
    )
    runs = [train(tmp_path / str(count), count, 2 // count, config=config) for count in (1, 2)]
    ours, theirs = (final_arrays(run, stage='stage_2') for run in runs)
    assert any('psi' in name for name in ours)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=2e-3, atol=2e-4, err_msg=name)
    finals = [json.loads((run / 'evaluation.json').read_text())['uniform'] for run in runs]
    assert finals[0]['confusion_matrix'] == finals[1]['confusion_matrix']
    # Each sees the corrupt images of its own rows alone; the record tells of all.
    replaced = [json.loads((run / 'run.json').read_text())['replaced_images'] for run in runs]
    assert replaced[0] == replaced[1]
    assert len(replaced[0]) == 6


def test_processes_that_were_given_different_configs_are_refused(tmp_path):
    """Each would take its own step of another run, and the mean of both would be neither."""
    codes, outputs = Cluster(tmp_path / 'run', 2, 1, seeds=(0, 1)).ends()
    assert all(code != 0 for code in codes)
    assert 'ValueError: config: process 0 has another than process 1' in outputs[0] + outputs[1]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('told', 'message'),
    [
        (('localhost:1', None, 0), 'processes: got nothing'),
        ((None, 2, None), 'coordinator, process_id: got nothing'),
        (('localhost:1', 2, 2), 'process_id: got 2, wanted 0 to 1'),
    ],
)
def test_half_told_processes_are_refused(told, message):
    """JAX would look for a cluster, and say something else."""
    with pytest.raises(ValueError, match=message):
        processes.start(*told)
