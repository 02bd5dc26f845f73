"""Which candidate stands for which object, and which of them a step learns from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.detection import boxes

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


class Thresholds(NamedTuple):
    """From which overlap on a candidate is foreground or ignored."""

    foreground: float
    """IoU with an object from which a candidate is foreground."""
    background: float
    """IoU with every object below which it is background; between the two it is ignored."""
    best_of_object: bool
    """Whether those that overlap an object most are foreground at any IoU above 0."""
    crowd: float = 0.7
    """The part of a candidate within a crowd from which it is no background, but ignored."""


ANCHOR_THRESHOLDS = Thresholds(0.7, 0.3, best_of_object=True)
REGION_THRESHOLDS = Thresholds(0.5, 0.5, best_of_object=False)


class Match(NamedTuple):
    """What each candidate is taken for."""

    labels: jax.Array
    """``FOREGROUND``, ``BACKGROUND`` or ``IGNORED``, int32, ``[candidates]``"""
    objects: jax.Array
    """The object that it overlaps most, int32, ``[candidates]``; 0 where it overlaps none."""


def match(
    candidates: ArrayLike,
    objects: ArrayLike,
    thresholds: Thresholds,
    *,
    where: ArrayLike | None = None,
    crowd: ArrayLike | None = None,
) -> Match:
    r"""Matches each anchor or proposal to the object that it overlaps most.

    .. math:: g_i = \arg\max_j IoU_{ij}, \qquad
        label_i = \begin{cases}
            1 & \max_j IoU_{ij} \ge t_{fg} \text{ or }
                IoU_{ij} = \max_k IoU_{kj} > 0 \text{ for some } j \\
            0 & \text{else if } \max_j IoU_{ij} < t_{bg} \text{ and not within a crowd} \\
            -1 & \text{else} \end{cases}

    The second way to be foreground is that of ``best_of_object``; candidates that tie for an object
    are all foreground, each for the object that it overlaps most itself. Of objects that tie the
    first is taken.

    Args:
        candidates: boxes, ``[candidates, 4]``, in pixels.
        objects: boxes of the ground truth, ``[objects, 4]``, in pixels, at least one row.
        thresholds: ``ANCHOR_THRESHOLDS``, ``REGION_THRESHOLDS`` or others.
        where: which objects are no padding, bool, ``[objects]``; all if None.
        crowd: which objects are crowds, which nothing is matched to, bool, ``[objects]``; none if
            None.

    Returns:
        The match of each candidate.

    Raises:
        ValueError: if a shape does not fit, or the thresholds are no order of numbers in 0..1.

    Example:
        >>> objects = jnp.array([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
        >>> candidates = jnp.array([[0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 26.0, 10.0],
        ...                         [20.0, 0.0, 25.0, 10.0], [50.0, 0.0, 60.0, 10.0]])
        >>> found = match(candidates, objects, ANCHOR_THRESHOLDS)  # IoU 0.8, 0.6, 0.5 and 0
        >>> print(found.labels, found.objects)
        [ 1  1 -1  0] [0 1 1 0]

    References:
        Ren et al., Faster R-CNN (arXiv 1506.01497), §3.1.2; torchvision's ``Matcher``, which
        takes every candidate for the best of an object that none overlaps; crowds: Detectron's
        ``CROWD_FILTER_THRESH``.
    """
    if not 0 <= thresholds.background <= thresholds.foreground <= 1:
        raise ValueError(f'thresholds: got {thresholds}, wanted 0 ≤ background ≤ foreground ≤ 1')
    number = jnp.shape(objects)[:1]
    is_object = jnp.ones(number, bool) if where is None else jnp.asarray(where)
    is_crowd = jnp.zeros(number, bool) if crowd is None else jnp.asarray(crowd)
    for name, mask in (('where', is_object), ('crowd', is_crowd)):
        if mask.shape != number:
            raise ValueError(f'{name}: got shape {mask.shape}, wanted [objects] {number}')
    # Computed once: were it fused into both the maximum and the comparison with it, their roundings
    # might differ.
    overlap = jax.lax.optimization_barrier(
        boxes.iou(candidates, objects, where=is_object & ~is_crowd)
    )
    best = overlap.max(1)
    foreground = best >= thresholds.foreground
    if thresholds.best_of_object:
        best_of_object = overlap.max(0, keepdims=True)
        foreground |= ((overlap == best_of_object) & (best_of_object > 0)).any(1)
    background = best < thresholds.background
    if crowd is not None:
        within_crowd = boxes.coverage(candidates, objects, where=is_object & is_crowd).max(1)
        background &= within_crowd < thresholds.crowd
    labels = jnp.where(foreground, FOREGROUND, jnp.where(background, BACKGROUND, IGNORED))
    return Match(labels.astype(jnp.int32), overlap.argmax(1).astype(jnp.int32))


class Sample(NamedTuple):
    """The candidates that a step learns from: foreground first, then background, then padding."""

    indices: jax.Array
    """Of the candidates, int32, ``[size]``"""
    labels: jax.Array
    """``FOREGROUND``, ``BACKGROUND``, or ``IGNORED`` for padding, int32, ``[size]``"""


def foreground_slots(size: int, fraction: float) -> int:
    """How many candidates of a sample are foreground at most: the first ones.

    Args:
        size: of the sample.
        fraction: in 0..1.

    Returns:
        The number, rounded down.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> foreground_slots(512, 0.25)
        128
    """
    if size < 1:
        raise ValueError(f'size: got {size}, wanted at least 1')
    if not 0 <= fraction <= 1:
        raise ValueError(f'fraction: got {fraction}, wanted a number in 0..1')
    return int(size * fraction)


def sample(key: jax.Array, labels: ArrayLike, size: int, fraction: float) -> Sample:
    r"""Draws candidates without replacement, foreground up to a fraction, background for the rest.

    .. math:: n_{fg} = \min(N_{fg}, \lfloor fraction \cdot size \rfloor), \qquad
        n_{bg} = \min(N_{bg}, size - n_{fg})

    Within each of the two, every candidate is as likely as any other.

    Args:
        key: a PRNG key.
        labels: of each candidate, as :func:`match` gives it, ``[candidates]``; others than
            ``FOREGROUND`` and ``BACKGROUND`` are never drawn.
        size: how many are drawn: 256 anchors, 512 regions; at most as many as there are.
        fraction: of foreground at most: 0.5 of the anchors, 0.25 of the regions.

    Returns:
        The sample.

    Raises:
        ValueError: if the size is above the number of candidates or an argument out of its range.

    Example:
        >>> drawn = sample(jax.random.key(0), jnp.array([0, -1, 1, 1, 0, 1]), 4, 0.5)
        >>> print(drawn.labels, sorted(drawn.indices[2:].tolist()))
        [1 1 0 0] [0, 4]

    References:
        Girshick, Fast R-CNN (arXiv 1504.08083), §2.3; Ren et al., Faster R-CNN, §3.1.3.
    """
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or size > labels.shape[0]:
        raise ValueError(f'size: got {size} of labels {labels.shape}, wanted at most [candidates]')
    priority = jax.random.uniform(key, labels.shape)

    def draw(which: int, number: int) -> tuple[jax.Array, jax.Array]:
        drawn, index = jax.lax.top_k(jnp.where(labels == which, priority, -1), number)
        return index, jnp.where(drawn >= 0, which, IGNORED)

    index, drawn = draw(FOREGROUND, foreground_slots(size, fraction))
    left = size - (drawn == FOREGROUND).sum()
    background_index, background = draw(BACKGROUND, size)
    background = jnp.where(jnp.arange(size) < left, background, IGNORED)
    index = jnp.concatenate([index, background_index])
    drawn = jnp.concatenate([drawn, background])
    order = jnp.argsort(drawn == IGNORED, stable=True)[:size]
    return Sample(index[order].astype(jnp.int32), drawn[order].astype(jnp.int32))
