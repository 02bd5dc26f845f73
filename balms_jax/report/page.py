"""Writes a page about one or several runs: `python -m balms_jax.report RUN [RUN …]`.

The page is one HTML file with its figures inside. It opens by double click, needs no network and
no scripts, and the same runs always give the same bytes.
"""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from balms_jax.report.comparison import (
    DATASET_NAMES,
    Replicates,
    dataset_label,
    format_statistic,
    group_runs,
    in_words,
    problem,
    unequal_settings,
)
from balms_jax.report.figure_style import method_colors
from balms_jax.report.html import document
from balms_jax.report.runs import SHOT_GROUPS, Run, RunError, read_run
from balms_jax.report.sections import ProblemFigures
from balms_jax.report.tables import prior_table, results_table, run_table, unbroken


def write_report(run_dirs: Sequence[Path | str], output: Path | str | None = None) -> Path:
    """Writes the page of some runs.

    Args:
        run_dirs: run directories; runs that differ in their seed alone become one row.
        output: the page; by default report.html in the run directory, or, for several runs, in
            the innermost directory that holds them all.

    Returns:
        Where the page is.

    Raises:
        RunError: if a directory is no run or a file of it is broken; nothing is written then.
        OSError: if the page cannot be written; an earlier page stays as it was.
    """
    unique = list({Path(run_dir).resolve(): None for run_dir in run_dirs})
    if not unique:
        raise RunError('no run directory given')
    html = page([read_run(run_dir) for run_dir in unique])
    output = Path(output) if output else Path(os.path.commonpath(unique)) / 'report.html'
    # A full disk or an interrupt must leave an earlier page whole: write beside it, then swap.
    handle, unfinished = tempfile.mkstemp(dir=output.parent, prefix='.report-', suffix='.html')
    try:
        with open(handle, 'w', encoding='utf-8', newline='\n') as file:
            file.write(html)
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, output)
    except BaseException:
        os.unlink(unfinished)
        raise
    return output


def page(runs: Sequence[Run]) -> str:
    """The whole page about some runs, as HTML.

    Args:
        runs: of any methods and data sets.

    Returns:
        A self-contained document.
    """
    problems: dict[Any, list[Run]] = {}
    for run in runs:
        problems.setdefault(problem(run), []).append(run)
    sections = [
        (f'<h2>{escape(dataset_label(members[0]))}</h2>\n' if len(problems) > 1 else '')
        + _problem_section(group_runs(members))
        for members in problems.values()
    ]
    groups = group_runs(runs)
    labels = list(dict.fromkeys(group.label for group in groups))
    methods = in_words(labels) if len(labels) <= 4 else f'{len(labels)} methods'
    datasets = dict.fromkeys(DATASET_NAMES.get(d := run.facts['dataset'], d) for run in runs)
    title = f'{methods} on long-tailed {in_words(datasets)}'
    footer = f'Written by <code>python -m balms_jax.report</code> from {escape(_folders(runs))}.'
    return document(title, ''.join(sections), footer)


def finding(groups: Sequence[Replicates]) -> str:
    """The result in one sentence, computed from the final evaluations.

    Args:
        groups: of one problem; unfinished ones count only where no other is there.

    Returns:
        Plain text: what has the highest top-1 accuracy, by how much, and whether the
        difference exceeds the spread over seeds.
    """
    measured = [group for group in groups if math.isfinite(group.statistics('top1')[0])]
    measured = [group for group in measured if group.first.finished] or measured
    if not measured:
        return 'No evaluation has been recorded yet.'
    best, *others = sorted(measured, key=lambda group: -group.statistics('top1')[0])
    seeds = f'mean of {len(best.runs)} seeds' if len(best.runs) > 1 else 'one seed'
    if not best.first.finished:
        seeds += f', {best.first.progress}'
    highest = 'the highest top-1 accuracy' if others else 'a top-1 accuracy of'
    sentence = f'{best.label} reaches {highest} {format_statistic(best, "top1")} % ({seeds})'
    sentence = sentence.replace('accuracy ', 'accuracy, ') if others else sentence
    if others:
        (mean, spread), (other, other_spread) = (g.statistics('top1') for g in (best, others[0]))
        sentence += (
            f', {100 * (mean - other):.1f} points above {others[0].label}'
            f' ({format_statistic(others[0], "top1")} %)'
        )
        errors = [s**2 / len(g.runs) for s, g in ((spread, best), (other_spread, others[0]))]
        if not all(map(math.isfinite, errors)):
            sentence += '; one seed does not tell whether that exceeds the spread over seeds'
        elif mean - other <= 2 * math.sqrt(sum(errors)):
            sentence += ', which is no more than twice its standard error over seeds'
        sentence += _few_shot_clause(measured, best)
        unequal = unequal_settings(measured)
        if unequal:
            sentence += f'. Mind that the runs also differ in {in_words(unequal)}'
    else:
        shots = [
            f'{format_statistic(best, group)} % on {group}-shot classes'
            for group in SHOT_GROUPS
            if math.isfinite(best.statistics(group)[0])
        ]
        sentence += f': {in_words(shots)}' if shots else ''
    return sentence + '.'


def _few_shot_clause(groups: Sequence[Replicates], best: Replicates) -> str:
    """What the rarest classes show; they are where methods differ."""
    tail = next(
        (name for name in ('few', 'medium') if math.isfinite(best.statistics(name)[0])), None
    )
    if tail is None:
        return ''
    first = max(groups, key=lambda group: np.nan_to_num(group.statistics(tail)[0], nan=-1))
    clause = f'on {tail}-shot classes '
    if first is best:
        return f'; {clause}it is highest too, with {format_statistic(best, tail)} %'
    highest = format_statistic(first, tail)
    return (
        f'; {clause}{first.label} is highest, {highest} % against {format_statistic(best, tail)} %'
    )


def _problem_section(groups: Sequence[Replicates]) -> str:
    first = groups[0].first
    counts = first.class_counts
    profile = first.facts.get('profile')
    facts = (
        f'{dataset_label(first)}{f", {profile} profile" if profile else ""}: '
        f'{counts.sum():,} training images in {len(counts)} classes, '
        f'from {counts.max():,} down to {counts.min():,} a class.'
    )
    colors = method_colors({group.label: group.first.facts['method'] for group in groups})
    drawing = ProblemFigures(groups, colors)
    return f"""<section class="problem">
<p class="facts">{escape(facts[0].upper() + facts[1:])}</p>
<p class="finding">{escape(unbroken(finding(groups)))}</p>
{results_table(groups, colors)}
{_figure_section('Accuracy', drawing.accuracy())}
{_figure_section('What was learned', drawing.learned())}
{_figure_section('Balance', drawing.balance())}
{_figure_section('Loss, calibration and confusions', drawing.training())}
{prior_table(groups)}
<h2>How it was run</h2>
{run_table(groups)}
{''.join(_config(group) for group in groups)}
</section>
"""


def _figure_section(heading: str, items: Sequence[str]) -> str:
    return f'<h2>{heading}</h2>\n<div class="figures">{"".join(items)}</div>' if items else ''


def _config(group: Replicates) -> str:
    config = dict(group.first.config)
    if isinstance(config.get('data'), dict):
        # Where the data lies is the reader's own affair.
        config['data'] = {k: v for k, v in config['data'].items() if k != 'data_dir'}
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    which = f'{group.label}, seed {group.first.facts["seed"]}'
    return (
        f'<details><summary>Config of {escape(which)}</summary>'
        f'<pre>{escape(text)}</pre></details>\n'
    )


def _folders(runs: Sequence[Run]) -> str:
    return in_words(dict.fromkeys(run.path.name for run in runs))
