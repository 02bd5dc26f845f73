"""What anchors and regions are to predict: labels, deltas, categories and masks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.detection import boxes, matching, regions
from balms_jax.detection.proposals import Proposals

NO_CATEGORY = -1  # Of background and padding.


class Objects(NamedTuple):
    """The ground truth of an image, padded to a fixed number of objects."""

    boxes: jax.Array
    """``[objects, 4]``, in pixels"""
    categories: jax.Array
    """0 to C − 1, int32, ``[objects]``"""
    masks: jax.Array
    """1 where the object is and 0 elsewhere, any real type or bool, ``[objects, rows, columns]``"""
    frames: jax.Array
    """The box that a mask's rows and columns cover, ``[objects, 4]``, in pixels: the image, or the
    object's own box. Outside of it the mask is 0."""
    where: jax.Array
    """Which are no padding, bool, ``[objects]``"""
    crowd: jax.Array
    """Which are crowds, that nothing is matched to, bool, ``[objects]``"""


class AnchorTargets(NamedTuple):
    """The anchors that a step learns from, and what they are to predict."""

    indices: jax.Array
    """Of the anchors, int32, ``[size]``"""
    labels: jax.Array
    """``FOREGROUND``, ``BACKGROUND``, or ``IGNORED`` for padding, int32, ``[size]``"""
    deltas: jax.Array
    """To the matched objects, ``[size, 4]``; of no meaning but in the foreground."""


def anchor_targets(
    key: jax.Array, anchors: ArrayLike, objects: Objects, size: int = 256, fraction: float = 0.5
) -> AnchorTargets:
    """Matches all anchors of an image and draws those that a step learns from.

    Args:
        key: a PRNG key.
        anchors: of all levels, ``[anchors, 4]``, in pixels.
        objects: the image's ground truth.
        size: how many are drawn.
        fraction: of foreground at most.

    Returns:
        The targets.

    Raises:
        ValueError: if there are fewer anchors than are drawn, or a shape does not fit.

    Example:
        >>> box = jnp.array([[0.0, 0.0, 8.0, 8.0]])
        >>> true, false = jnp.array([True]), jnp.array([False])
        >>> objects = Objects(box, jnp.array([2]), jnp.ones((1, 8, 8)), box, true, false)
        >>> anchors = jnp.array([[0.0, 0.0, 8, 8], [0, 0, 8, 7], [90, 0, 98, 8]])
        >>> targets = anchor_targets(jax.random.key(0), anchors, objects, size=2)
        >>> print(targets.labels)
        [1 0]

    References:
        Ren et al., Faster R-CNN (arXiv 1506.01497), §3.1.2 and §3.1.3.
    """
    anchors = jnp.asarray(anchors)
    match = matching.match(
        anchors,
        objects.boxes,
        matching.ANCHOR_THRESHOLDS,
        where=objects.where,
        crowd=objects.crowd,
    )
    drawn = matching.sample(key, match.labels, size, fraction)
    matched = objects.boxes[match.objects[drawn.indices]]
    deltas = boxes.encode(matched, anchors[drawn.indices], boxes.PROPOSAL_WEIGHTS)
    return AnchorTargets(drawn.indices, drawn.labels, deltas)


class RegionTargets(NamedTuple):
    """The regions that a step learns from, foreground first, and what they are to predict."""

    regions: jax.Array
    """``[size, 4]``, in pixels"""
    labels: jax.Array
    """``FOREGROUND``, ``BACKGROUND``, or ``IGNORED`` for padding, int32, ``[size]``"""
    categories: jax.Array
    """0 to C − 1, and ``NO_CATEGORY`` but in the foreground, int32, ``[size]``"""
    deltas: jax.Array
    """To the matched objects, ``[size, 4]``; of no meaning but in the foreground."""
    objects: jax.Array
    """The matched objects, int32, ``[size]``; of no meaning but in the foreground."""


def region_targets(
    key: jax.Array,
    proposals: Proposals,
    objects: Objects,
    size: int = 512,
    fraction: float = 0.25,
) -> RegionTargets:
    """Matches an image's proposals, and its objects themselves, and draws regions to learn from.

    Args:
        key: a PRNG key.
        proposals: of the first stage.
        objects: the image's ground truth. Their boxes are regions too, so that there is foreground
            from the first step on.
        size: how many are drawn.
        fraction: of foreground at most.

    Returns:
        The targets. The first ``matching.foreground_slots(size, fraction)`` hold all foreground.

    Raises:
        ValueError: if there are fewer proposals and objects than are drawn, or a shape does not
            fit.

    Example:
        >>> box = jnp.array([[0.0, 0.0, 8.0, 8.0]])
        >>> true, false = jnp.array([True]), jnp.array([False])
        >>> objects = Objects(box, jnp.array([2]), jnp.ones((1, 8, 8)), box, true, false)
        >>> proposals = Proposals(jnp.array([[20.0, 0.0, 30.0, 9.0]]), jnp.zeros(1), true)
        >>> targets = region_targets(jax.random.key(0), proposals, objects, size=2, fraction=0.5)
        >>> print(targets.regions, targets.categories)
        [[ 0.  0.  8.  8.]
         [20.  0. 30.  9.]] [ 2 -1]

    References:
        Girshick, Fast R-CNN (arXiv 1504.08083), §2.3; He et al., Mask R-CNN (arXiv 1703.06870),
        §3.1; objects among the proposals: torchvision's ``add_gt_proposals``.
    """
    candidates = jnp.concatenate([proposals.boxes, objects.boxes])
    is_candidate = jnp.concatenate([proposals.where, objects.where & ~objects.crowd])
    match = matching.match(
        candidates,
        objects.boxes,
        matching.REGION_THRESHOLDS,
        where=objects.where,
        crowd=objects.crowd,
    )
    labels = jnp.where(is_candidate, match.labels, matching.IGNORED)
    drawn = matching.sample(key, labels, size, fraction)
    chosen, matched = candidates[drawn.indices], match.objects[drawn.indices]
    is_foreground = drawn.labels == matching.FOREGROUND
    return RegionTargets(
        chosen,
        drawn.labels,
        jnp.where(is_foreground, objects.categories[matched], NO_CATEGORY),
        boxes.encode(objects.boxes[matched], chosen, boxes.REGION_WEIGHTS),
        matched,
    )


def mask_targets(
    objects: Objects,
    matched: jax.Array,
    chosen: jax.Array,
    size: int = 28,
    samples: int = regions.SAMPLES,
) -> jax.Array:
    r"""The matched object's mask within each region, as RoIAlign reads it.

    A pixel's value stands at its index, as torchvision has it. In a frame of scale s cells a pixel
    that begins at f, what stands at p is read from cell :math:`s (p + 1/2 - f) - 1/2`.

    Args:
        objects: the image's ground truth.
        matched: of each region, int, ``[regions]``.
        chosen: the regions, ``[regions, 4]``, in pixels.
        size: rows and columns of a target.
        samples: of a target's cell along each axis. torchvision takes as many as the cell has
            pixels.

    Returns:
        The part of each cell that is covered, in 0..1, float32, ``[regions, size, size]``.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> mask = jnp.zeros((1, 16, 16)).at[0, :, 8:].set(1)  # The right half of the image.
        >>> frame, true = jnp.array([[0.0, 0.0, 16.0, 16.0]]), jnp.array([True])
        >>> objects = Objects(frame, jnp.array([0]), mask, frame, true, ~true)
        >>> region = jnp.array([[4.0, 4.0, 12.0, 12.0]])
        >>> print(mask_targets(objects, jnp.array([0]), region, size=4, samples=1)[0])
        [[0. 0. 1. 1.]
         [0. 0. 1. 1.]
         [0. 0. 1. 1.]
         [0. 0. 1. 1.]]

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3.1; torchvision's ``project_masks_on_boxes``.
    """
    _, rows, columns = objects.masks.shape
    x0, y0, x1, y1 = chosen.T
    left, top, right, bottom = objects.frames[matched].T

    def along(
        start: jax.Array, end: jax.Array, first: jax.Array, last: jax.Array, cells: int
    ) -> regions.AxisSamples:
        scale = cells / jnp.where(last > first, last - first, 1)
        begins = scale * (start + 0.5 - first) - 0.5
        return regions.sample_axis(
            begins, scale * jnp.maximum(end - start, 1), cells, size, samples
        )

    y, x = along(y0, y1, top, bottom, rows), along(x0, x1, left, right, columns)
    read = objects.masks[
        matched[:, None, None, None, None],
        y.cells[:, :, None, :, None],
        x.cells[:, None, :, None, :],
    ]
    weights = y.weights[:, :, None, :, None] * x.weights[:, None, :, None, :]
    return (read.astype(jnp.float32) * weights).sum((3, 4))
