"""The command as a person runs it: messages, exit codes, kills."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    '--config.stage_1.steps=60',
    '--config.stage_2.steps=60',
    '--config.records.checkpoint_every=20',
    '--config.records.tensorboard=False',
    '--config.evaluation.every=30',
]
# What the extras bring and the core does not (optax brings absl), as Python imports it.
NOT_IN_THE_CORE = (
    'array_record',
    'faster_coco_eval',
    'flax',
    'matplotlib',
    'ml_collections',
    'orbax',
    'PIL',
    'rich',
    'sklearn',
    'tensorboardX',
    'tensorflow_datasets',
)
ENVIRONMENT = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}


def command(workdir, *flags, config='configs/digits_lt.py:method=balms'):
    return [sys.executable, '-m', 'balms_jax', f'--config={config}', f'--workdir={workdir}', *flags]


def run(*arguments, **options):
    return subprocess.run(
        command(*arguments, **options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )


def final_digests(workdir):
    """What the last checkpoint says its arrays are, and every recorded number."""
    folder = workdir / 'checkpoints' / 'stage_2' / '60' / 'identity'
    identity = next(path for path in folder.iterdir() if path.name == 'metadata')
    digest = json.loads(identity.read_text())['digest']
    return (
        digest,
        (workdir / 'metrics.jsonl').read_text(),
        (workdir / 'evaluation.json').read_text(),
    )


def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path):
    """kill -9 leaves no time to save: what is on the disk at any moment must be enough."""
    assert run(tmp_path / 'whole', *SMALL).returncode == 0
    moments = random.Random(0)
    for _ in range(int(os.environ.get('BALMS_JAX_KILLS', '3'))):
        process = subprocess.Popen(
            command(tmp_path / 'killed', *SMALL),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(2, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = run(tmp_path / 'killed', *SMALL)
    assert finished.returncode == 0, finished.stderr
    assert final_digests(tmp_path / 'whole') == final_digests(tmp_path / 'killed')


def test_sigterm_saves_and_exits_with_the_conventional_code(tmp_path):
    """A scheduler that preempts a job sends SIGTERM and restarts it when it exits."""
    flags = ['--config.stage_1.steps=100000', '--config.evaluation.every=0']
    process = subprocess.Popen(
        command(tmp_path, *flags), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        metrics = tmp_path / 'metrics.jsonl'
        if metrics.exists() and metrics.read_text().count('"train"') > 50:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert 'the same command goes on from there' in errors
    saved = [int(path.name) for path in (tmp_path / 'checkpoints' / 'stage_1').iterdir()]
    assert f'at step {max(saved)} of stage_1' in errors


@pytest.mark.parametrize(
    ('flags', 'options', 'message'),
    [
        (
            ['--config.stage_1.stepss=3'],
            {},
            "--config.stage_1.stepss: the config has no key 'stepss'",
        ),
        (['--config.stage_1.steps=many'], {}, 'steps'),
        (['--config.stage_2.meta.batch_size=3'], {}, 'stage_2.meta.batch_size: got 3, wanted at l'),
        (['--config.data.imbalance_factor=0.5'], {}, 'imbalance_factor'),
        (['--config.data.imbalance_factor=5000'], {}, 'imbalance_factor'),
        (['--config.data.head_count=1000'], {}, 'lower head_count'),
        ([], {'config': 'configs/digits_lt.py:method=blams'}, "method: got 'blams', wanted one of"),
        (
            [],
            {'config': 'configs/nope.py'},
            "--config: [Errno 2] No such file or directory: 'configs",
        ),
        (['--config.data.data_dir=/nowhere'], {'config': 'configs/cifar_lt.py'}, 'data.sources ci'),
        (['--stage_1_from=/nowhere'], {}, 'holds no first stage'),
    ],
)
def test_a_mistake_is_one_clear_line_before_any_work(flags, options, message, tmp_path):
    """A traceback tells the developer what failed, not the user what to change."""
    done = run(tmp_path / 'run', *flags, **options)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize(
    ('module', 'arguments', 'message'),
    [
        ('balms_jax', [], "training needs the train extra: pip install 'balms_jax[train]'"),
        ('balms_jax.report', ['RUN'], "the page needs the plots extra: pip install 'balms_jax[pl"),
        ('balms_jax.data.sources', ['cifar10'], 'preparing a data set needs the train extra: pip'),
    ],
)
def test_a_command_without_its_extra_names_it_in_one_line(module, arguments, message):
    """Who has taken the core alone is told what to install, not where an import failed."""
    code = (
        'import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(","))); '
        f'runpy.run_module({module!r}, run_name="__main__", alter_sys=True)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, ','.join(NOT_IN_THE_CORE), *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'balms_jax: {message}')
    assert re.fullmatch(r'.*\(no module named \w+\)\n', done.stderr)


def test_help_names_every_method():
    """The list of methods is in one place, and a person looks for it in --help."""
    text = subprocess.run(
        [sys.executable, '-m', 'balms_jax', '--help'],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    ).stdout
    for method in ('balms_end_to_end', 'meta_reweighter', 'balanced_softmax_quarter'):
        assert method in text
