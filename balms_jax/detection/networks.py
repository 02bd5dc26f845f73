"""Mask R-CNN's networks as pure functions of their parameters."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.detection.anchors import RATIOS
from balms_jax.models.detection_heads import BoxHead, CategoryHead, MaskHead, ProposalHead
from balms_jax.models.feature_pyramid import FeaturePyramid
from balms_jax.models.imagenet_resnet import LAYOUTS, ImageNetResNet
from balms_jax.models.networks import DTYPES

PyTree = Any
OverImages = Callable[..., Callable[..., Any]]
"""``jax.vmap``, or its twin that keeps every device to its own images; it takes a function of one
image, ``in_axes`` and ``out_axes``"""
BOX_BINS, MASK_BINS = 7, 14
MASK_SIZE = 2 * MASK_BINS
# Of ImageNet's pixels, as pretrained backbones know them.
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a detector consists of."""

    categories: int
    """C."""
    depth: int = 50
    """Of the residual network, one of ``LAYOUTS``."""
    width: int = 64
    """Channels of its stem."""
    channels: int = 256
    """Of every pyramid level, and of the mask head."""
    box_features: int = 1024
    """Of a region, which its category is told from."""
    background: bool = False
    """Whether a softmax over categories and, last, the background scores a region; else each
    category has a sigmoid of its own, and none is the background."""
    prior: float = 0.001
    """The probability that each sigmoid begins with."""
    agnostic_boxes: bool = False
    """Whether all categories share a region's deltas."""
    agnostic_masks: bool = False
    """Whether all categories share a region's mask."""
    frozen_norm: bool = True
    """Whether batch norm keeps its statistics, scales and biases, as from pretraining."""
    frozen_groups: int = 2
    """How many of stem and groups of blocks, the first ones, keep their parameters."""
    dtype: str = 'float32'
    """What all but the category logits is computed in, one of ``models.DTYPES``."""
    remat: bool = False
    """Whether activations within a block are computed again in the backward pass."""


class Detector(NamedTuple):
    """Functions of parameters by part: backbone, pyramid, proposals, boxes, classifier, masks.

    Parameters, statistics and all outputs but the pyramid are float32.
    """

    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
    """(key, images) → (params, batch_stats)"""
    pyramid: Callable[[PyTree, PyTree, jax.Array, bool], tuple[tuple[jax.Array, ...], PyTree]]
    """(params, batch_stats, images ``[batch, height, width, 3]``, train) → (P2 to P6, each
    ``[batch, rows, columns, channels]``; batch_stats)"""
    proposals: Callable[[PyTree, Sequence[jax.Array]], list[tuple[jax.Array, jax.Array]]]
    """(params, P2 to P6) → of each level objectness ``[batch, anchors]`` and deltas
    ``[batch, anchors, 4]``"""
    boxes: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]]
    """(params, regions ``[..., 7, 7, channels]``) → (features ``[..., box_features]``, deltas
    ``[..., categories or 1, 4]``)"""
    logits: Callable[[PyTree, jax.Array], jax.Array]
    """(params, features) → ``[..., categories]``, and the background last if there is one"""
    masks: Callable[[PyTree, jax.Array], jax.Array]
    """(params, regions ``[..., 14, 14, channels]``) → logits ``[..., categories or 1, 28, 28]``"""


def build(architecture: Architecture) -> Detector:
    """Builds a Mask R-CNN with a residual network and a feature pyramid.

    Args:
        architecture: what it consists of.

    Returns:
        Its functions.

    Raises:
        ValueError: if a setting is out of its range.

    Example:
        >>> tiny = Architecture(3, depth=10, width=4, channels=8, box_features=16)
        >>> detector, images = build(tiny), jnp.zeros((1, 64, 64, 3))
        >>> params, batch_stats = jax.eval_shape(detector.init, jax.random.key(0), images)
        >>> sorted(params)
        ['backbone', 'boxes', 'classifier', 'masks', 'proposals', 'pyramid']
        >>> levels, _ = jax.eval_shape(
        ...     lambda *arrays: detector.pyramid(*arrays, False), params, batch_stats, images)
        >>> [level.shape for level in levels]
        [(1, 16, 16, 8), (1, 8, 8, 8), (1, 4, 4, 8), (1, 2, 2, 8), (1, 1, 1, 8)]

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3; BALMS's detector: one sigmoid a category.
    """
    _check(architecture)
    dtype = jnp.bfloat16 if architecture.dtype == 'bfloat16' else None
    backbone = ImageNetResNet(
        architecture.depth, architecture.width, dtype=dtype, remat=architecture.remat
    )
    pyramid = FeaturePyramid(architecture.channels, dtype)
    of_level = ProposalHead(len(RATIOS), dtype)
    categories = architecture.categories
    boxes = BoxHead(
        1 if architecture.agnostic_boxes else categories, architecture.box_features, dtype
    )
    if architecture.background:
        classifier = CategoryHead(categories + 1, None)
    else:
        classifier = CategoryHead(categories, architecture.prior)
    masks = MaskHead(1 if architecture.agnostic_masks else categories, architecture.channels, dtype)

    def init(key: jax.Array, images: jax.Array) -> tuple[PyTree, PyTree]:
        keys = iter(jax.random.split(key, 6))
        levels, variables = backbone.init_with_output(next(keys), images, False, method='levels')
        region = (1, BOX_BINS, BOX_BINS, architecture.channels)
        params = {
            'backbone': variables['params'],
            'pyramid': pyramid.init(next(keys), levels)['params'],
            'proposals': of_level.init(next(keys), jnp.zeros(region))['params'],
            'boxes': boxes.init(next(keys), jnp.zeros(region))['params'],
            'classifier': classifier.init(next(keys), jnp.zeros((1, architecture.box_features)))[
                'params'
            ],
            'masks': masks.init(next(keys), jnp.zeros(region))['params'],
        }
        return params, variables['batch_stats']

    def levels_of(
        params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[tuple[jax.Array, ...], PyTree]:
        variables = {'params': params['backbone'], 'batch_stats': batch_stats}
        if train and not architecture.frozen_norm:
            levels, updated = backbone.apply(
                variables, images, True, method='levels', mutable=['batch_stats']
            )
            batch_stats = updated['batch_stats']
        else:
            levels = backbone.apply(variables, images, False, method='levels')
        features = pyramid.apply({'params': params['pyramid']}, levels)
        return cast(tuple[jax.Array, ...], features), batch_stats

    def proposals_of(
        params: PyTree, levels: Sequence[jax.Array]
    ) -> list[tuple[jax.Array, jax.Array]]:
        return [_float32(of_level.apply({'params': params['proposals']}, f)) for f in levels]

    def boxes_of(params: PyTree, regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _float32(boxes.apply({'params': params['boxes']}, regions))

    def logits_of(params: PyTree, features: jax.Array) -> jax.Array:
        return _float32(classifier.apply({'params': params['classifier']}, features))

    def masks_of(params: PyTree, regions: jax.Array) -> jax.Array:
        logits = cast(jax.Array, masks.apply({'params': params['masks']}, regions))
        return _float32(jnp.moveaxis(logits, -1, -3))

    return Detector(init, levels_of, proposals_of, boxes_of, logits_of, masks_of)


def normalise(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Pixels as the backbone takes them, by ImageNet's mean and deviation; 0 in the padding.

    Args:
        images: uint8, ``[batch, height, width, 3]``.
        sizes: height and width of the images without their padding, ``[batch, 2]``, in pixels.

    Returns:
        float32, of the images' shape.

    Example:
        >>> images = normalise(jnp.full((1, 2, 2, 3), 255, jnp.uint8), jnp.array([[1.0, 2.0]]))
        >>> print(jnp.array_str(images[0, :, 0], precision=3))
        [[2.249 2.429 2.64 ]
         [0.    0.    0.   ]]
    """
    scaled = (images.astype(jnp.float32) / 255 - MEAN) / DEVIATION
    inside = [
        jnp.arange(length, dtype=jnp.float32)[None, :] < sizes[:, None, axis]
        for axis, length in enumerate(images.shape[1:3])
    ]
    return jnp.where((inside[0][:, :, None] & inside[1][:, None, :])[..., None], scaled, 0)


def of_category(outputs: jax.Array, category: jax.Array) -> jax.Array:
    """A region's deltas or mask for its category, where each category has its own.

    Args:
        outputs: ``[regions, categories or 1, ...]``.
        category: of each region, int, ``[regions]``.

    Returns:
        ``[regions, ...]``

    Example:
        >>> print(of_category(jnp.array([[[1.0], [2.0]]]), jnp.array([1])))
        [[2.]]
        >>> print(of_category(jnp.array([[[1.0]]]), jnp.array([1])))
        [[1.]]
    """
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return outputs[jnp.arange(outputs.shape[0]), category]


def trainable(params: PyTree, architecture: Architecture) -> PyTree:
    """Which parameters are trained: all but those of frozen norms and of the first groups.

    ``optax.masked`` and ``optax.partition`` take it.

    Args:
        params: of the detector.
        architecture: that it was built from.

    Returns:
        A bool for each parameter, in the structure of ``params``.

    Example:
        >>> tiny = Architecture(3, depth=10, width=4, channels=8, box_features=16)
        >>> params, _ = jax.eval_shape(
        ...     build(tiny).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        >>> backbone = trainable(params, tiny)['backbone']
        >>> backbone['Conv_0'], backbone['BasicBlock_0']['Conv_0']
        ({'kernel': False}, {'kernel': False})
        >>> backbone['BasicBlock_1']['BatchNorm_0'], backbone['BasicBlock_1']['Conv_0']
        ({'bias': False, 'scale': False}, {'kernel': True})
    """
    block, sizes = LAYOUTS[architecture.depth]
    ends = itertools.accumulate(sizes, initial=0)
    first = dict(enumerate(ends)).get(architecture.frozen_groups - 1, -1)
    frozen = {f'{block.__name__}_{k}' for k in range(first)}
    if architecture.frozen_groups:
        frozen |= {'Conv_0', 'BatchNorm_0'}

    def is_trained(path: tuple[jax.tree_util.DictKey, ...], _: jax.Array) -> bool:
        part, *names = (key.key for key in path)
        if part != 'backbone':
            return True
        is_norm = any(name.startswith('BatchNorm') for name in names)
        return names[0] not in frozen and not (is_norm and architecture.frozen_norm)

    return jax.tree_util.tree_map_with_path(is_trained, params)


def _float32(arrays: Any) -> Any:
    return jax.tree.map(lambda array: array.astype(jnp.float32), arrays)


def _check(architecture: Architecture) -> None:
    if architecture.categories < 1:
        raise ValueError(f'categories: got {architecture.categories}, wanted at least 1')
    if architecture.depth not in LAYOUTS:
        raise ValueError(f'depth: got {architecture.depth}, wanted one of {sorted(LAYOUTS)}')
    if architecture.dtype not in DTYPES:
        raise ValueError(f'dtype: got {architecture.dtype!r}, wanted one of {", ".join(DTYPES)}')
    if not 0 < architecture.prior < 1:
        raise ValueError(f'prior: got {architecture.prior}, wanted a probability in (0, 1)')
    if not 0 <= architecture.frozen_groups <= 5:
        raise ValueError(f'frozen_groups: got {architecture.frozen_groups}, wanted 0 to 5')
