"""The figures of the page: rows of numbers in, a matplotlib Figure out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from balms_jax.report.figure_style import (
    FAINT,
    INK,
    MARKERS,
    WIDE,
    add_legend,
    new_figure,
    styled,
)

Rows = Mapping[str, Mapping[str, Any]]
PRECISION_COLORS = {'float64': '#0072b2', 'float32': '#009e73', 'bfloat16': '#d55e00'}
ESTIMATOR_COLORS = {
    'examples': '#d55e00',
    'classes': '#e69f00',
    'score': '#7a7a7a',
    'score_leave_one_out': '#332288',
    'systematic': '#56b4e9',
    'systematic_examples': '#0072b2',
    'expectation': '#009e73',
}
LOSS_COLORS = {'balanced softmax': '#0072b2', 'softmax': '#7a7a7a'}
SMALLEST = 1e-17  # where an error of exactly 0 is drawn


def named(rows: Rows, *start: str) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """The rows whose name begins so, by the rest of it."""
    found = {}
    for name, row in rows.items():
        parts = tuple(name.split('/'))
        if parts[: len(start)] == start:
            found[parts[len(start) :]] = row
    return found


@styled
def agreement(rows: Rows) -> Figure:
    """Errors of every mode: a dot for each optimizer and point of training, by precision."""
    names = list(dict.fromkeys(name.split('/')[0] for name in rows))
    modes = list(dict.fromkeys(name.split('/')[2] for name in rows))
    figure = new_figure((10.0, 0.44 * len(modes) + 1.3))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, subject in zip(panels, names, strict=True):
        for (precision, mode), row in named(rows, subject).items():
            y = modes.index(mode) + 0.24 * (list(PRECISION_COLORS).index(precision) - 1)
            errors = np.array([max(cell['error'], SMALLEST) for cell in row.values()])
            color = PRECISION_COLORS[precision]
            axes.plot(errors, np.full(errors.size, y), 'o', ms=3, color=color, alpha=0.55, mew=0)
            axes.plot([errors.min(), errors.max()], [y, y], color=color, lw=0.8)
            axes.plot(np.median(errors), y, '|', ms=9, mew=2, color=color)
        axes.set_xscale('log')
        axes.set_xlim(SMALLEST / 2, 20)
        axes.axvline(1, color=FAINT, lw=0.8, ls=(0, (1, 2)))
        axes.set_title(subject)
        axes.grid(axis='x', visible=True)
        axes.grid(axis='y', visible=False)
        axes.xaxis.set_major_locator(FixedLocator([1e-16, 1e-12, 1e-8, 1e-4, 1]))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_yticks(range(len(modes)), modes)
    panels[0].invert_yaxis()
    figure.supxlabel('relative error of the ψ-gradient against reverse in float64', fontsize=8.5)
    _precision_legend(figure)
    return figure


@styled
def v_curves(rows: Rows) -> Figure:
    """Errors of differences against their relative step, a panel a network."""
    names = list(dict.fromkeys(name.split('/')[0] for name in rows))
    figure = new_figure((10.0, 3.6))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, subject in zip(panels, names, strict=True):
        for (precision, scheme), row in named(rows, subject).items():
            color, ls = PRECISION_COLORS[precision], '-' if scheme == 'central' else (0, (3, 2))
            axes.plot(row['steps'], np.clip(row['errors'], SMALLEST, 30), color=color, ls=ls)
            axes.plot(
                row['default'],
                min(row['error_at_default'], 30),
                'o' if scheme == 'central' else 's',
                ms=5.5,
                mec=color,
                mfc='white',
                mew=1.5,
            )
        axes.set(xscale='log', yscale='log', title=subject, xlabel='relative step ρ')
        axes.set_ylim(1e-12, 60)
        axes.axhline(1, color=FAINT, lw=0.8, ls=(0, (1, 2)))
    panels[0].set_ylabel('relative error of ∂⟨u, g⟩/∂ψ')
    handles = [
        Line2D([], [], color=INK, marker='o', mfc='white', mew=1.5, label='central'),
        Line2D(
            [], [], color=INK, ls=(0, (3, 2)), marker='s', mfc='white', mew=1.5, label='forward'
        ),
    ]
    _precision_legend(figure, handles)
    return figure


MEASURES = {
    'bias': 'bias / ‖exact‖',
    'direction': 'error of direction\nof the mean',
    'noise': 'noise: spread / ‖mean‖',
    'one_cosine': 'cosine of one draw\nwith the exact gradient',
}


VARIED = {
    'batch_size': ('batch_sizes', 'batch size'),
    'imbalance_factor': ('imbalance_factors', 'imbalance factor'),
    'classes': ('classes', 'classes (100: CIFAR-100)'),
}


def estimators(rows: Rows, sizes: Mapping[str, Any]) -> Figure | None:
    """Bias, direction, noise and cosine of every estimator, one thing varied at a time."""
    varied = [thing for thing, (name, _) in VARIED.items() if len(sizes[name]) > 1]
    return _estimators(rows, sizes['base'], varied) if varied else None


@styled
def _estimators(rows: Rows, base_sizes: Sequence[Any], varied: Sequence[str]) -> Figure:
    base = dict(zip(VARIED, base_sizes, strict=True)) | {'temperature': 1.0, 'point': 'learned'}
    figure = new_figure((10.0, 8.4))
    grid = figure.subplots(len(MEASURES), len(varied), sharey='row', squeeze=False)
    for column, thing in enumerate(varied):
        held = {key: value for key, value in base.items() if key != thing}
        shown = [row for row in rows.values() if all(row[k] == v for k, v in held.items())]
        shown.sort(key=lambda row: row[thing])
        for axes, measure in zip(grid[:, column], MEASURES, strict=True):
            for index, name in enumerate(ESTIMATOR_COLORS):
                chosen = [row for row in shown if row['estimator'] == name]
                _line(axes, index, name, chosen, thing, measure)
            axes.set_xscale('log')
            axes.xaxis.set_major_locator(FixedLocator(sorted({row[thing] for row in shown})))
            axes.xaxis.set_minor_locator(FixedLocator([]))
            axes.xaxis.set_major_formatter(ScalarFormatter())
        grid[-1, column].set_xlabel(VARIED[thing][1])
    for axes, (measure, label) in zip(grid[:, 0], MEASURES.items(), strict=True):
        axes.set_ylabel(label)
        if measure != 'one_cosine':
            axes.set_yscale('log')
    add_legend(figure, grid[0, 0])
    return figure


def _line(
    axes: Axes,
    index: int,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    thing: str,
    measure: str,
) -> None:
    """A line of an estimator; hollow where the value is within two standard errors of 0."""
    if not rows:
        return
    x = np.array([row[thing] for row in rows])
    y = np.array([row[measure] for row in rows])
    error = np.array([row.get(f'{measure}_error', 0.0) for row in rows])
    unsure = (measure in ('bias', 'direction')) & (y < 2 * error)
    y = np.where(unsure, 2 * error, y)
    color = ESTIMATOR_COLORS[name]
    axes.plot(x, y, color=color, lw=1.1, label=name)
    style: dict[str, Any] = {
        'color': color,
        'marker': MARKERS[index % len(MARKERS)],
        'ls': '',
        'ms': 4.5,
    }
    axes.plot(x[~unsure], y[~unsure], **style)
    axes.plot(x[unsure], y[unsure], **{**style, 'mfc': 'white'})


@styled
def temperature(exact_rows: Rows, drawn_rows: Rows, base: Sequence[Any]) -> Figure:
    """Scale, direction and noise of the Gumbel estimators against their temperature."""
    figure = new_figure((10.0, 3.4))
    panels = figure.subplots(1, 3)
    size, factor, classes = base
    for name in ('examples', 'classes'):
        places: dict[str, dict[float, Mapping[str, Any]]] = {
            'enumerated': {
                float(key[0]): row
                for key, row in named(exact_rows, 'temperature', name, 'uneven').items()
            },
            'real features': {
                row['temperature']: row
                for row in drawn_rows.values()
                if row['estimator'] == name
                and row['point'] == 'learned'
                and (row['batch_size'], row['imbalance_factor'], row['classes'])
                == (size, factor, classes)
            },
        }
        for place, found in places.items():
            ts = sorted(found)
            ls = '-' if place == 'real features' else (0, (3, 2))
            for axes, measure in zip(panels, ('scale', 'direction', 'noise'), strict=True):
                axes.plot(
                    ts,
                    [found[t][measure] for t in ts],
                    color=ESTIMATOR_COLORS[name],
                    ls=ls,
                    marker='o' if place == 'real features' else 's',
                    mfc=ESTIMATOR_COLORS[name] if place == 'real features' else 'white',
                    ms=4,
                    label=f'{name}, {place}',
                )
    titles = ('scale: ⟨mean, exact⟩ / ‖exact‖²', 'error of direction of the mean', 'noise')
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xscale='log', yscale='log', title=title, xlabel='temperature T')
    panels[0].axhline(1, color=FAINT, lw=0.8, ls=(0, (1, 2)))
    add_legend(figure, panels[0])
    return figure


@styled
def step_size(rows: Rows) -> Figure:
    """Bias against the learning rate, of enumerable problems."""
    figure = new_figure((4.9, 3.5))
    axes = figure.subplots()
    for index, name in enumerate(ESTIMATOR_COLORS):
        found = {float(key[0]): row['bias'] for key, row in named(rows, 'rate', name).items()}
        rates = sorted(found)
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(
            rates,
            [found[r] for r in rates],
            color=ESTIMATOR_COLORS[name],
            marker=marker,
            ms=4,
            label=name,
        )
    axes.set(xscale='log', yscale='log', xlabel='learning rate η', ylabel='bias / ‖exact‖')
    add_legend(figure, axes)
    return figure


@styled
def horizons(rows: Rows) -> Figure:
    """K-step gradients against the implicit limit, and their noise."""
    figure = new_figure((10.0, 3.4))
    panels = figure.subplots(1, 3)
    for where, ls in (('minimum', '-'), ('training', (0, (3, 2)))):
        found = {int(key[0]): row for key, row in named(rows, where).items()}
        steps = sorted(found)
        for axes, measure in zip(panels, ('cosine', 'norm'), strict=False):
            values = [found[k]['expected'][measure] for k in steps]
            label = {'minimum': 'from the minimum', 'training': 'from within training'}[where]
            axes.plot(steps, values, color=INK, ls=ls, marker='o', ms=4, label=label)
    found = {int(key[0]): row for key, row in named(rows, 'training').items()}
    for index, name in enumerate(('classes', 'score_leave_one_out', 'expectation')):
        steps = sorted(found)
        panels[2].plot(
            steps,
            [found[k][name]['noise'] for k in steps],
            color=ESTIMATOR_COLORS[name],
            marker=MARKERS[index],
            ms=4,
            label=name,
        )
    titles = ('cosine with the implicit gradient', 'length / the implicit one', 'noise of one draw')
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xscale='log', title=title, xlabel='steps K')
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
    panels[1].set_yscale('log')
    panels[0].legend(loc='best')
    panels[2].legend(loc='best')
    return figure


@styled
def accuracies(rows: Rows) -> Figure:
    """Accuracy of every training at its last step: seeds as dots, their mean as a bar."""
    names = list(dict.fromkeys(name.split('/')[1] for name in rows))
    figure = new_figure((10.0, 0.27 * len(names) + 1.3))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure, title in zip(
        panels, ('accuracy', 'rarest'), ('all classes', 'the three rarest classes'), strict=True
    ):
        for offset, (loss, color) in enumerate(LOSS_COLORS.items()):
            for (name,), row in named(rows, loss).items():
                y = names.index(name) + 0.18 * (2 * offset - 1)
                values = 100 * np.array(row[measure])
                axes.plot(values, np.full(values.size, y), 'o', ms=3, color=color, alpha=0.5, mew=0)
                axes.plot(values.mean(), y, '|', ms=8, mew=2, color=color)
        axes.set(title=title, xlabel='accuracy at the last step, %')
        axes.grid(axis='x', visible=True)
        axes.grid(axis='y', visible=False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    handles = [Line2D([], [], color=c, marker='o', ls='', label=n) for n, c in LOSS_COLORS.items()]
    figure.legend(handles=handles, loc='outside upper left', ncols=2)
    return figure


@styled
def trajectories(rows: Rows, chosen: Mapping[str, str]) -> Figure:
    """Sampling rates of the largest and the rarest class over training, a panel a training."""
    figure = new_figure((10.0, 4.6))
    columns = -(-len(chosen) // 2)
    panels = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, title) in zip(panels, chosen.items(), strict=False):
        for loss, color in LOSS_COLORS.items():
            row = rows.get(f'{loss}/{name}')
            if row is None:
                continue
            for key, ls in (('rate_rarest', '-'), ('rate_largest', (0, (2, 1.5)))):
                for seed, values in enumerate(row[key]):
                    label = f'{loss}, {key[5:]} class' if seed == 0 else None
                    axes.plot(row['steps'], values, color=color, ls=ls, lw=0.9, label=label)
        axes.set_title(title)
        axes.set_ylim(0, 1)
    for axes in panels[len(chosen) :]:
        axes.set_visible(False)
    figure.supylabel('sampling rate s', fontsize=8.5)
    figure.supxlabel('step', fontsize=8.5)
    add_legend(figure, panels[0])
    return figure


@styled
def final_rates(rows: Rows, counts: Sequence[int], chosen: Sequence[str]) -> Figure:
    """Sampling rates by class at the last step, with either loss."""
    figure = new_figure(WIDE)
    panels = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(counts))
    for axes, loss in zip(panels, LOSS_COLORS, strict=True):
        for index, name in enumerate(chosen):
            row = rows.get(f'{loss}/estimator {name}')
            if row is None:
                continue
            rates = np.mean(row['final_rates'], 0)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(
                place, rates, color=ESTIMATOR_COLORS[name], marker=marker, ms=4, lw=1.1, label=name
            )
        axes.set_title(f'training loss: {loss}')
        axes.set_xticks(place, [f'{n:,}' for n in counts], rotation=40)
        axes.set_xlabel('classes by training images')
        axes.set_ylim(0, 1)
    panels[0].set_ylabel('sampling rate s at the last step')
    add_legend(figure, panels[0])
    return figure


def _precision_legend(figure: Figure, more: Sequence[Line2D] = ()) -> None:
    handles = [Line2D([], [], color=c, lw=3, label=name) for name, c in PRECISION_COLORS.items()]
    figure.legend(handles=[*handles, *more], loc='outside upper left', ncols=5)
