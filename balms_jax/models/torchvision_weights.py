"""torchvision's names and layouts of weights, and ours."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from balms_jax.models.imagenet_resnet import LAYOUTS, ImageNetResNet
from balms_jax.models.networks import NETWORKS, build
from balms_jax.models.vit import VisionTransformer
from balms_jax.models.weights import Weights, WeightsError, differences, flatten, nested

PyTree = Any
# Those that are torchvision's, or of its layout (ResNet-10, ViT-S/16).
CONVERTED = tuple(
    name for name, net in NETWORKS.items() if isinstance(net, ImageNetResNet | VisionTransformer)
)
_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
_OF_TRANSFORMER = {
    'class_token': 'class_token',
    'positions': 'encoder.pos_embedding',
    'patches': 'conv_proj',
    'norm': 'encoder.ln',
    'norm_1': 'ln_1',
    'norm_2': 'ln_2',
    'out': 'self_attention.out_proj',
    'mlp_1': 'mlp.0',
    'mlp_2': 'mlp.3',
}


def from_torchvision(
    name: str, state_dict: Mapping[str, np.ndarray], like: PyTree | None = None
) -> Weights:
    """Reads a state dict of torchvision's layout.

    Args:
        name: of our network, one of ``CONVERTED``.
        state_dict: torchvision's arrays by name: kernels ``[out, in / groups, height, width]``,
            matrices ``[out, in]``. The classifier may be absent, and may be of any number of
            classes. ``num_batches_tracked`` is skipped.
        like: our (params, batch_stats), or their shapes; by default those at the usual width, with
            the number of positions of the state dict.

    Returns:
        The weights: kernels ``[height, width, in / groups, out]``, matrices ``[in, out]``.

    Raises:
        WeightsError: naming the keys that are missing, not known, or of another shape.
    """
    arrays = {k: v for k, v in state_dict.items() if not k.endswith('num_batches_tracked')}
    head = _head(name)
    if like is None:
        like = _shapes(name, arrays)
    params, batch_stats = like
    backbone = flatten({'backbone': params['backbone'], 'batch_stats': batch_stats})
    keys = {ours: their_name(name, ours) for ours in backbone}
    wanted = {keys[ours]: their_shape(np.shape(leaf)) for ours, leaf in backbone.items()}
    features = params['classifier']['Dense_0']['kernel'].shape[0]
    if f'{head}.weight' in arrays:
        classes = len(arrays[f'{head}.weight'])
        wanted |= {f'{head}.weight': (classes, features), f'{head}.bias': (classes,)}
    if wrong := differences(arrays, wanted):
        raise WeightsError(f'{name}: {wrong}')
    ours_by_path = {ours: to_ours(arrays[theirs]) for ours, theirs in keys.items()}
    if f'{head}.weight' in arrays:
        for leaf, their_leaf in (('kernel', 'weight'), ('bias', 'bias')):
            ours_by_path[f'classifier/Dense_0/{leaf}'] = to_ours(arrays[f'{head}.{their_leaf}'])
    return nested(name, ours_by_path)


def to_torchvision(weights: Weights) -> dict[str, np.ndarray]:
    """Writes weights in torchvision's names and layouts, which ``load_state_dict`` takes.

    Args:
        weights: of a network of ``CONVERTED``, with a linear classifier or none.

    Returns:
        Arrays by name, float32, without ``num_batches_tracked``.
    """
    trees = {'backbone': weights.backbone, 'batch_stats': weights.batch_stats}
    named = {their_name(weights.network, ours): leaf for ours, leaf in flatten(trees).items()}
    if weights.classifier:
        dense, head = weights.classifier['Dense_0'], _head(weights.network)
        named |= {f'{head}.weight': dense['kernel'], f'{head}.bias': dense['bias']}
    return {key: to_theirs(np.asarray(leaf)) for key, leaf in named.items()}


def _shapes(name: str, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """Of our parameters and statistics, for as many positions as there are."""
    side, network = 224, NETWORKS[name]
    if isinstance(network, VisionTransformer):
        positions = np.shape(arrays.get('encoder.pos_embedding', np.zeros((1, 197, 1))))
        side = network.patch * round((positions[1] - 1) ** 0.5)
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return jax.eval_shape(build(name, 1).init, jax.random.key(0), images)


def _head(name: str) -> str:
    if name not in CONVERTED:
        raise WeightsError(f'network: got {name!r}, wanted one of {", ".join(CONVERTED)}')
    return 'heads.head' if isinstance(NETWORKS[name], VisionTransformer) else 'fc'


def their_name(name: str, ours: str) -> str:
    """The name in torchvision of an array of a backbone or its statistics.

    Args:
        name: of our network, one of ``CONVERTED``.
        ours: the array's path, as ``weights.flatten`` gives it.

    Example:
        >>> their_name('resnet18', 'backbone/BasicBlock_0/Conv_0/kernel')
        'layer1.0.conv1.weight'
    """
    network, parts = NETWORKS[name], ours.split('/')[1:]
    if isinstance(network, VisionTransformer):
        return _of_transformer(parts)
    assert isinstance(network, ImageNetResNet)
    *block, layer, leaf = parts
    kind, number = layer.split('_')
    place = '' if not block else _block(network.depth, int(block[0].split('_')[1]))
    convolutions = 3 if block and block[0].startswith('Bottleneck') else 2
    if block and int(number) == convolutions:
        return f'{place}downsample.{int(kind == "BatchNorm")}.{_LEAVES[leaf]}'
    short = 'conv' if kind == 'Conv' else 'bn'
    return f'{place}{short}{int(number) + 1}.{_LEAVES[leaf]}'


def _block(depth: int, index: int) -> str:
    """The group of a block, counted from the first one, and its place there."""
    for group, size in enumerate(LAYOUTS[depth][1]):
        if index < size:
            return f'layer{group + 1}.{index}.'
        index -= size
    raise WeightsError(f'backbone: a block too many for depth {depth}')


def _of_transformer(parts: list[str]) -> str:
    if len(parts) == 1:
        return _OF_TRANSFORMER[parts[0]]
    *block, layer, leaf = parts
    place = ''
    if block and (match := re.fullmatch(r'EncoderBlock_(\d+)', block[0])):
        place = f'encoder.layers.encoder_layer_{match[1]}.'
    if layer == 'qkv':
        return f'{place}self_attention.in_proj_{_LEAVES[leaf]}'
    return f'{place}{_OF_TRANSFORMER[layer]}.{_LEAVES[leaf]}'


def their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[height, width, in, out] → [out, in, height, width]; [in, out] → [out, in]."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1] if len(shape) == 2 else shape


def to_theirs(array: np.ndarray) -> np.ndarray:
    """Lays out an array as :func:`their_shape` says, float32."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array.T if array.ndim == 2 else array, np.float32)


def to_ours(array: np.ndarray) -> np.ndarray:
    """Undoes :func:`to_theirs`."""
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(array.T if array.ndim == 2 else array, np.float32)
