"""Boxes: their areas and overlaps, and how one box is told relative to another.

A box is (x₀, y₀, x₁, y₁) in pixels: x to the right, y down, edges at whole numbers lie between
pixels, so that width and height are x₁ − x₀ and y₁ − y₀. Padding is a box of zeros.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Weights = tuple[float, float, float, float]
PROPOSAL_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)  # of anchors to proposals
REGION_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # of proposals to detections
MAX_LOG_SCALE = math.log(1000 / 16)  # So that an untrained network's exponential stays finite.


def areas(boxes: ArrayLike) -> jax.Array:
    r"""The areas of boxes.

    .. math:: A = \max(x_1 - x_0, 0) \, \max(y_1 - y_0, 0)

    Args:
        boxes: ``[..., 4]``, in pixels.

    Returns:
        A, ``[...]``, in square pixels; 0 for a box turned inside out.

    Raises:
        ValueError: if the last axis is not of four numbers.

    Example:
        >>> print(areas(jnp.array([[0.0, 0.0, 2.0, 3.0], [4.0, 0.0, 2.0, 3.0]])))
        [6. 0.]
    """
    x0, y0, x1, y1 = _corners(boxes, 'boxes')
    return jnp.maximum(x1 - x0, 0) * jnp.maximum(y1 - y0, 0)


def intersections(boxes: ArrayLike, others: ArrayLike) -> jax.Array:
    r"""The area that each box shares with each other box.

    .. math:: I_{ij} = |B_i \cap B_j|

    Args:
        boxes: ``[boxes, 4]``, in pixels.
        others: ``[others, 4]``, in pixels.

    Returns:
        I, ``[boxes, others]``, in square pixels.

    Raises:
        ValueError: if an argument is not of rows of four numbers.

    Example:
        >>> box, other = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 1.0, 3.0, 3.0]])
        >>> print(intersections(box, other))
        [[1.]]
    """
    x0, y0, x1, y1 = (side[:, None] for side in _corners(boxes, 'boxes', rank=2))
    u0, v0, u1, v1 = (side[None, :] for side in _corners(others, 'others', rank=2))
    width = jnp.minimum(x1, u1) - jnp.maximum(x0, u0)
    height = jnp.minimum(y1, v1) - jnp.maximum(y0, v0)
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def iou(boxes: ArrayLike, others: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    r"""Intersection over union of each box with each other box.

    .. math:: IoU_{ij} = \frac{|B_i \cap B_j|}{|B_i| + |B_j| - |B_i \cap B_j|}

    Args:
        boxes: ``[boxes, 4]``, in pixels.
        others: ``[others, 4]``, in pixels.
        where: which of the others are no padding, bool, ``[others]``; all if None.

    Returns:
        IoU, ``[boxes, others]``, in 0..1; 0 with a box without area, and with padding.

    Raises:
        ValueError: if a shape does not fit.

    Example:
        >>> box, others = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 4.0]])
        >>> print(iou(box, others), iou(box, others, where=jnp.array([False])))
        [[0.5]] [[0.]]

    References:
        Everingham et al., The Pascal Visual Object Classes Challenge (IJCV 2010), Eqn. 3.
    """
    shared = intersections(boxes, others)
    union = areas(boxes)[:, None] + areas(others)[None, :] - shared
    return _where(_ratio(shared, union), where)


def coverage(boxes: ArrayLike, others: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    r"""The part of each box that lies within each other box: what tells a box within a crowd.

    .. math:: c_{ij} = \frac{|B_i \cap B_j|}{|B_i|}

    Args:
        boxes: ``[boxes, 4]``, in pixels.
        others: ``[others, 4]``, in pixels.
        where: which of the others are no padding, bool, ``[others]``; all if None.

    Returns:
        c, ``[boxes, others]``, in 0..1; 0 for a box without area, and with padding.

    Raises:
        ValueError: if a shape does not fit.

    Example:
        >>> print(coverage(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 9.0, 1.0]])))
        [[0.5]]

    References:
        pycocotools, ``iou`` with ``iscrowd``.
    """
    shared = intersections(boxes, others)
    return _where(_ratio(shared, areas(boxes)[:, None]), where)


def encode(boxes: ArrayLike, references: ArrayLike, weights: Weights) -> jax.Array:
    r"""The deltas that lead from references to boxes: what a network learns to predict.

    .. math:: t = \Big( w_x \frac{x - x_a}{w_a}, w_y \frac{y - y_a}{h_a},
        w_w \log \frac{w}{w_a}, w_h \log \frac{h}{h_a} \Big)

    with centres x, y and sizes w, h of the boxes, and those of the references with index a.

    Args:
        boxes: ``[..., 4]``, in pixels.
        references: anchors or proposals, ``[..., 4]``, in pixels.
        weights: of x, y, width and height: ``PROPOSAL_WEIGHTS`` or ``REGION_WEIGHTS``.

    Returns:
        t, ``[..., 4]``, without unit; finite also where a box or reference is without area.

    Raises:
        ValueError: if the last axis is not of four numbers, or shapes differ.

    Example:
        >>> boxes, references = jnp.array([2.0, 0.0, 6.0, 4.0]), jnp.array([0.0, 0.0, 4.0, 4.0])
        >>> print(encode(boxes, references, REGION_WEIGHTS))
        [5. 0. 0. 0.]

    References:
        Girshick et al., Rich feature hierarchies (arXiv 1311.2524), appendix C; the weights:
        Girshick, Fast R-CNN (arXiv 1504.08083), as Detectron and torchvision have them.
    """
    if jnp.shape(boxes) != jnp.shape(references):
        raise ValueError(
            f"references: got shape {jnp.shape(references)}, wanted the boxes' {jnp.shape(boxes)}"
        )
    x, y, width, height = _centred(boxes, 'boxes')
    x_a, y_a, width_a, height_a = _centred(references, 'references')
    # Padding has no size: with 1 in its place nothing becomes infinite.
    width, height, width_a, height_a = map(_or_one, (width, height, width_a, height_a))
    deltas = (
        (x - x_a) / width_a,
        (y - y_a) / height_a,
        jnp.log(width / width_a),
        jnp.log(height / height_a),
    )
    return jnp.stack([w * delta for w, delta in zip(weights, deltas, strict=True)], -1)


def decode(deltas: ArrayLike, references: ArrayLike, weights: Weights) -> jax.Array:
    r"""The boxes that deltas lead to from references: the inverse of :func:`encode`.

    .. math:: (x, y, w, h) = \Big( x_a + w_a \frac{t_x}{w_x}, y_a + h_a \frac{t_y}{w_y},
        w_a e^{\min(t_w / w_w, \log 62.5)}, h_a e^{\min(t_h / w_h, \log 62.5)} \Big)

    Args:
        deltas: t, ``[..., 4]``, without unit.
        references: anchors or proposals, ``[..., 4]``, in pixels.
        weights: of x, y, width and height: ``PROPOSAL_WEIGHTS`` or ``REGION_WEIGHTS``.

    Returns:
        Boxes, ``[..., 4]``, in pixels, of any position.

    Raises:
        ValueError: if the last axis is not of four numbers, or shapes differ.

    Example:
        >>> print(decode(jnp.array([5.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 4.0, 4.0]),
        ...              REGION_WEIGHTS))
        [2. 0. 6. 4.]

    References:
        Girshick et al., Rich feature hierarchies (arXiv 1311.2524), Eqns. 1 to 4; the largest
        scale: Detectron's ``BBOX_XFORM_CLIP``.
    """
    if jnp.shape(deltas) != jnp.shape(references):
        raise ValueError(
            f"references: got shape {jnp.shape(references)}, wanted the deltas' {jnp.shape(deltas)}"
        )
    x_a, y_a, width_a, height_a = _centred(references, 'references')
    t_x, t_y, t_w, t_h = (t / w for t, w in zip(_corners(deltas, 'deltas'), weights, strict=True))
    x, y = x_a + width_a * t_x, y_a + height_a * t_y
    half_width = width_a * jnp.exp(jnp.minimum(t_w, MAX_LOG_SCALE)) / 2
    half_height = height_a * jnp.exp(jnp.minimum(t_h, MAX_LOG_SCALE)) / 2
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def clip(boxes: ArrayLike, size: ArrayLike | tuple[float, float]) -> jax.Array:
    """Cuts boxes to the image.

    Args:
        boxes: ``[..., 4]``, in pixels.
        size: height and width of the image, ``[2]``, in pixels; of the image itself, where it is
            padded.

    Returns:
        Boxes, ``[..., 4]``, in pixels, within the image; without area where they lay outside.

    Raises:
        ValueError: if a shape does not fit.

    Example:
        >>> print(clip(jnp.array([-3.0, 2.0, 9.0, 9.0]), (8, 6)))
        [0. 2. 6. 8.]
    """
    x0, y0, x1, y1 = _corners(boxes, 'boxes')
    size = jnp.asarray(size, x0.dtype)
    if size.shape != (2,):
        raise ValueError(f'size: got shape {size.shape}, wanted [2], height and width')
    height, width = size
    x0, x1 = jnp.clip(x0, 0, width), jnp.clip(x1, 0, width)
    y0, y1 = jnp.clip(y0, 0, height), jnp.clip(y1, 0, height)
    return jnp.stack([x0, y0, x1, y1], -1)


def have_size(boxes: ArrayLike, least: float) -> jax.Array:
    """Which boxes are no slivers.

    Args:
        boxes: ``[..., 4]``, in pixels.
        least: the smallest width and height that count, in pixels.

    Returns:
        Whether both sides are at least that long, bool, ``[...]``.

    Raises:
        ValueError: if the last axis is not of four numbers.

    Example:
        >>> print(have_size(jnp.array([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 5.0, 0.5]]), 1.0))
        [ True False]
    """
    x0, y0, x1, y1 = _corners(boxes, 'boxes')
    return (x1 - x0 >= least) & (y1 - y0 >= least)


def _corners(boxes: ArrayLike, name: str, rank: int | None = None) -> jax.Array:
    """The four numbers of each box, first axis first."""
    boxes = jnp.asarray(boxes)
    if boxes.shape[-1:] != (4,) or (rank is not None and boxes.ndim != rank):
        wanted = '[..., 4]' if rank is None else '[boxes, 4]'
        raise ValueError(f'{name}: got shape {boxes.shape}, wanted {wanted}')
    return jnp.moveaxis(boxes, -1, 0)


def _centred(boxes: ArrayLike, name: str) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The centre's x and y, width and height of each box."""
    x0, y0, x1, y1 = _corners(boxes, name)
    width, height = x1 - x0, y1 - y0
    return x0 + width / 2, y0 + height / 2, width, height


def _or_one(size: jax.Array) -> jax.Array:
    return jnp.where(size > 0, size, 1)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """0 where the whole is 0."""
    return part / _or_one(whole)


def _where(matrix: jax.Array, where: ArrayLike | None) -> jax.Array:
    """0 in the columns that are padding."""
    if where is None:
        return matrix
    if jnp.shape(where) != matrix.shape[1:]:
        raise ValueError(f'where: got shape {jnp.shape(where)}, wanted [others] {matrix.shape[1:]}')
    return jnp.where(jnp.asarray(where)[None, :], matrix, 0)
