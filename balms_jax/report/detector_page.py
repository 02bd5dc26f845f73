"""What the page of a detector's runs says about one problem."""

from collections.abc import Sequence
from html import escape

from balms_jax.report.comparison import Replicates, in_words
from balms_jax.report.detector_runs import FREQUENCY_GROUPS, GROUP_MEASURES
from balms_jax.report.detector_sections import DetectorFigures, absent_groups, detector_runs
from balms_jax.report.figure_style import method_colors
from balms_jax.report.findings import Ranking, finding
from balms_jax.report.html import figure_section, table
from balms_jax.report.tables import (
    BEST_IS_BOLD,
    config_details,
    results_table,
    run_facts,
    run_notes,
    run_table,
    unbroken,
)

HEADINGS = {
    'AP': 'AP<br>%',
    'AP_r': 'AP<sub>r</sub><br>%',
    'AP_c': 'AP<sub>c</sub><br>%',
    'AP_f': 'AP<sub>f</sub><br>%',
    'AP50': 'AP50<br>%',
    'AP75': 'AP75<br>%',
    'box_AP': 'AP of<br>boxes %',
}
TOLD = {'meta set': 'meta_set'}


def section(groups: Sequence[Replicates]) -> str:
    """The finding, the tables and the figures of one problem, as HTML.

    Args:
        groups: of one problem, their runs of detectors.

    Returns:
        HTML.
    """
    colors = method_colors({group.label: group.first.facts['method'] for group in groups})
    drawing = DetectorFigures(groups, colors)
    measured = drawing.measured
    headings = {k: v for k, v in HEADINGS.items() if k != 'box_AP' or measured != 'boxes'}
    recipes = {group.first.facts.get('recipe') for group in groups}
    told = TOLD | ({'recipe': 'recipe'} if len(recipes) > 1 else {})  # One is told in the note.
    return f"""<section class="problem">
<p class="facts">{escape(_data(groups[0]))}</p>
<p class="finding">{escape(unbroken(finding(groups, ranking(measured))))}</p>
{results_table(groups, colors, _note(groups, measured), headings, told)}
{figure_section('Pictures', drawing.pictures())}
{figure_section('Average precision', drawing.precision())}
{figure_section('What was learned', drawing.learned())}
{figure_section('Balance', drawing.balance())}
{figure_section('Losses', drawing.losses())}
<h2>How it was run</h2>
<div class="scroll">{table(_runs(groups))}</div>
<p class="note">Images a second: the median over the stretches between checkpoints. –: not run here,
as where a stage was taken over from another run.</p>
<h2>Settings</h2>
{run_table(groups, _facts)}
{''.join(config_details(group) for group in groups)}
</section>
"""


def ranking(measured: str) -> Ranking:
    """What detectors are ranked by: the AP of what is measured, 'masks' or 'boxes'."""
    groups = {
        field: f'for {FREQUENCY_GROUPS[frequency]} categories'
        for field, frequency in GROUP_MEASURES.items()
    }
    return Ranking('AP', f'AP of {measured}', 'an', groups)


def _data(group: Replicates) -> str:
    """What was trained on."""
    run = detector_runs(group)[0]
    counts, objects = run.class_counts, run.object_counts
    sizes = [
        f'{number} {name}'
        for f, name in FREQUENCY_GROUPS.items()
        if (number := (run.frequencies == f).sum())
    ]
    images = run.facts.get('train_images')
    told = f'{images:,} training images with ' if isinstance(images, int) else ''
    text = (
        f'{run.facts["dataset"]}: {told}{objects.sum():,} objects of {len(counts)} categories '
        f'({in_words(sizes)}), each in {counts.max():,} down to {counts.min():,} images.'
    )
    return text[0].upper() + text[1:]


def _note(groups: Sequence[Replicates], measured: str) -> str:
    """What the numbers of the table are."""
    images = groups[0].first.facts.get('test_images')
    notes = [
        f'Average precision of {measured}'
        + (f' in {images:,} test images' if isinstance(images, int) else '')
        + ', over IoUs of 0.5 to 0.95: every category weighs the same.',
        'r, c, f: rare, common and frequent categories.',
        *run_notes(groups),
        absent_groups(groups[0]),
        BEST_IS_BOLD if len(groups) > 1 else '',
    ]
    return ' '.join(note for note in notes if note)


def _runs(groups: Sequence[Replicates]) -> list[dict[str, str]]:
    """A row for every run."""
    stages = dict.fromkeys(name for group in groups for run in group.runs for name, _ in run.stages)

    def speeds(throughput: dict[str, float]) -> dict[str, str]:
        return {
            f'{name.replace("_", " ")}, images/s': f'{throughput[name]:,.0f}'
            if name in throughput
            else '–'
            for name in stages
        }

    return [
        {
            'run directory': run.path.name,
            'method': group.label,
            'seed': str(run.facts['seed']),
            'progress': run.progress,
            **speeds(dict(run.throughput)),
            'device': str(run.facts.get('device', '–')),
            'jax': str((run.facts.get('versions') or {}).get('jax', '–')),
        }
        for group in groups
        for run in detector_runs(group)
    ]


def _facts(group: Replicates) -> dict[str, str]:
    """How a method was run, beside what the table of runs says."""
    facts = group.first.facts
    told = {k: v for k, v in run_facts(group).items() if k not in ('progress', 'run directories')}
    return told | {
        'left out of training': _counted(facts.get('dropped')),
        'data fingerprint': str(facts.get('data_fingerprint', '–')),
    }


def _counted(counts: object) -> str:
    """``{'images': 2, 'boxes': 0}`` → ``2 images``."""
    held = counts.items() if isinstance(counts, dict) else ()
    return ', '.join(f'{n} {str(name).replace("_", " ")}' for name, n in held if n) or 'none'
