"""Run directories as data: read whole and checked."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from balms_jax.report.run_files import (
    RunError,
    array_of,
    checked,
    read_facts,
    read_metrics,
    read_object,
)

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

    def lacks(self, field: str) -> bool:
        """Whether the field is of a shot group that no class belongs to."""
        return field in SHOT_GROUPS and not shot_mask(self.class_counts, field).any()

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
    facts = read_facts(path)
    if facts.get('kind') == 'detector':
        raise RunError(f'{path}: got the run of a detector, wanted that of a classifier')
    evaluation_file = path / 'evaluation.json'
    evaluations = read_object(evaluation_file) if evaluation_file.exists() else {}
    if evaluations and 'uniform' not in evaluations:
        raise RunError(f"{evaluation_file}: lacks 'uniform'")
    classes = len(facts['class_counts'])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_CLASS, (classes,))
    shapes |= {'confusion_matrix': (classes, classes)} | dict.fromkeys(_SCALARS, ())

    def check(record: Any, where: str) -> dict[str, Any]:
        return _with_reliability(checked(record, shapes, where), where)

    return Run(
        path=path,
        facts=facts,
        config=read_object(path / 'config.json'),
        metrics=read_metrics(path / 'metrics.jsonl', facts, check),
        evaluations={
            prior: check(record, f'{evaluation_file}: {prior}')
            for prior, record in sorted(evaluations.items(), key=lambda item: item[0] != 'uniform')
        },
    )


def _with_reliability(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with its diagram of reliability as arrays, if it has one."""
    reliability = record.get('reliability')
    if not reliability:
        return record
    try:
        bins = {name: reliability[name] for name in ('confidence', 'accuracy', 'count')}
        shape = (len(bins['count']),)
    except (TypeError, KeyError):
        raise RunError(
            f"{where}: reliability: wanted 'confidence', 'accuracy' and 'count'"
        ) from None
    arrays = {
        name: array_of(values, shape, f'{where}: reliability: {name}')
        for name, values in bins.items()
    }
    return record | {'reliability': arrays}


def shot_mask(class_counts: np.ndarray, group: str) -> np.ndarray:
    """Which classes belong to a shot group, ``[classes]``, bool."""
    return {
        'many': class_counts > 100,
        'medium': (class_counts >= 20) & (class_counts <= 100),
        'few': class_counts < 20,
    }[group]
