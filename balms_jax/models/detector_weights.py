"""A file of a detector's weights."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from balms_jax.models import weights as weight_files
from balms_jax.models.weights import WeightsError

PyTree = Any
PARTS = ('backbone', 'pyramid', 'proposals', 'boxes', 'classifier', 'masks')


class DetectorWeights(NamedTuple):
    """The weights of a Mask R-CNN, as nested dictionaries of arrays."""

    network: str  # as detector_name gives it
    background: bool  # whether a softmax with the background last scores a region, else sigmoids
    params: PyTree  # by part, one of PARTS
    batch_stats: PyTree


def detector_name(depth: int) -> str:
    """The name that torchvision gives the detector with a residual network of a depth.

    Example:
        >>> detector_name(50)
        'maskrcnn_resnet50_fpn'
    """
    return f'maskrcnn_resnet{depth}_fpn'


def save(path: Path | str, weights: DetectorWeights) -> None:
    """Writes a detector's weights to a ``.npz`` file: one array a name, as ``boxes/deltas/bias``.

    Args:
        path: where to.
        weights: what to write.

    Raises:
        OSError: if it cannot be written.
    """
    tree = {
        'background': np.asarray(weights.background),
        **weights.params,
        'batch_stats': weights.batch_stats,
    }
    weight_files.write(path, weights.network, tree)


def load(path: Path | str) -> DetectorWeights:
    """Reads what :func:`save` wrote. Nothing in the file is executed.

    Args:
        path: of the file.

    Returns:
        The weights.

    Raises:
        WeightsError: if there is no such file, or a part is missing or not known.

    Example:
        >>> import tempfile
        >>> params = {part: {'bias': np.zeros(2)} for part in PARTS}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f'{folder}/a.npz', DetectorWeights(detector_name(18), True, params, {}))
        ...     load(f'{folder}/a.npz')[:2]
        ('maskrcnn_resnet18_fpn', True)
    """
    network, arrays = weight_files.read(path)
    trees = weight_files.unflatten(arrays)
    missing = [part for part in ('background', *PARTS) if part not in trees]
    unknown = [part for part in trees if part not in ('background', 'batch_stats', *PARTS)]
    if missing or unknown:
        raise WeightsError(
            f'{path}: {network} is no detector: wanted {", ".join(("background", *PARTS))}; '
            f'missing: {", ".join(missing) or "none"}; not known: {", ".join(unknown) or "none"}'
        )
    background, batch_stats = bool(trees.pop('background')), trees.pop('batch_stats', {})
    return DetectorWeights(network, background, trees, batch_stats)
