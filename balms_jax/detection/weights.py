"""Which weights a detector starts from: those of a detector, or a classifier's backbone."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.detection.networks import Architecture
from balms_jax.models import detector_weights
from balms_jax.models import weights as weight_files
from balms_jax.models.weights import WeightsError

PyTree = Any
# Layers whose outputs are categories, or may be.
_OUTPUTS = ('classifier/Dense_0', 'boxes/deltas', 'masks/logits')


def start_from(
    path: Path | str, params: PyTree, batch_stats: PyTree, architecture: Architecture
) -> tuple[PyTree, PyTree, str]:
    """Puts the weights of a file in the place of a detector's own.

    The file is a detector's (``models.detector_weights.save`` writes it) or a classifier's with the
    same residual network (``models.weights.save``); ``python -m balms_jax.models.convert`` makes
    both. Of a classifier the backbone is taken, with its statistics. Of a detector everything is,
    but for the layers of class logits, deltas and masks that have another number of outputs, and
    for class logits of another kind (``Architecture.background``): these keep the fresh ones.

    Args:
        path: of the file.
        params: of the detector, fresh ones, or their shapes to learn what would be left out.
        batch_stats: the same of its statistics.
        architecture: that it was built from.

    Returns:
        Parameters and statistics in the structure, shapes and types of the detector's own, and a
        sentence on what starts afresh; an empty one if nothing does.

    Raises:
        WeightsError: if there is no such file or it is of another network, or naming what is
            missing, not known, or of another shape.

    Example:
        >>> import tempfile
        >>> from balms_jax.detection import networks
        >>> tiny = Architecture(3, depth=10, width=4, channels=8, box_features=16)
        >>> params, batch_stats = jax.jit(networks.build(tiny).init)(
        ...     jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        >>> made = weight_files.Weights('resnet10', params['backbone'], batch_stats, {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f'{folder}/resnet10.npz'
        ...     weight_files.save(path, made)
        ...     _, _, left_out = start_from(path, params, batch_stats, tiny)
        >>> left_out.removeprefix(path)
        ": of a classifier: all but the detector's backbone starts afresh"
    """
    network, arrays = weight_files.read(path)
    depth = architecture.depth
    classifier, detector = f'resnet{depth}', detector_weights.detector_name(depth)
    if network not in (classifier, detector):
        raise WeightsError(f'{path}: of {network!r}, wanted {detector!r} or {classifier!r}')
    tree = {**params, 'batch_stats': batch_stats}
    wanted = {key: np.shape(leaf) for key, leaf in weight_files.flatten(tree).items()}
    if network == classifier:
        arrays = {key: new for key, new in arrays.items() if _is_of_backbone(key)}
        wanted = {key: shape for key, shape in wanted.items() if _is_of_backbone(key)}
        left_out = f"{path}: of a classifier: all but the detector's backbone starts afresh"
        afresh: dict[str, str] = {}
    else:
        wanted['background'] = ()
        afresh = _unlike_outputs(arrays, wanted, architecture.background)
        left_out = f'{path}: left out, and started afresh: {", ".join(afresh.values())}'
        for key in [key for key in wanted if _layer(key) in afresh and key in arrays]:
            # Left out for the number of its outputs only: what they are computed from must fit.
            wanted[key] = (*wanted[key][:-1], *np.shape(arrays[key])[-1:])
    if wrong := weight_files.differences(arrays, wanted):
        raise WeightsError(f'{path}: {wrong}')

    def started(keys: tuple[jax.tree_util.DictKey, ...], own: jax.Array) -> jax.Array:
        key = '/'.join(str(step.key) for step in keys)
        if key not in wanted or _layer(key) in afresh:
            return own
        return jnp.asarray(arrays[key], own.dtype)

    new = jax.tree_util.tree_map_with_path(started, tree)
    new_stats = new.pop('batch_stats')
    return new, new_stats, left_out if afresh or network == classifier else ''


def _is_of_backbone(key: str) -> bool:
    return key.startswith(('backbone/', 'batch_stats/'))


def _layer(key: str) -> str:
    return key.rpartition('/')[0]


def _unlike_outputs(
    arrays: dict[str, np.ndarray], wanted: dict[str, tuple[int, ...]], background: bool
) -> dict[str, str]:
    """The layers that have other outputs than the detector's, and in words how they differ."""
    has_background = bool(np.any(arrays.get('background', background)))
    unlike = {}
    for layer in _OUTPUTS:
        outputs = np.size(arrays.get(f'{layer}/bias', 0)), *wanted[f'{layer}/bias']
        kinds = ('outputs', 'outputs')
        if layer == _OUTPUTS[0]:
            kinds = _kind(has_background), _kind(background)
        if outputs[0] != outputs[1] or kinds[0] != kinds[1]:
            own = f'{outputs[1]} {kinds[1]}' if kinds[0] != kinds[1] else f'{outputs[1]}'
            unlike[layer] = f'{layer} ({outputs[0]} {kinds[0]}, wanted {own})'
    return unlike


def _kind(background: bool) -> str:
    return 'outputs of a softmax' if background else 'sigmoids'
