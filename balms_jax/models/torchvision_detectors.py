"""torchvision's names and layouts of a Mask R-CNN's weights, and ours."""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from balms_jax.models.detector_weights import DetectorWeights, detector_name
from balms_jax.models.imagenet_resnet import LAYOUTS, ImageNetResNet
from balms_jax.models.layers import NORM_EPSILON
from balms_jax.models.torchvision_weights import their_name, their_shape, to_ours, to_theirs
from balms_jax.models.weights import WeightsError, differences, flatten, unflatten

Shapes = dict[str, tuple[int, ...]]
_DEPTHS = {detector_name(depth): depth for depth in LAYOUTS}
DETECTORS = tuple(_DEPTHS)
_BINS = 7  # of the box head's regions, a side
_ANCHORS = 3  # of a cell
_LAYERS = {
    **{f'pyramid/lateral_{k}': f'backbone.fpn.inner_blocks.{k}.0' for k in range(4)},
    **{f'pyramid/smooth_{k}': f'backbone.fpn.layer_blocks.{k}.0' for k in range(4)},
    'proposals/hidden': 'rpn.head.conv.0.0',
    'proposals/objectness': 'rpn.head.cls_logits',
    'proposals/deltas': 'rpn.head.bbox_pred',
    'boxes/hidden_0': 'roi_heads.box_head.fc6',
    'boxes/hidden_1': 'roi_heads.box_head.fc7',
    'boxes/deltas': 'roi_heads.box_predictor.bbox_pred',
    'classifier/Dense_0': 'roi_heads.box_predictor.cls_score',
    **{f'masks/hidden_{k}': f'roi_heads.mask_head.{k}.0' for k in range(4)},
    'masks/double': 'roi_heads.mask_predictor.conv5_mask',
    'masks/logits': 'roi_heads.mask_predictor.mask_fcn_logits',
}
_HEADS = {
    f'{ours}/{leaf}': f'{theirs}.{their_leaf}'
    for ours, theirs in _LAYERS.items()
    for leaf, their_leaf in (('kernel', 'weight'), ('bias', 'bias'))
}
# The background's first rows there, of deltas and of masks, which ours has none of.
_OF_BACKGROUND = {'boxes/deltas': 4, 'masks/logits': 1}


def from_torchvision(
    name: str, state_dict: Mapping[str, np.ndarray], epsilon: float = NORM_EPSILON
) -> DetectorWeights:
    r"""Reads a state dict of torchvision's Mask R-CNN.

    The background, first there, comes last; its deltas and its mask, which nothing uses, are left
    away. Where the norms add an ε to a variance that is not our ε′, their scales make up for it:

    .. math:: \gamma' = \gamma \sqrt{(\sigma^2 + \epsilon') / (\sigma^2 + \epsilon)}

    Args:
        name: one of ``DETECTORS``.
        state_dict: torchvision's arrays by name, of any width and any number of categories: kernels
            ``[out, in, height, width]``, matrices ``[out, in]``. The names of before torchvision
            0.13 are known too. ``num_batches_tracked`` is skipped.
        epsilon: ε; 0 for torchvision's released weights, whose loader sets it so.

    Returns:
        The weights: kernels ``[height, width, in, out]``, matrices ``[in, out]``.

    Raises:
        WeightsError: naming the keys that are missing, not known, or of another shape, or that hold
            a variance which is not above 0 with ε.

    Example:
        >>> some = {'rpn.head.cls_logits.weight': np.zeros((5, 256, 1, 1))}
        >>> try:
        ...     from_torchvision('maskrcnn_resnet18_fpn', some)
        ... except WeightsError as error:
        ...     print(str(error).split('; ')[1])
        of another shape: rpn.head.cls_logits.weight (5, 256, 1, 1), wanted (3, 256, 1, 1)
    """
    if name not in DETECTORS:
        raise WeightsError(f'network: got {name!r}, wanted one of {", ".join(DETECTORS)}')
    arrays = {
        _renamed(key): np.asarray(value)
        for key, value in state_dict.items()
        if not key.endswith('num_batches_tracked')
    }
    shapes, level_channels = _backbone_shapes(name, arrays)
    body = _body_names(name, shapes)
    wanted = {theirs: their_shape(shapes[ours]) for ours, theirs in body.items()}
    wanted |= _head_shapes(arrays, level_channels)
    if wrong := differences(arrays, wanted):
        raise WeightsError(f'{name}: {wrong}')
    by_path = {ours: to_ours(arrays[theirs]) for ours, theirs in body.items()}
    by_path |= {ours: _head_to_ours(ours, arrays[theirs]) for ours, theirs in _HEADS.items()}
    if epsilon != NORM_EPSILON:
        _make_up_for(epsilon, by_path, body)
    params = unflatten(by_path)
    batch_stats = params.pop('batch_stats')
    return DetectorWeights(name, True, params, batch_stats)


def to_torchvision(weights: DetectorWeights) -> dict[str, np.ndarray]:
    """Writes a detector in torchvision's names and layouts, which ``load_state_dict`` takes.

    The background gets deltas and a mask of zeros, which nothing uses.

    Args:
        weights: with a background, and with boxes and masks for each category.

    Returns:
        Arrays by name, float32, without ``num_batches_tracked``, for norms with an ε of 1e-5.

    Raises:
        WeightsError: if the heads are of another kind.
    """
    by_path = flatten({**weights.params, 'batch_stats': weights.batch_stats})
    categories = len(by_path['classifier/Dense_0/bias']) - 1
    outputs = [len(by_path[f'{layer}/bias']) for layer in _OF_BACKGROUND]
    if not weights.background or outputs != [4 * categories, categories]:
        raise WeightsError(
            f'{weights.network}: wanted a softmax with the background, boxes and masks for each '
            f'category; got {"a softmax" if weights.background else "sigmoids"}, '
            f'{outputs[0]} deltas and {outputs[1]} masks'
        )
    body = _body_names(weights.network, [ours for ours in by_path if ours not in _HEADS])
    named = {theirs: to_theirs(np.asarray(by_path[ours])) for ours, theirs in body.items()}
    for ours, theirs in _HEADS.items():
        named[theirs] = _head_to_theirs(ours, np.asarray(by_path[ours]))
    return named


def _renamed(key: str) -> str:
    """Of a key of before torchvision 0.13 its name since; any other stays."""
    key = re.sub(r'^(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$', r'\1.0.\2', key)
    key = re.sub(r'^rpn\.head\.conv\.(weight|bias)$', r'rpn.head.conv.0.0.\1', key)
    return re.sub(
        r'^(roi_heads\.mask_head)\.mask_fcn([1-4])\.',
        lambda match: f'{match[1]}.{int(match[2]) - 1}.0.',
        key,
    )


def _body_names(name: str, paths: Sequence[str] | Shapes) -> dict[str, str]:
    network = f'resnet{_DEPTHS[name]}'
    return {ours: f'backbone.body.{their_name(network, ours)}' for ours in paths}


def _backbone_shapes(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[Shapes, list[int]]:
    """Of our backbone and statistics, at the width of theirs, and the channels of C2 to C5."""
    width = _length(arrays, 'backbone.body.bn1.weight', 64)
    network = ImageNetResNet(_DEPTHS[name], width)
    levels, variables = jax.eval_shape(
        lambda key, images: network.init_with_output(key, images, False, method='levels'),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32),
    )
    tree = {'backbone': variables['params'], 'batch_stats': variables['batch_stats']}
    shapes = {ours: leaf.shape for ours, leaf in flatten(tree).items()}
    return shapes, [level.shape[-1] for level in levels]


def _head_shapes(arrays: Mapping[str, np.ndarray], level_channels: Sequence[int]) -> Shapes:
    """Of theirs, at the sizes that they have in three places."""
    channels = _length(arrays, f'{_LAYERS["proposals/hidden"]}.bias', 256)
    features = _length(arrays, f'{_LAYERS["boxes/hidden_0"]}.bias', 1024)
    outputs = _length(arrays, f'{_LAYERS["classifier/Dense_0"]}.bias', 91)
    three_by_three = (channels, channels, 3, 3)
    kernels = {
        **{f'pyramid/lateral_{k}': (channels, of, 1, 1) for k, of in enumerate(level_channels)},
        **{f'pyramid/smooth_{k}': three_by_three for k in range(4)},
        'proposals/hidden': three_by_three,
        'proposals/objectness': (_ANCHORS, channels, 1, 1),
        'proposals/deltas': (4 * _ANCHORS, channels, 1, 1),
        'boxes/hidden_0': (features, channels * _BINS**2),
        'boxes/hidden_1': (features, features),
        'boxes/deltas': (4 * outputs, features),
        'classifier/Dense_0': (outputs, features),
        **{f'masks/hidden_{k}': three_by_three for k in range(4)},
        'masks/double': (channels, channels, 2, 2),
        'masks/logits': (outputs, channels, 1, 1),
    }
    shapes: Shapes = {}
    for ours, shape in kernels.items():
        shapes |= {f'{_LAYERS[ours]}.weight': shape, f'{_LAYERS[ours]}.bias': shape[:1]}
    return shapes


def _length(arrays: Mapping[str, np.ndarray], key: str, usual: int) -> int:
    return arrays[key].size if key in arrays and arrays[key].size else usual


def _head_to_ours(ours: str, array: np.ndarray) -> np.ndarray:
    layer = ours.rpartition('/')[0]
    if layer == 'classifier/Dense_0':
        array = np.roll(array, -1, 0)
    elif layer in _OF_BACKGROUND:
        array = array[_OF_BACKGROUND[layer] :]
    elif ours == 'boxes/hidden_0/kernel':
        # A region is flattened channels first there, last here.
        by_bin = array.reshape(len(array), -1, _BINS, _BINS).transpose(0, 2, 3, 1)
        array = by_bin.reshape(array.shape)
    elif ours == 'masks/double/kernel':
        # A transposed convolution there is the gradient of one: [in, out], and turned around.
        array = array[:, :, ::-1, ::-1].swapaxes(0, 1)
    return to_ours(array)


def _head_to_theirs(ours: str, array: np.ndarray) -> np.ndarray:
    """Undoes :func:`_head_to_ours`, with zeros for what that leaves away."""
    array, layer = to_theirs(array), ours.rpartition('/')[0]
    if layer == 'classifier/Dense_0':
        return np.roll(array, 1, 0)
    if layer in _OF_BACKGROUND:
        zeros = np.zeros((_OF_BACKGROUND[layer], *array.shape[1:]), np.float32)
        return np.concatenate([zeros, array])
    if ours == 'boxes/hidden_0/kernel':
        by_channel = array.reshape(len(array), _BINS, _BINS, -1).transpose(0, 3, 1, 2)
        return by_channel.reshape(array.shape)
    if ours == 'masks/double/kernel':
        return np.ascontiguousarray(array.swapaxes(0, 1)[:, :, ::-1, ::-1])
    return array


def _make_up_for(epsilon: float, by_path: dict[str, np.ndarray], body: dict[str, str]) -> None:
    """Scales the norms' scales, for another ε than ours."""
    for ours in [ours for ours in body if ours.endswith('/var')]:
        # In float64: released variances go down to 1e-45, which float32 arithmetic may flush.
        variance = by_path[ours].astype(np.float64)
        if not (variance + epsilon > 0).all():
            raise WeightsError(
                f'{body[ours]}: its least variance is {variance.min()}, wanted more than {-epsilon}'
            )
        scale = ours.replace('batch_stats/', 'backbone/', 1).removesuffix('var') + 'scale'
        by_path[scale] = np.asarray(
            by_path[scale] * np.sqrt((variance + NORM_EPSILON) / (variance + epsilon)), np.float32
        )
