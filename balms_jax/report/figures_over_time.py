"""Figures of what changes during training: arrays in, a matplotlib Figure out.

The conventions are those of :mod:`balms_jax.report.figures`.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from balms_jax.report.figure_style import (
    COUNT_COLORS,
    FAINT,
    HALF,
    WIDE,
    Colors,
    Curves,
    Stages,
    add_legend,
    new_figure,
    percent_ticks,
    plain,
    plain_log_ticks,
    plot_curves,
    styled,
    time_axis,
)


@styled
def rates_over_time(
    steps: np.ndarray,
    rates: np.ndarray,
    class_counts: np.ndarray,
    stages: Stages,
    ylabel: str = 'sampling rate σ(ψ)',
    counted: str = 'training images of the class',
    top: float | None = None,
) -> Figure:
    """A learned value of every class over training, coloured by the class's training images.

    Args:
        steps: over all stages, ``[T]``.
        rates: ``[T, classes]``.
        class_counts: training images, ``[classes]``.
        stages: name and steps of each stage.
        ylabel: what the values are.
        counted: what the counts are.
        top: of an axis that begins at 0; None for one that fits the values.

    Returns:
        A half-width figure.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    if top is not None:
        axes.set_ylim(0, top)
    keep = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 120)).round().astype(int))
    low, high = max(class_counts.min(), 1), max(class_counts.max(), 2)
    norm = LogNorm(low, high) if low < high else Normalize(low - 1, high)
    for index in np.argsort(-class_counts, kind='stable'):
        axes.plot(
            steps[keep],
            rates[keep, index],
            color=COUNT_COLORS(norm(max(class_counts[index], 1))),
            lw=1.4 if len(class_counts) <= 20 else 0.7,
        )
    bar = figure.colorbar(ScalarMappable(norm, COUNT_COLORS), ax=axes, pad=0.02, aspect=28)
    bar.set_label(counted)
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)
    if isinstance(norm, LogNorm):
        plain_log_ticks(bar.ax.yaxis)
    time_axis(axes, stages, steps)
    axes.set_ylabel(ylabel)
    return figure


@styled
def loss_curves(losses: Curves, meta_losses: Curves, colors: Colors, stages: Stages) -> Figure:
    """Training loss and, dashed, meta loss over training, on a log scale.

    Args:
        losses: by method, a pair of steps ``[T]`` and mean losses in nats ``[T]`` for each seed.
        meta_losses: the same, for the methods that have one.
        colors: by method.
        stages: name and steps of each stage.

    Returns:
        A half-width figure.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    axes.set_yscale('log')
    plot_curves(axes, losses, colors)
    plot_curves(
        axes,
        {f'{k} (meta)': v for k, v in meta_losses.items()},
        {f'{k} (meta)': colors[k] for k in meta_losses},
        ls='--',
    )
    time_axis(axes, stages, *(steps for curves in losses.values() for steps, _ in curves))
    plain_log_ticks(axes.yaxis)
    axes.set_ylabel('training loss (nats)')
    add_legend(figure, axes)
    return figure


@styled
def accuracy_curves(
    accuracies: Curves, colors: Colors, stages: Stages, ylabel: str = 'test accuracy, top-1'
) -> Figure:
    """Test accuracy over training.

    Args:
        accuracies: by method, a pair of steps ``[T]`` and fractions ``[T]`` for each seed.
        colors: by method.
        stages: name and steps of each stage.
        ylabel: what the values are.

    Returns:
        A half-width figure.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    plot_curves(axes, accuracies, colors)
    time_axis(axes, stages, *(steps for curves in accuracies.values() for steps, _ in curves))
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_ylabel(ylabel)
    add_legend(figure, axes)
    return figure


@styled
def gradient_weights(
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_counts: np.ndarray,
    colors: Colors,
    times: int = 4,
    exponents: Mapping[str, float] | None = None,
    counted: str = 'training images of the class, n',
) -> Figure:
    """Effective gradient weight of each class against its training images, log-log.

    Args:
        weights: by method, steps ``[T]`` and weights ``[T, classes]``, NaN where not measured;
            only their ratios are shown (the geometric mean is 1).
        class_counts: training images, ``[classes]``.
        colors: by method.
        times: how many of the T times are shown, from the first to the last.
        exponents: by method, the slope that was fitted to the last time; drawn as a line.
        counted: what the counts are.

    Returns:
        A wide figure with one panel a method and the slopes 0, −1 and −2 for reference.
    """
    columns = min(len(weights), 3)
    rows = -(-len(weights) // columns)
    figure = new_figure((WIDE[0] if columns > 1 else HALF[0], 3.1 * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    positive = class_counts > 0
    counts = class_counts[positive]
    center = np.exp(np.log(counts).mean())
    ends = np.array([counts.min() / 1.15, counts.max() * 1.15])
    for axes, (label, (steps, values)) in zip(grid.flat, weights.items(), strict=False):
        axes.set(xscale='log', yscale='log', title=plain(label, 40))
        for slope in (0, -1, -2):
            axes.plot(ends, (ends / center) ** slope, color=FAINT, lw=0.8, ls=(0, (4, 3)))
            text = str(slope).replace('-', '−')
            place = (ends[0], (ends[0] / center) ** slope)
            offset = {'xytext': (-3, 0), 'textcoords': 'offset points', 'color': FAINT}
            axes.annotate(text, place, ha='right', va='center', **offset)
        known = np.isfinite(np.where(values > 0, values, np.nan)).sum(axis=1) > 1
        # A stage ends at the step at which the next begins: that one is shown.
        usable = np.flatnonzero(known & (steps != np.append(steps[1:], -1)))
        places = np.linspace(0, max(len(usable) - 1, 0), times).round().astype(int)
        chosen = usable[np.unique(places)] if len(usable) else usable
        for rank, time in enumerate(chosen):
            row = np.where(values[time] > 0, values[time], np.nan)[positive]
            row = row / np.exp(np.nanmean(np.log(row)))
            shade = (rank + 1) / len(chosen)
            color = LinearSegmentedColormap.from_list('', ['white', colors[label]])(shade)
            axes.plot(counts, row, 'o', ms=3.5, color=color, label=f'step {steps[time]:,}')
        if exponents and label in exponents:
            fitted = exponents[label]
            text = f'slope {fitted:.2f}'.replace('-', '−')
            axes.plot(ends, (ends / center) ** fitted, color=colors[label], lw=1.3, label=text)
        if len(chosen):
            axes.legend(loc='upper right', handletextpad=0.4 if exponents else 0, fontsize=7.5)
        axes.margins(x=0.09)
        plain_log_ticks(axes.xaxis)
    for axes in grid.flat[len(weights) :]:
        axes.set_visible(False)
    figure.supxlabel(counted, fontsize=8.5)
    figure.supylabel('effective gradient weight (relative)', fontsize=8.5)
    return figure


@styled
def gradient_weight_exponent(exponents: Curves, colors: Colors, stages: Stages) -> Figure:
    """Slope of log effective gradient weight against log class count over training.

    Args:
        exponents: by method, a pair of steps ``[T]`` and slopes ``[T]`` for each seed.
        colors: by method.
        stages: name and steps of each stage.

    Returns:
        A half-width figure with the reference exponents 0, −1 and −2.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    for slope in (0, -1, -2):
        axes.axhline(slope, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    plot_curves(axes, exponents, colors)
    time_axis(axes, stages, *(steps for curves in exponents.values() for steps, _ in curves))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -2.2), max(high, 0.3))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel('gradient-weight exponent')
    add_legend(figure, axes)
    return figure
