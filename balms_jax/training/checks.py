"""What is refused before any work, and what is cautioned against: settings that do not fit."""

import math
from collections.abc import Mapping
from typing import Any

from balms_jax import meta_gradients, models
from balms_jax.data import long_tail
from balms_jax.data.decoding import CORRUPT_POLICIES
from balms_jax.data.list_files import MISSING_POLICIES
from balms_jax.data.sources import SIDES
from balms_jax.estimators import ESTIMATORS
from balms_jax.rebalancers import ONE_BY_ONE, REBALANCERS
from balms_jax.training.recipe import (
    AUGMENTATIONS,
    BATCH_NORMS,
    CLASS_WEIGHTS,
    CROPS,
    DRAWS,
    LOSSES,
    META_SOURCES,
    SOURCES,
    TEST_CLASSIFIERS,
    ConfigError,
    Model,
    Recipe,
    Stage,
    read,
)


def from_config(config: Mapping[str, Any]) -> Recipe:
    """Reads a config and checks it.

    Args:
        config: a (nested) mapping with the fields of :class:`Recipe`; absent ones get the default.

    Returns:
        The recipe.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a combination that cannot work.
    """
    recipe = read(config)
    check(recipe)
    return recipe


def check(recipe: Recipe) -> None:
    """Raises ConfigError, naming the key, for a recipe that cannot be run."""
    _check_files(recipe)
    one_of('data.profile', recipe.data.profile, (*long_tail.PROFILES, 'given'))
    if recipe.data.imbalance_factor < 1:
        got = recipe.data.imbalance_factor
        raise ConfigError(f'data.imbalance_factor: got {got:g}, wanted n_max / n_min of at least 1')
    if not 0 <= recipe.data.held_out < 1:
        raise ConfigError(f'data.held_out: got {recipe.data.held_out}, wanted 0 to less than 1')
    one_of('data.augmentation', recipe.data.augmentation, AUGMENTATIONS)
    if recipe.data.augmentation in ('cifar', 'flip_jitter') and recipe.data.name == 'digits':
        raise ConfigError(
            f'data.augmentation: got {recipe.data.augmentation!r} for digits, wanted images of 3 '
            'channels'
        )
    one_of('model.batch_norm', recipe.model.batch_norm, BATCH_NORMS)
    if not recipe.stage_1.steps > 0:
        raise ConfigError(f'stage_1.steps: got {recipe.stage_1.steps}, wanted at least 1')
    if recipe.stage_1.trains != 'all':
        raise ConfigError(
            f"stage_1.trains: got {recipe.stage_1.trains!r}, wanted 'all': nothing is trained yet"
        )
    for name, stage in (('stage_1', recipe.stage_1), ('stage_2', recipe.stage_2)):
        _check_stage(name, stage)
        if stage.steps:
            _check_stage_of_run(name, stage, recipe)
    evaluation = recipe.evaluation
    one_of('evaluation.classifier', evaluation.classifier, TEST_CLASSIFIERS)
    if evaluation.classifier != 'trained' and recipe.model.classifier != 'linear':
        raise ConfigError(
            f'evaluation.classifier: got {evaluation.classifier!r} of a '
            f"{recipe.model.classifier!r} classifier, wanted 'trained'"
        )
    if evaluation.classifier == 'tau_normalized' and not recipe.data.held_out:
        raise ConfigError(
            "evaluation.classifier: got 'tau_normalized', whose τ is chosen on held-out images, "
            'and data.held_out = 0: wanted a share above 0'
        )
    for prior in evaluation.test_priors:
        one_of('evaluation.test_priors', prior, ('uniform', 'train', 'reversed'))
    if 'uniform' not in evaluation.test_priors:
        raise ConfigError("evaluation.test_priors: wanted 'uniform' among them")
    positive('evaluation.batch_size', evaluation.batch_size)
    positive('evaluation.gradient_examples', evaluation.gradient_examples)
    positive('records.checkpoint_every', recipe.records.checkpoint_every)
    positive('records.keep', recipe.records.keep)
    positive('records.rates_every', recipe.records.rates_every)
    positive('class_shards', recipe.class_shards)
    for key in (
        'seed',
        'devices',
        'steps_per_call',
        'data.head_count',
        'data.files.workers',
        'data.files.prefetch',
        'model.width',
        'model.experts',
        'evaluation.every',
    ):
        value: Any = recipe
        for part in key.split('.'):
            value = getattr(value, part)
        if value < 0:
            raise ConfigError(f'{key}: got {value}, wanted at least 0')
    try:
        build_network(recipe.model, num_classes=2)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    name, data = recipe.model.name, recipe.data
    side, multiple = SIDES.get(data.name, data.files.size), models.side_multiple(name)
    if side % multiple:
        raise ConfigError(
            f'model.name: got {name!r} for images of {side} × {side}, wanted a multiple of '
            f'{multiple}, the side of its patches'
        )


def build_network(model: Model, num_classes: int) -> models.Network:
    """The network that a recipe names.

    Raises:
        ValueError: if its settings do not fit each other.
    """
    return models.build(
        model.name,
        num_classes,
        width=model.width,
        classifier=model.classifier,
        scale=model.scale,
        experts=model.experts,
        dtype=model.dtype,
        remat=model.remat,
    )


def check_divisible(recipe: Recipe, devices: int) -> None:
    """Raises ConfigError for a batch that cannot be cut evenly over so many devices."""
    for name, stage in recipe.stages.items():
        sizes = {f'{name}.batch_size': stage.batch_size}
        if stage.meta.rebalancer != 'none':
            sizes[f'{name}.meta.batch_size'] = stage.meta.batch_size
        if stage.accumulation > 1:
            sizes = {f'{k} / accumulation': n // stage.accumulation for k, n in sizes.items()}
        for key, size in sizes.items():
            if size % devices:
                raise ConfigError(f'{key}: got {size}, wanted a multiple of the {devices} devices')


def check_against_data(recipe: Recipe, class_counts: tuple[int, ...]) -> None:
    """Raises ConfigError for what does not go with the classes of the training set.

    A batch that they cannot fill, or classes that devices cannot share evenly.
    """
    if len(class_counts) % recipe.class_shards:
        raise ConfigError(
            f'class_shards: got {recipe.class_shards}, wanted a divisor of the '
            f'{len(class_counts)} classes'
        )
    for name, stage in recipe.stages.items():
        if stage.draws == 'shuffled' and stage.batch_size > sum(class_counts):
            raise ConfigError(
                f'{name}.batch_size: got {stage.batch_size}, wanted at most the '
                f'{sum(class_counts)} training examples'
            )
        meta = stage.meta
        stratified = meta.rebalancer != 'none' and meta.draws == 'stratified'
        if stratified and meta.batch_size < len(class_counts):
            raise ConfigError(
                f'{name}.meta.batch_size: got {meta.batch_size}, wanted at least one of each of '
                f'{len(class_counts)} classes for a stratified meta batch'
            )


def cautions(recipe: Recipe, class_counts: tuple[int, ...]) -> list[str]:
    """What can be run, but will hardly do what is meant; a sentence each."""
    held = [n for n in class_counts if n]
    spread = math.log(max(held) / min(held))
    taus = [stage.loss.tau for stage in recipe.stages.values()]
    model, said = recipe.model, []
    if model.classifier == 'cosine' and 2 * model.scale < max(taus) * spread:
        said.append(
            f'model.scale: with {model.scale:g} the logits differ by {2 * model.scale:g} at most, '
            f'and the log prior by {max(taus) * spread:.1f}: the prior decides alone'
        )
    return said


def _check_files(recipe: Recipe) -> None:
    data, files = recipe.data, recipe.data.files
    if data.name in SOURCES:
        if files.train or files.test or files.streamed:
            raise ConfigError(
                f'data.files: got some for {data.name!r}, which is not read from such files: '
                'wanted another data.name'
            )
        return
    for key in ('train', 'test'):
        if not getattr(files, key):
            raise ConfigError(
                f"data.files.{key}: got '' for {data.name!r}, wanted a list or a folder; "
                f'known without are {", ".join(SOURCES)}'
            )
    one_of('data.files.missing', files.missing, MISSING_POLICIES)
    one_of('data.files.corrupt', files.corrupt, CORRUPT_POLICIES)
    one_of('data.files.crop', files.crop, CROPS)
    positive('data.files.size', files.size)
    if files.resize < files.size:
        raise ConfigError(
            f'data.files.resize: got {files.resize}, wanted at least the size, {files.size}'
        )
    if not files.streamed:
        if files.crop != 'centre':
            raise ConfigError(
                f'data.files.crop: got {files.crop!r} of images in memory, wanted '
                "'centre', or data.files.streamed = True"
            )
        return
    if recipe.steps_per_call > 1:
        raise ConfigError(
            f'steps_per_call: got {recipe.steps_per_call} for streamed images, wanted 0 or 1'
        )
    for name, stage in recipe.stages.items():
        if stage.draws == 'bilateral' or (stage.mixup and stage.mixup_partners != 'batch'):
            raise ConfigError(
                f'{name}: got draws = {stage.draws!r} and mixup_partners = '
                f'{stage.mixup_partners!r} for streamed images, whose steps draw one batch: wanted '
                "others than 'bilateral' and 'class_balanced'"
            )


def _check_stage(name: str, stage: Stage) -> None:
    if stage.steps < 0:
        raise ConfigError(f'{name}.steps: got {stage.steps}, wanted at least 0')
    for key in ('batch_size', 'views', 'accumulation'):
        positive(f'{name}.{key}', getattr(stage, key))
    _check_accumulation(f'{name}.accumulation', stage)
    one_of(f'{name}.trains', stage.trains, ('all', 'classifier', 'scales'))
    _check_loss(f'{name}.loss', stage)
    one_of(f'{name}.features', stage.features, ('cached', 'recomputed'))
    one_of(f'{name}.draws', stage.draws, DRAWS)
    optimizer, meta = stage.optimizer, stage.meta
    for key in ('learning_rate', 'warmup_from', 'momentum', 'weight_decay'):
        if not getattr(optimizer, key) >= 0:
            raise ConfigError(
                f'{name}.optimizer.{key}: got {getattr(optimizer, key)}, wanted at least 0'
            )
    if stage.steps and not 0 <= optimizer.warmup_steps < stage.steps:
        raise ConfigError(
            f'{name}.optimizer.warmup_steps: got {optimizer.warmup_steps}, wanted 0 to less than '
            f'the {stage.steps} steps of the stage'
        )
    positive(f'{name}.optimizer.hold', optimizer.hold)
    one_of(f'{name}.mixup_partners', stage.mixup_partners, ('batch', 'class_balanced'))
    if not 0 <= stage.averaging < 1:
        raise ConfigError(f'{name}.averaging: got {stage.averaging}, wanted 0 to less than 1')
    if stage.mixup < 0:
        raise ConfigError(f'{name}.mixup: got {stage.mixup}, wanted at least 0')
    one_of(f'{name}.meta.rebalancer', meta.rebalancer, ('none', *REBALANCERS))
    if meta.rebalancer == 'none':
        return
    one_of(f'{name}.meta.source', meta.source, META_SOURCES)
    one_of(f'{name}.meta.draws', meta.draws, ('stratified', 'class_balanced'))
    one_of(f'{name}.meta.estimator', meta.estimator, tuple(ESTIMATORS))
    if not meta.temperature > 0:
        raise ConfigError(
            f'{name}.meta.temperature: got {meta.temperature}, wanted a number above 0'
        )
    one_of(f'{name}.meta.mode', meta.mode, tuple(meta_gradients.MODES))
    positive(f'{name}.meta.batch_size', meta.batch_size)
    if stage.draws != 'shuffled':
        raise ConfigError(
            f'{name}.draws: got {stage.draws!r} beside meta.rebalancer = {meta.rebalancer!r}, '
            "which draws its own batches: wanted 'shuffled', the default"
        )
    if stage.mixup:
        raise ConfigError(f'{name}.mixup: got {stage.mixup} beside a rebalancer, wanted 0')
    if meta.staleness < 0:
        raise ConfigError(f'{name}.meta.staleness: got {meta.staleness}, wanted at least 0')
    if meta.staleness and meta.rebalancer != 'meta_sampler':
        raise ConfigError(
            f'{name}.meta.staleness: got {meta.staleness} for {meta.rebalancer!r}, whose draws do '
            'not follow what it learns: wanted 0'
        )
    if meta.importance and not meta.staleness:
        raise ConfigError(
            f'{name}.meta.importance: got True and meta.staleness = 0, wanted stale draws to weigh'
        )
    by_example = meta_gradients.MODES[meta.mode].one_step
    if meta.rebalancer in ONE_BY_ONE and not by_example:
        raise ConfigError(
            f'{name}.meta.mode: got {meta.mode!r} for {meta.rebalancer!r}, which reads the '
            "gradient of every weight: wanted 'per_example' or 'ghost_product'"
        )
    if meta.rebalancer == 'learned_adjustment':
        if stage.loss.name != 'balanced_softmax':
            raise ConfigError(
                f'{name}.loss.name: got {stage.loss.name!r} beside a learned adjustment, wanted '
                "'balanced_softmax', whose prior it learns"
            )
        if by_example:
            raise ConfigError(
                f'{name}.meta.mode: got {meta.mode!r} for a learned adjustment, which is no weight '
                "of examples: wanted 'forward_over_reverse', 'lean' or 'reverse'"
            )


def _check_stage_of_run(name: str, stage: Stage, recipe: Recipe) -> None:
    """What a stage needs of the rest of the recipe."""
    learns = stage.meta.rebalancer != 'none'
    if learns and stage.meta.source == 'held_out' and not recipe.data.held_out:
        raise ConfigError(
            f"{name}.meta.source: got 'held_out' and data.held_out = 0, wanted a share above 0"
        )
    if learns and stage.meta.source == 'redraw' and recipe.data.profile == 'given':
        raise ConfigError(
            f"{name}.meta.source: got 'redraw' and data.profile = 'given', which takes every "
            "image: wanted 'train' or 'held_out'"
        )
    if (
        learns
        and stage.meta.mode == 'ghost_product'
        and (stage.trains, recipe.model.batch_norm) == ('all', 'device')
    ):
        raise ConfigError(
            f"{name}.meta.mode: got 'ghost_product', which wants examples that do not meet, beside "
            "model.batch_norm = 'device', where those of a device do: wanted another mode"
        )
    if stage.loss.name == 'cost_sensitive' and (learns or stage.trains != 'all'):
        raise ConfigError(
            f"{name}.loss.name: got 'cost_sensitive', whose costs follow the whole network, beside "
            f'trains = {stage.trains!r} and meta.rebalancer = {stage.meta.rebalancer!r}: wanted '
            "'all' and 'none'"
        )
    if stage.loss.name == 'cost_sensitive' and not recipe.data.held_out:
        raise ConfigError(
            f"{name}.loss.name: got 'cost_sensitive', whose costs follow held-out images, and "
            'data.held_out = 0: wanted a share above 0'
        )
    if (stage.draws == 'bilateral') != (recipe.model.classifier == 'bilateral'):
        raise ConfigError(
            f'{name}.draws: got {stage.draws!r} and model.classifier = '
            f"{recipe.model.classifier!r}, wanted 'bilateral' of both or of neither"
        )
    if recipe.model.classifier == 'experts':
        if stage.loss.name != 'balanced_softmax':
            raise ConfigError(
                f"{name}.loss.name: got {stage.loss.name!r} for 'experts', wanted "
                "'balanced_softmax', whose τ tells them apart"
            )
        if learns:
            raise ConfigError(
                f"{name}.meta.rebalancer: got {stage.meta.rebalancer!r} for 'experts', wanted "
                "'none'"
            )


def _check_accumulation(key: str, stage: Stage) -> None:
    if stage.accumulation == 1:
        return
    if stage.batch_size % stage.accumulation:
        raise ConfigError(
            f'{key}: got {stage.accumulation}, wanted a divisor of the batch size, '
            f'{stage.batch_size}'
        )
    if stage.meta.rebalancer != 'none' and stage.meta.batch_size % stage.accumulation:
        raise ConfigError(
            f'{key}: got {stage.accumulation}, wanted a divisor of the meta batch size too, '
            f'{stage.meta.batch_size}'
        )
    if stage.draws == 'bilateral':
        raise ConfigError(
            f"{key}: got {stage.accumulation} beside draws = 'bilateral', wanted 1: its step is of "
            'two batches'
        )


def _check_loss(name: str, stage: Stage) -> None:
    loss = stage.loss
    one_of(f'{name}.name', loss.name, LOSSES)
    one_of(f'{name}.class_weights', loss.class_weights, CLASS_WEIGHTS)
    for key in ('gamma', 'margin'):
        if not getattr(loss, key) >= 0:
            raise ConfigError(f'{name}.{key}: got {getattr(loss, key)}, wanted at least 0')
    for key in ('threshold', 'ignored', 'beta', 'cost_rate'):
        if not 0 <= getattr(loss, key) <= 1:
            raise ConfigError(f'{name}.{key}: got {getattr(loss, key)}, wanted 0 to 1')
    if not 0 <= loss.label_smoothing < 1:
        raise ConfigError(
            f'{name}.label_smoothing: got {loss.label_smoothing}, wanted 0 to less than 1'
        )
    if (loss.label_smoothing or stage.mixup) and loss.name != 'balanced_softmax':
        raise ConfigError(
            f'{name}.name: got {loss.name!r} beside mixed or smoothed labels, wanted '
            "'balanced_softmax', the loss that takes distributions"
        )


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError for what is no choice of a key."""
    if value not in choices:
        raise ConfigError(f'{key}: got {value!r}, wanted one of {", ".join(choices)}')


def positive(key: str, value: int) -> None:
    """Raises ConfigError for a number below 1."""
    if not value > 0:
        raise ConfigError(f'{key}: got {value}, wanted at least 1')
