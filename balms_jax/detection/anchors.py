"""Anchors: the boxes that an object is looked for around, at every cell of every pyramid level."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STRIDES = (4, 8, 16, 32, 64)  # of the levels P2 to P6
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
RATIOS = (0.5, 1.0, 2.0)


class Layout(NamedTuple):
    """Where the pyramid's levels and their anchors are."""

    image_size: tuple[int, int]
    """Height and width of the images, padding included, in pixels."""
    strides: tuple[int, ...] = STRIDES
    """Of the levels, in pixels."""
    sizes: tuple[float, ...] = SIZES
    """The root of the anchors' area in each level, in pixels."""


def grid_shapes(
    image_size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> tuple[tuple[int, int], ...]:
    r"""How many rows and columns of cells each level of the pyramid has.

    .. math:: (\lceil H / s \rceil, \lceil W / s \rceil)

    Args:
        image_size: H and W, in pixels, padding included.
        strides: s of each level, in pixels.

    Returns:
        Rows and columns of each level.

    Raises:
        ValueError: if a size or stride is below 1.

    Example:
        >>> grid_shapes((100, 64), strides=(4, 8))
        ((25, 16), (13, 8))
    """
    if min(image_size) < 1:
        raise ValueError(f'image_size: got {image_size}, wanted at least a pixel a side')
    if not strides or min(strides) < 1:
        raise ValueError(f'strides: got {tuple(strides)}, wanted numbers of at least 1')
    height, width = image_size
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


def cell_anchors(size: float, ratios: Sequence[float] = RATIOS) -> NDArray[np.float32]:
    r"""The anchors of one cell, about the origin, rounded to whole pixels as torchvision's are.

    .. math:: w = s / \sqrt r, \quad h = s \sqrt r, \qquad
        \mathrm{round}(-w / 2, -h / 2, w / 2, h / 2)

    Args:
        size: s, the root of the area, in pixels.
        ratios: r, height over width, each above 0.

    Returns:
        Anchors, ``[ratios, 4]``, in pixels.

    Raises:
        ValueError: if the size or a ratio is not above 0.

    Example:
        >>> print(cell_anchors(32.0))
        [[-23. -11.  23.  11.]
         [-16. -16.  16.  16.]
         [-11. -23.  11.  23.]]
    """
    if size <= 0:
        raise ValueError(f'size: got {size}, wanted a number above 0')
    if not ratios or min(ratios) <= 0:
        raise ValueError(f'ratios: got {tuple(ratios)}, wanted numbers above 0')
    root = np.sqrt(np.asarray(ratios, np.float64))
    width, height = size / root, size * root
    return np.round(np.stack([-width, -height, width, height], 1) / 2).astype(np.float32)


def pyramid_anchors(
    image_size: tuple[int, int],
    strides: Sequence[int] = STRIDES,
    sizes: Sequence[float] = SIZES,
    ratios: Sequence[float] = RATIOS,
) -> tuple[NDArray[np.float32], ...]:
    """The anchors of all cells, level by level: rows, then columns, then ratios.

    A cell's anchors lie about its corner of least x and y, times the stride: torchvision's layout.
    torchvision divides the image by the grid for the stride, which in a level whose rows do not
    divide the image (P6 of 800 pixels: 61 in place of 64) is not the features' stride; here it is
    always theirs.

    Args:
        image_size: height and width, in pixels, padding included.
        strides: of each level, in pixels.
        sizes: the root of the anchors' area in each level, in pixels.
        ratios: height over width.

    Returns:
        Of each level the anchors, ``[rows * columns * ratios, 4]``, in pixels. They are constants,
        NumPy's, and reach beyond the image at its border.

    Raises:
        ValueError: if strides and sizes differ in number, or a number is out of its range.

    Example:
        >>> levels = pyramid_anchors((800, 1333))
        >>> [len(level) for level in levels]
        [200400, 50100, 12600, 3150, 819]

    References:
        Lin et al., Feature Pyramid Networks (arXiv 1612.03144), §4.1.
    """
    if len(strides) != len(sizes):
        raise ValueError(f'sizes: got {len(sizes)}, wanted one for each of {len(strides)} strides')
    levels = []
    for (rows, columns), stride, size in zip(
        grid_shapes(image_size, strides), strides, sizes, strict=True
    ):
        y, x = stride * np.mgrid[:rows, :columns].astype(np.float32)
        corners = np.stack([x, y, x, y], -1)[:, :, None]
        levels.append((corners + cell_anchors(size, ratios)).reshape(-1, 4))
    return tuple(levels)
