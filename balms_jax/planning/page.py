"""The plan as one self-contained HTML page, with a figure over topologies."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from balms_jax.planning import tables
from balms_jax.planning.chips import GIB
from balms_jax.report import html
from balms_jax.report.figure_style import FAINT, HALF, INK, add_legend, new_figure, styled

COLORS = {'plain': '#56b4e9', 'meta': '#d55e00', 'evaluation': '#7a7a7a'}
NOTES = (
    'Compiled by the TPU compiler itself, with no TPU. Memory, FLOPs and collectives are what it '
    'says of one device; a kind of collective that stands in a loop counts once. Peak is arguments '
    '+ outputs − aliased + temporaries + code.',
    'Times are a roofline, an estimate: Google’s published peak in bfloat16, bandwidth of HBM and '
    'of the links, no latency, no stall. The step is its largest bound; without overlap, the sum. '
    'The bytes accessed that the compiler counts include memory nearer than HBM, so the HBM bound '
    'may be too large. MFU is FLOPs over what the peak would do in that time. Float32 arrays are '
    'multiplied in bfloat16 too, by JAX’s default precision on a TPU; a higher one takes three or '
    'six times as long to compute, which is not counted here.',
    'Images come as one batch that is already augmented, cut over the devices. The largest batch '
    'is estimated from the line through the memory of two compiled batches, the meta batch in '
    'proportion.',
)


def render(plan: Mapping[str, Any], command: str) -> str:
    """Writes the page.

    Args:
        plan: of :func:`plan.make`.
        command: that made it.

    Returns:
        The HTML document.
    """
    figures = [html.embedded(memory_figure(plan), *_MEMORY_TEXT)]
    if any(target['device'] for target in plan['targets']):
        figures.append(html.embedded(time_figure(plan), *_TIME_TEXT))
    body = [
        f'<p class="facts">{escape(_facts(plan))}</p>',
        f'<p class="finding">{escape(tables.headline(plan))}</p>',
        f'<div class="figures">{"".join(figures)}</div>',
    ]
    sections = {
        'What the meta step adds': tables.meta_rows(plan),
        'Memory of one device': tables.memory_rows(plan),
        'Work and time of one device': tables.time_rows(plan),
        'Collectives': tables.collective_rows(plan),
    }
    for title, rows in sections.items():
        if rows:
            body.append(f'<h2>{title}</h2><div class="scroll">{html.table(rows)}</div>')
    body += [f'<p class="note">{note}</p>' for note in NOTES]
    body += [
        f'<p class="note">{escape(tables.label(target))}, the {kind} step does not fit: '
        f'{escape(step["does_not_fit"])}</p>'
        for target in plan['targets']
        for kind, step in target['steps'].items()
        if 'does_not_fit' in step
    ]
    versions = ', '.join(f'{name} {v}' for name, v in plan['versions'].items() if v)
    return html.document(
        'Plan of a pod', '\n'.join(body), f'<code>{escape(command)}</code><br>{escape(versions)}'
    )


_MEMORY_TEXT = (
    'Peak memory of one device. The line is what its HBM leaves to a program.',
    'Bars of peak memory by topology and step',
)
_TIME_TEXT = (
    'Estimated time of a step: the largest of compute, HBM and links. The thin line above it goes '
    'up to their sum, the time without overlap.',
    'Bars of estimated step time by topology and step',
)


@styled
def memory_figure(plan: Mapping[str, Any]) -> Figure:
    """Peak memory of every step, before the memory that a device has."""
    figure, axes = _axes(plan, 'GiB of one device')
    for kind, places, steps in _bars(plan):
        heights = [_of(step, 'memory', 'peak') / GIB for step in steps]
        axes.bar(places, heights, width=0.25, color=COLORS[kind], label=f'{kind} step')
    for place, target in enumerate(plan['targets']):
        if target['device']:
            level = target['device']['hbm'] / GIB
            axes.plot([place - 0.45, place + 0.45], [level, level], color=INK, lw=1.2)
    add_legend(figure, axes)
    return figure


@styled
def time_figure(plan: Mapping[str, Any]) -> Figure:
    """The estimated time of every step."""
    figure, axes = _axes(plan, 'ms a step, estimated')
    for kind, places, steps in _bars(plan):
        heights = np.array([1e3 * _of(step, 'estimate', 'step') for step in steps])
        sums = np.array([1e3 * _of(step, 'estimate', 'serial') for step in steps])
        axes.bar(places, heights, width=0.25, color=COLORS[kind], label=f'{kind} step')
        axes.vlines(places, heights, sums, color=FAINT, lw=1)
    add_legend(figure, axes)
    return figure


def _facts(plan: Mapping[str, Any]) -> str:
    """What is planned, in a line."""
    learns, shards = plan['meta_batch_size'], plan['class_shards']
    parts = [
        f'{plan["network"]} on {plan["dataset"]}, {plan["classes"]} classes of '
        + ' × '.join(map(str, plan['image'])),
        f'{plan["method"]}, {plan["stage"]}, which trains: {plan["trains"]}',
        f'batch {plan["batch_size"]:,}'
        + (f', meta batch {learns:,}, mode {plan["meta_mode"]}' if learns else ''),
        f'{plan["parameters"]:,} parameters, a gradient of {tables.size(plan["gradient_bytes"])}'
        + (f' a device, {shards} of which share the classes' if shards > 1 else ''),
    ]
    return '; '.join(parts)


def _of(step: Mapping[str, Any] | None, part: str, name: str) -> float:
    """A number of a step; NaN, which is not drawn, where it is not there."""
    return float((step or {}).get(part, {}).get(name, np.nan))


def _bars(plan: Mapping[str, Any]) -> list[tuple[str, np.ndarray, list[Any]]]:
    """Each kind of step, where its bars stand, and its record on every target."""
    targets = plan['targets']
    kinds = [kind for kind in COLORS if any(kind in target['steps'] for target in targets)]
    x = np.arange(len(targets))
    return [
        (kind, x + 0.28 * (i - (len(kinds) - 1) / 2), [t['steps'].get(kind) for t in targets])
        for i, kind in enumerate(kinds)
    ]


def _axes(plan: Mapping[str, Any], label: str) -> tuple[Figure, Any]:
    figure = new_figure(HALF)
    axes = figure.subplots()
    names = [f'{tables.label(t)}\n{t["chips"]} chips' for t in plan['targets']]
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis='x', length=0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(label)
    return figure, axes
