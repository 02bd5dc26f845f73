"""The tables of a page, as HTML."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from balms_jax.report.comparison import (
    Replicates,
    absent_groups,
    format_statistic,
    in_words,
)
from balms_jax.report.runs import Run

_LOWER_IS_BETTER = {'negative_log_likelihood', 'expected_calibration_error'}
HEADINGS = {
    'top1': 'top-1<br>%',
    'many': 'many<br>%',
    'medium': 'medium<br>%',
    'few': 'few<br>%',
    'negative_log_likelihood': 'NLL<br>nats',
    'expected_calibration_error': 'ECE<br>%',
    'gradient_weight_exponent': 'gradient-weight<br>exponent',
}
TOLD = {'meta set': 'meta_set'}
BEST_IS_BOLD = 'Bold: best mean of a column.'


def results_table(
    groups: Sequence[Replicates],
    colors: Mapping[str, str],
    note: str,
    headings: Mapping[str, str] = HEADINGS,
    told: Mapping[str, str] = TOLD,
) -> str:
    """The comparison of methods, seeds aggregated.

    Args:
        groups: of one problem.
        colors: by label.
        note: what the numbers are, in plain text.
        headings: the field of the final evaluation → its column's heading, HTML.
        told: a column's heading → the fact that it holds.

    Returns:
        HTML.
    """
    means = {
        field: np.array([float(group.statistics(field)[0]) for group in groups])
        for field in headings
    }
    # The best of a column is one of the finished runs, where there are some.
    finished = np.array([group.first.finished for group in groups])
    counts = finished | ~finished.any()
    rows = []
    for index, group in enumerate(groups):
        cells = []
        for field in headings:
            text = escape(unbroken(format_statistic(group, field)))
            sign = -1 if field in _LOWER_IS_BETTER else 1
            best = (
                len(groups) > 1
                and field != 'gradient_weight_exponent'
                and counts[index]
                and sign * means[field][index]
                == np.nanmax([-np.inf, *(sign * means[field][counts])])
            )
            cells.append(f'<td class="number">{f"<b>{text}</b>" if best else text}</td>')
        facts = group.first.facts
        swatch = f'<span class="swatch" style="background:{colors[group.label]}"></span>'
        parameters = facts.get('parameter_count')
        progress = '' if group.first.finished else f'<small>{escape(group.first.progress)}</small>'
        rows.append(
            f'<tr><th scope="row">{swatch}{escape(group.label)}{progress}</th>'
            f'<td class="number">{len(group.runs)}</td>{"".join(cells)}'
            f'<td class="number">{f"{parameters:,}" if parameters else "–"}</td>'
            + ''.join(
                f'<td class="text">{escape(str(facts.get(name) or "none"))}</td>'
                for name in told.values()
            )
            + '</tr>\n'
        )
    columns = ''.join(f'<th scope="col" class="number">{text}</th>' for text in headings.values())
    texts = ''.join(f'<th scope="col">{escape(name)}</th>' for name in told)
    return f"""<div class="scroll"><table class="results">
<thead><tr><th scope="col">method</th><th scope="col" class="number">seeds</th>{columns}
<th scope="col" class="number">parameters</th>{texts}</tr></thead>
<tbody>{''.join(rows)}</tbody></table></div>
<p class="note">{escape(note)}</p>"""


def table_note(groups: Sequence[Replicates]) -> str:
    """What the numbers of classifiers are."""
    first = groups[0].first
    notes = ['Test set under the uniform prior: every class weighs the same.', *run_notes(groups)]
    confusion_matrix = first.final.get('confusion_matrix')
    images = confusion_matrix.sum() if confusion_matrix is not None else 0
    if images > 2 * len(first.class_counts):  # Counts, not shares of rows.
        top1 = first.final['top1']
        error = 100 * math.sqrt(max(top1 * (1 - top1), 0) / images)
        notes.append(
            f'With {images:,.0f} test images, one top-1 accuracy has a sampling error of about '
            f'{error:.1f} points.'
        )
    notes.append(absent_groups(first.class_counts))
    if any(not math.isfinite(group.statistics('gradient_weight_exponent')[0]) for group in groups):
        notes.append(
            'The gradient-weight exponent is known of softmax with adjusted logits and of draws or '
            'weights by class; of other methods it was not measured (–).'
        )
    if len(groups) > 1:
        notes.append(BEST_IS_BOLD)
    return ' '.join(note for note in notes if note)


def run_notes(groups: Sequence[Replicates]) -> list[str]:
    """How the runs of a table were selected, by which recipe, with which seeds."""
    runs = [run for group in groups for run in group.runs]

    def every(name: str) -> str:
        return in_words(dict.fromkeys(str(run.facts.get(name) or 'not recorded') for run in runs))

    notes = [
        f'Selection: {every("selection_rule")}.',
        f'Recipe: {every("recipe")}.',
        f'{"Seed" if len({run.facts["seed"] for run in runs}) == 1 else "Seeds"}: {_seeds(runs)}.',
    ]
    if any(len(group.runs) > 1 for group in groups):
        notes.append('± is the sample standard deviation over seeds.')
    return notes


def _seeds(runs: Sequence[Run]) -> str:
    return in_words(str(seed) for seed in sorted({run.facts['seed'] for run in runs}))


def prior_table(groups: Sequence[Replicates]) -> str:
    """The results under test priors other than the uniform one; empty if there are none."""
    priors = dict.fromkeys(
        prior for group in groups for run in group.runs for prior in run.evaluations
    )
    others = [prior for prior in priors if prior != 'uniform']
    if not others:
        return ''
    fields = ('top1', 'negative_log_likelihood', 'expected_calibration_error')
    headings = ''.join(f'<th scope="col" class="number">{HEADINGS[field]}</th>' for field in fields)
    rows = ''.join(
        f'<tr><th scope="row">{escape(group.label)}</th><td class="text">{escape(prior)}</td>'
        + ''.join(
            f'<td class="number">{escape(format_statistic(group, field, prior))}</td>'
            for field in fields
        )
        + '</tr>\n'
        for prior in others
        for group in groups
    )
    calibrated = (
        ' Calibrated: the uniform prior, logits divided by a temperature chosen on held-out images.'
        if 'calibrated' in others
        else ''
    )
    return f"""<h2>Other test priors</h2>
<div class="scroll"><table class="results"><thead><tr><th scope="col">method</th>
<th scope="col">test prior</th>{headings}</tr></thead><tbody>{rows}</tbody></table></div>
<p class="note">The test prior takes the place of the one that the network has learned from its
draws and its loss, and test images weigh as it says.{calibrated}</p>"""


def run_table(
    groups: Sequence[Replicates], facts_of: Callable[[Replicates], dict[str, str]] | None = None
) -> str:
    """Facts by method; one that all methods share spans the row."""
    facts = [(facts_of or run_facts)(group) for group in groups]
    rows = []
    for name in dict.fromkeys(name for each in facts for name in each):
        values = [each.get(name, '–') for each in facts]
        if len({*values}) == 1:
            cells = f'<td colspan="{len(values)}">{escape(values[0])}</td>'
        else:
            cells = ''.join(f'<td>{escape(value)}</td>' for value in values)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>\n')
    headings = ''.join(f'<th scope="col">{escape(group.label)}</th>' for group in groups)
    return (
        f'<div class="scroll"><table class="facts"><thead><tr><td></td>{headings}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div>'
    )


def run_facts(group: Replicates) -> dict[str, str]:
    """How a method was run, in words."""
    facts = group.first.facts
    stages = [
        f'{stage["name"].replace("_", " ")}: {stage["steps"]:,} steps'
        + (f' of {stage["batch_size"]} images' if stage.get('batch_size') else '')
        for stage in facts['stages']
    ]
    versions = facts.get('versions') or {}
    return {
        'progress': in_words(dict.fromkeys(run.progress for run in group.runs)),
        'stages': '; '.join(stages),
        'recipe': str(facts.get('recipe', '–')),
        'selection rule': str(facts.get('selection_rule', '–')),
        'meta set': str(facts.get('meta_set') or 'none'),
        'seeds': _seeds(group.runs),
        'network': str(facts.get('network', '–')),
        **({'seed of the subset': str(facts['subset_seed'])} if 'subset_seed' in facts else {}),
        **_lost_images(facts),
        'device': str(facts.get('device', '–')),
        'versions': ', '.join(f'{name} {version}' for name, version in versions.items()) or '–',
        'command': 'python -m balms_jax, with the config below',
        'run directories': in_words(run.path.name for run in group.runs),
    }


def _lost_images(facts: Mapping[str, Any]) -> dict[str, str]:
    """Images that training did without, where there were some; run.json names the replaced ones."""
    told = {}
    if missing := facts.get('missing_images'):
        of_sets = ', '.join(f'{count:,} of the {name} set' for name, count in missing.items())
        told['missing images, left out'] = of_sets.replace('train set', 'training set')
    if replaced := facts.get('replaced_images'):
        times = sum(replaced.values())
        told['unreadable images, replaced'] = f'{len(replaced):,}, {times:,} times in all'
    return told


def config_details(group: Replicates) -> str:
    """The config of a method's first run, folded away."""
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


def unbroken(text: str) -> str:
    """The text with numbers and their units kept on one line."""
    return text.replace(' ± ', '\u202f±\u202f').replace(' %', '\u00a0%')
