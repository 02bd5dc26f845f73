"""Runs side by side: seeds grouped, means and deviations, the comparison table."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.special

from balms_jax.report.detector_runs import MEASURES
from balms_jax.report.runs import SHOT_GROUPS, Run, shot_mask

METHOD_NAMES = {
    'softmax': 'Softmax',
    'softmax_cbs': 'Softmax + CBS',
    'softmax_decoupled': 'Softmax, decoupled',
    'softmax_decoupled_cbs': 'Softmax, decoupled + CBS (cRT)',
    'softmax_decoupled_meta_sampler': 'Softmax, decoupled + Meta Sampler',
    'balanced_softmax': 'Balanced Softmax',
    'balanced_softmax_quarter': 'Balanced Softmax ¼',
    'balanced_softmax_decoupled': 'Balanced Softmax, decoupled',
    'balanced_softmax_decoupled_cbs': 'Balanced Softmax, decoupled + CBS',
    'balanced_softmax_quarter_decoupled': 'Balanced Softmax ¼, decoupled',
    'balanced_softmax_quarter_decoupled_meta_sampler': 'Balanced Softmax ¼ + Meta Sampler',
    'meta_reweighter': 'Balanced Softmax + Meta Reweighter',
    'balms': 'BALMS',
    'balms_end_to_end': 'BALMS, end to end',
    'balanced_softmax_on_balanced_features': 'Balanced Softmax on its own features',
    'balanced_softmax_on_cbs_features': 'Balanced Softmax on CBS features',
    'post_hoc_adjustment': 'Logit adjustment, post hoc',
    'inverse_frequency': 'Inverse-frequency weights',
    'class_balanced': 'Class-balanced weights',
    'focal': 'Focal',
    'class_balanced_focal': 'Class-balanced focal',
    'class_balanced_focal_sigmoid': 'Class-balanced focal, sigmoid',
    'ldam': 'LDAM',
    'ldam_drw': 'LDAM-DRW',
    'class_balanced_drw': 'Softmax, DRW',
    'temperature': 'CDT',
    'cost_sensitive': 'CoSen',
    'equalization': 'EQL',
    'learnable_scales': 'LWS',
    'learned_adjustment': 'Learned adjustment',
    'learning_to_reweight': 'L2RW',
    'meta_weight_net': 'Meta-Weight-Net',
    'class_balanced_domain_adaptation': 'Jamal et al.',
    'tau_normalized': 'τ-normalised',
    'nearest_class_mean': 'Nearest class mean',
    'bilateral_branch': 'BBN',
    'balanced_softmax_experts': 'Balanced Softmax, three τ',
    'balanced_softmax_averaged': 'Balanced Softmax + EMA',
    'balanced_softmax_calibrated': 'Balanced Softmax, calibrated',
    'balanced_mixup': 'Balanced mixup',
    'balanced_softmax_mixup': 'Balanced Softmax + mixup',
    'balanced_softmax_smoothing': 'Balanced Softmax + smoothing',
    'sigmoid': 'Sigmoid',
    'seesaw': 'Seesaw',
    'balanced_sigmoid': 'Balanced Sigmoid',
    'sigmoid_decoupled': 'Sigmoid, decoupled',
    'equalization_decoupled': 'EQL, decoupled',
    'balanced_sigmoid_decoupled': 'Balanced Sigmoid, decoupled',
    'sigmoid_meta_reweighter': 'Sigmoid + Meta Reweighter',
}
DATASET_NAMES = {
    'cifar10': 'CIFAR-10',
    'cifar100': 'CIFAR-100',
    'digits': 'digits',
    'imagenet_lt': 'ImageNet',
    'places_lt': 'Places',
    'tiny_imagenet_lt': 'Tiny-ImageNet',
}


@dataclasses.dataclass(frozen=True)
class Replicates:
    """Runs that differ in their seed alone: one row of a table, one colour of a figure."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that stands for all where only one can be shown."""
        return self.runs[0]

    def statistics(self, field: str, prior: str = 'uniform') -> tuple[Any, Any]:
        """Mean and sample standard deviation of a field of the final evaluation over seeds.

        Args:
            field: such as 'top1' (scalar) or 'per_class_accuracy' (``[classes]``).
            prior: the test prior.

        Returns:
            The mean (NaN unless every run has the field) and the sample standard deviation with
            denominator seeds − 1 (NaN for one seed), in the field's unit and shape.
        """
        finals = [
            run.final if prior == 'uniform' else run.evaluations.get(prior, {}) for run in self.runs
        ]
        if not all(field in final for final in finals):
            return math.nan, math.nan
        values = np.array([final[field] for final in finals])
        deviation = values.std(axis=0, ddof=1) if len(values) > 1 else values[0] * math.nan
        return values.mean(axis=0), deviation


def problem(run: Run) -> tuple[Any, ...]:
    """What must be equal for two runs to share a figure: data set, profile and class counts."""
    facts = run.facts
    named = tuple(facts.get(name) for name in ('dataset', 'profile', 'imbalance_factor'))
    return (*named, tuple(run.class_counts.tolist()))


def group_runs(runs: Sequence[Run]) -> list[Replicates]:
    """Groups runs that differ in their seed alone, in the order given.

    Runs that differ in anything else (a config value, being unfinished) stay apart, as does a
    repeated seed, which would pass for a smaller spread than there is. Labels that would be
    equal get the name of their directory.

    Args:
        runs: of any methods and data sets.

    Returns:
        The groups, with labels that are unique within a problem.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        same = (problem(run), run.facts['method'], run.finished, _seedless(run.config))
        repeats = 0
        while any(
            run.facts['seed'] == other.facts['seed'] for other in groups.get((*same, repeats), [])
        ):
            repeats += 1
        groups.setdefault((*same, repeats), []).append(run)
    bare = [(key[0], _method_label(members[0])) for key, members in groups.items()]
    return [
        Replicates(
            label if bare.count((where, label)) == 1 else f'{label} ({members[0].path.name})',
            tuple(members),
        )
        for (where, label), members in zip(bare, groups.values(), strict=True)
    ]


def unequal_settings(groups: Sequence[Replicates]) -> list[str]:
    """What methods should share to be compared, and do not: network, augmentation, schedule."""
    keys = ['model', 'detector', 'draws', 'data.augmentation']
    keys += [f'stage_{n}.{name}' for n in (1, 2) for name in ('steps', 'batch_size', 'optimizer')]
    unequal = []
    for key in keys:
        values = []
        for group in groups:
            value: Any = group.first.config
            stage = key.split('.')[0]
            if stage.startswith('stage') and not value.get(stage, {}).get('steps'):
                continue  # A method without the stage is another method, not another schedule.
            for part in key.split('.'):
                value = value.get(part) if isinstance(value, dict) else None
            values.append(value)
        if any(value != values[0] for value in values):
            unequal.append(key)
    return unequal


def _method_label(run: Run) -> str:
    method = run.facts['method']
    label = METHOD_NAMES.get(method, method.replace('_', ' '))
    post_hoc = run.config.get('evaluation', {}).get('post_hoc_tau')
    if post_hoc:
        label += f', post-hoc τ = {post_hoc:g}'
    return label if run.finished else f'{label} (unfinished)'


def _seedless(config: dict[str, Any]) -> str:
    """The config without seeds and what only says where things lie, as text to compare."""

    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        per_seed = ('seed', 'workdir', 'data_dir', 'download', 'records')
        return {key: strip(inner) for key, inner in value.items() if not key.endswith(per_seed)}

    return json.dumps(strip(config), sort_keys=True)


COLUMNS = {
    'top1': 'top-1 %',
    'many': 'many %',
    'medium': 'medium %',
    'few': 'few %',
    'negative_log_likelihood': 'NLL',
    'expected_calibration_error': 'ECE %',
    'gradient_weight_exponent': 'gradient-weight exponent',
}
_IN_PERCENT = {'top1', *SHOT_GROUPS, 'expected_calibration_error', *MEASURES, 'box_AP'}


def comparison_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The final evaluation of every method, seeds aggregated to mean ± sample deviation.

    Args:
        runs: of any methods and data sets.

    Returns:
        One row a method, in the order given; all rows have the same columns, values are text
        in the unit of the column's name. A shot group without classes reads 'none', a value
        that was not measured '–'.
    """
    groups = group_runs(runs)
    several = len({problem(run) for run in runs}) > 1
    return [
        ({'data set': dataset_label(group.first)} if several else {})
        | {'method': group.label, 'seeds': ', '.join(str(run.facts['seed']) for run in group.runs)}
        | {name: format_statistic(group, field) for field, name in COLUMNS.items()}
        | {
            'parameters': f'{count:,}' if (count := facts.get('parameter_count')) else '–',
            'meta set': facts.get('meta_set') or 'none',
            'recipe': str(facts.get('recipe', '–')),
            'selection': str(facts.get('selection_rule', '–')),
        }
        for group in groups
        for facts in [group.first.facts]
    ]


def paired_differences(runs: Iterable[Run], base: Iterable[Run], field: str) -> list[float]:
    """Of a field of the final evaluation, by the seeds that both have, in their order.

    Methods of a seed share their draws, and often a first stage: it moves both alike.
    """
    ours, theirs = (
        {run.facts['seed']: float(run.final[field]) for run in each} for each in (runs, base)
    )
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def told_apart(differences: Sequence[float]) -> bool:
    """Whether seeds tell the mean of paired differences from 0, at 95 %.

    With few seeds it takes more than two standard errors: by Student's t 4.3 of them with three.

    Args:
        differences: one a seed, of any unit.

    Returns:
        False for fewer than two, which tell nothing.

    Example:
        >>> told_apart([1.0, 1.1, 0.9]), told_apart([0.1, 0.5, 0.9])
        (True, False)
    """
    seeds = len(differences)
    if seeds < 2:
        return False
    error = np.std(differences, ddof=1) / math.sqrt(seeds)
    return bool(abs(np.mean(differences)) > scipy.special.stdtrit(seeds - 1, 0.975) * error)


def undecided(differences: Sequence[float]) -> bool:
    """Whether there are several paired differences, and they leave it open which is above.

    Example:
        >>> undecided([0.1, 0.5, 0.9]), undecided([1.0, 1.1, 0.9]), undecided([0.1])
        (True, False, False)
    """
    return len(differences) > 1 and not told_apart(differences)


def format_statistic(group: Replicates, field: str, prior: str = 'uniform') -> str:
    """A field's mean ± sample deviation over seeds as text, in the unit of its column."""
    if group.first.lacks(field):
        return 'none'
    mean, deviation = group.statistics(field, prior)
    scale, digits = (100, 1) if field in _IN_PERCENT else (1, 2)
    if not math.isfinite(mean):
        return '–'
    text = f'{round(scale * mean, digits) + 0.0:.{digits}f}'.replace('-', '−')  # + 0: no −0.
    return text + (f' ± {scale * deviation:.{digits}f}' if math.isfinite(deviation) else '')


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """The rows of a table as Markdown, the columns in the first row's order."""
    lines = [[*rows[0]], ['---'] * len(rows[0]), *([*row.values()] for row in rows)]
    return ''.join(f'| {" | ".join(cell.replace("|", "¦") for cell in line)} |\n' for line in lines)


def dataset_label(run: Run) -> str:
    """The long-tailed data set in words, such as 'CIFAR-10-LT, imbalance factor 100'."""
    dataset = run.facts['dataset']
    name = f'{DATASET_NAMES[dataset]}-LT' if dataset in DATASET_NAMES else dataset
    factor = run.facts.get('imbalance_factor')
    return name + (f', imbalance factor {factor:g}' if factor else '')


def in_words(names: Iterable[str]) -> str:
    """'a', 'a and b' or 'a, b and c'."""
    *head, last = names
    return f'{", ".join(head)} and {last}' if head else last


def absent_groups(class_counts: np.ndarray) -> str:
    """Says which shot groups have no class; empty if all have some."""
    absent = [
        f'no class with {words} training images ({name})'
        for name, words in SHOT_GROUPS.items()
        if not shot_mask(class_counts, name).any()
    ]
    return f'There is {in_words(absent)}.' if absent else ''
