"""Proposals: the boxes that the first stage takes for objects of any class."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.detection import boxes
from balms_jax.detection.suppression import suppress


class Selection(NamedTuple):
    """How many proposals there are, and which."""

    per_level: int
    """How many of a level's anchors, by their objectness, are looked at."""
    outputs: int
    """How many proposals an image has at most, over all levels."""
    threshold: float = 0.7
    """The IoU above which the better of two proposals of a level is kept alone."""
    smallest: float = 1e-3
    """The least width and height of a proposal, in pixels."""


TRAINING = Selection(per_level=2000, outputs=2000)
TEST = Selection(per_level=1000, outputs=1000)


class Proposals(NamedTuple):
    """Boxes, best first, then padding."""

    boxes: jax.Array
    """``[proposals, 4]``, in pixels; zeros where they are padding."""
    scores: jax.Array
    """The logit that there is an object, ``[proposals]``; −inf where they are padding."""
    where: jax.Array
    """Which are no padding, bool, ``[proposals]``"""


def propose(
    objectness: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[ArrayLike],
    size: ArrayLike | tuple[float, float],
    selection: Selection = TRAINING,
) -> Proposals:
    """Turns the outputs of the region proposal network into proposals, without a gradient.

    Of every level the best anchors, moved by their deltas, cut to the image, without slivers, and
    after non-maximum suppression within the level; then the best of all levels.

    Args:
        objectness: of every level the logits, ``[anchors]``.
        deltas: of every level, ``[anchors, 4]``, as ``boxes.encode`` with ``PROPOSAL_WEIGHTS``.
        anchors: of every level, ``[anchors, 4]``, in pixels.
        size: height and width of the image without its padding, ``[2]``, in pixels.
        selection: how many, and which.

    Returns:
        The proposals: as many as ``selection.outputs``, or as all levels look at if those are
        fewer.

    Raises:
        ValueError: if the levels differ in number or shapes do not fit.

    Example:
        >>> anchors = jnp.array([[0.0, 0.0, 8, 8], [0, 0, 8, 9], [8, 8, 16, 16]])
        >>> logits, deltas = jnp.array([1.0, 2.0, 0.0]), jnp.zeros((3, 4))
        >>> print(propose([logits], [deltas], [anchors], (12, 12)).boxes)
        [[ 0.  0.  8.  9.]
         [ 8.  8. 12. 12.]
         [ 0.  0.  0.  0.]]

    References:
        Ren et al., Faster R-CNN (arXiv 1506.01497), §3.3; levels: Lin et al., Feature Pyramid
        Networks (arXiv 1612.03144), §4.1; torchvision's ``filter_proposals``.
    """
    if not len(objectness) == len(deltas) == len(anchors) or not anchors:
        raise ValueError(
            f'anchors: got {len(anchors)} levels, wanted as many as objectness ({len(objectness)}) '
            f'and deltas ({len(deltas)})'
        )
    objectness, deltas = jax.lax.stop_gradient((tuple(objectness), tuple(deltas)))
    levels = [
        _of_level(logits, moves, around, size, selection)
        for logits, moves, around in zip(objectness, deltas, anchors, strict=True)
    ]
    found, scores = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    scores, best = jax.lax.top_k(scores, min(selection.outputs, scores.shape[0]))
    where = scores > -jnp.inf
    return Proposals(jnp.where(where[:, None], found[best], 0), scores, where)


def _of_level(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: ArrayLike,
    size: ArrayLike | tuple[float, float],
    selection: Selection,
) -> tuple[jax.Array, jax.Array]:
    """Boxes ``[level's proposals, 4]`` and logits, −inf where there is none."""
    anchors = jnp.asarray(anchors)
    if logits.ndim != 1 or deltas.shape != (*logits.shape, 4) or anchors.shape != deltas.shape:
        raise ValueError(
            f'anchors: got shape {anchors.shape} for objectness {logits.shape} and deltas '
            f'{deltas.shape}, wanted [anchors, 4], [anchors] and [anchors, 4]'
        )
    logits, best = jax.lax.top_k(logits, min(selection.per_level, logits.shape[0]))
    moved = boxes.decode(deltas[best], anchors[best], boxes.PROPOSAL_WEIGHTS)
    found = boxes.clip(moved, size)
    kept = suppress(
        found,
        logits,
        selection.threshold,
        min(selection.outputs, logits.shape[0]),
        where=boxes.have_size(found, selection.smallest),
    )
    return found[kept.indices], jnp.where(kept.where, logits[kept.indices], -jnp.inf)
