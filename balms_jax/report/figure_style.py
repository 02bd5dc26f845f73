"""How the figures look: colours by method, text and lines, the axes they share."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito's colours, then Tol's muted ones: told apart with any colour vision.
METHOD_COLORS = {
    'softmax': '#7a7a7a',
    'balanced_softmax': '#0072b2',
    'balms': '#d55e00',
    'balanced_softmax_decoupled': '#56b4e9',
    'balanced_softmax_quarter': '#009e73',
    'meta_reweighter': '#cc79a7',
    'balms_end_to_end': '#e69f00',
    'softmax_decoupled': '#333333',
    # Of detectors the same, where the loss is the sigmoid's in place of the softmax's.
    'sigmoid': '#7a7a7a',
    'balanced_sigmoid': '#0072b2',
    'balanced_sigmoid_decoupled': '#56b4e9',
    'sigmoid_meta_reweighter': '#cc79a7',
    'sigmoid_decoupled': '#333333',
}
OTHER_COLORS = ('#332288', '#882255', '#44aa99', '#999933', '#aa4499', '#6699cc', '#661100')
MARKERS = 'osD^vPX*'

INK, FAINT, BACKDROP = '#2b2b2b', '#8c8c8c', '#e7e7e4'
COUNT_COLORS = LinearSegmentedColormap.from_list(
    'counts', [matplotlib.colormaps['viridis_r'](x) for x in np.linspace(0.12, 1, 64)]
)
WIDE, HALF = (10.0, 3.6), (4.9, 3.5)
STYLE: dict[Any, Any] = {
    'font.family': 'DejaVu Sans',
    'font.size': 8.5,
    'axes.edgecolor': FAINT,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.labelcolor': INK,
    'axes.labelsize': 8.5,
    'axes.linewidth': 0.7,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 9.5,
    'axes.axisbelow': True,
    'axes.facecolor': 'none',
    'figure.constrained_layout.use': True,
    'figure.facecolor': 'none',
    'savefig.facecolor': 'none',
    'grid.color': '#e6e6e4',
    'grid.linewidth': 0.6,
    'legend.fontsize': 8.5,
    'legend.frameon': False,
    'legend.handlelength': 1.6,
    'lines.linewidth': 1.5,
    'svg.fonttype': 'path',
    'svg.hashsalt': 'balms_jax',
    'text.color': INK,
    'xtick.color': FAINT,
    'xtick.labelcolor': INK,
    'ytick.color': FAINT,
    'ytick.labelcolor': INK,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
}

Values = Mapping[str, np.ndarray]
Colors = Mapping[str, str]
Stages = Sequence[tuple[str, int]]
# One label may have several curves (one a seed): steps [T] and values [T].
Curves = Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]
P = ParamSpec('P')


def method_colors(methods: Mapping[str, str]) -> dict[str, str]:
    """A colour for every label: the method's own, or the next free one.

    Args:
        methods: method by label, such as `{'BALMS': 'balms'}`.

    Returns:
        Colour by label; all different up to 15 labels.
    """
    wanted = {METHOD_COLORS.get(method) for method in methods.values()}
    rest = dict.fromkeys(c for c in METHOD_COLORS.values() if c not in wanted)
    spare = [*OTHER_COLORS, *rest]
    colors: dict[str, str] = {}
    extras = 0
    for label, method in methods.items():
        color = METHOD_COLORS.get(method)
        if color is None or color in colors.values():
            color = spare[extras % len(spare)]
            extras += 1
        colors[label] = color
    return colors


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure: no date, fixed identifiers."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None})
    return file.getvalue()


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws a figure under the style sheet, leaving matplotlib's own settings alone."""

    @functools.wraps(draw)
    def under_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return under_style


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure that no window or global state knows of."""
    figure = Figure(figsize=size)
    FigureCanvasSVG(figure)
    return figure


def percent_ticks() -> FuncFormatter:
    """Shares as percents, with as many digits as they have.

    Example:
        >>> percent_ticks()(0.005), percent_ticks()(0.3)
        ('0.5%', '30%')
    """
    return FuncFormatter(lambda share, _: f'{100 * share:g}%'.replace('-', '−'))


def plain(text: str, length: int = 20) -> str:
    """Text from a file for a figure: shortened, and without the mathematics that $ begins."""
    short = text if len(text) <= length else f'{text[: length - 1]}…'
    return short.replace('$', r'\$')


def class_axis(axes: Axes, class_counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Lays the classes along x from most to fewest images; marks shot groups; the order."""
    order = np.argsort(-class_counts, kind='stable')
    counts = class_counts[order]
    for threshold in (100.5, 19.5):
        boundary = (counts > threshold).sum()
        if 0 < boundary < len(counts):
            axes.axvline(boundary - 0.5, color=FAINT, lw=0.8, ls=(0, (1, 2)))
    axes.set_xlim(-0.6, len(order) - 0.4)
    if len(order) <= 20:
        wide = axes.get_figure().get_size_inches()[0] > HALF[0]  # type: ignore[union-attr]
        names = [plain(class_names[index]) for index in order]
        if wide:
            names = [f'{name}\n{count:,}' for name, count in zip(names, counts, strict=True)]
        crowded = not wide and max(map(len, names)) > 2
        axes.set_xticks(range(len(order)), names, rotation=40 if crowded else 0)
        if crowded:
            for tick in axes.get_xticklabels():
                tick.set(ha='right', rotation_mode='anchor')
        axes.tick_params(axis='x', length=0)
    else:
        ticks = np.unique(np.linspace(0, len(order) - 1, 6).round().astype(int))
        axes.set_xticks(ticks, [f'{counts[tick]:,}' for tick in ticks])
        axes.set_xlabel('classes from most to fewest training images (ticks: images)')
    return order


def time_axis(axes: Axes, stages: Stages, *steps: np.ndarray) -> None:
    """Steps along x from the first stage with data on; stages divided and named above."""
    known = np.concatenate([values[np.isfinite(values)] for values in steps])
    reached, earliest = (int(known.max()), int(known.min())) if known.size else (1, 0)
    starts = np.cumsum([0, *(length for _, length in stages)])
    begin = max(start for start in starts[:-1] if start == 0 or start <= earliest < reached)
    for (name, _), start, end in zip(stages, starts[:-1], starts[1:], strict=True):
        if not begin <= start < reached:
            continue
        if start > begin:
            axes.axvline(start, color=FAINT, lw=0.8)
        if len(stages) > 1:
            late = start + end > begin + 1.4 * reached
            axes.annotate(
                plain(name.replace('_', ' ')),
                (min(end, reached) if late else start, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords='offset points',
                ha='right' if late else 'left',
                fontsize=7.5,
                color=FAINT,
            )
    axes.set_xlim(begin, reached + 0.01 * (reached - begin))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axes.set_xlabel('training step')


def plain_log_ticks(axis: Axis) -> None:
    """Ticks of a log axis as plain numbers, more of them where it is short."""
    low, high = axis.get_view_interval()
    short, shorter = high < 1000 * low, high < 5 * low
    subs = (1, 1.5, 2, 3, 4, 5, 7) if shorter else (1, 2, 5) if short else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axis.set_minor_locator(NullLocator())


def plot_curves(axes: Axes, curves: Curves, colors: Colors, ls: str = '-') -> None:
    """One line a seed, the first of a label named; a value without neighbours is a dot."""
    for label, seeds in curves.items():
        width = 1.6 if len(seeds) == 1 else 1.0
        for index, (steps, values) in enumerate(seeds):
            name = label if index == 0 else None
            axes.plot(steps, values, color=colors[label], ls=ls, lw=width, label=name)
            known = np.isfinite(values)
            lone = known & ~np.append(False, known[:-1]) & ~np.append(known[1:], False)
            if lone.any():
                axes.plot(steps[lone], values[lone], 'o', color=colors[label], ms=3.5)


def dots(index: int, color: str, classes: int) -> dict[str, Any]:
    """Markers and a line for few classes, a line alone for many."""
    if classes > 20:
        return {'color': color, 'lw': 1.3}
    return {'color': color, 'lw': 1.3, 'marker': MARKERS[index % len(MARKERS)], 'ms': 4}


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a window of `width`, narrower at the ends."""
    window = np.ones(width)
    return np.convolve(values, window, 'same') / np.convolve(np.ones(len(values)), window, 'same')


def add_legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, on as few rows as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        inches = figure.get_size_inches()[0]
        widths = [0.45 + 0.068 * len(label) for label in labels]
        fits = sum(widths) <= inches
        per_row = len(labels) if fits else max(1, int(inches / max(widths)))
        figure.legend(
            handles,
            [plain(label, 48) for label in labels],
            loc='outside upper left',
            ncols=per_row,
            borderpad=0.2,
            columnspacing=1.2,
            handletextpad=0.5,
        )
