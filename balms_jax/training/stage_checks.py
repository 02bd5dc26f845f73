"""What is refused of a stage before any work: settings that do not fit each other, or the run."""

import itertools

from balms_jax import meta_gradients
from balms_jax.estimators import ESTIMATORS
from balms_jax.rebalancers import ONE_BY_ONE, REBALANCERS
from balms_jax.training.recipe import (
    CLASS_WEIGHTS,
    DRAWS,
    LOSSES,
    META_SOURCES,
    ConfigError,
    Meta,
    Recipe,
    Stage,
    one_of,
    positive,
)


def check_stage(name: str, stage: Stage) -> None:
    """Raises ConfigError, naming the key, for a stage that cannot be run whatever the network."""
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
    ends = (optimizer.warmup_steps, *optimizer.drops, stage.steps)
    if stage.steps and optimizer.drops and not all(a < b for a, b in itertools.pairwise(ends)):
        raise ConfigError(
            f'{name}.optimizer.drops: got {optimizer.drops}, wanted ascending steps after the '
            f'warm-up, {optimizer.warmup_steps}, and before the end, {stage.steps}'
        )
    positive(f'{name}.optimizer.hold', optimizer.hold)
    one_of(f'{name}.mixup_partners', stage.mixup_partners, ('batch', 'class_balanced'))
    if not 0 <= stage.averaging < 1:
        raise ConfigError(f'{name}.averaging: got {stage.averaging}, wanted 0 to less than 1')
    if stage.mixup < 0:
        raise ConfigError(f'{name}.mixup: got {stage.mixup}, wanted at least 0')
    _check_meta(f'{name}.meta', meta)
    if meta.rebalancer == 'none':
        return
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
    if meta.staleness and meta.estimator == 'expectation':
        raise ConfigError(
            f"{name}.meta.staleness: got {meta.staleness} for meta.estimator = 'expectation', "
            'whose draws do not follow what is learned: wanted 0'
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


def check_stage_of_run(name: str, stage: Stage, recipe: Recipe) -> None:
    """Raises ConfigError for a stage that the rest of the recipe has no data or network for."""
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


def _check_meta(key: str, meta: Meta) -> None:
    """What no stage may name, even one that learns nothing: a slip would pass unnoticed."""
    one_of(f'{key}.rebalancer', meta.rebalancer, ('none', *REBALANCERS))
    one_of(f'{key}.source', meta.source, META_SOURCES)
    one_of(f'{key}.draws', meta.draws, ('stratified', 'class_balanced'))
    one_of(f'{key}.estimator', meta.estimator, tuple(ESTIMATORS))
    one_of(f'{key}.mode', meta.mode, tuple(meta_gradients.MODES))
    positive(f'{key}.batch_size', meta.batch_size)
    if not meta.temperature > 0:
        raise ConfigError(f'{key}.temperature: got {meta.temperature}, wanted a number above 0')
    for part in ('learning_rate', 'weight_decay'):
        if not getattr(meta, part) >= 0:
            raise ConfigError(f'{key}.{part}: got {getattr(meta, part)}, wanted at least 0')
    for part in ('b1', 'b2'):
        if not 0 <= getattr(meta, part) < 1:
            raise ConfigError(f'{key}.{part}: got {getattr(meta, part)}, wanted 0 to less than 1')


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
