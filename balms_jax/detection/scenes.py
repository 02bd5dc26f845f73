"""Drawn scenes with a long tail of categories: a detector's own small world, without downloads.

A category is a shape in a pattern, such as a red ring. Scenes hold several objects, which hide
parts of each other; a few categories have most of the objects.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balms_jax.data.long_tail import exponential_profile

SHAPES = ('disc', 'square', 'triangle', 'cross', 'ring', 'diamond')
PATTERNS = ('red', 'green', 'blue', 'banded', 'striped', 'checkered')
CATEGORIES = tuple(f'{pattern} {shape}' for shape in SHAPES for pattern in PATTERNS)
# Which is the most frequent category, and so on: any six in a row have all shapes and patterns.
FREQUENCY_ORDER = np.array([6 * (k % 6) + (k + k // 6) % 6 for k in range(36)])
RADII = (0.1, 0.22)  # The range of an object's size, in sides of the image.
LEAST_VISIBLE = 0.4  # The part of each object that others should leave in sight.
PLACES = 20  # How many are tried for it.


class Scene(NamedTuple):
    """An image and what is to be found in it."""

    image: NDArray[np.uint8]
    """``[side, side, 3]``"""
    categories: NDArray[np.int32]
    """Of each object the index in ``CATEGORIES``, ``[objects]``"""
    masks: NDArray[np.bool_]
    """The part of each object that is in sight, ``[objects, side, side]``"""
    boxes: NDArray[np.float32]
    """About each mask, ``[objects, 4]``, in pixels"""


def long_tailed_counts(head_count: int, imbalance_factor: float = 200.0) -> NDArray[np.int64]:
    """How many objects of each category there are, with a long tail.

    Args:
        head_count: objects of the most frequent category, at least the imbalance factor.
        imbalance_factor: of the most to the least frequent category.

    Returns:
        Counts, ``[categories]``, in the order of ``CATEGORIES``.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> counts = long_tailed_counts(400)
        >>> int(counts.max()), int(counts.min()), len(counts)
        (400, 2, 36)
        >>> CATEGORIES[counts.argmax()]
        'red disc'
    """
    counts = np.empty(len(CATEGORIES), np.int64)
    counts[FREQUENCY_ORDER] = exponential_profile(head_count, len(CATEGORIES), imbalance_factor)
    return counts


def scenes(seed: int, counts: ArrayLike, side: int = 64, most_objects: int = 5) -> Iterator[Scene]:
    """Deals objects, as many of each category as asked, over scenes.

    Args:
        seed: of everything drawn: the same seed gives the same scenes.
        counts: objects of each category, ``[categories]``: :func:`long_tailed_counts` for training,
            as many of each for a balanced test.
        side: of the images, in pixels, at least 32.
        most_objects: a scene has one to as many objects, each number as often.

    Yields:
        Scenes, until all objects are dealt.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> drawn = list(scenes(0, np.ones(36, int)))
        >>> sorted(int(c) for scene in drawn for c in scene.categories) == list(range(36))
        True
        >>> drawn[0].image.shape, drawn[0].masks.shape[1:]
        ((64, 64, 3), (64, 64))
    """
    counts = np.asarray(counts)
    if counts.shape != (len(CATEGORIES),) or counts.min() < 0:
        raise ValueError(
            f'counts: got {counts.tolist()}, wanted {len(CATEGORIES)} numbers of at least 0'
        )
    if side < 32:
        raise ValueError(f'side: got {side}, wanted at least 32 pixels')
    if most_objects < 1:
        raise ValueError(f'most_objects: got {most_objects}, wanted at least 1')
    random = np.random.default_rng(seed)
    dealt = random.permutation(np.repeat(np.arange(len(CATEGORIES)), counts))
    begin = 0
    while begin < len(dealt):
        end = begin + int(random.integers(1, most_objects, endpoint=True))
        yield _draw(random, dealt[begin:end].astype(np.int32), side)
        begin = end


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The smallest box about each mask.

    Args:
        masks: ``[objects, rows, columns]``.

    Returns:
        Boxes, ``[objects, 4]``, in pixels; zeros for an empty mask.

    Example:
        >>> mask = np.zeros((1, 8, 8), bool)
        >>> mask[0, 2:5, 1:7] = True
        >>> boxes_of(mask)
        array([[1., 2., 7., 5.]], dtype=float32)
    """
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _draw(random: np.random.Generator, categories: NDArray[np.int32], side: int) -> Scene:
    """One object after another, each over those before it."""
    image = _ground(random, side)
    whole = np.zeros((0, side, side), bool)
    visible = whole
    for category in categories:
        u, v, mask = _place(random, SHAPES[category // len(PATTERNS)], whole, visible)
        color = _paint(random, PATTERNS[category % len(PATTERNS)], u, v)
        image[mask] = color[mask]
        whole = np.concatenate([whole, mask[None]])
        visible = np.concatenate([visible & ~mask, mask[None]])
    noise = random.normal(0, 8, image.shape)
    pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    return Scene(pixels, categories, visible, boxes_of(visible))


def _ground(random: np.random.Generator, side: int) -> NDArray[np.float64]:
    """A grey that changes across the image."""
    first, second = random.uniform(60, 190, (2, 3))
    slope = np.linspace(0, 1, side)[:, None, None]
    return np.broadcast_to(first + slope * (second - first), (side, side, 3)).copy()


def _place(
    random: np.random.Generator,
    shape: str,
    whole: NDArray[np.bool_],
    visible: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """The first of several places that leaves enough of each object in sight, else the best."""
    side, areas, best = whole.shape[1], whole.sum((1, 2)), -1.0
    y, x = np.mgrid[:side, :side] + 0.5
    for _ in range(PLACES):
        radius = side * random.uniform(*RADII)
        centre_x, centre_y = random.uniform(radius, side - radius, 2)
        u, v = (x - centre_x) / radius, (y - centre_y) / radius
        mask = _covered(shape, u, v)
        left = ((visible & ~mask).sum((1, 2)) / areas).min(initial=1.0)
        if left > best:
            best, found = left, (u, v, mask)
        if best >= LEAST_VISIBLE:
            break
    return found


def _covered(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a shape of radius 1 about the origin is."""
    radius, farther = np.hypot(u, v), np.maximum(abs(u), abs(v))
    return {
        'disc': radius < 1,
        'square': farther < 0.85,
        'triangle': (v < 0.8) & (abs(u) < (v + 1) / 1.8),
        'cross': (farther < 1) & (np.minimum(abs(u), abs(v)) < 0.35),
        'ring': (radius < 1) & (radius > 0.55),
        'diamond': abs(u) + abs(v) < 1.1,
    }[shape]


def _paint(
    random: np.random.Generator, pattern: str, u: NDArray[np.float64], v: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The colour of every pixel, ``[side, side, 3]``."""
    plain = {'red': (220, 40, 40), 'green': (40, 200, 40), 'blue': (40, 60, 230)}
    if pattern in plain:
        color = np.broadcast_to(np.array(plain[pattern], np.float64), (*u.shape, 3))
    else:
        bands, stripes = np.floor(3 * v).astype(int), np.floor(3 * u).astype(int)
        field = {'banded': bands, 'striped': stripes, 'checkered': bands + stripes}[pattern]
        color = np.where((field % 2 == 0)[..., None], (240.0, 220.0, 30.0), (20.0, 20.0, 20.0))
    return color + random.uniform(-20, 20, 3)
