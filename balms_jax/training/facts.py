"""What a run is and was trained on: the facts of run.json."""

import platform
from importlib import metadata
from typing import Any

from jax.sharding import Mesh

from balms_jax import models
from balms_jax.training.material import Material
from balms_jax.training.recipe import Model, Recipe
from balms_jax.training.state import TrainState

META_SETS = {
    'train': 'the training set',
    'redraw': 'a redraw of the long-tailed subset',
    'held_out': 'a part held out of the training set',
}


def facts(recipe: Recipe, material: Material, devices: Mesh, final: TrainState) -> dict[str, Any]:
    """What stands in run.json."""
    metas = [s.meta for s in recipe.stages.values() if s.meta.rebalancer != 'none']
    weights_facts = {}
    if material.weights_fingerprint:
        weights_facts['weights_fingerprint'] = material.weights_fingerprint
    missing = {'missing_images': material.missing_images} if material.missing_images else {}
    return {
        'method': recipe.method,
        'dataset': recipe.data.name,
        'imbalance_factor': _imbalance_factor(recipe, material),
        'profile': recipe.data.profile,
        'seed': recipe.seed,
        'subset_seed': recipe.data.seed,
        'recipe': recipe.name,
        'network': described(recipe.model),
        'parameter_count': models.count_parameters(final.params),
        'class_counts': list(material.class_counts),
        'class_names': list(material.source.class_names),
        'meta_set': f'{META_SETS[metas[0].source]}, {metas[0].draws}' if metas else None,
        'held_out_examples': sum(material.held_out_counts),
        'selection_rule': 'last epoch',
        'data_fingerprint': material.fingerprint,
        **missing,
        **weights_facts,
        **trained_on(devices),
        'stages': [
            {'name': name, 'steps': stage.steps, 'batch_size': stage.batch_size}
            for name, stage in recipe.stages.items()
        ],
    }


def trained_on(devices: Mesh) -> dict[str, Any]:
    """The devices, and the versions of what computed."""
    packages = ('balms_jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'device': f'{devices.size} x {devices.devices.flat[0].device_kind}',
        'versions': {
            'python': platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }


def _imbalance_factor(recipe: Recipe, material: Material) -> float:
    """Of the profile, or of the classes with examples where they are as given."""
    if recipe.data.profile != 'given':
        return recipe.data.imbalance_factor
    held = [n for n in material.class_counts if n]
    return max(held) / min(held)


def described(model: Model) -> str:
    """The network in words.

    Example:
        >>> described(Model('resnet10', width=32, dtype='bfloat16'))
        'resnet10, width 32, linear classifier, bfloat16'
    """
    words = [model.name, f'width {model.width}', f'{model.classifier} classifier']
    if model.dtype != 'float32':
        words.append(model.dtype)
    if model.remat:
        words.append('blocks rematerialised')
    if model.batch_norm != 'global':
        words.append(f'batch norm by {model.batch_norm}')
    return ', '.join(words)
