"""Numbers over seeds, and as the text of tables and answers."""

import math
from collections.abc import Sequence

import numpy as np

from balms_jax.report.comparison import (
    Replicates,
    format_statistic,
    paired_differences,
    told_apart,
)
from balms_jax.report.runs import SHOT_GROUPS, shot_mask


def accuracies(group: Replicates) -> dict[str, str]:
    """Seeds, and top-1 over all classes and each shot group that has some: cells of a table."""
    held = [n for n in SHOT_GROUPS if shot_mask(group.first.class_counts, n).any()]
    shown = {'top-1 %': 'top1', **{f'{name} %': name for name in held}}
    told = {heading: format_statistic(group, field) for heading, field in shown.items()}
    return {'seeds': seeds_of(group), **told}


def seeds_of(group: Replicates) -> str:
    """The seeds of its runs, as a cell of a table."""
    return ', '.join(str(run.facts['seed']) for run in group.runs)


def over_seeds(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN for one value, both for none."""
    if not len(values):
        return math.nan, math.nan
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), spread


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, NaN for one value, both for none."""
    mean, spread = over_seeds(values)
    return mean, spread / math.sqrt(max(len(values), 1))


def gain(group: Replicates, base: Replicates, field: str = 'top1') -> str:
    """Points from one method to another, paired by seed, as text: mean ± standard error.

    It says where there are too few seeds for one, and where they do not tell it from 0.
    """
    points = [100 * each for each in paired_differences(group.runs, base.runs, field)]
    return number(*mean_and_error(points), digits=1, sign=True) + caveat(points)


def caveat(differences: Sequence[float], undecided: str = 'not told from 0') -> str:
    """What a mean of paired differences must not be read without, in brackets; or ''.

    Args:
        differences: one a seed that both have.
        undecided: the words where several seeds do not tell their mean from 0.
    """
    if len(differences) < 2:
        return f' ({"one seed" if differences else "no seed in common"})'
    return '' if told_apart(differences) else f' ({undecided})'


def number(
    mean: float,
    spread: float = math.nan,
    *,
    scale: float = 1,
    digits: int = 2,
    sign: bool = False,
) -> str:
    """A mean ± its spread as text; the mean alone where there is one seed."""
    if not math.isfinite(mean):
        return '–'
    rounded = round(scale * mean, digits) + 0.0  # + 0: no −0.
    text = f'{rounded:{"+" if sign and rounded else ""}.{digits}f}'.replace('-', '−')
    return text + (f' ± {scale * spread:.{digits}f}' if math.isfinite(spread) else '')
