"""The page of the ablation: every row beside the published one, and which orderings hold."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from balms_jax.report import Run
from balms_jax.report.comparison import METHOD_NAMES, group_runs, told_apart, undecided
from balms_jax.report.figure_style import FAINT, WIDE, method_colors, new_figure, styled
from balms_jax.report.html import document, embedded, table
from experiments import kept, published
from experiments.numbers import mean_and_error, number
from experiments.published import Published
from experiments.whole_runs import FITTED, final_train_loss

CLEAR = 2.0  # standard errors


class Row(NamedTuple):
    """A method on a long tail, top-1 %."""

    dataset: str
    imbalance_factor: float
    method: str
    seeds: tuple[int, ...]
    top1: float
    spread: float  # sample standard deviation over seeds; NaN for one
    by_seed: tuple[float, ...]
    published: Published | None
    facts: dict[str, Any]  # of its first run
    train_loss: float = math.nan  # at the end of the last stage, nats, the mean over seeds

    @property
    def error(self) -> float:
        """Of the difference from the published mean, where both tell their spread."""
        theirs = self.published.spread if self.published else None
        if theirs is None or math.isnan(self.spread):
            return math.nan
        return math.sqrt(self.spread**2 / len(self.seeds) + theirs**2 / 3)

    def above(self, other: 'Row') -> tuple[float, ...]:
        """By how many points, one a seed that both have: seeds move methods alike."""
        theirs = dict(zip(other.seeds, other.by_seed, strict=True))
        ours = zip(self.seeds, self.by_seed, strict=True)
        return tuple(value - theirs[seed] for seed, value in ours if seed in theirs)


class Ordering(NamedTuple):
    """That one method is above another, in the paper and here."""

    above: str
    below: str
    published: float  # points
    differences: tuple[float, ...]  # here, one a seed

    @property
    def here(self) -> float:
        """Their mean."""
        return mean_and_error(self.differences)[0]

    @property
    def verdict(self) -> str:
        """Whether it holds, where seeds tell either way."""
        if len(self.differences) == 1:
            return ('as published' if self.here > 0 else 'reversed') + ' by one seed'
        if not told_apart(self.differences):
            return 'not told apart'
        return 'holds' if self.here > 0 else 'reversed'


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """One row a method and long tail, its seeds taken together."""
    rows = []
    for group in group_runs(runs):
        facts = group.first.facts
        mean, spread = group.statistics('top1')
        where = facts['dataset'], facts['imbalance_factor']
        rows.append(
            Row(
                *where,
                facts['method'],
                tuple(run.facts['seed'] for run in group.runs),
                100 * float(mean),
                100 * float(spread),
                tuple(100 * float(run.final['top1']) for run in group.runs),
                published.of(facts['method'], *where),
                facts,
                float(np.mean([final_train_loss(run) for run in group.runs])),
            )
        )
    return rows


def orderings_of(rows: Sequence[Row]) -> list[Ordering]:
    """What the paper's table 5 tells apart by more than two standard errors, and what is here.

    Args:
        rows: of one long tail.

    Returns:
        The pairs, the widest first. Ours are paired by seed: methods of a seed share their draws.
    """
    found = []
    for a in rows:
        for b in rows:
            if not (a.published and b.published):
                continue
            theirs = a.published.spread, b.published.spread
            gap = a.published.top1 - b.published.top1
            differences = a.above(b)
            if None in theirs or not differences:
                continue
            error = math.sqrt(sum(float(s or 0) ** 2 for s in theirs) / 3)
            if gap <= CLEAR * max(error, 0.05):
                continue
            found.append(Ordering(a.method, b.method, gap, differences))
    return sorted(found, key=lambda ordering: -ordering.published)


def write(runs: Sequence[Run], output: Path, absent: str = '') -> Path:
    """Writes ``rows.json`` and ``page.html``.

    Args:
        runs: finished ones.
        output: the folder of the two.
        absent: which runs were asked for and are not there, in words.
    """
    rows = rows_of(runs)
    output.mkdir(parents=True, exist_ok=True)
    kept.write_rows(output, [row._asdict() for row in rows])
    path = output / 'page.html'
    path.write_text(page(rows, absent))
    return path


def page(rows: Sequence[Row], absent: str = '') -> str:
    """The page: the answer, then every long tail's figure, rows and orderings."""
    places = list(dict.fromkeys((row.dataset, row.imbalance_factor) for row in rows))
    body = ''
    for dataset, factor in places:
        here = [row for row in rows if (row.dataset, row.imbalance_factor) == (dataset, factor)]
        orderings = orderings_of(here)
        body += f'<h2>{escape(dataset)}, imbalance factor {factor:g}</h2>\n'
        body += f'<p>{escape(answer(here, orderings))}</p>\n'
        caption = (
            'Top-1 accuracy on the balanced test set at the last step: a dot a seed, a bar their '
            'mean; hollow: published, another network and schedule.'
        )
        body += embedded(accuracies(here), caption, 'Accuracy of every method') + table_of(here)
        if orderings:
            body += (
                '<details><summary>What the paper tells apart by two standard errors, and what '
                'seeds tell here, at 95 %</summary>'
                f'{table([_told(o) for o in orderings])}</details>\n'
            )
    if absent:
        body += f'<p class="note">{escape(absent)}</p>\n'
    recipes = sorted({str(row.facts.get('recipe')) for row in rows})
    networks = sorted({str(row.facts.get('network')) for row in rows})
    footer = (
        f'{kept.written_by()}. Recipe {escape(", ".join(recipes))}; '
        f'{escape("; ".join(networks))}. The last epoch is reported; no choice is made on the test '
        'set.'
    )
    return document('Tables 2 and 5: every method beside the published one', body, footer)


def answer(rows: Sequence[Row], orderings: Sequence[Ordering]) -> str:
    """The question answered in words, from the numbers."""
    best = max(rows, key=lambda row: row.top1)
    told = [f'{METHOD_NAMES[best.method]} is first here, with {best.top1:.1f} %.']
    near = [METHOD_NAMES[row.method] for row in rows if row != best and undecided(best.above(row))]
    if near:
        told.append(f'Seeds do not tell it from {", ".join(near)}.')
    by_method = {row.method: row.top1 for row in rows}
    if {'softmax', 'balanced_softmax'} <= by_method.keys():
        gain = by_method['balanced_softmax'] - by_method['softmax']
        points = number(gain, digits=1, sign=True)
        told.append(f'Balanced Softmax is {points} points from softmax, end to end.')
    if orderings:
        verdicts = [ordering.verdict for ordering in orderings]
        counts = ', '.join(f'{v}: {verdicts.count(v)}' for v in dict.fromkeys(sorted(verdicts)))
        told.append(f'Of {len(orderings)} orderings that table 5 tells apart, {counts}.')
    told += why(rows, orderings)
    return ' '.join(told)


def why(rows: Sequence[Row], orderings: Sequence[Ordering]) -> list[str]:
    """What in the training here explains orderings that are not the paper's."""
    by_method = {row.method: row for row in rows}
    loss = by_method['softmax'].train_loss if 'softmax' in by_method else math.nan
    otherwise = [o for o in orderings if o.verdict in ('reversed', 'not told apart')]
    if not otherwise or not loss > FITTED:
        return []
    twice = 'balanced_softmax_decoupled_cbs'
    of_twice = sum(twice in (o.above, o.below) for o in otherwise)
    told = (
        f'Why not all: softmax ends at a training loss of {loss:.2f} nats. This network does not '
        'fit its training set. Away from zero loss Balanced '
        'Softmax weighs a rare class by less than 1 / n, so that little is left for the sampler '
        'to take back; and where features do not separate the classes, a second balancing gives '
        'up frequent ones for rare ones. The page of over_balance has the same methods where the '
        'network does fit.'
    )
    if of_twice:
        told += f' Of the {len(otherwise)} that do not hold {of_twice} are with '
        told += f'{METHOD_NAMES[twice]}.'
    return [told]


def table_of(rows: Sequence[Row]) -> str:
    """Ours beside the published, with the difference and its standard error."""
    lines = []
    for row in rows:
        theirs, error = row.published, row.error
        lines.append(
            {
                'method': METHOD_NAMES[row.method],
                'seeds': ', '.join(map(str, row.seeds)),
                'top-1 %': number(row.top1, row.spread, digits=1),
                'published %': number(
                    theirs.top1, math.nan if theirs.spread is None else theirs.spread, digits=1
                )
                if theirs
                else '–',
                'difference': number(row.top1 - theirs.top1, digits=1, sign=True)
                if theirs
                else '–',
                'standard error': number(error, digits=1),
                'training loss, its own, nats': number(row.train_loss),
                'parameters': f'{row.facts["parameter_count"]:,}',
                'meta set': row.facts['meta_set'] or 'none',
            }
        )
    return f'<div class="scroll">{table(lines)}</div>\n'


def _told(ordering: Ordering) -> dict[str, str]:
    return {
        'above': METHOD_NAMES[ordering.above],
        'below': METHOD_NAMES[ordering.below],
        'published': number(ordering.published, digits=1, sign=True),
        'here': number(*mean_and_error(ordering.differences), digits=1, sign=True),
        'verdict': ordering.verdict,
    }


@styled
def accuracies(rows: Sequence[Row]) -> Figure:
    """A line a method, the best on top: seeds, their mean, and the published figure."""
    ordered = sorted(rows, key=lambda row: row.top1)
    drawing = new_figure((WIDE[0], 0.9 + 0.24 * len(ordered)))
    axes = drawing.add_subplot()
    colors = method_colors({row.method: row.method for row in ordered})
    for place, row in enumerate(ordered):
        color = colors[row.method]
        axes.plot(row.by_seed, [place] * len(row.by_seed), 'o', ms=4, alpha=0.55, color=color)
        axes.plot([row.top1], [place], '|', ms=14, mew=2, color=color)
        if row.published:
            axes.plot([row.published.top1], [place], 'o', ms=5, mfc='none', mec=FAINT)
    axes.set_yticks(range(len(ordered)), [METHOD_NAMES[row.method] for row in ordered])
    axes.set_ylim(-0.7, len(ordered) - 0.3)
    axes.grid(axis='x')
    axes.set_xlabel('top-1 accuracy, %')
    return drawing
