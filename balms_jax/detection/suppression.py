"""Non-maximum suppression: of boxes that overlap, the best scored alone is kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.detection import boxes


class Kept(NamedTuple):
    """The boxes that are kept, best scored first, then padding."""

    indices: jax.Array
    """Of the boxes, int32, ``[outputs]``"""
    where: jax.Array
    """Which are no padding, bool, ``[outputs]``"""


def suppress(
    candidates: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    outputs: int,
    *,
    groups: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Kept:
    r"""Greedy non-maximum suppression, exactly, at a fixed size.

    With boxes in falling order of their scores, equal ones in that of their indices,

    .. math:: k_i = 1 - \max_{j < i} \, k_j \, 1[IoU_{ij} > t] \, 1[g_i = g_j]

    One solution has this equation, for k₁ decides k₂, both decide k₃, and so on: the greedy one. It
    is found by putting k into the right side until nothing changes. Each time at least one more of
    the leading k is final; a few rounds do, as many as the longest chain of boxes of which each
    suppresses the next. A round costs boxes × boxes, all in parallel.

    Args:
        candidates: boxes, ``[boxes, 4]``, in pixels.
        scores: ``[boxes]``, of any unit.
        threshold: t, the IoU above which one box suppresses another, in 0..1.
        outputs: how many are kept at most, at most as many as there are boxes.
        groups: g, an integer each, ``[boxes]``: boxes of different groups, such as classes, do not
            suppress each other; one group if None.
        where: which boxes are no padding, bool, ``[boxes]``; all if None.

    Returns:
        The kept boxes.

    Raises:
        ValueError: if shapes do not fit, or a number is out of its range.

    Example:
        >>> candidates = jnp.array([[0.0, 0.0, 4, 4], [0, 0, 4, 3], [8, 0, 9, 1]])
        >>> scores = jnp.array([0.8, 0.9, 0.1])
        >>> kept = suppress(candidates, scores, 0.5, outputs=3)
        >>> print(kept.indices[kept.where])
        [1 2]
        >>> kept = suppress(candidates, scores, 0.5, outputs=3, groups=jnp.array([0, 1, 0]))
        >>> print(kept.indices)
        [1 0 2]

    References:
        Felzenszwalb et al., Object Detection with Discriminatively Trained Part Based Models
        (TPAMI 2010), §7.2; the same boxes as torchvision's ``nms`` and ``batched_nms``.
    """
    scores = jnp.asarray(scores)
    number = scores.shape
    if jnp.shape(candidates) != (*number, 4) or scores.ndim != 1:
        raise ValueError(
            f'scores: got shape {number} for boxes {jnp.shape(candidates)}, wanted one a box'
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold: got {threshold}, wanted an IoU in 0..1')
    if not 1 <= outputs <= number[0]:
        raise ValueError(f'outputs: got {outputs}, wanted 1 to the number of boxes, {number[0]}')
    groups = jnp.zeros(number, jnp.int32) if groups is None else jnp.asarray(groups)
    is_box = jnp.ones(number, bool) if where is None else jnp.asarray(where)
    for name, array in (('groups', groups), ('where', is_box)):
        if array.shape != number:
            raise ValueError(f'{name}: got shape {array.shape}, wanted [boxes] {number}')
    order = jnp.argsort(-scores, stable=True)
    ordered, groups, is_box = jnp.asarray(candidates)[order], groups[order], is_box[order]
    rank = jnp.arange(number[0])
    suppresses = (
        (boxes.iou(ordered, ordered) > threshold)
        & (groups[:, None] == groups[None, :])
        & (rank[:, None] < rank[None, :])
    )
    keep = _fixed_point(suppresses, is_box)
    first = jnp.argsort(~keep, stable=True)[:outputs]
    return Kept(order[first].astype(jnp.int32), keep[first])


def _fixed_point(suppresses: jax.Array, is_box: jax.Array) -> jax.Array:
    """Which are kept: those that no kept one before them suppresses, bool, ``[boxes]``."""

    def refine(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        refined = is_box & ~(suppresses & keep[:, None]).any(0)
        return refined, (refined != keep).any()

    return jax.lax.while_loop(lambda state: state[1], refine, (is_box, jnp.array(True)))[0]
