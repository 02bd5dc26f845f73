"""Test images with the objects that are found in them, beside those that are there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from balms_jax.detection.pasting import paste
from balms_jax.report.detector_runs import Picture, PicturedObject
from balms_jax.report.figure_style import INK, WIDE, new_figure, plain, styled

CONFIDENT = 0.5  # A detection's least score, where it is shown.
MOST_SHOWN = 8  # objects in one panel
SAME_PLACE = 0.5  # Of two masks that overlap by more (their IoU) the better one is shown alone.
FINEST = 288  # rows and columns that masks are drawn in, and large images are reduced to, about
# Told apart on any ground, and each light enough for dark letters.
OBJECT_COLORS = (
    '#ffd92f',
    '#4dd2ff',
    '#ff7f9e',
    '#8be04e',
    '#ffa64d',
    '#c9a6ff',
    '#f2f2f2',
    '#2ee6b6',
)
FONT_SIZE = 6.5
TALLEST = 11.0  # inches
HEAD, WITHIN, BETWEEN = 0.3, 0.06, 0.26  # for titles, and between panels and images; inches
SIDE_BY_SIDE = {1: 4, 2: 2, 3: 2}  # How many images are in a row, by their panels.


class Shown(NamedTuple):
    """An object as it is drawn."""

    category: int
    text: str
    mask: NDArray[np.bool_]
    """In the resolution that it is drawn in, ``[rows, columns]``."""


class Rectangle(NamedTuple):
    """Where a label is."""

    left: float
    top: float
    width: float
    height: float

    def meets(self, other: 'Rectangle') -> bool:
        """Whether they have more than an edge in common."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return across > 0 and down > 1e-6 * self.height


@styled
def pictures_figure(
    pictures: Mapping[str, Sequence[Picture]], category_names: Sequence[str]
) -> Figure:
    """Rows of panels: an image with its true objects, and with what each method finds in it.

    A category has one colour in all panels of an image, so that a confusion is a change of colour.

    Args:
        pictures: by method, of the same images.
        category_names: ``[categories]``.

    Returns:
        A wide figure of as many images as fit.
    """
    first = next(iter(pictures.values()))
    has_truth = all(picture.there is not None for picture in first)
    titles = [*(['true objects'] if has_truth else []), *pictures]
    tallest = max(picture.pixels.shape[0] / picture.pixels.shape[1] for picture in first)
    figure, grid, panel = _panels(len(first), titles, tallest)
    for axes_row, k in zip(grid, range(len(first)), strict=False):
        given = [pictures[method][k] for method in pictures]
        objects = [shown(picture, category_names) for picture in given]
        if has_truth:
            objects.insert(0, true(given[0], category_names))
        colors = _colors(objects)
        for axes, of_panel in zip(axes_row, objects, strict=True):
            _draw(axes, given[0].pixels, of_panel, colors, panel)
    return figure


def shown(picture: Picture, category_names: Sequence[str]) -> list[Shown]:
    """The confident detections of a picture; of those in one place the best alone.

    Args:
        picture: with its detections.
        category_names: ``[categories]``.

    Returns:
        At most ``MOST_SHOWN``, best first.
    """
    kept: list[Shown] = []
    for found in sorted(picture.found, key=lambda each: -each.score):
        if found.score < CONFIDENT or len(kept) == MOST_SHOWN:
            break
        mask = _mask(found, picture)
        if mask.any() and all(_overlap(mask, other.mask) <= SAME_PLACE for other in kept):
            text = f'{plain(category_names[found.category])} {found.score:.2f}'
            kept.append(Shown(found.category, text, mask))
    return kept


def true(picture: Picture, category_names: Sequence[str]) -> list[Shown]:
    """The true objects of a picture, the largest ``MOST_SHOWN``."""
    found = [
        Shown(each.category, plain(category_names[each.category]), _mask(each, picture))
        for each in picture.there or ()
    ]
    return sorted(found, key=lambda each: -each.mask.sum())[:MOST_SHOWN]


def label_places(
    wanted: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    extent: tuple[float, float],
) -> Iterator[tuple[float, float]]:
    """Puts labels near where they are wanted, within a panel and not onto each other.

    Args:
        wanted: the left and the top of each, growing to the right and down.
        sizes: the width and the height of each.
        extent: the width and the height of the panel.

    Yields:
        The left and the top of each; one that finds no free place is where it was wanted.

    Example:
        >>> list(label_places([(0, 0), (0, 0)], [(4, 1), (4, 1)], (5, 5)))
        [(0, 0), (0, 1)]
    """
    taken: list[Rectangle] = []
    for (x, y), (width, height) in zip(wanted, sizes, strict=True):
        left = max(min(x, extent[0] - width), 0)
        top = max(min(y, extent[1] - height), 0)
        lines = int(extent[1] / height)
        tops = [top + k * height for k in sorted(range(-lines, lines + 1), key=abs)]
        tried = [Rectangle(left, t, width, height) for t in tops if 0 <= t <= extent[1] - height]
        chosen = next((r for r in tried if not any(map(r.meets, taken))), tried[0])
        taken.append(chosen)
        yield chosen.left, chosen.top


def _panels(
    images: int, titles: Sequence[str], tallest: float
) -> tuple[Figure, list[list[Axes]], float]:
    """Lays a new figure out to the fraction of an inch, for labels are fitted into its panels.

    Args:
        images: how many there are; as many as fit are shown.
        titles: of the panels of each.
        tallest: the greatest ratio of an image's height to its width.

    Returns:
        The figure, the axes of each image that is shown, and a panel's width in inches.
    """
    side_by_side = SIDE_BY_SIDE.get(len(titles), 1)
    gaps = (side_by_side - 1) * BETWEEN + side_by_side * (len(titles) - 1) * WITHIN
    panel = min((WIDE[0] - gaps) / (side_by_side * len(titles)), 3.2)
    height = panel * tallest
    rows = min(-(-images // side_by_side), max(int(TALLEST / height), 1))
    size = (WIDE[0], HEAD + rows * (height + WITHIN))
    figure = new_figure(size)
    figure.set_layout_engine('none')
    grid: list[list[Axes]] = []
    for k in range(min(images, rows * side_by_side)):
        row, block = divmod(k, side_by_side)
        top = HEAD + row * (height + WITHIN)
        left = block * (len(titles) * (panel + WITHIN) - WITHIN + BETWEEN)
        grid.append([])
        for title in titles:
            place = (left / size[0], 1 - (top + height) / size[1])
            axes = figure.add_axes((*place, panel / size[0], height / size[1]), anchor='NW')
            axes.axis('off')
            if row == 0:
                axes.set_title(plain(title, int(72 * panel / 5.5)), fontsize=8.5, loc='left')
            grid[-1].append(axes)
            left += panel + WITHIN
    return figure, grid, panel


def _mask(pictured: PicturedObject, picture: Picture) -> NDArray[np.bool_]:
    """Finer than the image where it is small, coarser where it is large."""
    rows, columns = picture.pixels.shape[:2]
    factor = FINEST / max(rows, columns)
    shape = max(round(rows * factor), 1), max(round(columns * factor), 1)
    return paste(pictured.mask, pictured.frame, shape, 1 / factor)


def _overlap(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def _colors(panels: Sequence[Sequence[Shown]]) -> dict[int, str]:
    """A colour for every category of an image, those that are there first."""
    categories = dict.fromkeys(each.category for objects in panels for each in objects)
    return {c: OBJECT_COLORS[k % len(OBJECT_COLORS)] for k, c in enumerate(categories)}


def _draw(
    axes: Axes,
    pixels: NDArray[np.uint8],
    objects: Sequence[Shown],
    colors: Mapping[int, str],
    panel: float,
) -> None:
    """An image under translucent, outlined masks with their labels."""
    rows, columns = pixels.shape[:2]
    extent = (0, columns, rows, 0)
    step = max(max(rows, columns) // FINEST, 1)
    axes.imshow(pixels[::step, ::step], extent=extent, interpolation='none')
    for each in objects:
        color = colors[each.category]
        tint = np.zeros((*each.mask.shape, 4))
        tint[each.mask] = to_rgba(color, 0.3)
        axes.imshow(tint, extent=extent, interpolation='none')
        y, x = (
            (np.arange(n) + 0.5) * whole / n
            for n, whole in zip(each.mask.shape, (rows, columns), strict=True)
        )
        axes.contour(x, y, each.mask, [0.5], colors=INK, linewidths=1.8)
        axes.contour(x, y, each.mask, [0.5], colors=color, linewidths=1.1)
    _label(axes, objects, colors, (columns, rows), columns / (72 * panel))


def _label(
    axes: Axes,
    objects: Sequence[Shown],
    colors: Mapping[int, str],
    extent: tuple[float, float],
    pixels_a_point: float,
) -> None:
    """Names the objects at their upper left."""
    wanted, sizes = [], []
    height = 1.55 * FONT_SIZE * pixels_a_point
    for each in objects:
        rows, columns = np.nonzero(each.mask)
        scale = extent[1] / each.mask.shape[0]
        wanted.append((scale * columns.min(), scale * rows.min() - height))
        length = TextPath((0, 0), each.text, size=FONT_SIZE).get_extents().width
        sizes.append(((length + 0.7 * FONT_SIZE) * pixels_a_point, height))
    places = label_places(wanted, sizes, extent)
    for each, (left, top), (_, tall) in zip(objects, places, sizes, strict=True):
        axes.text(
            left + 0.35 * FONT_SIZE * pixels_a_point,
            top + tall / 2,
            each.text,
            fontsize=FONT_SIZE,
            va='center',
            color='#111111',
            bbox={'facecolor': colors[each.category], 'edgecolor': 'none', 'pad': 1.2},
        )
