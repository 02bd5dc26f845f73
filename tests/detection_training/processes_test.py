"""Several processes train one detector: each decodes its own rows of the same batches."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

BOUND = 600  # seconds that any process may take, on a busy machine


def train(workdir, count, devices):
    """Trains by the command that users type; returns the metrics of every step."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    flags = (  # The last word counts.
        f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices} '
        '--xla_cpu_multi_thread_eigen=false'
    )
    command = [
        *(sys.executable, '-m', 'balms_jax', '--workdir', str(workdir)),
        *('--config', 'configs/shapes_lt.py:method=balms,recipe=tiny'),
        *('--config.data.head_count=4', '--config.data.imbalance_factor=2.0'),
        *('--config.data.test_count=1', '--config.detector.width=4'),
        *('--config.detector.channels=8', '--config.detector.box_features=16'),
        *('--config.stage_1.steps=3', '--config.stage_2.steps=3'),
        *('--config.stage_2.regions=fresh', '--config.stage_2.batch_size=4'),
        *('--config.stage_2.meta.batch_size=4', '--config.evaluation.gradient_images=8'),
        '--config.records.tensorboard=false',
    ]
    told = [
        [f'--coordinator=localhost:{port}', f'--processes={count}', f'--process_id={index}']
        for index in range(count)
    ]
    processes = [
        subprocess.Popen(
            command + (those if count > 1 else []),
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for those in told
    ]
    try:
        outputs = [process.communicate(timeout=BOUND)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, outputs
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [each['loss'] for each in map(json.loads, lines) if each['kind'] == 'train']


@pytest.mark.parametrize('count', [2])
def test_processes_train_as_the_devices_of_one_do(tmp_path, count):
    # Draws are of the seed and the step, losses of the global batch, whoever decodes its rows.
    alone = train(tmp_path / 'alone', 1, count)
    together = train(tmp_path / 'together', count, 1)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    results = [
        json.loads((tmp_path / name / 'evaluation.json').read_text())['masks']['AP']
        for name in ('alone', 'together')
    ]
    np.testing.assert_allclose(*results, atol=0.01)
