"""The figures of long-tailed learning: arrays in, a matplotlib Figure out.

Every function takes values by method, `{label: array}`, and a colour for each label, so that a
method keeps its colour from figure to figure. Classes are always ordered from the most to the
least training images. Nothing here touches pyplot's global state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from balms_jax.report.figure_style import (
    BACKDROP,
    FAINT,
    HALF,
    INK,
    MARKERS,
    WIDE,
    Colors,
    Values,
    add_legend,
    class_axis,
    dots,
    new_figure,
    percent_ticks,
    plain,
    running_mean,
    styled,
)


@styled
def accuracy_by_class(
    accuracies: Values,
    class_counts: np.ndarray,
    class_names: Sequence[str],
    colors: Colors,
    deviations: Values | None = None,
) -> Figure:
    """Accuracy of every class before a backdrop of its training images on a log scale.

    Args:
        accuracies: fractions by method, each ``[classes]``.
        class_counts: training images, ``[classes]``.
        class_names: ``[classes]``.
        colors: by method.
        deviations: standard deviations over seeds by method, each ``[classes]``, NaN for none.

    Returns:
        A wide figure.
    """
    figure = new_figure(WIDE)
    axes = figure.subplots()
    order = class_axis(axes, class_counts, class_names)
    x = np.arange(len(order))
    backdrop = axes.twinx()
    backdrop.set_yscale('log')
    edges = np.arange(len(order) + 1) - 0.5
    heights = np.maximum(class_counts[order], 0.5)
    backdrop.stairs(heights, edges, baseline=0.5, fill=True, color=BACKDROP)
    backdrop.set_ylim(0.5, 3 * class_counts.max())
    backdrop.set_ylabel('training images (grey steps, log scale)', color=FAINT)
    backdrop.tick_params(axis='y', labelcolor=FAINT)
    backdrop.grid(visible=False)
    backdrop.spines['right'].set_visible(True)
    axes.set_zorder(backdrop.get_zorder() + 1)
    axes.patch.set_visible(False)
    few = len(order) <= 20
    dodge = np.linspace(-0.22, 0.22, len(accuracies)) if few and len(accuracies) > 1 else None
    for index, (label, values) in enumerate(accuracies.items()):
        shift = 0.0 if dodge is None else dodge[index]
        style: dict[str, Any] = {
            'color': colors[label],
            'marker': MARKERS[index % len(MARKERS)],
            'label': label,
        }
        if few:
            spread = None if deviations is None else np.nan_to_num(deviations[label][order])
            axes.errorbar(
                x + shift, values[order], yerr=spread, ls='', ms=5.5, elinewidth=1.1, **style
            )
        else:
            axes.plot(x, values[order], ls='', ms=3, alpha=0.55, **style)
            axes.plot(x, running_mean(values[order], 11), color=colors[label], lw=1.8)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_ylabel('test accuracy')
    add_legend(figure, axes)
    return figure


@styled
def accuracy_by_shot(
    accuracies: Values,
    groups: Sequence[str],
    colors: Colors,
    deviations: Values | None = None,
    ylabel: str = 'test accuracy',
    top: float = 1.08,
) -> Figure:
    """Mean accuracy of groups of classes; a group without classes reads 'none'.

    Args:
        accuracies: fractions by method, each ``[groups]``, NaN for an absent group.
        groups: names, such as 'many', ``[groups]``.
        colors: by method.
        deviations: standard deviations over seeds by method, each ``[groups]``, NaN for none.
        ylabel: what the values are.
        top: where the axis ends.

    Returns:
        A half-width figure.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    width = 0.8 / len(accuracies)
    small = 8 if len(accuracies) <= 3 else 6.5
    for index, (label, values) in enumerate(accuracies.items()):
        x = np.arange(len(groups)) + (index - (len(accuracies) - 1) / 2) * width
        there = np.isfinite(values)
        spread = np.zeros(len(groups)) if deviations is None else np.nan_to_num(deviations[label])
        axes.bar(
            x[there],
            values[there],
            0.92 * width,
            yerr=spread[there] if spread.any() else None,
            error_kw={'ecolor': INK, 'elinewidth': 0.9},
            color=colors[label],
            label=label,
        )
        for place, value, extra in zip(x[there], values[there], spread[there], strict=True):
            if len(accuracies) <= 5:
                text = f'{100 * value:.1f}'
                above = value + extra + 0.011 * top
                axes.text(float(place), above, text, ha='center', fontsize=small)
    for place in np.flatnonzero(np.all([~np.isfinite(v) for v in accuracies.values()], axis=0)):
        axes.text(float(place), 0.02 * top, 'none', ha='center', color=FAINT, style='italic')
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis='x', length=0)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_ylabel(ylabel)
    add_legend(figure, axes)
    return figure


@styled
def class_distribution(
    distributions: Values,
    class_counts: np.ndarray,
    class_names: Sequence[str],
    colors: Colors,
) -> Figure:
    """How often a draw returns each class, against instance- and class-balanced draws.

    Args:
        distributions: q by method, each ``[classes]``, summing to 1.
        class_counts: training images, ``[classes]``.
        class_names: ``[classes]``.
        colors: by method.

    Returns:
        A half-width figure, probabilities on a log scale.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    order = class_axis(axes, class_counts, class_names)
    x = np.arange(len(order))
    instance = np.where(class_counts > 0, class_counts / class_counts.sum(), np.nan)[order]
    axes.set_yscale('log')
    axes.plot(x, instance, color=FAINT, ls='--', label='instance-balanced, ∝ n')
    axes.axhline(1 / len(order), color=FAINT, ls=':', label='class-balanced, 1/C')
    for index, (label, values) in enumerate(distributions.items()):
        axes.plot(x, values[order], label=label, **dots(index, colors[label], len(order)))
    axes.set_ylabel('probability of drawing the class')
    add_legend(figure, axes)
    return figure


@styled
def marginal_likelihood(
    likelihoods: Values,
    class_counts: np.ndarray,
    class_names: Sequence[str],
    colors: Colors,
) -> Figure:
    """Mean predicted probability p(y) of each class on a balanced test set, ideally 1/C.

    Args:
        likelihoods: p(y) by method, each ``[classes]``, summing to 1.
        class_counts: training images, ``[classes]``.
        class_names: ``[classes]``.
        colors: by method.

    Returns:
        A half-width figure.
    """
    figure = new_figure(HALF)
    axes = figure.subplots()
    order = class_axis(axes, class_counts, class_names)
    axes.axhline(1 / len(order), color=INK, ls=':', lw=1.2, label='ideal, 1/C')
    for index, (label, values) in enumerate(likelihoods.items()):
        style = dots(index, colors[label], len(order))
        axes.plot(np.arange(len(order)), values[order], label=label, **style)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_ylabel('marginal likelihood p(y)')
    add_legend(figure, axes)
    return figure


@styled
def confusion(confusions: Values, class_counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Confusion matrices, each row divided by its sum, coloured by the share's square root.

    Args:
        confusions: by method, rows true and columns predicted, each ``[classes, classes]``.
        class_counts: training images, ``[classes]``.
        class_names: ``[classes]``.

    Returns:
        A wide figure with one panel a method, classes ordered by training images.
    """
    order = np.argsort(-class_counts, kind='stable')
    columns = min(len(confusions), 3)
    rows = -(-len(confusions) // columns)
    figure = new_figure((WIDE[0] if columns > 1 else HALF[0], 3.4 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (label, counts) in zip(grid.flat, confusions.items(), strict=False):
        table = counts[np.ix_(order, order)]
        totals = table.sum(axis=1, keepdims=True)
        shares = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
        image = axes.imshow(shares, 'Blues', PowerNorm(0.5, 0, 1), interpolation='nearest')
        axes.set(title=plain(label, 40), xlabel='predicted class', ylabel='true class')
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(order) <= 12:
            names = [plain(class_names[index]) for index in order]
            turn = 90 if max(map(len, names)) > 2 else 0
            axes.set_xticks(range(len(order)), names, rotation=turn, fontsize=7)
            axes.set_yticks(range(len(order)), names, fontsize=7)
            axes.tick_params(length=0)
            for (row, column), share in np.ndenumerate(shares):
                if share >= 0.005:
                    ink = 'white' if share > 0.35 else INK
                    text = f'{100 * share:.0f}'
                    axes.text(column, row, text, ha='center', va='center', fontsize=6.5, color=ink)
        else:
            axes.set(xlabel='predicted class, most → fewest images', ylabel='true class')
            axes.set(xticks=[], yticks=[])
    for axes in grid.flat[len(confusions) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=grid, shrink=0.75, pad=0.01, aspect=30)
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(percent_ticks())
    bar.outline.set_visible(False)
    return figure


@styled
def reliability(diagrams: Mapping[str, Mapping[str, np.ndarray]], colors: Colors) -> Figure:
    """Accuracy against confidence in bins of confidence; below, how many images a bin has.

    Args:
        diagrams: by method, `confidence`, `accuracy` (fractions) and `count`, each ``[bins]``.
        colors: by method.

    Returns:
        A half-width figure.
    """
    figure = new_figure(HALF)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=INK, ls=':', lw=1.2, label='calibrated')
    for index, (label, bins) in enumerate(diagrams.items()):
        filled = bins['count'] > 0
        edges = np.linspace(0, 1, len(bins['count']) + 1)
        style = dots(index, colors[label], 10)
        upper.plot(bins['confidence'][filled], bins['accuracy'][filled], label=label, **style)
        lower.stairs(
            bins['count'] / max(bins['count'].sum(), 1), edges, color=colors[label], lw=1.3
        )
    upper.set(ylim=(0, 1.02), ylabel='accuracy')
    lower.set(xlim=(0, 1), xlabel='confidence (largest predicted probability)', ylabel='images')
    for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
        axis.set_major_formatter(percent_ticks())
    add_legend(figure, upper)
    return figure
