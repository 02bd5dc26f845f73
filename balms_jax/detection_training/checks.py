"""What is refused before any work of a detector's run: settings that do not fit."""

from collections.abc import Mapping
from typing import Any

from balms_jax import meta_gradients, models
from balms_jax.data.decoding import CORRUPT_POLICIES
from balms_jax.data.list_files import MISSING_POLICIES
from balms_jax.detection.anchors import STRIDES
from balms_jax.detection_training import recipe as settings
from balms_jax.detection_training.recipe import Recipe, Stage
from balms_jax.models.imagenet_resnet import LAYOUTS
from balms_jax.training.recipe import ConfigError, one_of, positive, read_as


def is_detector(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a detector's run, not of a classifier's."""
    return 'detector' in config


def from_config(config: Mapping[str, Any]) -> Recipe:
    """Reads a config and checks it.

    Args:
        config: a (nested) mapping with the fields of :class:`Recipe`; absent ones get the default.

    Returns:
        The recipe.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a combination that cannot work.
    """
    recipe = read_as(Recipe, config)
    check(recipe)
    return recipe


def check(recipe: Recipe) -> None:
    """Raises ConfigError, naming the key, for a recipe that cannot be run."""
    _check_data(recipe.data)
    _check_detector(recipe.detector)
    for key in ('anchors', 'regions', 'proposals_per_level', 'proposals'):
        positive(f'draws.{key}', getattr(recipe.draws, key))
    for key in ('test_proposals_per_level', 'test_proposals'):
        positive(f'draws.{key}', getattr(recipe.draws, key))
    for key in ('anchor_fraction', 'region_fraction'):
        _share(f'draws.{key}', getattr(recipe.draws, key))
    if not recipe.stage_1.steps > 0:
        raise ConfigError(f'stage_1.steps: got {recipe.stage_1.steps}, wanted at least 1')
    for name, stage in recipe.stages.items():
        _check_stage(name, stage)
    _check_stages(recipe)
    for key in ('detections', 'candidates', 'batch_size'):
        positive(f'evaluation.{key}', getattr(recipe.evaluation, key))
    for key in ('every', 'pictures', 'gradient_images'):
        _at_least_0(f'evaluation.{key}', getattr(recipe.evaluation, key))
    if not 0 <= recipe.evaluation.score < 1:
        raise ConfigError(
            f'evaluation.score: got {recipe.evaluation.score}, wanted a probability below 1'
        )
    for key in ('checkpoint_every', 'keep', 'rates_every'):
        positive(f'records.{key}', getattr(recipe.records, key))


def check_divisible(recipe: Recipe, devices: int) -> None:
    """Raises ConfigError for a batch that cannot be cut evenly over so many devices."""
    for name, stage in recipe.stages.items():
        sizes = {f'{name}.batch_size': stage.batch_size}
        if stage.meta.rebalancer != 'none':
            sizes[f'{name}.meta.batch_size'] = stage.meta.batch_size
        for key, size in sizes.items():
            if size % devices:
                raise ConfigError(f'{key}: got {size}, wanted a multiple of the {devices} devices')


def _check_data(data: settings.Data) -> None:
    if data.name != 'scenes':
        for key in ('train', 'test'):
            if not getattr(data, key):
                raise ConfigError(
                    f'data.{key}: got nothing for {data.name!r}, wanted a JSON file of LVIS or COCO'
                )
    one_of('data.missing', data.missing, MISSING_POLICIES)
    one_of('data.corrupt', data.corrupt, CORRUPT_POLICIES)
    for key in ('height', 'width'):
        value = getattr(data, key)
        if value < STRIDES[-1] or value % STRIDES[-1]:
            raise ConfigError(
                f'data.{key}: got {value}, wanted a multiple of {STRIDES[-1]}, the coarsest stride'
            )
    if not data.shortest:
        raise ConfigError('data.shortest: got no length, wanted at least one')
    for length in data.shortest:
        positive('data.shortest', length)
    for key in ('shortest_at_test', 'most_objects', 'mask_size', 'head_count', 'test_count'):
        positive(f'data.{key}', getattr(data, key))
    for key in ('workers', 'prefetch', 'repeat_threshold', 'seed'):
        _at_least_0(f'data.{key}', getattr(data, key))
    _share('data.mirrored', data.mirrored)
    if not 1 <= data.imbalance_factor <= data.head_count:
        raise ConfigError(
            f'data.imbalance_factor: got {data.imbalance_factor:g}, wanted 1 to data.head_count = '
            f'{data.head_count}'
        )


def _check_detector(detector: settings.Detector) -> None:
    if detector.depth not in LAYOUTS:
        wanted = ', '.join(map(str, sorted(LAYOUTS)))
        raise ConfigError(f'detector.depth: got {detector.depth}, wanted one of {wanted}')
    for key in ('width', 'channels', 'box_features'):
        positive(f'detector.{key}', getattr(detector, key))
    one_of('detector.dtype', detector.dtype, tuple(models.DTYPES))
    if not 0 < detector.prior < 1:
        raise ConfigError(f'detector.prior: got {detector.prior}, wanted a probability in (0, 1)')
    if not 0 <= detector.frozen_groups <= 5:
        raise ConfigError(f'detector.frozen_groups: got {detector.frozen_groups}, wanted 0 to 5')
    sizes = detector.anchor_sizes
    if len(sizes) != len(STRIDES) or min(sizes) <= 0:
        raise ConfigError(
            f'detector.anchor_sizes: got {sizes}, wanted {len(STRIDES)} lengths above 0'
        )


def _check_stage(name: str, stage: Stage) -> None:
    for key in ('batch_size', 'views'):
        positive(f'{name}.{key}', getattr(stage, key))
    one_of(f'{name}.trains', stage.trains, settings.TRAINS)
    one_of(f'{name}.regions', stage.regions, settings.REGIONS)
    one_of(f'{name}.loss.name', stage.loss.name, settings.LOSSES)
    if not 0 <= stage.loss.beta < 1:
        raise ConfigError(f'{name}.loss.beta: got {stage.loss.beta}, wanted 0 to less than 1')
    _at_least_0(f'{name}.loss.gamma', stage.loss.gamma)
    _share(f'{name}.loss.threshold', stage.loss.threshold)
    _check_optimizer(f'{name}.optimizer', stage.optimizer)
    meta = stage.meta
    one_of(f'{name}.meta.rebalancer', meta.rebalancer, settings.REBALANCERS)
    one_of(f'{name}.meta.loss', meta.loss, settings.META_LOSSES)
    one_of(f'{name}.meta.mode', meta.mode, tuple(meta_gradients.MODES))
    positive(f'{name}.meta.batch_size', meta.batch_size)
    _at_least_0(f'{name}.meta.learning_rate', meta.learning_rate)
    if meta.rebalancer != 'none' and stage.trains == 'all':
        raise ConfigError(
            f"{name}.meta.rebalancer: got {meta.rebalancer!r} beside trains = 'all', wanted "
            "'classifier', the layer that it is looked through"
        )


def _check_optimizer(key: str, optimizer: settings.Optimizer) -> None:
    one_of(f'{key}.name', optimizer.name, settings.OPTIMIZERS)
    one_of(f'{key}.schedule', optimizer.schedule, settings.SCHEDULES)
    for name in ('learning_rate', 'momentum', 'weight_decay', 'warmup_steps', 'clip'):
        _at_least_0(f'{key}.{name}', getattr(optimizer, name))
    _share(f'{key}.warmup_factor', optimizer.warmup_factor)
    if list(optimizer.drops) != sorted(set(optimizer.drops)) or min(optimizer.drops, default=1) < 1:
        raise ConfigError(f'{key}.drops: got {optimizer.drops}, wanted ascending steps')
    if optimizer.drops and optimizer.schedule == 'cosine':
        raise ConfigError(f"{key}.drops: got {optimizer.drops} beside 'cosine', wanted none")


def _check_stages(recipe: Recipe) -> None:
    if recipe.stage_1.trains != 'all':
        raise ConfigError(f"stage_1.trains: got {recipe.stage_1.trains!r}, wanted 'all'")
    losses = {name: stage.loss.name for name, stage in recipe.stages.items()}
    with_background = {loss in settings.WITH_BACKGROUND for loss in losses.values()}
    if len(with_background) > 1:
        raise ConfigError(
            f'stage_2.loss.name: got {losses["stage_2"]!r} after {losses["stage_1"]!r}, wanted '
            'both with a background class or both without'
        )
    for name, stage in recipe.stages.items():
        if recipe.has_background and stage.meta.rebalancer != 'none' and stage.meta.loss != 'same':
            raise ConfigError(
                f'{name}.meta.loss: got {stage.meta.loss!r} for a softmax with background, wanted '
                "'same'"
            )


def _share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f'{key}: got {value}, wanted a share in 0..1')


def _at_least_0(key: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f'{key}: got {value}, wanted at least 0')
