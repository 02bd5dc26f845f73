"""Which objects a trained detector finds in images, at a fixed number, and their masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from balms_jax.detection import anchors, boxes, networks, proposals, regions
from balms_jax.detection.suppression import suppress

PyTree = Any


class Limits(NamedTuple):
    """Which detections are kept."""

    detections: int
    """How many an image has at most."""
    score: float
    """The probability above which a region is a detection of a category."""
    candidates: int = 3000
    """How many pairs of region and category, by their score, are looked at."""
    threshold: float = 0.5
    """The IoU above which the better of two of a category is kept alone."""
    smallest: float = 1e-2
    """The least width and height, in pixels."""


COCO_LIMITS = Limits(100, 0.05)
LVIS_LIMITS = Limits(300, 1e-4)


class Detections(NamedTuple):
    """Of an image: best first, then padding."""

    boxes: jax.Array
    """``[detections, 4]``, in pixels of the padded image; zeros where they are padding."""
    scores: jax.Array
    """Probabilities, ``[detections]``; 0 where they are padding."""
    categories: jax.Array
    """int32, ``[detections]``"""
    masks: jax.Array
    """Probabilities over the box, ``[detections, 28, 28]``"""
    where: jax.Array
    """Which are no padding, bool, ``[detections]``"""


Infer = Callable[[PyTree, PyTree, jax.Array, jax.Array], Detections]


def make_inference(
    architecture: networks.Architecture,
    layout: anchors.Layout,
    *,
    limits: Limits = LVIS_LIMITS,
    selection: proposals.Selection = proposals.TEST,
    over_images: networks.OverImages = jax.vmap,
) -> Infer:
    """Builds the function that finds the objects of a batch of images.

    Args:
        architecture: of the detector.
        layout: of its levels and anchors.
        limits: which detections are kept.
        selection: which proposals.
        over_images: maps what is done to each image over the batch.

    Returns:
        (params, batch_stats, images ``[batch, height, width, 3]``, sizes of the images without
        their padding ``[batch, 2]``, in pixels) → detections, each with an axis of the batch. It is
        pure: ``jax.jit`` compiles it.

    Raises:
        ValueError: if a setting is out of its range.

    Example:
        >>> tiny = networks.Architecture(3, depth=10, width=4, channels=8, box_features=16)
        >>> infer = make_inference(tiny, anchors.Layout((64, 64)), limits=Limits(10, 0.0))
        >>> params, stats = jax.eval_shape(
        ...     networks.build(tiny).init, jax.random.key(0), jnp.zeros((2, 64, 64, 3)))
        >>> images, image_sizes = jnp.zeros((2, 64, 64, 3)), jnp.full((2, 2), 64.0)
        >>> found = jax.eval_shape(infer, params, stats, images, image_sizes)
        >>> found.boxes.shape, found.masks.shape
        ((2, 10, 4), (2, 10, 28, 28))

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3.1: masks of the detections alone.
    """
    detector = networks.build(architecture)
    levels_anchors = anchors.pyramid_anchors(*layout)
    read = layout.strides[:-1]  # The coarsest level is for proposals alone.

    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)[:, :-1] if architecture.background else jax.nn.sigmoid(logits)

    def of_image(
        params: PyTree,
        levels: tuple[jax.Array, ...],
        outputs: list[tuple[jax.Array, jax.Array]],
        size: jax.Array,
    ) -> Detections:
        objectness, moves = zip(*outputs, strict=True)
        proposed = proposals.propose(objectness, moves, levels_anchors, size, selection)
        pooled = regions.region_features(levels[:-1], proposed.boxes, read, networks.BOX_BINS)
        features, deltas = detector.boxes(params, pooled)
        scores = probabilities(detector.logits(params, features))
        scores = jnp.where(proposed.where[:, None], scores, 0)
        found, scores, categories, where = select(scores, deltas, proposed.boxes, size, limits)
        pooled = regions.region_features(levels[:-1], found, read, networks.MASK_BINS)
        masks = networks.of_category(detector.masks(params, pooled), categories)
        return Detections(found, scores, categories, jax.nn.sigmoid(masks), where)

    def infer(
        params: PyTree, batch_stats: PyTree, images: jax.Array, sizes: jax.Array
    ) -> Detections:
        levels, _ = detector.pyramid(params, batch_stats, images, False)
        outputs = detector.proposals(params, levels)
        over_batch = over_images(of_image, in_axes=(None, 0, 0, 0))
        found: Detections = over_batch(params, levels, outputs, sizes)
        return found

    return infer


def select(
    scores: jax.Array,
    deltas: jax.Array,
    proposed: jax.Array,
    size: jax.Array | tuple[float, float],
    limits: Limits,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Turns the second stage's outputs of an image into detections.

    A region may be a detection of several categories. Suppression is within a category.

    Args:
        scores: probabilities, ``[regions, categories]``; 0 where a region is padding.
        deltas: ``[regions, categories or 1, 4]``, as ``boxes.encode`` with ``REGION_WEIGHTS``.
        proposed: the regions, ``[regions, 4]``, in pixels.
        size: height and width of the image without its padding, ``[2]``, in pixels.
        limits: which are kept.

    Returns:
        Boxes ``[detections, 4]``, scores, categories, and which are no padding, as in
        :class:`Detections`; as many as ``limits.detections``, or as there are pairs if those are
        fewer.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> scores = jnp.array([[0.9, 0.2], [0.8, 0.6]])
        >>> proposed = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]])
        >>> found = select(scores, jnp.zeros((2, 1, 4)), proposed, (8, 8), Limits(3, 0.3))
        >>> print(found[1], found[2])
        [0.9 0.6 0. ] [0 1 0]

    References:
        Girshick, Fast R-CNN (arXiv 1504.08083), §2.4; torchvision's ``postprocess_detections``.
    """
    number, categories = scores.shape
    if proposed.shape != (number, 4) or deltas.shape[:1] + deltas.shape[2:] != (number, 4):
        raise ValueError(
            f'scores: got shape {scores.shape} for regions {proposed.shape} and deltas '
            f'{deltas.shape}, wanted [regions, categories], [regions, 4], [regions, …, 4]'
        )
    best, pairs = jax.lax.top_k(scores.ravel(), min(limits.candidates, scores.size))
    region, category = pairs // categories, pairs % categories
    moves = networks.of_category(deltas[region], category)
    found = boxes.clip(boxes.decode(moves, proposed[region], boxes.REGION_WEIGHTS), size)
    kept = suppress(
        found,
        best,
        limits.threshold,
        min(limits.detections, best.shape[0]),
        groups=category,
        where=(best > limits.score) & boxes.have_size(found, limits.smallest),
    )
    return (
        jnp.where(kept.where[:, None], found[kept.indices], 0),
        jnp.where(kept.where, best[kept.indices], 0),
        jnp.where(kept.where, category[kept.indices], 0).astype(jnp.int32),
        kept.where,
    )
