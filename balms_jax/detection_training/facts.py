"""What a detector's run is and was trained on: the facts of run.json."""

from collections import Counter
from typing import Any

from jax.sharding import Mesh

from balms_jax import models
from balms_jax.detection_training.material import Material
from balms_jax.detection_training.recipe import Detector, Recipe
from balms_jax.training.facts import trained_on
from balms_jax.training.state import TrainState


def facts(
    recipe: Recipe,
    material: Material,
    devices: Mesh,
    state: TrainState,
    skipped: Counter[str] | None = None,
) -> dict[str, Any]:
    """What stands in run.json."""
    learns = any(stage.meta.rebalancer != 'none' for stage in recipe.stages.values())
    return {
        'kind': 'detector',
        'method': recipe.method,
        'dataset': recipe.data.name,
        'seed': recipe.seed,
        'recipe': recipe.name,
        'network': described(recipe.detector),
        'parameter_count': models.count_parameters(state.params),
        'train_images': len(material.train),
        'test_images': len(material.test),
        'dropped': material.dropped._asdict(),
        'category_names': [category.name for category in material.categories],
        'frequencies': [category.frequency for category in material.categories],
        'image_counts': [category.image_count for category in material.categories],
        'object_counts': material.object_counts.tolist(),
        'meta_set': 'the training images, drawn by max 1/f of their categories' if learns else None,
        'selection_rule': 'last step',
        'data_fingerprint': material.fingerprint,
        'replaced_images': dict(skipped or {}),
        **trained_on(devices),
        'stages': [
            {'name': name, 'steps': stage.steps, 'batch_size': stage.batch_size}
            for name, stage in recipe.stages.items()
        ],
    }


def described(detector: Detector) -> str:
    """The network in words.

    Example:
        >>> described(Detector())
        'Mask R-CNN, ResNet-50 of width 64, 256 channels'
    """
    words = [
        'Mask R-CNN',
        f'ResNet-{detector.depth} of width {detector.width}',
        f'{detector.channels} channels',
    ]
    if detector.dtype != 'float32':
        words.append(detector.dtype)
    if detector.remat:
        words.append('blocks rematerialised')
    return ', '.join(words)
