"""Converts torchvision's weights: ``python -m balms_jax.models.convert WEIGHTS OUTPUT``.

    python -m balms_jax.models.convert resnet50.safetensors resnet50.npz --network resnet50

A run starts from the output with ``--config.model.weights=resnet50.npz``. Reading ``.safetensors``
needs the extra ``weights``, reading ``.pth`` needs PyTorch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from balms_jax import extras
from balms_jax.models import weights
from balms_jax.models.torchvision_weights import CONVERTED, from_torchvision


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict as float32 arrays; no code in the file is run.

    Args:
        path: of a ``.safetensors``, ``.pth`` or ``.pt`` file.

    Returns:
        Arrays by name.

    Raises:
        WeightsError: if the file is of another kind.
        SystemExit: if the library that reads it is not installed; the message names it.
    """
    if path.suffix == '.safetensors':
        with extras.needed('weights', 'reading .safetensors'):
            from safetensors.numpy import load_file
        return {key: np.asarray(value, np.float32) for key, value in load_file(path).items()}
    if path.suffix not in ('.pth', '.pt'):
        raise weights.WeightsError(f'{path}: wanted a .safetensors, .pth or .pt file')
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit(
            'balms_jax: reading .pth needs PyTorch: pip install torch (or give a .safetensors file)'
        ) from None
    found = torch.load(path, map_location='cpu', weights_only=True)
    # A training checkpoint holds the state dict among other things.
    found = next((found[key] for key in ('state_dict', 'model') if key in found), found)
    return {key.removeprefix('module.'): value.float().numpy() for key, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', type=Path, help="a state dict in torchvision's layout")
    parser.add_argument('output', type=Path, help='the .npz file that is written')
    parser.add_argument('--network', required=True, choices=CONVERTED, help='which network it is')
    options = parser.parse_args(arguments)
    if options.output.suffix != '.npz':
        parser.error(f'output: got {options.output}, wanted a .npz file')
    try:
        converted = from_torchvision(options.network, read_state_dict(options.weights))
        weights.save(options.output, converted)
    except (OSError, ValueError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    if converted.classifier:
        classes = converted.classifier['Dense_0']['bias'].size
        print(f'{options.output}: {options.network}, with a classifier of {classes} classes')
    else:
        print(f'{options.output}: {options.network}, without a classifier: there was none')
    return 0


if __name__ == '__main__':
    sys.exit(main())
