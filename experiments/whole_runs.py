"""What the questions share that whole training runs answer: options, runs, the page's frame.

A run is kept in FOLDER/SCALE/DATASET_FACTOR/METHOD-SEED, and every question that asks for it takes
it from there; methods that begin as softmax does take over its first stage. The small files of
finished runs go to RECORDS/SCALE/DATASET_FACTOR/METHOD-SEED, where there is such a folder; a run
that stands there is not trained again.
"""

import argparse
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from balms_jax.models import DTYPES
from balms_jax.report import Run, RunError, read_run
from balms_jax.report.comparison import Replicates, group_runs
from balms_jax.report.figure_style import method_colors
from balms_jax.report.html import document, table
from balms_jax.report.sections import ProblemFigures
from balms_jax.training.checks import from_config
from balms_jax.training.methods import METHODS
from balms_jax.training.records import write_json
from configs import cifar_lt, digits_lt
from experiments import kept
from experiments.comparison import console, exit_on_failure, finished, train_all

# Of configs/cifar_lt.py, by scale; the smoke scale is the embedded digits.
RECIPES = {'cpu': 'short', 'paper': 'paper', 'strong': 'strong'}
SMOKE_STEPS = 60
PLUS_MINUS = (
    '± is the standard deviation over seeds; of differences in the text, the standard error.'
)
FITTED = 0.1  # nats: a network whose training loss is above it does not fit its training set


class Variant(NamedTuple):
    """A method with something changed; its runs go by another name."""

    method: str
    change: Callable[[ConfigDict], None]


Variants = Mapping[str, Variant]


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of which runs.

    Attributes:
        doc: the docstring of its module.
        name: of its module, and of the folder of its results.
        title: of its page.
        methods: of its runs, of which some may be asked for alone.
        few: those of the smoke scale.
        needed: those without which it has no answer.
        variants: which of the methods are none of ``training.methods``, and what they are.
        factors: imbalance factors by scale; 100 if it names none.
        datasets: by scale; ``cifar10`` if it names none.
        several: whether a page may be of several data sets and imbalance factors.
        any_method: whether every method of ``training.methods`` may be asked for.
    """

    doc: str | None
    name: str
    title: str
    methods: Sequence[str]
    few: Sequence[str]
    needed: Sequence[str] = ()
    variants: Variants = dataclasses.field(default_factory=dict)
    factors: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    datasets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    several: bool = False
    any_method: bool = False


def options_of(question: Question) -> argparse.Namespace:
    """The command line of a question; ends the program where it asks for what cannot be told.

    Returns:
        scale, datasets, imbalance_factors, methods, seeds, data_dir, dtype, folder, records,
        output, page_only, together.
    """
    parser = _parser(question)
    options = parser.parse_args()
    smoke = options.scale == 'smoke'
    for name in ('datasets', 'imbalance_factors', 'methods', 'seeds'):
        values = getattr(options, name) or ()
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            parser.error(f'--{name}: got {repeated[0]} more than once, wanted each once')
        if smoke and values and name in ('datasets', 'imbalance_factors'):
            parser.error(f'--{name}: got {values} at scale smoke, which is of the digits alone')
    options.datasets = (
        ['digits']
        if smoke
        else options.datasets or question.datasets.get(options.scale, ('cifar10',))
    )
    options.imbalance_factors = (
        [40.0]
        if smoke
        else options.imbalance_factors or question.factors.get(options.scale, (100.0,))
    )
    options.methods = options.methods or (question.few if smoke else question.methods)
    options.seeds = options.seeds or ([0] if smoke else [0, 1, 2])
    options.output = kept.page_folder(question.name, options.scale, options.output)
    if len(options.datasets) * len(options.imbalance_factors) > 1 and not question.several:
        parser.error(
            'wanted one data set and one imbalance factor: the page tells of one long tail'
        )
    if lacking := set(question.needed) - set(options.methods):
        parser.error(
            f'--methods: got none of {", ".join(sorted(lacking))}, without which there is no answer'
        )
    return options


def _parser(question: Question) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=question.doc, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--scale', choices=('smoke', *RECIPES), default='cpu')
    parser.add_argument('--datasets', nargs='+', choices=('cifar10', 'cifar100'))
    parser.add_argument('--imbalance_factors', nargs='+', type=float)
    choices = list(METHODS) if question.any_method else question.methods
    parser.add_argument('--methods', nargs='+', choices=choices)
    parser.add_argument('--seeds', nargs='+', type=int)
    parser.add_argument('--data_dir', default='')
    parser.add_argument(
        '--dtype',
        choices=DTYPES,
        default='float32',
        help='what the backbones compute in; runs of each need a --folder of their own',
    )
    parser.add_argument('--folder', type=Path, default=Path('runs/long_tail'), help='of the runs')
    parser.add_argument(
        '--records',
        type=Path,
        help='the small files of finished runs, without checkpoints: runs that stand there are\n'
        'not trained again, those that are trained are added; experiments/results/runs has ours',
    )
    parser.add_argument('--output', type=Path, help=kept.HELP)
    parser.add_argument(
        '--together',
        action='store_true',
        help="train a method's seeds under one vmap: convolutions become grouped ones, which took\n"
        'three ResNet-32 twice as long as one after another on an H100',
    )
    parser.add_argument('--page_only', action='store_true', help='of the runs that are finished')
    return parser


def train(options: argparse.Namespace, question: Question) -> list[Run]:
    """Trains what is not trained yet; with ``page_only`` nothing.

    Ends the program on a failure, where runs are of other settings, and where none is finished of a
    method that the question needs.
    """
    found: list[Path] = []
    with exit_on_failure():
        for dataset, factor, folder, records in _places(options):
            config = functools.partial(_config, options, question.variants, dataset, factor)
            found += train_all(
                config,
                options.methods,
                options.seeds,
                folder,
                records=records,
                together=options.together,
                page_only=options.page_only,
            )
        runs = [_of_this_version(read_run(run)) for run in found]
        trained = {name_of(run) for run in runs}
        if not trained or not trained.issuperset(question.needed):
            names = sorted(set(question.needed or options.methods) - trained)
            raise RunError(f'{options.folder}: holds no finished run of {", ".join(names)}')
    return runs


def keep(options: argparse.Namespace) -> None:
    """Copies the small files of the finished runs to ``records``, if it is given."""
    for _, _, folder, records in _places(options):
        for name in _names(options):
            run = finished(name, folder)
            if records and run:
                kept.keep_run(run, records / name)


def missing(options: argparse.Namespace) -> str:
    """Which of the runs that were asked for are not finished, in words for the page; or ''."""
    told = []
    for dataset, factor, folder, records in _places(options):
        for method in options.methods:
            left = [s for s in options.seeds if not finished(f'{method}-{s}', folder, records)]
            if left:
                seeds = f'seed{"s" if len(left) > 1 else ""} {", ".join(map(str, left))}'
                told.append(f'{method} ({seeds}, {dataset}, imbalance factor {factor:g})')
    return f'Asked for and not there: {"; ".join(told)}.' if told else ''


def _places(options: argparse.Namespace) -> Iterator[tuple[str, float, Path, Path | None]]:
    """Every data set and imbalance factor, the folder of its runs, and that of their records."""
    for dataset in options.datasets:
        for factor in options.imbalance_factors:
            place = Path(options.scale) / f'{dataset}_{factor:g}'
            records = options.records / place if options.records else None
            yield dataset, factor, options.folder / place, records


def _names(options: argparse.Namespace) -> list[str]:
    return [f'{method}-{seed}' for method in options.methods for seed in options.seeds]


def measured(run: Run, name: str, measure: Callable[[], Any]) -> Any:
    """What a question measures of a run's network, once: afterwards it is read from its folder.

    Args:
        run: a finished one; the program ends where it is a record that lacks the measure.
        name: of the file.
        measure: gives what JSON can hold.
    """
    path = run.path / f'{name}.json'
    if not path.exists():
        with exit_on_failure():
            if not (run.path / 'checkpoints').exists():
                raise RunError(
                    f'{path}: is not there, and a record holds no network to measure it of. '
                    'Without this record the run is trained again'
                )
            write_json(path, measure())
    return json.loads(path.read_text())


def name_of(run: Run) -> str:
    """The method, or the variant of one, that a run was trained as."""
    return run.path.name.rpartition('-')[0]


def final_train_loss(run: Run) -> float:
    """The mean loss of the last steps of the last stage, as many as a record keeps, nats."""
    stage, steps = run.stages[-1]
    losses = [
        line['loss']
        for line in run.metrics.get('train', [])
        if line['stage'] == stage and line['step'] > steps - kept.LAST_LINES
    ]
    return float(np.mean(losses)) if losses else math.nan


def figures_of(
    runs: Sequence[Run], labels: Mapping[str, str] | None = None
) -> tuple[list[Replicates], ProblemFigures]:
    """The runs of one long tail by method, and what can be drawn of them.

    Args:
        runs: finished ones.
        labels: what to call those trained as a method or variant; the method's own name if absent.

    Returns:
        Groups of runs that differ in their seed alone, and their figures.
    """
    groups = [
        dataclasses.replace(group, label=(labels or {}).get(name_of(group.first), group.label))
        for group in group_runs(runs)
    ]
    colors = method_colors({group.label: group.first.facts['method'] for group in groups})
    return groups, ProblemFigures(groups, colors)


def write_page(
    options: argparse.Namespace,
    question: Question,
    answer: str,
    rows: Sequence[Mapping[str, str]],
    figures: Sequence[str],
    runs: Sequence[Run],
) -> Path:
    """Writes the page: the question, its answer, what was measured, the numbers, the figures.

    Beside it go ``rows.json``, and the small files of the runs to ``records``.
    """
    facts = runs[0].facts
    seeds = sorted({run.facts['seed'] for run in runs})
    factors = ', '.join(f'{f:g}' for f in sorted({run.facts['imbalance_factor'] for run in runs}))
    made = (
        f'{kept.written_by()}: '
        f'{escape(facts["dataset"])}, imbalance factor {factors}, recipe '
        f'{escape(str(facts["recipe"]))}, {escape(str(facts["network"]))}, '
        f'{facts["parameter_count"]:,} parameters, seeds {", ".join(map(str, seeds))}, jax '
        f'{escape(facts["versions"]["jax"])} on {escape(facts["device"])}. The last epoch is '
        'reported; no choice is made on the test set.'
    )
    body = ''.join(f'<p class="finding">{escape(line)}</p>\n' for line in answer.splitlines())
    body += introduction(question.doc)
    body += f'<div class="scroll">{table(rows)}</div>\n'
    if len(seeds) > 1:
        body += f'<p class="note">{PLUS_MINUS}</p>\n'
    if absent := missing(options):
        body += f'<p class="note">{escape(absent)}</p>\n'
    body += '<h2>Figures</h2>\n'
    body += f'<div class="figures">{"".join(figures)}</div>\n'
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / 'page.html'
    path.write_text(document(question.title, body, made))
    kept.write_rows(options.output, rows)
    keep(options)
    console.print(f'page: {path}', markup=False)
    return path


def introduction(doc: str | None) -> str:
    """What a question is about, measures and expects, as its docstring says, for the page: HTML.

    Example:
        >>> introduction('A title.' + chr(10) * 2 + 'Measures  how' + chr(10) + '          often')
        '<div class="asked"><p><b>Measures</b> how often</p></div>'
    """
    held, name = {'': ''}, ''
    for line in (doc or '').splitlines()[1:]:
        if heading := re.match(r'([A-Z][a-z]+(?: in)?)  +(?=\S)', line):
            name, line = heading[1], line[heading.end() :]
        held[name] = f'{held.get(name, "")} {line.strip()}'.strip()
    told = ''.join(
        f'<p>{f"<b>{each}</b> " if each else ""}{escape(held[each])}</p>'
        for each in ('', 'Measures', 'Expected')
        if held.get(each)
    )
    return f'<div class="asked">{told}</div>'


def _of_this_version(run: Run) -> Run:
    """The run with the defaults of settings that its version did not know yet."""
    return dataclasses.replace(run, config=dataclasses.asdict(from_config(run.config)))


def _config(
    options: argparse.Namespace,
    variants: Variants,
    dataset: str,
    imbalance_factor: float,
    name: str,
) -> ConfigDict:
    variant = variants.get(name)
    method = variant.method if variant else name
    if options.scale == 'smoke':
        values = digits_lt.get_config(f'method={method},imbalance_factor={imbalance_factor}')
        for stage in (values.stage_1, values.stage_2):
            stage.steps = min(stage.steps, SMOKE_STEPS)
    else:
        values = cifar_lt.get_config(
            f'dataset={dataset},imbalance_factor={imbalance_factor},method={method},'
            f'recipe={RECIPES[options.scale]}'
        )
        values.data.data_dir = options.data_dir
    values.model.dtype = options.dtype
    if variant:
        variant.change(values)
    return values
