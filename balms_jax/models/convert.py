"""Converts torchvision's weights: ``python -m balms_jax.models.convert WEIGHTS OUTPUT``.

    python -m balms_jax.models.convert resnet50.safetensors resnet50.npz --network resnet50

A run starts from the output with ``--config.model.weights=resnet50.npz``, a detector with
``balms_jax.detection.weights.start_from``, of a ResNet or of a whole Mask R-CNN:

    python -m balms_jax.models.convert coco.pth coco.npz --network maskrcnn_resnet50_fpn --epsilon 0

Reading ``.safetensors`` needs the extra ``weights``, reading ``.pth`` needs PyTorch.
"""

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from balms_jax import extras
from balms_jax.models import (
    detector_weights,
    torchvision_detectors,
    torchvision_weights,
    weights,
)
from balms_jax.models.layers import NORM_EPSILON
from balms_jax.models.torchvision_detectors import DETECTORS
from balms_jax.models.torchvision_weights import CONVERTED


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict as float32 arrays; no code in the file is run.

    Args:
        path: of a ``.safetensors``, ``.pth`` or ``.pt`` file.

    Returns:
        Arrays by name.

    Raises:
        WeightsError: if the file is of another kind, or cannot be read.
        SystemExit: if the library that reads it is not installed; the message names it.
    """
    if path.suffix == '.safetensors':
        with extras.needed('weights', 'reading .safetensors'):
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        try:
            return {key: np.asarray(value, np.float32) for key, value in load_file(path).items()}
        except SafetensorError as error:
            raise weights.WeightsError(f'{path}: cannot be read ({error})') from error
    if path.suffix not in ('.pth', '.pt'):
        raise weights.WeightsError(f'{path}: wanted a .safetensors, .pth or .pt file')
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit(
            'balms_jax: reading .pth needs PyTorch: pip install torch (or give a .safetensors file)'
        ) from None
    try:
        found = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).partition('\n')[0]
        raise weights.WeightsError(f'{path}: cannot be read ({first_line})') from error
    # A training checkpoint holds the state dict among other things.
    found = next((found[key] for key in ('state_dict', 'model') if key in found), found)
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise weights.WeightsError(f'{path}: {key}: got {type(value)}, wanted a tensor')
    return {
        key.removeprefix('module.'): value.detach().float().numpy() for key, value in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', type=Path, help="a state dict in torchvision's layout")
    parser.add_argument('output', type=Path, help='the .npz file that is written')
    parser.add_argument(
        '--network', required=True, choices=(*CONVERTED, *DETECTORS), help='which network it is'
    )
    parser.add_argument(
        '--epsilon',
        type=float,
        default=NORM_EPSILON,
        help="what a detector's norms add to a variance (%(default)s); 0 for torchvision's "
        'released weights, whose loader sets it so',
    )
    options = parser.parse_args(arguments)
    if options.output.suffix != '.npz':
        parser.error(f'output: got {options.output}, wanted a .npz file')
    if options.epsilon != NORM_EPSILON and options.network not in DETECTORS:
        parser.error(f'epsilon: got {options.epsilon} for {options.network}, wanted a detector')
    if not 0 <= options.epsilon < float('inf'):
        parser.error(f'epsilon: got {options.epsilon}, wanted a number of at least 0')
    try:
        state_dict = read_state_dict(options.weights)
        convert = _convert_detector if options.network in DETECTORS else _convert_classifier
        try:
            held = convert(options, state_dict)
        except weights.WeightsError as error:
            raise weights.WeightsError(f'{options.weights}: {error}') from error
    except (OSError, ValueError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    print(f'{options.output}: {options.network}, {held}')
    return 0


def _convert_classifier(options: argparse.Namespace, state_dict: dict[str, np.ndarray]) -> str:
    """Writes the file, and says what it holds."""
    converted = torchvision_weights.from_torchvision(options.network, state_dict)
    weights.save(options.output, converted)
    if not converted.classifier:
        return 'without a classifier: there was none'
    return f'with a classifier of {converted.classifier["Dense_0"]["bias"].size} classes'


def _convert_detector(options: argparse.Namespace, state_dict: dict[str, np.ndarray]) -> str:
    """Writes the file, and says what it holds."""
    converted = torchvision_detectors.from_torchvision(options.network, state_dict, options.epsilon)
    detector_weights.save(options.output, converted)
    outputs = converted.params['classifier']['Dense_0']['bias'].size
    return (
        f'of {outputs - 1} categories and the background; epsilon of its norms: {options.epsilon:g}'
    )


if __name__ == '__main__':
    sys.exit(main())
