r"""Trains a config: ``python -m balms_jax --config FILE[:ARGUMENTS] --workdir DIR``.

The same command goes on with an interrupted run. Any key of the config can be set by a flag:

    python -m balms_jax --config configs/digits_lt.py:method=balms --workdir runs/balms
    python -m balms_jax --config configs/shapes_lt.py:method=balms --workdir runs/shapes
    python -m balms_jax --config configs/cifar_lt.py:dataset=cifar100,method=balms \
        --config.data.data_dir=data --config.seed=1 --workdir runs/cifar100_balms_1

Several processes that share a file system train one run. On Cloud TPU, SLURM and GKE each is
started with --distributed; elsewhere each is told the others:

    python -m balms_jax … --coordinator HOST:PORT --processes 2 --process_id 0
"""

import sys
from pathlib import Path
from typing import Any

from balms_jax import extras

with extras.needed('train', 'training'):
    import jax
    from absl import app, flags, logging
    from ml_collections import ConfigDict, config_flags

    from balms_jax.detection_training import checks as detector_checks
    from balms_jax.detection_training.methods import METHODS as DETECTOR_METHODS
    from balms_jax.report import write_report
    from balms_jax.training import checks, job, processes
    from balms_jax.training.arguments import parse_flags
    from balms_jax.training.interruption import Interrupted
    from balms_jax.training.methods import METHODS
    from balms_jax.training.progress import Progress

CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'What to train: FILE, or FILE:name=value,… with the arguments that the file names. All keys '
    'and their defaults stand in balms_jax/training/recipe.py, those of a detector in '
    'balms_jax/detection_training/recipe.py.',
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Where this run is recorded, and resumed from.')
STAGE_1_FROM = flags.DEFINE_string(
    'stage_1_from',
    None,
    'Another run, whose finished first stage (the same as here) is taken over.',
)
DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'One of several processes, which Cloud TPU, SLURM or GKE have started.'
)
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of the first of the processes.')
PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes train this run.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
LOST = (
    'ProcessLostError: a computation over the processes failed, as when one of them is lost; '
    'the same command goes on from the last checkpoint, or begins anew where none was written yet'
)
HEARTBEAT = flags.DEFINE_integer(
    'heartbeat_seconds',
    processes.HEARTBEAT_SECONDS,
    'A process not heard of for so long is lost, and the others end.',
)


def main(arguments: list[str]) -> int:
    """Runs or resumes; returns the exit code."""
    if len(arguments) > 1:
        raise app.UsageError(f'unexpected argument {arguments[1]!r}')
    config: ConfigDict = CONFIG.value
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.FATAL)  # Of what ends a run the last line tells.
    of_detector = detector_checks.is_detector(config)
    try:
        recipe = (detector_checks if of_detector else checks).from_config(config)
        told = (COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
        if DISTRIBUTED.value or any(value is not None for value in told):
            processes.start(*told, heartbeat_seconds=HEARTBEAT.value)
        progress = Progress(title=recipe.method, quiet=not processes.is_first())
        workdir = Path(str(WORKDIR.value))
        result = _job(of_detector).train(
            recipe,
            workdir,
            config=config.to_dict(),
            stage_1_from=STAGE_1_FROM.value,
            progress=progress,
        )
        progress.say(f'{recipe.method}: {(_detector if of_detector else _classifier)(result)}')
        if processes.is_first():
            progress.say(f'page: {write_report([workdir])}')
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print('stopped at once, without a checkpoint of this moment', file=sys.stderr)
        return 130
    except job.FAILURES as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        processes.leave(1)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if jax.distributed.is_initialized():
            print(f'{LOST} ({str(error).splitlines()[0]})', file=sys.stderr)
            processes.leave(1)
        raise
    return 0


def _job(of_detector: bool) -> Any:
    """What trains."""
    if not of_detector:
        return job
    with extras.needed('detection', 'a detector'):
        from balms_jax.detection_training import job as detector_job

        return detector_job


def _classifier(result: dict[str, Any]) -> str:
    uniform = result['uniform']
    groups = ', '.join(f'{name} {_percent(uniform[name])}' for name in ('many', 'medium', 'few'))
    return f'top-1 {_percent(uniform["top1"])} ({groups}), last epoch'


def _detector(result: dict[str, Any]) -> str:
    kind = 'masks' if 'masks' in result else 'boxes'
    groups = {'rare': 'AP_r', 'common': 'AP_c', 'frequent': 'AP_f'}
    told = ', '.join(f'{name} {_percent(result[kind][key])}' for name, key in groups.items())
    return f'AP of {kind} {_percent(result[kind]["AP"])} ({told}), last step'


def _percent(share: float | None) -> str:
    return 'absent' if share is None else f'{share:.1%}'


def run() -> None:
    """The command."""
    flags.mark_flags_as_required(['config', 'workdir'])
    told: dict[str, dict[str, Any]] = {
        'Methods': METHODS,
        'Methods of a detector': DETECTOR_METHODS,
    }
    listed = ''.join(
        f'\n{heading}:\n' + ''.join(f'  {name}: {m.summary}\n' for name, m in methods.items())
        for heading, methods in told.items()
    )
    sys.modules['__main__'].__doc__ = f'{__doc__}{listed}'
    # Results must not depend on how many devices draw the random numbers.
    jax.config.update('jax_threefry_partitionable', True)
    app.run(main, flags_parser=parse_flags)


if __name__ == '__main__':
    run()
