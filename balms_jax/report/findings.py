"""The result of some runs in one sentence, computed from their final evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from balms_jax.report.comparison import (
    Replicates,
    format_statistic,
    in_words,
    paired_differences,
    told_apart,
    unequal_settings,
)


class Ranking(NamedTuple):
    """What methods are ranked by, in 0..1, and how it is told."""

    field: str
    name: str
    article: str
    groups: Mapping[str, str]
    """The same of groups of classes, the rarest last: the field → its words."""


TOP_1 = Ranking(
    'top1',
    'top-1 accuracy',
    'a',
    {name: f'on {name}-shot classes' for name in ('many', 'medium', 'few')},
)


def finding(groups: Sequence[Replicates], ranking: Ranking = TOP_1) -> str:
    """The result in one sentence.

    Args:
        groups: of one problem; unfinished ones count only where no other is there.
        ranking: what they are ranked by.

    Returns:
        Plain text: what is highest, by how much, and whether the difference exceeds the spread
        over seeds.
    """
    measured = [g for g in groups if math.isfinite(g.statistics(ranking.field)[0])]
    measured = [group for group in measured if group.first.finished] or measured
    if not measured:
        return 'No evaluation has been recorded yet.'
    best, *others = sorted(measured, key=lambda group: -group.statistics(ranking.field)[0])
    seeds = f'mean of {len(best.runs)} seeds' if len(best.runs) > 1 else 'one seed'
    if not best.first.finished:
        seeds += f', {best.first.progress}'
    value = f'{format_statistic(best, ranking.field)} % ({seeds})'
    if not others:
        sentence = f'{best.label} reaches {ranking.article} {ranking.name} of {value}'
        shares = [
            f'{format_statistic(best, field)} % {words}'
            for field, words in ranking.groups.items()
            if math.isfinite(best.statistics(field)[0])
        ]
        return sentence + (f': {in_words(shares)}.' if shares else '.')
    sentence = f'{best.label} reaches the highest {ranking.name}, {value}'
    sentence += _margin(best, others[0], ranking.field) + _tail_clause(measured, best, ranking)
    unequal = unequal_settings(measured)
    if unequal:
        sentence += f'. Mind that the runs also differ in {in_words(unequal)}'
    return sentence + '.'


def _margin(best: Replicates, second: Replicates, field: str) -> str:
    """By how much the best is above the second, and whether seeds tell them apart."""
    mean, other = (group.statistics(field)[0] for group in (best, second))
    clause = (
        f', {100 * (mean - other):.1f} points above {second.label}'
        f' ({format_statistic(second, field)} %)'
    )
    gains = paired_differences(best.runs, second.runs, field)
    if len(gains) < 2:
        return f'{clause}; one seed does not tell whether that exceeds the spread over seeds'
    if not told_apart(gains):
        clause += ', which seeds do not tell from 0'
    return clause


def _tail_clause(groups: Sequence[Replicates], best: Replicates, ranking: Ranking) -> str:
    """What the rarest classes show; they are where methods differ."""
    rarest = [*ranking.groups][:0:-1]
    tail = next((name for name in rarest if math.isfinite(best.statistics(name)[0])), None)
    if tail is None:
        return ''
    first = max(groups, key=lambda group: np.nan_to_num(group.statistics(tail)[0], nan=-1))
    clause, own = ranking.groups[tail], format_statistic(best, tail)
    if first is best:
        return f'; {clause} it is highest too, with {own} %'
    return f'; {clause} {first.label} is highest, {format_statistic(first, tail)} % against {own} %'
