"""What of an experiment the repository keeps: its page, its rows, the small files of its runs."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from balms_jax.training.records import write_json

RESULTS = Path(__file__).parent / 'results'
HELP = 'of the page; if not given experiments/results/…, runs/smoke/… of the smoke scale'
# Of the losses of single steps one in so many is kept, and as many as these of a stage's end; of
# what is learned beside the parameters that of one step in so many.
TRAIN_LINES, LAST_LINES, RATE_LINES = 100, 100, 20


def page_folder(name: str, scale: str, given: Path | None) -> Path:
    """The folder of an experiment's page and numbers.

    Args:
        name: of the experiment.
        scale: ``'smoke'`` is not kept; ``'paper'`` does not take the place of ``'cpu'``.
        given: on the command line; goes before all else.
    """
    if given is not None:
        return given
    if scale == 'smoke':
        return Path('runs') / 'smoke' / name
    return RESULTS / (name if scale == 'cpu' else f'{name}_{scale}')


def origin() -> dict[str, str]:
    """The command of this process, and the commit of the code where it lies in a git checkout.

    ``-dirty`` follows the commit where something but results differs from it.
    """
    root = RESULTS.parents[1]
    differs = ['git', 'diff', '--quiet', 'HEAD', '--', '.', ':(exclude)experiments/results']
    try:
        head = subprocess.run(
            ['git', 'rev-parse', 'HEAD'], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(differs, cwd=root).returncode
    except (OSError, subprocess.CalledProcessError):
        commit = 'unknown'
    else:
        commit = head.stdout.strip() + ('-dirty' if changed else '')
    return {'command': shlex.join(['python', *sys.orig_argv[1:]]), 'commit': commit}


def written_by() -> str:
    """The beginning of a page's footer: its command and commit, as HTML."""
    told = origin()
    return f'Written by <code>{escape(told["command"])}</code>, commit {told["commit"]}'


def write_rows(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Writes ``rows.json``: the numbers of a page as data, with their command and commit.

    A NaN, which JSON does not know, becomes null.
    """
    path = folder / 'rows.json'
    told = [{name: None if value != value else value for name, value in r.items()} for r in rows]
    write_json(path, {**origin(), 'rows': told})
    return path


def keep_run(run: Path, record: Path) -> None:
    """Copies of a finished run what its pages are made of: no checkpoint, few losses of steps.

    Args:
        run: its directory.
        record: the directory of the copy, which ``read_run`` reads as it does the run's own.
    """
    config = _read(run / 'config.json')
    config['data']['data_dir'] = ''  # Where the data lay is a fact of one machine.
    lengths = {stage['name']: stage['steps'] for stage in _read(run / 'run.json')['stages']}
    unfinished = record.with_name(f'.{record.name}.unfinished')  # A copy that breaks off is none.
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in [*run.glob('*.json'), *run.glob('throughput.jsonl')]:
        shutil.copyfile(file, unfinished / file.name)
    write_json(unfinished / 'config.json', config)
    lines = (run / 'metrics.jsonl').read_text().splitlines(keepends=True)
    stay = (line for line in lines if _stays(json.loads(line), lengths))
    (unfinished / 'metrics.jsonl').write_text(''.join(stay))
    shutil.rmtree(record, ignore_errors=True)
    unfinished.rename(record)


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def _stays(line: Mapping[str, Any], lengths: Mapping[str, int]) -> bool:
    left = lengths[line['stage']] - line['step']
    every, last = {'train': (TRAIN_LINES, LAST_LINES), 'rates': (RATE_LINES, 1)}.get(
        line['kind'], (1, 0)
    )
    return left < last or line['step'] % every == 0
