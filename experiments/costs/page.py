"""The page of what the meta-gradient costs: an answer in words, goals, figures and tables."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from balms_jax.models import NETWORKS
from balms_jax.report.html import document, embedded
from experiments import kept
from experiments.costs import figures
from experiments.costs.goals import (
    COLUMNS,
    Goal,
    Record,
    facts_of,
    goals_of,
    name_of,
    records_of,
    select,
)
from experiments.costs.steps import CACHED, CACHED_META, DECOUPLED, SCANNED

QUESTION = (
    'Learning ψ differentiates a meta loss through a training step. What does that cost in time, '
    'FLOPs and memory, in every mode, beside a plain step that learns no ψ?'
)
SECTIONS = {
    'end_to_end': 'End to end, batch norm in training mode',
    'frozen_statistics': 'End to end, batch statistics frozen',
    'decoupled': 'Decoupled: the classifier alone is trained; all against a plain step through the '
    'frozen backbone',
    'pytorch': 'Beside PyTorch, by turns; PyTorch’s ratio is to its own plain step',
    'imagenet': 'ResNet-50 at 224 × 224, 1,000 classes, compiled alone',
    'steps': 'K inner steps, lean mode',
    'classes': 'Growth with classes: a linear classifier on cached features',
    'examples': 'Growth with training examples: the draw and the gradient of its weights alone; '
    'ratios to the draw over classes',
    'batch': 'Growth with the batch',
    'depth': 'Growth with depth',
    'width': 'Growth with width',
}
PLACES = {
    DECOUPLED: 'features computed',
    CACHED_META: 'meta features cached',
    CACHED: 'all features cached',
}
# Of a section, the columns that tell its rows apart.
OWN: dict[str, dict[str, Callable[[Record], str]]] = {
    'end_to_end': {'batch': lambda r: str(r['batch_size'])},
    'decoupled': {'place': lambda r: PLACES[r['place']]},
    'steps': {'K': lambda r: str(r['inner_steps']), 'segment': lambda r: _segment(r)},
    'classes': {'classes': lambda r: f'{r["classes"]:,}'},
    'examples': {'examples': lambda r: f'{r["examples"]:,}'},
    'batch': {'batch': lambda r: str(r['batch_size'])},
    'depth': {'network': lambda r: r['network']},
    'width': {'width': lambda r: str(r['width'] or NETWORKS[r['network']].width)},
}


def write(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Writes ``figures.json`` and ``page.html`` from the rows of a ledger."""
    records, facts = records_of(rows), facts_of(rows)
    goals = goals_of(records)
    output.mkdir(parents=True, exist_ok=True)
    kept = {
        'facts': facts,
        'goals': [goal._asdict() | {'verdict': goal.verdict} for goal in goals],
        'rows': records,
    }
    (output / 'figures.json').write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n')
    (output / 'page.html').write_text(page(facts, records, goals))


def page(facts: Mapping[str, Any], records: Sequence[Record], goals: Sequence[Goal]) -> str:
    """The page: the question, the answer, goals, figures, tables, how it was measured."""
    sections = {
        'Goals beside what was measured': goals_table(goals, facts['scale']),
        'Figures': _figures(records),
        'All numbers': ''.join(_section_table(records, section) for section in SECTIONS),
        'How it was measured': f'<p>{escape(how(facts, records))}</p>',
    }
    body = f'<p class="facts">{QUESTION}</p>\n'
    body += f'<p class="finding">{escape(answer(records, goals))}</p>\n'
    body += ''.join(f'<h2>{title}</h2>\n{part}\n' for title, part in sections.items())
    return document('What the meta-gradient costs', body, f'{kept.written_by()}.')


def answer(records: Sequence[Record], goals: Sequence[Goal]) -> str:
    """The question answered in words, from the numbers."""
    sentences = []

    def say(text: str, section: str, step: str, **wanted: Any) -> None:
        for record in select(records, section, step, **wanted)[:1]:
            told = [
                f'{record[column]:.3g} times the {name}'
                for name, column in COLUMNS.items()
                if column in record
            ]
            sentences.append(text.format(f'{", ".join(told[:-1])} and {told[-1]}'))

    default = 'forward_over_reverse'
    text = 'End to end, an exact meta step takes {} of a plain step (floor of the FLOPs: 8/3).'
    say(text, 'end_to_end', default)
    say('The lean mode takes {} (floor: 3).', 'end_to_end', 'lean')
    text = 'With batch statistics frozen, the ghost product takes {} (floor: 7/3).'
    say(text, 'frozen_statistics', 'ghost_product')
    say('The official order, written out, takes {}.', 'end_to_end', 'written_out')
    times = {r['place']: r['time'] for r in select(records, 'decoupled', default) if 'time' in r}
    if PLACES.keys() <= times.keys():
        fresh, meta, cached = (f'{times[place]:.3g}' for place in PLACES)
        sentences.append(
            f'Where the backbone is frozen, a meta step takes {fresh} times the time of a plain '
            f'step, {meta} times with the features of the meta set cached, and {cached} times with '
            'all features cached.'
        )
    verdicts = [goal.verdict for goal in goals if goal.worst]
    met = verdicts.count('met')
    sentences.append(f'{met} of the {len(verdicts)} goals that were measured are met.')
    return ' '.join(sentences)


def ratio(value: float) -> str:
    """A ratio, with digits enough to be told from its goal."""
    return f'{value:.3f}' if value >= 0.1 else f'{value:.2g}'


def goals_table(goals: Sequence[Goal], scale: str) -> str:
    """Goals beside measured values, met or missed."""
    marks = {'met': '✓ met', 'missed': '<b style="color:#d55e00">✗ missed</b>'}
    lines = []
    what = ''
    for goal in goals:
        before, what = what, goal.what
        name, value = goal.worst or ('', 0.0)
        several = f' (worst of {len(goal.measured)})' if len(goal.measured) > 1 else ''
        lines.append(
            {
                'of': f'<b>{escape(goal.what)}</b>' if goal.what != before else '',
                'cost': goal.column,
                'floor': goal.floor,
                'goal': f'≤ {goal.limit:g}',
                'measured': ratio(value) if goal.worst else '–',
                'where': escape(name + several),
                'verdict': marks.get(goal.verdict, goal.verdict),
            }
        )
    note = (
        'Ratios are to the plain step of the same place, network and batch; memory is temporary '
        'memory, without arguments and results. Of several measured rows the worst is judged. '
        'Floors are counted in forward passes of the network, of which a plain step takes three.'
    )
    note += (
        ' Decoupled steps are judged in the mode forward over reverse. A ratio is the median over '
        'rounds of the ratio to the plain step of the same round, which is timed anew in every '
        'section: it is not the quotient of the milliseconds in the tables.'
    )
    if scale == 'smoke':
        note += ' The goals are for a ResNet-32; a smoke run is too small to be judged by them.'
    return _table(lines, ('floor', 'goal', 'measured')) + f'<p class="note">{note}</p>\n'


def how(facts: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The machine and the method."""
    rounds = sorted({record['rounds'] for record in records if 'rounds' in record})
    versions = [f'jax {facts["jax"]}']
    versions += sorted({f'PyTorch {record["torch"]}' for record in records if 'torch' in record})
    return (
        f'{facts["device"]} ({facts["platform"]}), {facts["cores"]} cores, '
        f'{", ".join(versions)}, scale {facts["scale"]}, commit {", ".join(facts["commits"])}. '
        'Every step is a compiled call that is handed its images, draws its classes under ψ, takes '
        'the real step of the parameters (SGD with Nesterov momentum and weight decay) and Adam’s '
        'step of ψ. Steps are '
        'timed by turns in one process, in alternating order, short ones several times in a row, '
        f'and those on cached features {SCANNED} in one call, as training takes them, if they are '
        'short; '
        'times are medians of the ratio to the plain step of the same round, over '
        f'{" or ".join(map(str, rounds)) or "no"} rounds. FLOPs and temporary memory are the '
        'compiler’s counts of the whole step; memory leaves out arguments and results. Where '
        'examples are coupled the ghost product is refused. The official order is kept from '
        'sharing the real step’s gradient. A meta step every 4th step is computed from the plain '
        'and the meta step, not run.'
    )


def _figures(records: Sequence[Record]) -> str:
    drawn = []
    for draw, needs, caption in figures.FIGURES:
        if select(records, needs):
            drawn.append(embedded(draw(records), caption, caption.split('. ')[0]))
    return f'<div class="figures">\n{"".join(drawn)}</div>'


def _section_table(records: Sequence[Record], section: str) -> str:
    found = sorted(select(records, section), key=lambda record: record['batch_size'])
    if not found:
        return ''
    lines = []
    for record in found:
        told = {name: text(record) for name, text in OWN.get(section, {}).items()}
        refused = record.get('refused', '')
        why = f'<small>refused: {escape(refused)}</small>' if refused else ''
        lines.append({'step': escape(name_of(record)) + why, **told, **_cells(record)})
    shown = [name for name in lines[0] if any(line[name] for line in lines)]
    lines = [{name: line[name] for name in shown} for line in lines]
    numbers = [name for name in shown if name not in ('step', 'place', 'network', 'segment')]
    opened = ' open' if section in ('end_to_end', 'frozen_statistics', 'decoupled') else ''
    network = {record['network'] for record in found if 'network' in record}
    facts = f' <small>({network.pop()})</small>' if len(network) == 1 else ''
    return (
        f'<details{opened}><summary>{SECTIONS[section]}{facts}</summary>\n'
        f'{_table(lines, numbers)}</details>\n'
    )


def _cells(record: Record) -> dict[str, str]:
    """The measured columns of a record, empty where it has none."""
    seconds = record.get('seconds')
    steps = record.get('inner_steps', 1)
    images = seconds and 'network' in record and steps * record['batch_size'] / seconds
    quartiles = record.get('time_quartiles', ())
    return {
        'FLOPs': _text(record, 'flops_ratio', ratio),
        'temp memory': _text(record, 'memory_ratio', ratio),
        'time': _text(record, 'time', ratio),
        'quartiles': ' to '.join(ratio(quartile) for quartile in quartiles),
        'GFLOP': _text(record, 'flops', lambda flops: _short(flops / 1e9)),
        'MiB': _text(record, 'temp_bytes', lambda size: _short(size / 2**20)),
        'ms': _short(1e3 * seconds) if seconds else '',
        'images/s': _short(images) if images else '',
        'compile s': _text(record, 'compile_seconds', lambda value: f'{value:.1f}'),
    }


def _short(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _text(record: Record, name: str, form: Callable[[float], str]) -> str:
    return form(record[name]) if name in record else ''


def _segment(record: Record) -> str:
    if record['inner_steps'] == 1:
        return ''
    return 'none' if record['segment'] == 0 else '√K'


def _table(lines: Sequence[Mapping[str, str]], numbers: Iterable[str]) -> str:
    """A table of HTML cells; numbers are set to the right."""
    right = set(numbers)

    def cell(tag: str, name: str, text: str) -> str:
        style = ' class="number"' if name in right else ' style="white-space: nowrap"'
        return f'<{tag}{style}>{text}</{tag}>'

    head = ''.join(cell('th', name, name) for name in lines[0])
    body = ''.join(
        f'<tr>{"".join(cell("td", name, text) for name, text in line.items())}</tr>\n'
        for line in lines
    )
    return (
        f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>\n'
    )
