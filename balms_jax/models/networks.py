"""Backbone and classifier, put together as a few pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from balms_jax.models.classifiers import BRANCHES, Bilateral, Cosine, Experts, Linear
from balms_jax.models.digits import DigitsNet
from balms_jax.models.imagenet_resnet import ImageNetResNet
from balms_jax.models.resnet import CifarResNet
from balms_jax.models.vit import VisionTransformer

PyTree = Any
Backbone = DigitsNet | CifarResNet | ImageNetResNet | VisionTransformer
DTYPES = ('float32', 'bfloat16')

# Each at its usual width.
NETWORKS: dict[str, Backbone] = {
    'digits_net': DigitsNet(),
    'resnet8': CifarResNet(8),
    'resnet14': CifarResNet(14),
    'resnet20': CifarResNet(20),
    'resnet32': CifarResNet(32),
    'resnet10': ImageNetResNet(10),
    'resnet18': ImageNetResNet(18),
    'resnet50': ImageNetResNet(50),
    'resnet101': ImageNetResNet(101),
    'resnet152': ImageNetResNet(152),
    'resnext50': ImageNetResNet(50, groups=32, group_width=4),
    'vit_s_16': VisionTransformer(),
}


class Network(NamedTuple):
    """Functions of parameters {'backbone': …, 'classifier': …} and batch statistics.

    Parameters, statistics, features and logits are float32, whatever the backbone computes in.
    """

    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
    """(key, images) → (params, batch_stats)"""
    features: Callable[[PyTree, PyTree, jax.Array, bool], tuple[jax.Array, PyTree]]
    """(params['backbone'], batch_stats, images, train) → ([batch, features], batch_stats)"""
    logits: Callable[[PyTree, jax.Array], jax.Array]
    """(params['classifier'], features) → [batch, classes], or [batch, experts, classes]"""
    init_classifier: Callable[[jax.Array, jax.Array], PyTree]
    """(key, features) → a fresh params['classifier']"""


def build(
    name: str,
    num_classes: int,
    *,
    width: int = 0,
    classifier: str = 'linear',
    scale: float = 16.0,
    experts: int = 3,
    dtype: str = 'float32',
    remat: bool = False,
) -> Network:
    """Builds a network.

    Args:
        name: one of ``NETWORKS``.
        num_classes: C.
        width: channels of the first convolution, which all others are multiples of, or of a
            transformer's tokens; 0: as many as the network usually has (``NETWORKS[name].width``).
        classifier: ``'linear'``, ``'cosine'``, ``'experts'``, or ``'bilateral'``, before which the
            backbone ends in two branches, a uniform and a reversed one.
        scale: s of the cosine classifier.
        experts: how many linear classifiers 'experts' holds.
        dtype: what the backbone computes in, one of ``DTYPES``. In bfloat16, parameters, the
            statistics and normalisations of norms, the mean over the image, features, the
            classifier and its logits stay float32.
        remat: whether the activations within a block are computed again in the backward pass
            instead of kept: less memory, a forward pass more. The numbers are the same.

    Returns:
        Its functions. Parameters have the same names and shapes for every dtype and remat.

    Raises:
        ValueError: if a name is unknown, or does not go with another setting.
    """
    backbone = _backbone(name, width, classifier, dtype, remat)
    head = _head(classifier, num_classes, scale, experts)

    def init(key: jax.Array, images: jax.Array) -> tuple[PyTree, PyTree]:
        backbone_key, head_key = jax.random.split(key)
        features, variables = backbone.init_with_output(backbone_key, images, False)
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        params = {
            'backbone': variables['params'],
            'classifier': init_classifier(head_key, features),
        }
        return params, variables.get('batch_stats', {})

    def features(
        params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        variables = {'params': params, 'batch_stats': batch_stats}
        if train:
            output, updated = backbone.apply(variables, images, True, mutable=['batch_stats'])
            # A network without batch norm has none to update.
            batch_stats = updated.get('batch_stats', batch_stats)
        else:
            output = backbone.apply(variables, images, False)
        output = cast(jax.Array, output)
        return output.astype(jnp.promote_types(output.dtype, jnp.float32)), batch_stats

    def logits(params: PyTree, features: jax.Array) -> jax.Array:
        return cast(jax.Array, head.apply({'params': params}, features))

    def init_classifier(key: jax.Array, features: jax.Array) -> PyTree:
        return head.init(key, features)['params']

    return Network(init, features, logits, init_classifier)


def _backbone(name: str, width: int, classifier: str, dtype: str, remat: bool) -> Backbone:
    if name not in NETWORKS:
        raise ValueError(f'model.name: got {name!r}, wanted one of {", ".join(NETWORKS)}')
    backbone = NETWORKS[name]
    if width:
        backbone = backbone.clone(width=width)
    multiple = getattr(backbone, 'width_multiple', 1)
    if backbone.width % multiple:
        raise ValueError(f'model.width: got {width} of {name!r}, wanted a multiple of {multiple}')
    if classifier == 'bilateral':
        if not hasattr(backbone, 'branches'):
            raise ValueError(f'model.name: got {name!r}, which has no branches for a bilateral one')
        backbone = backbone.clone(branches=BRANCHES)
    if dtype not in DTYPES:
        raise ValueError(f'model.dtype: got {dtype!r}, wanted one of {", ".join(DTYPES)}')
    if dtype == 'bfloat16':
        backbone = backbone.clone(dtype=jnp.bfloat16)
    if remat:
        if not hasattr(backbone, 'remat'):
            raise ValueError(f'model.remat: got True for {name!r}, which has no blocks')
        backbone = backbone.clone(remat=True)
    return backbone


def _head(
    classifier: str, num_classes: int, scale: float, experts: int
) -> Linear | Cosine | Experts | Bilateral:
    heads: dict[str, Linear | Cosine | Experts | Bilateral] = {
        'linear': Linear(num_classes),
        'cosine': Cosine(num_classes, scale),
        'experts': Experts(num_classes, experts),
        'bilateral': Bilateral(num_classes),
    }
    if classifier not in heads:
        raise ValueError(f'model.classifier: got {classifier!r}, wanted one of {", ".join(heads)}')
    return heads[classifier]


def side_multiple(name: str) -> int:
    """What the sides of a network's images must be multiples of, in pixels.

    Example:
        >>> side_multiple('resnet50'), side_multiple('vit_s_16')
        (1, 16)
    """
    return getattr(NETWORKS[name], 'patch', 1)


def count_parameters(params: PyTree) -> int:
    """How many numbers a pytree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
