"""Backbone and classifier, put together as a few pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from balms_jax.models.classifiers import BRANCHES, Bilateral, Cosine, Experts, Linear
from balms_jax.models.digits import DigitsNet
from balms_jax.models.imagenet_resnet import ImageNetResNet
from balms_jax.models.resnet import CifarResNet

PyTree = Any

# Each at its usual width.
NETWORKS: dict[str, DigitsNet | CifarResNet | ImageNetResNet] = {
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
}


class Network(NamedTuple):
    """Functions of parameters {'backbone': …, 'classifier': …} and batch statistics."""

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
) -> Network:
    """Builds a network.

    Args:
        name: one of ``NETWORKS``.
        num_classes: C.
        width: channels of the first convolution, which all others are multiples of; 0: as many as
            the network usually has, 16 or, for ImageNet, 64.
        classifier: ``'linear'``, ``'cosine'``, ``'experts'``, or ``'bilateral'``, before which the
            backbone ends in two branches, a uniform and a reversed one.
        scale: s of the cosine classifier.
        experts: how many linear classifiers 'experts' holds.

    Returns:
        Its functions.

    Raises:
        ValueError: if a name is unknown.
    """
    if name not in NETWORKS:
        raise ValueError(f'model.name: got {name!r}, wanted one of {", ".join(NETWORKS)}')
    heads = {
        'linear': Linear(num_classes),
        'cosine': Cosine(num_classes, scale),
        'experts': Experts(num_classes, experts),
        'bilateral': Bilateral(num_classes),
    }
    if classifier not in heads:
        raise ValueError(f'model.classifier: got {classifier!r}, wanted one of {", ".join(heads)}')
    usual, head = NETWORKS[name], heads[classifier]
    backbone = usual.clone(width=width) if width else usual
    if classifier == 'bilateral':
        if not hasattr(usual, 'branches'):
            raise ValueError(f'model.name: got {name!r}, which has no branches for a bilateral one')
        backbone = backbone.clone(branches=BRANCHES)

    def init(key: jax.Array, images: jax.Array) -> tuple[PyTree, PyTree]:
        backbone_key, head_key = jax.random.split(key)
        features, variables = backbone.init_with_output(backbone_key, images, train=False)
        params = {
            'backbone': variables['params'],
            'classifier': init_classifier(head_key, features),
        }
        return params, variables.get('batch_stats', {})

    def features(
        params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        variables = {'params': params, 'batch_stats': batch_stats}
        if not train:
            return cast(jax.Array, backbone.apply(variables, images, train=False)), batch_stats
        output, updated = backbone.apply(variables, images, train=True, mutable=['batch_stats'])
        return cast(jax.Array, output), updated['batch_stats']

    def logits(params: PyTree, features: jax.Array) -> jax.Array:
        return cast(jax.Array, head.apply({'params': params}, features))

    def init_classifier(key: jax.Array, features: jax.Array) -> PyTree:
        return head.init(key, features)['params']

    return Network(init, features, logits, init_classifier)


def count_parameters(params: PyTree) -> int:
    """How many numbers a pytree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
