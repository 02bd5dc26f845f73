"""The figures of what the meta-gradient costs."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from balms_jax.report.figure_style import FAINT, HALF, INK, add_legend, new_figure, styled
from experiments.costs.goals import EVERY_FOURTH, FAST, Record, is_quarter, name_of, select
from experiments.costs.steps import (
    CACHED,
    CACHED_META,
    DECOUPLED,
    FORWARD_DIFFERENCE,
    PLAIN,
    TORCH_HIGHER,
    TORCH_PLAIN,
    WRITTEN_OUT,
)

COLORS = {
    PLAIN: '#7a7a7a',
    **dict.fromkeys(FAST, '#0072b2'),
    'lean': '#009e73',
    'ghost_product': '#56b4e9',
    **dict.fromkeys(('finite_difference', FORWARD_DIFFERENCE, EVERY_FOURTH), '#cc79a7'),
    WRITTEN_OUT: '#d55e00',
    TORCH_PLAIN: '#7a7a7a',
    TORCH_HIGHER: '#d55e00',
    'classes': '#0072b2',
    'examples': '#d55e00',
}
MARKERS = {PLAIN: 'o', 'forward_over_reverse': 's', 'lean': 'D', 'ghost_product': '^'}
CHOSEN = ('finite_difference', FORWARD_DIFFERENCE, EVERY_FOURTH)
EXACT = (*FAST, 'lean', 'ghost_product', WRITTEN_OUT)
FLOORS = {'7/3': 7 / 3, '8/3': 8 / 3, '3': 3.0}


@styled
def modes_figure(records: Sequence[Record]) -> Figure:
    """Bars a step: time, FLOPs, memory against the plain step, and the time to compile."""
    lines = _lines_of_modes(records)
    drawing = new_figure((10.0, 0.235 * len(lines) + 0.75))
    panels = drawing.subplots(1, 4, sharey=True)
    places = range(len(lines))
    shown = {
        'time': 'time, × plain step',
        'flops_ratio': 'FLOPs, × plain step',
        'memory_ratio': 'temp memory, × plain step',
        'compile_seconds': 'time to compile, s',
    }
    for axes, (column, title) in zip(panels, shown.items(), strict=True):
        values = [line.get(column) for _, line in lines]
        largest = max([value for value in values if value], default=1.0)
        for place, (_, line), value in zip(places, lines, values, strict=True):
            if value is None:
                _say_why_absent(axes, place, line, column)
                continue
            axes.barh(place, value, 0.68, color='#cc79a7' if is_quarter(line) else _color(line))
            end = value
            if column == 'time':
                low, high = line.get('time_quartiles', (value, value))
                axes.hlines(place, low, high, color=INK, lw=0.9)
                end = max(value, high)
            text = f'{value:.2f}' if column != 'compile_seconds' else f'{value:.0f}'
            axes.text(end + 0.02 * largest, place, text, va='center', fontsize=7.5)
        if column in ('time', 'flops_ratio'):
            _mark_floors(axes)
        if column != 'compile_seconds':
            axes.axvline(1, color=FAINT, lw=0.8, zorder=0.5)
        axes.set_title(title)
        axes.set_xlim(0, 1.2 * largest)
        axes.grid(axis='x')
        axes.grid(visible=False, axis='y')
        axes.tick_params(axis='y', length=0)
    panels[0].set_yticks(places, [label for label, _ in lines])
    for tick, (_, line) in zip(panels[0].get_yticklabels(), lines, strict=True):
        tick.set_fontweight('normal' if line else 'bold')
    panels[0].set_ylim(len(lines) - 0.4, -0.7)
    return drawing


def _lines_of_modes(records: Sequence[Record]) -> list[tuple[str, Record]]:
    """Labels with records, in blocks; the title of a block has an empty one."""
    plain = select(records, 'end_to_end', PLAIN)
    size = min(record['batch_size'] for record in plain)
    training = select(records, 'end_to_end', batch_size=size)
    blocks = {
        'End to end, batch norm trains': [
            record for step in EXACT for record in training if record['step'] == step
        ],
        'End to end, statistics frozen': [
            record for step in EXACT for record in select(records, 'frozen_statistics', step)
        ],
        'Cheaper by choice': [record for record in training if record['step'] in CHOSEN],
    }
    blocks['End to end, batch norm trains'] = [
        record for record in blocks['End to end, batch norm trains'] if not is_quarter(record)
    ]
    blocks['Cheaper by choice'] += [record for record in training if is_quarter(record)]
    lines: list[tuple[str, Record]] = []
    for title, block in blocks.items():
        lines += [(title, {}), *((name_of(record), record) for record in block)]
    return lines


def _say_why_absent(axes: Axes, place: int, line: Record, column: str) -> None:
    if 'refused' in line and column == 'time':
        axes.text(
            0.05, place, 'refused: examples are coupled', va='center', fontsize=7.5, color=FAINT
        )
    elif 'computed' in line and column == 'compile_seconds':
        axes.text(0.05, place, 'computed, not run', va='center', fontsize=7.5, color=FAINT)


def _mark_floors(axes: Axes) -> None:
    for (name, floor), side in zip(FLOORS.items(), ('right', 'center', 'left'), strict=True):
        axes.axvline(floor, color=INK, lw=0.7, ls=(0, (1, 2)))
        # In the line of the first title, which has no bar.
        label = axes.text(floor, 0, name, ha=side, va='center', fontsize=6.5, color=INK)
        label.set_bbox({'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.6})


def _color(record: Record) -> str:
    return COLORS.get(record['step'], FAINT)


@styled
def decoupled_figure(records: Sequence[Record]) -> Figure:
    """Time of the decoupled steps against the plain one, where more and more is cached."""
    drawing = new_figure(HALF)
    axes = drawing.add_subplot()
    places = {
        DECOUPLED: 'features computed\nin the step',
        CACHED_META: 'meta features\ncached',
        CACHED: 'all features\ncached',
    }
    steps = ('forward_over_reverse', 'ghost_product', 'finite_difference', WRITTEN_OUT)
    for place, where in enumerate(places):
        found = [r for step in steps for r in select(records, 'decoupled', step, place=where)]
        timed = [record for record in found if 'time' in record]
        for index, record in enumerate(timed):
            at = place + 0.19 * (index - (len(timed) - 1) / 2)
            label = name_of(record) if not place else None
            axes.plot(record['time'], at, 'o', ms=5, color=_color(record), label=label)
            axes.annotate(
                f'{record["time"]:.3g}',
                (record['time'], at),
                xytext=(7, 0),
                textcoords='offset points',
                va='center',
                fontsize=7.5,
            )
    axes.axvline(1, color=FAINT, lw=0.8)
    axes.set_xscale('log')
    axes.grid(axis='x')
    axes.grid(visible=False, axis='y')
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 2)
    axes.set_yticks(range(len(places)), list(places.values()))
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel('time, × plain step through the frozen backbone')
    add_legend(drawing, axes)
    return drawing


@styled
def torch_figure(records: Sequence[Record]) -> Figure:
    """Seconds of our steps and of PyTorch's."""
    drawing = new_figure(HALF)
    axes = drawing.add_subplot()
    found = [record for record in select(records, 'pytorch') if 'seconds' in record]
    largest = max([record['seconds'] for record in found], default=1.0)
    for place, record in enumerate(found):
        axes.barh(place, record['seconds'], 0.66, color=_color(record))
        text = f'{record["seconds"]:.2f} s, {record["time"]:.2f} ×'
        axes.text(record['seconds'] + 0.02 * largest, place, text, va='center', fontsize=7.5)
    axes.set_yticks(range(len(found)), [name_of(record) for record in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * largest)
    axes.grid(axis='x')
    axes.grid(visible=False, axis='y')
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel('seconds a step; × the plain step of the same library')
    return drawing


SEGMENTS = {None: ('segments of √K', '#009e73', 'D'), 0: ('every state kept', '#0072b2', 's')}


@styled
def inner_memory_figure(records: Sequence[Record]) -> Figure:
    """Temporary memory of K inner steps, beside what the states alone would take."""
    drawing = new_figure(HALF)
    axes = drawing.add_subplot()
    for segment, (label, color, marker) in SEGMENTS.items():
        steps, lean = _by_inner_steps(records, segment)
        memory = [record['temp_bytes'] / 2**20 for record in lean]
        axes.plot(steps, memory, color=color, marker=marker, ms=4, label=label)
    steps, lean = _by_inner_steps(records, 0)
    if lean:
        first, state = lean[0]['temp_bytes'], lean[0]['state_bytes']
        floor = [(first + (k - steps[0]) * state) / 2**20 for k in steps]
        axes.plot(steps, floor, color=FAINT, ls=':', label='one state more a step')
    for record in select(records, 'steps', PLAIN)[:1]:
        axes.axhline(record['temp_bytes'] / 2**20, color=COLORS[PLAIN], lw=0.9)
        axes.annotate(
            'plain step',
            (1, record['temp_bytes'] / 2**20),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords='offset points',
            ha='right',
            fontsize=7.5,
            color=FAINT,
        )
    axes.set_ylim(bottom=0)
    _axis_of_inner_steps(axes, records)
    axes.set_ylabel('temporary memory, MiB')
    add_legend(drawing, axes)
    return drawing


@styled
def inner_cost_figure(records: Sequence[Record]) -> Figure:
    """FLOPs and time of one of K inner steps against a plain step."""
    drawing = new_figure(HALF)
    axes = drawing.add_subplot()
    for segment, (label, color, marker) in SEGMENTS.items():
        for column, name, style in (('flops_ratio', 'FLOPs', '-'), ('time', 'time', '--')):
            steps, lean = _by_inner_steps(records, segment)
            points = [(k, r[column] / k) for k, r in zip(steps, lean, strict=True) if column in r]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(
                    x,
                    y,
                    color=color,
                    ls=style,
                    marker=marker,
                    mfc=color if column == 'flops_ratio' else 'white',
                    ms=4,
                    label=f'{name}, {label}',
                )
    for floor in (3, 4):
        axes.axhline(floor, color=INK, lw=0.7, ls=(0, (1, 2)))
    axes.set_ylim(bottom=0)
    _axis_of_inner_steps(axes, records)
    axes.set_ylabel('an inner step, × plain step')
    add_legend(drawing, axes)
    return drawing


def _by_inner_steps(
    records: Sequence[Record], segment: int | None
) -> tuple[list[int], list[Record]]:
    """K and the records, K = 1 among those of either way to keep states."""
    lean = [
        record
        for record in select(records, 'steps', 'lean')
        if record['segment'] == segment or record['inner_steps'] == 1
    ]
    lean.sort(key=lambda record: record['inner_steps'])
    return [record['inner_steps'] for record in lean], lean


def _axis_of_inner_steps(axes: Axes, records: Sequence[Record]) -> None:
    steps = sorted({record['inner_steps'] for record in select(records, 'steps', 'lean')})
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xlabel('K, inner steps')


@styled
def growth_figure(records: Sequence[Record]) -> Figure:
    """Time, FLOPs and memory as classes, examples, the batch or the network grow."""
    columns: dict[str, tuple[str, Callable[[Record], float]]] = {
        'classes': ('classes C', lambda r: r['classes']),
        'examples': ('training examples N', lambda r: r['examples']),
        'batch': ('batch B', lambda r: r['batch_size']),
        'depth': ('parameters, by depth', lambda r: r['parameters']),
        'width': ('parameters, by width', lambda r: r['parameters']),
    }
    rows: dict[str, tuple[str, float]] = {
        'seconds': ('time, ms', 1e-3),
        'flops': ('GFLOP', 1e9),
        'temp_bytes': ('temporary memory, MiB', 2**20),
    }
    drawing = new_figure((10.0, 6.6))
    grid = drawing.subplots(len(rows), len(columns), sharex='col')
    for across, (section, (title, x_of)) in enumerate(columns.items()):
        found = select(records, section)
        for down, (column, (unit, scale)) in enumerate(rows.items()):
            axes = grid[down, across]
            for step in dict.fromkeys(record['step'] for record in found):
                line = [r for r in found if r['step'] == step and r.get(column)]
                axes.plot(
                    [x_of(record) for record in line],
                    [record[column] / scale for record in line],
                    color=COLORS[step],
                    marker=MARKERS.get(step, 'o'),
                    ms=3,
                    lw=1.2,
                    label=name_of(line[0]) if line else None,
                )
            axes.set_yscale('log')
            _label_powers(axes)
            _ticks_at(axes, sorted({x_of(record) for record in found if 'flops' in record}))
            if not across:
                axes.set_ylabel(unit)
            if down == len(rows) - 1:
                axes.set_xlabel(title)
    handles: dict[str, Artist] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawing.legend(list(handles.values()), list(handles), loc='outside upper left', ncols=6)
    return drawing


def _ticks_at(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks at the values that were measured, at fewer if crowded."""
    axes.set_xscale('log')
    axes.xaxis.set_minor_locator(NullLocator())
    if values:
        shown = list(values)
        if len(shown) > 2 * np.log10(shown[-1] / shown[0]) + 1:
            shown = shown[::2] if len(shown) > 4 else [shown[0], shown[-1]]
        axes.set_xticks(shown, [_thousands(value) for value in shown])


def _label_powers(axes: Axes) -> None:
    """Labels between powers of ten where there are hardly two."""
    low, high = axes.get_ylim()
    narrow = high < 30 * low
    axes.yaxis.set_major_formatter(lambda value, _: _thousands(value))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)) if narrow else NullLocator())
    axes.yaxis.set_minor_formatter(lambda value, _: _thousands(value))


def _thousands(value: float) -> str:
    for unit, name in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if value >= unit:
            return f'{value / unit:.3g}{name}'
    return f'{value:.3g}'


FIGURES: tuple[tuple[Callable[..., Figure], str, str], ...] = (
    (
        modes_figure,
        'end_to_end',
        'Every mode beside the plain step of its place, which is the line at 1. Whiskers are the '
        'quartiles of the ratio over rounds. Dotted lines are floors by counting passes: 7/3 for '
        'the ghost product, 8/3 for a mode that keeps its first pass, 3 for the lean mode. What is '
        'cheaper by choice is another estimate of the gradient: a difference errs, a smaller meta '
        'batch is noisier, a rarer meta step learns less often.',
    ),
    (
        decoupled_figure,
        'decoupled',
        'Time with a frozen backbone. It is computed for the training and the meta batch, for the '
        'training batch alone, or not at all.',
    ),
    (
        torch_figure,
        'pytorch',
        'The same network and batch in both libraries, timed by turns on the same cores. PyTorch '
        'draws over the examples, as the released code does, and JAX over the classes.',
    ),
    (
        inner_memory_figure,
        'steps',
        'Memory of a meta-gradient through K inner steps. In the lean mode a step leaves its '
        'parameters and optimizer state, and none of its activations.',
    ),
    (
        inner_cost_figure,
        'steps',
        'What one of K inner steps costs. Dotted: 9 forward passes where every state is kept, 12 '
        'where segments are computed again, of which a plain step takes 3.',
    ),
    (
        growth_figure,
        'classes',
        'What the cost grows with, one thing at a time. Classes: a linear classifier of 64 cached '
        'features. Examples: the draw under ψ and the gradient of its weights, without a network. '
        'Batch, depth and width: end to end. Parallel lines on these axes are constant ratios.',
    ),
)
