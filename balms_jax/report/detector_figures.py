"""The figures of a detector's training by category: arrays in, a matplotlib Figure out.

The conventions are those of :mod:`balms_jax.report.figures`.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balms_jax.report.detector_runs import FREQUENCY_GROUPS
from balms_jax.report.figure_style import (
    FAINT,
    HALF,
    MARKERS,
    WIDE,
    Colors,
    Curves,
    Stages,
    Values,
    add_legend,
    new_figure,
    percent_ticks,
    plain_log_ticks,
    plot_curves,
    running_mean,
    styled,
    time_axis,
)


@styled
def by_image_count(
    values: Values,
    image_counts: np.ndarray,
    frequencies: np.ndarray,
    colors: Colors,
    ylabel: str,
    *,
    of_precision: bool = False,
) -> Figure:
    """A value of every category against its training images, with running means.

    Args:
        values: by method, each ``[categories]``, NaN where there is none.
        image_counts: training images that hold each category, ``[categories]``.
        frequencies: of each category one of ``FREQUENCY_GROUPS``, ``[categories]``.
        colors: by method.
        ylabel: what the values are.
        of_precision: whether they are shares, from 0 on, in a wide figure; else in a half-width
            one.

    Returns:
        A figure, counts on a log scale, divided into frequency groups where counts divide them.
    """
    figure = new_figure(WIDE if of_precision else HALF)
    axes = figure.subplots()
    axes.set_xscale('log')
    counts = np.maximum(image_counts, 0.5)
    axes.set_xlim(counts.min() / 1.25, counts.max() * 1.25)
    order = np.argsort(counts, kind='stable')
    for index, (label, of_categories) in enumerate(values.items()):
        known = order[np.isfinite(of_categories[order])]
        axes.plot(
            counts[known],
            of_categories[known],
            MARKERS[index % len(MARKERS)],
            color=colors[label],
            label=label,
            ms=4,
            mew=0,
            alpha=0.6,
        )
        width = smoothing_width(len(known))
        along = np.exp(running_mean(np.log(counts[known]), width))
        axes.plot(along, running_mean(of_categories[known], width), color=colors[label], lw=1.8)
    _divide_by_frequency(axes, image_counts, frequencies)
    plain_log_ticks(axes.xaxis)
    axes.set_xlabel('training images that hold the category (log scale)')
    if of_precision:
        largest = max((np.nanmax(of) for of in values.values()), default=0.0)
        axes.set_ylim(-0.02 * largest, max(1.06 * largest, 0.01))
        axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_ylabel(ylabel)
    add_legend(figure, axes)
    return figure


def smoothing_width(categories: int) -> int:
    """Over how many categories a mean runs: about a fifth, an odd number."""
    return max(categories // 10, 1) * 2 + 1


@styled
def loss_parts(
    losses: Mapping[str, Curves], meta_losses: Curves, colors: Colors, stages: Stages
) -> Figure:
    """The training loss and its parts over training, each on a log scale of its own.

    Args:
        losses: by part, by method, a pair of steps ``[T]`` and mean losses ``[T]`` for each seed.
        meta_losses: by method, drawn dashed beside the first part.
        colors: by method.
        stages: name and steps of each stage.

    Returns:
        A wide figure with a panel a part.
    """
    columns = min(len(losses), 3)
    rows = -(-len(losses) // columns)
    figure = new_figure((WIDE[0], 2.4 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (part, curves) in zip(grid.flat, losses.items(), strict=False):
        axes.set_yscale('log')
        plot_curves(axes, curves, colors)
        if part == next(iter(losses)):
            named = {label: f'{label} (meta)' for label in meta_losses}
            plot_curves(
                axes,
                {named[label]: seeds for label, seeds in meta_losses.items()},
                {named[label]: colors[label] for label in meta_losses},
                ls='--',
            )
        time_axis(axes, stages, *(steps for seeds in curves.values() for steps, _ in seeds))
        plain_log_ticks(axes.yaxis)
        axes.set_title(part, pad=14 if len(stages) > 1 else None)
    for axes in grid.flat[len(losses) :]:
        axes.set_visible(False)
    figure.supylabel('loss (log scale)', fontsize=8.5)
    add_legend(figure, grid[0, 0])
    return figure


def _divide_by_frequency(axes: Axes, counts: np.ndarray, frequencies: np.ndarray) -> None:
    """Dotted lines between the frequency groups and their names, where counts divide them."""
    present: Sequence[str] = [f for f in reversed(FREQUENCY_GROUPS) if (frequencies == f).any()]
    held = [np.maximum(counts[frequencies == f], 0.5) for f in present]
    if any(left.max() >= right.min() for left, right in itertools.pairwise(held)):
        return
    low, high = axes.get_xlim()
    between = [float(np.sqrt(left.max() * right.min())) for left, right in itertools.pairwise(held)]
    for boundary in between:
        axes.axvline(boundary, color=FAINT, lw=0.8, ls=(0, (1, 2)))
    edges = [low, *between, high]
    for frequency, start, end in zip(present, edges, edges[1:], strict=False):
        axes.annotate(
            FREQUENCY_GROUPS[frequency],
            (float(np.sqrt(start * end)), 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords='offset points',
            ha='center',
            fontsize=7.5,
            color=FAINT,
        )
