"""What is refused before any work, and what is cautioned against: settings that do not fit."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from balms_jax import models, priors
from balms_jax.data import long_tail
from balms_jax.data.decoding import CORRUPT_POLICIES
from balms_jax.data.list_files import MISSING_POLICIES
from balms_jax.data.sources import SIDES
from balms_jax.training.recipe import (
    AUGMENTATIONS,
    BATCH_NORMS,
    CROPS,
    SOURCES,
    TEST_CLASSIFIERS,
    ConfigError,
    Model,
    Recipe,
    Stage,
    one_of,
    positive,
    read,
)
from balms_jax.training.stage_checks import check_stage, check_stage_of_run


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
        check_stage(name, stage)
        if stage.steps:
            check_stage_of_run(name, stage, recipe)
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
    if recipe.model.classifier == 'experts':
        positive('model.experts', recipe.model.experts)
    if not recipe.model.scale > 0:
        raise ConfigError(f'model.scale: got {recipe.model.scale}, wanted a number above 0')
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
        if stage.loss.name == 'equalization' and _equalized(stage, class_counts).all():
            raise ConfigError(
                f'{name}.loss.threshold: got {stage.loss.threshold:g}, which makes a tail of all '
                f'{len(class_counts)} classes, and most losses 0: wanted at most the share of the '
                f'largest class, {max(class_counts) / sum(class_counts):.2g}'
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
    for name, stage in recipe.stages.items():
        if stage.loss.name == 'equalization':
            tail = np.asarray(class_counts)[_equalized(stage, class_counts)].sum()
            if 2 * tail > sum(class_counts):
                said.append(
                    f'{name}.loss.threshold: {stage.loss.threshold:g} makes a tail of '
                    f'{tail / sum(class_counts):.0%} of the examples, most of whose losses are 0'
                )
        if stage.meta.rebalancer != 'none' and stage.meta.source == 'held_out':
            said.append(
                f'{name}.meta.source: what is learned sees the held-out images, which a '
                'temperature or τ is chosen on too'
            )
    if model.classifier == 'cosine' and 2 * model.scale < max(taus) * spread:
        said.append(
            f'model.scale: with {model.scale:g} the logits differ by {2 * model.scale:g} at most, '
            f'and the log prior by {max(taus) * spread:.1f}: the prior decides alone'
        )
    return said


def _equalized(stage: Stage, class_counts: tuple[int, ...]) -> np.ndarray:
    """Which classes the equalization loss takes for the tail, ``[classes]``, bool."""
    return np.asarray(priors.equalized_classes(np.asarray(class_counts), stage.loss.threshold))


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
