"""Run directories as data: read whole and checked."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

# Thresholds of the field: many > 100, medium 20..100, few < 20 training images. In NumPy and not
# by `priors.shot_groups`, so that reading a run never starts an accelerator.
SHOT_GROUPS = {
    'many': 'more than 100',
    'medium': '20 to 100',
    'few': 'fewer than 20',
}
_SCALARS = (
    'top1',
    *SHOT_GROUPS,
    'negative_log_likelihood',
    'expected_calibration_error',
    'gradient_weight_exponent',
    'loss',
    'meta_loss',
    'learning_rate',
)
_PER_CLASS = (
    'per_class_accuracy',
    'marginal_likelihood',
    'gradient_weights',
    'sampling_rates',
    'class_probabilities',
    'loss_weights',
    'log_adjustment',
)


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, as its directory records it.

    Attributes:
        path: the run directory.
        facts: run.json.
        config: config.json, nested.
        metrics: the lines of metrics.jsonl by kind, in the order of training. Each holds its
            stage, its step within the stage, `at` (the step counted over all stages), scalars
            as floats and per-class values as ``[classes]`` arrays; an absent value is NaN.
        evaluations: the final evaluation by test prior, `uniform` first; empty if unfinished.
    """

    path: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, list[dict[str, Any]]]
    evaluations: dict[str, dict[str, Any]]

    @property
    def finished(self) -> bool:
        """Whether the final evaluation was written."""
        return bool(self.evaluations)

    @property
    def final(self) -> dict[str, Any]:
        """The final evaluation under the uniform test prior, or else the latest one on the way."""
        latest = self.metrics.get('evaluation', [{}])[-1]
        return {**latest, **self.evaluations.get('uniform', {})}

    @property
    def class_counts(self) -> np.ndarray:
        """Training images of each class, ``[classes]``."""
        return np.asarray(self.facts['class_counts'])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, ``[classes]``."""
        return [str(name) for name in self.facts['class_names']]

    @property
    def stages(self) -> list[tuple[str, int]]:
        """Name and number of steps of every stage."""
        return [(stage['name'], stage['steps']) for stage in self.facts['stages']]

    @property
    def progress(self) -> str:
        """How far the run has come, in words."""
        last = max(
            (line for lines in self.metrics.values() for line in lines),
            key=lambda line: line['at'],
            default=None,
        )
        if self.finished:
            return f'{sum(steps for _, steps in self.stages):,} steps'
        if last is None:
            return 'unfinished at step 0'
        of = dict(self.stages)[last['stage']]
        return f'unfinished at step {last["step"]:,} of {of:,} in {last["stage"]}'

    def series(self, kind: str, field: str) -> tuple[np.ndarray, np.ndarray]:
        """One field over training.

        Args:
            kind: of the lines, such as 'evaluation'.
            field: such as 'top1'.

        Returns:
            Steps over all stages, ``[lines]``, and values, ``[lines]`` or ``[lines, classes]``,
            of the lines that have the field.
        """
        lines = [line for line in self.metrics.get(kind, []) if field in line]
        return np.array([line['at'] for line in lines]), np.array([line[field] for line in lines])

    def series_by_stage(self, kind: str, field: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """As :meth:`series`, apart for each stage that has the field."""
        steps, values = self.series(kind, field)
        stages = [line['stage'] for line in self.metrics.get(kind, []) if field in line]
        ends = [i for i, pair in enumerate(itertools.pairwise(stages), 1) if pair[0] != pair[1]]
        parts = zip(np.split(steps, ends), np.split(values, ends), strict=True)
        return [part for part in parts if len(part[0])]


def read_run(path: Path | str) -> Run:
    """Reads and checks a run directory.

    Args:
        path: the directory with run.json, config.json, metrics.jsonl and, once the run has
            finished, evaluation.json.

    Returns:
        The run. A line of metrics.jsonl that a killed run left half-written is dropped.

    Raises:
        RunError: if the directory is no run, or a file is broken; the message names it.
    """
    path = Path(path)
    if not (path / 'run.json').is_file():
        what = 'has no run.json' if path.is_dir() else 'is no directory'
        raise RunError(f'{path}: not a run directory: it {what}')
    facts = _read_facts(path / 'run.json')
    evaluation_file = path / 'evaluation.json'
    evaluations = _read_object(evaluation_file) if evaluation_file.exists() else {}
    if evaluations and 'uniform' not in evaluations:
        raise RunError(f"{evaluation_file}: lacks 'uniform'")
    classes = len(facts['class_counts'])
    return Run(
        path=path,
        facts=facts,
        config=_read_object(path / 'config.json'),
        metrics=_read_metrics(path / 'metrics.jsonl', facts),
        evaluations={
            prior: _checked(record, classes, f'{evaluation_file}: {prior}')
            for prior, record in sorted(evaluations.items(), key=lambda item: item[0] != 'uniform')
        },
    )


def _read_facts(file: Path) -> dict[str, Any]:
    facts = _read_object(file)
    wanted = {'method': str, 'dataset': str, 'seed': int, 'class_counts': list, 'stages': list}
    for name, kind in wanted.items():
        if not isinstance(facts.get(name), kind):
            raise RunError(f'{file}: {name}: got {facts.get(name)!r}, wanted {kind.__name__}')
    optional = {'imbalance_factor': (int, float), 'parameter_count': (int,), 'versions': (dict,)}
    for name, kinds in optional.items():
        if facts.get(name) is not None and not isinstance(facts[name], kinds):
            words = ' or '.join(kind.__name__ for kind in kinds)
            raise RunError(f'{file}: {name}: got {facts[name]!r}, wanted {words}, or null')
    counts = facts['class_counts']
    if not counts or not all(isinstance(n, int) and n >= 0 for n in counts) or not any(counts):
        raise RunError(f'{file}: class_counts: wanted whole numbers of images, not all 0')
    names = facts.setdefault('class_names', [str(index) for index in range(len(counts))])
    if not isinstance(names, list) or len(names) != len(counts):
        raise RunError(f'{file}: class_names: wanted {len(counts)} names, as class_counts has')
    for stage in facts['stages']:
        if not isinstance(stage, dict) or not isinstance(stage.get('steps'), int):
            raise RunError(f"{file}: stages: got {stage!r}, wanted objects with 'name' and 'steps'")
        stage['name'] = str(stage.get('name'))
    return facts


def _read_metrics(file: Path, facts: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    starts = itertools.accumulate((stage['steps'] for stage in facts['stages']), initial=0)
    offsets = {stage['name']: start for stage, start in zip(facts['stages'], starts, strict=False)}
    lines = _read_text(file).split('\n') if file.exists() else []
    # What follows the last newline is empty, or what a killed run was writing.
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for number, text in enumerate(lines[:-1], start=1):
        where = f'{file}, line {number}'
        line = _parse_object(text, where)
        kind, stage, step = line.get('kind'), line.get('stage'), line.get('step')
        if not isinstance(kind, str) or not isinstance(step, int):
            raise RunError(f"{where}: wanted a 'kind' in words and a whole 'step'")
        if stage not in offsets:
            raise RunError(f'{where}: stage {stage!r} is not one of run.json: {[*offsets]}')
        # A resumed run may have repeated some steps: the later line holds. Step 0 of a stage and
        # the last step before it are two, though as many steps were taken.
        record = _checked(line, len(facts['class_counts']), where)
        record['at'] = offsets[stage] + step
        found[kind, [*offsets].index(stage), step] = record
    metrics: dict[str, list[dict[str, Any]]] = {}
    for (kind, _, _), line in sorted(found.items(), key=lambda item: item[0]):
        metrics.setdefault(kind, []).append(line)
    return metrics


def _checked(record: Any, classes: int, where: str) -> dict[str, Any]:
    """The record with floats and arrays of the right shapes, NaN for null."""
    if not isinstance(record, dict):
        raise RunError(f'{where}: wanted an object')
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_CLASS, (classes,))
    shapes |= {'confusion_matrix': (classes, classes)} | dict.fromkeys(_SCALARS, ())
    checked = dict(record)
    for name in shapes.keys() & record.keys():
        checked[name] = _array(record[name], shapes[name], f'{where}: {name}')
    if reliability := record.get('reliability'):
        try:
            bins = {name: reliability[name] for name in ('confidence', 'accuracy', 'count')}
            shape = (len(bins['count']),)
        except (TypeError, KeyError):
            raise RunError(
                f"{where}: reliability: wanted 'confidence', 'accuracy' and 'count'"
            ) from None
        checked['reliability'] = {
            name: _array(values, shape, f'{where}: reliability: {name}')
            for name, values in bins.items()
        }
    return checked


def _array(value: Any, shape: tuple[int, ...], where: str) -> Any:
    if shape == () and type(value) is float:  # Thousands of training lines take this way.
        return value
    wanted = f'{" x ".join(map(str, shape))} numbers' if shape else 'a number'
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise RunError(f'{where}: wanted {wanted}') from None
    if isinstance(value, str) or array.shape not in {shape, ()}:
        raise RunError(f'{where}: got shape {[*array.shape]}, wanted {wanted}')
    if array.shape == shape:
        return array if shape else float(array)
    if value is not None:
        raise RunError(f'{where}: got {value!r}, wanted {wanted}')
    return np.full(shape, np.nan)


def _read_object(file: Path) -> dict[str, Any]:
    return _parse_object(_read_text(file), str(file))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise RunError(f'{file}: missing') from None
    except UnicodeDecodeError as error:
        raise RunError(f'{file}: not UTF-8 text: {error.reason}') from None
    except OSError as error:
        raise RunError(f'{file}: cannot be read: {error.strerror}') from None


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}'
        raise RunError(f'{where}: broken JSON: {error.msg} at {place}') from None
    if not isinstance(value, dict):
        raise RunError(f'{where}: got a {type(value).__name__}, wanted an object')
    return value


def shot_mask(class_counts: np.ndarray, group: str) -> np.ndarray:
    """Which classes belong to a shot group, ``[classes]``, bool."""
    return {
        'many': class_counts > 100,
        'medium': (class_counts >= 20) & (class_counts <= 100),
        'few': class_counts < 20,
    }[group]
