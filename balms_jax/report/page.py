"""Writes a page about one or several runs: `python -m balms_jax.report RUN [RUN …]`.

The page is one HTML file with its figures inside. It opens by double click, needs no network and
no scripts, and the same runs always give the same bytes.
"""

import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from balms_jax.report import detector_page
from balms_jax.report.comparison import (
    DATASET_NAMES,
    Replicates,
    dataset_label,
    group_runs,
    in_words,
    problem,
)
from balms_jax.report.detector_runs import DetectorRun, read_detector_run
from balms_jax.report.figure_style import method_colors
from balms_jax.report.findings import finding
from balms_jax.report.html import document, figure_section
from balms_jax.report.run_files import read_kind
from balms_jax.report.runs import Run, RunError, read_run
from balms_jax.report.sections import ProblemFigures
from balms_jax.report.tables import (
    config_details,
    prior_table,
    results_table,
    run_table,
    table_note,
    unbroken,
)


def write_report(run_dirs: Sequence[Path | str], output: Path | str | None = None) -> Path:
    """Writes the page of some runs.

    Args:
        run_dirs: run directories, all of classifiers or all of detectors; runs that differ in their
            seed alone become one row.
        output: the page; by default report.html in the run directory, or, for several runs, in
            the innermost directory that holds them all.

    Returns:
        Where the page is.

    Raises:
        RunError: if a directory is no run, a file of it is broken, or classifiers and detectors
            are mixed; nothing is written then.
        OSError: if the page cannot be written; an earlier page stays as it was.
    """
    unique = list({Path(run_dir).resolve(): None for run_dir in run_dirs})
    if not unique:
        raise RunError('no run directory given')
    html = page(_read_runs(unique))
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
        runs: of any methods and data sets, all of classifiers or all of detectors.

    Returns:
        A self-contained document.
    """
    section = detector_page.section if isinstance(runs[0], DetectorRun) else _problem_section
    problems: dict[Any, list[Run]] = {}
    for run in runs:
        problems.setdefault(problem(run), []).append(run)
    sections = [
        (f'<h2>{escape(dataset_label(members[0]))}</h2>\n' if len(problems) > 1 else '')
        + section(group_runs(members))
        for members in problems.values()
    ]
    groups = group_runs(runs)
    labels = list(dict.fromkeys(group.label for group in groups))
    methods = in_words(labels) if len(labels) <= 4 else f'{len(labels)} methods'
    datasets = dict.fromkeys(DATASET_NAMES.get(d := run.facts['dataset'], d) for run in runs)
    title = f'{methods} on long-tailed {in_words(datasets)}'
    footer = f'Written by <code>python -m balms_jax.report</code> from {escape(_folders(runs))}.'
    return document(title, ''.join(sections), footer)


def _read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads runs of one kind."""
    kinds = {read_kind(path): path for path in paths}
    if len(kinds) > 1:
        told = in_words(f'{path} is of a {kind}' for kind, path in kinds.items())
        raise RunError(f'{told}: wanted runs of one kind on a page')
    read = read_detector_run if 'detector' in kinds else read_run
    return [read(path) for path in paths]


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
{results_table(groups, colors, table_note(groups))}
{figure_section('Accuracy', drawing.accuracy())}
{figure_section('What was learned', drawing.learned())}
{figure_section('Balance', drawing.balance())}
{figure_section('Loss, calibration and confusions', drawing.training())}
{prior_table(groups)}
<h2>How it was run</h2>
{run_table(groups)}
{''.join(config_details(group) for group in groups)}
</section>
"""


def _folders(runs: Sequence[Run]) -> str:
    return in_words(dict.fromkeys(run.path.name for run in runs))
