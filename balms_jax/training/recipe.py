"""What a run is: the recipe, its defaults, and the checks a config passes before any work.

The only place that reads a config. Everything else takes these plain, frozen values.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from balms_jax import meta_gradients
from balms_jax.data import long_tail
from balms_jax.estimators import ESTIMATORS
from balms_jax.models import NETWORKS
from balms_jax.rebalancers import ONE_BY_ONE, REBALANCERS

LOSSES = (
    'balanced_softmax',
    'focal',
    'focal_sigmoid',
    'margin',
    'temperature',
    'equalization',
    'cost_sensitive',
)
CLASS_WEIGHTS = ('none', 'inverse_frequency', 'class_balanced')
DRAWS = (
    'shuffled',
    'instance_balanced',
    'class_balanced',
    'square_root',
    'progressive',
    'bilateral',
)
AUGMENTATIONS = ('none', 'crop_flip', 'cifar')
META_SOURCES = ('train', 'redraw', 'held_out')
TEST_CLASSIFIERS = ('trained', 'tau_normalized', 'nearest_mean')


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key."""


@dataclass(frozen=True)
class Data:
    """Which images, and the long tail that is cut out of them."""

    name: str = 'digits'
    data_dir: str = ''
    download: bool = False
    profile: str = 'exponential'  # or step, pareto
    imbalance_factor: float = 40.0  # n_max / n_min
    head_count: int = 0  # n_max; 0: as many as the largest class holds
    seed: int = 0  # Of the subset, apart from the run's.
    held_out: float = 0.0  # Share of each class's training examples that is kept from training.
    augmentation: str = 'none'


@dataclass(frozen=True)
class Model:
    """Backbone and classifier."""

    name: str = 'digits_net'
    width: int = 0  # Channels of the first convolution; 0: as many as the network usually has.
    classifier: str = 'linear'  # or cosine, experts, bilateral
    scale: float = 16.0  # s of the cosine classifier
    experts: int = 3  # of the classifier 'experts': linear ones side by side

    def __post_init__(self) -> None:
        # So that a run is known, and recorded, by the number itself.
        if self.width == 0 and self.name in NETWORKS:
            object.__setattr__(self, 'width', NETWORKS[self.name].width)


@dataclass(frozen=True)
class Optimizer:
    """SGD with L2 decay of all parameters, its learning rate warmed up, then a cosine to 0."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_steps: int = 0
    warmup_from: float = 0.05
    hold: int = 1  # The learning rate changes every so many steps.


@dataclass(frozen=True)
class Loss:
    """The loss of one example, and how much it weighs by its class."""

    name: str = 'balanced_softmax'
    tau: float = 1.0  # of CE(η + τ log π); 0: plain softmax
    gamma: float = 2.0  # of focal: (1 − p)^γ; of temperature: a = (n_max / n)^γ
    margin: float = 15.0  # LDAM's largest, in logits: 0.5 of cosines whose scale is 30
    threshold: float = 0.005  # λ of equalization: the share below which a class is the tail
    ignored: float = 0.9  # γ of equalization: how many of the examples spare the tail
    class_weights: str = 'none'
    beta: float = 0.9999  # of class_balanced
    label_smoothing: float = 0.0
    cost_rate: float = 0.1  # γ_ξ of cost_sensitive, at first
    expert_spread: float = 1.0  # Between the τ of two experts; their mean is tau.


@dataclass(frozen=True)
class Meta:
    """What is learned beside the parameters, and on what."""

    rebalancer: str = 'none'
    estimator: str = 'classes'  # How the meta sampler's draw gets a gradient: one of ESTIMATORS.
    temperature: float = 1.0  # T of the soft sample, where the estimator has one
    initial_power: float = 0.0
    source: str = 'train'  # The meta set: the training set, a redraw of it, or what is held out.
    draws: str = 'stratified'  # or class_balanced
    batch_size: int = 128
    learning_rate: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    mode: str = 'forward_over_reverse'


@dataclass(frozen=True)
class Stage:
    """One training: of everything, of a fresh classifier on a frozen backbone, or of scales.

    A second stage that trains all goes on with the first one's network.
    """

    steps: int = 0
    batch_size: int = 128
    trains: str = 'all'  # or classifier, or scales: one factor for each class's logit
    features: str = 'cached'  # Where only the classifier trains: cached, or recomputed.
    views: int = 1  # Augmented views of each image in the cache.
    loss: Loss = field(default_factory=Loss)
    draws: str = 'shuffled'
    mixup: float = 0.0  # α; 0: none
    mixup_partners: str = 'batch'  # or class_balanced: drawn so
    averaging: float = 0.0  # Decay of the moving average of parameters that is tested; 0: none.
    optimizer: Optimizer = field(default_factory=Optimizer)
    meta: Meta = field(default_factory=Meta)


@dataclass(frozen=True)
class Evaluation:
    """How the test set is read."""

    classifier: str = 'trained'  # or, made of it: tau_normalized, nearest_mean
    post_hoc_tau: float = 0.0  # τ of post-hoc logit adjustment
    test_priors: tuple[str, ...] = ('uniform',)  # also: train, reversed
    batch_size: int = 500
    every: int = 0  # Steps between evaluations for the curves; 0: at the end of a stage.
    gradient_examples: int = 20  # Training examples of a class for the effective gradient weights.


@dataclass(frozen=True)
class Records:
    """What is kept of a run, and how often."""

    checkpoint_every: int = 500
    keep: int = 2
    rates_every: int = 10
    tensorboard: bool = True


@dataclass(frozen=True)
class Recipe:
    """A whole run. ``stage_2.steps = 0`` trains end to end in one stage."""

    method: str = 'balanced_softmax'
    name: str = 'paper'
    seed: int = 0
    devices: int = 0  # of the mesh; 0: all
    steps_per_call: int = 0  # in one compiled call; 0: chosen by device
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    stage_1: Stage = field(default_factory=Stage)
    stage_2: Stage = field(default_factory=Stage)
    evaluation: Evaluation = field(default_factory=Evaluation)
    records: Records = field(default_factory=Records)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages that run, in order."""
        stages = {'stage_1': self.stage_1, 'stage_2': self.stage_2}
        return {name: stage for name, stage in stages.items() if stage.steps}


def to_config(recipe: Recipe) -> ConfigDict:
    """The recipe as a config that flags can override."""
    return ConfigDict(dataclasses.asdict(recipe))


def from_config(config: Mapping[str, Any]) -> Recipe:
    """Reads a config and checks it.

    Args:
        config: a (nested) mapping with the fields of :class:`Recipe`; absent ones get the default.

    Returns:
        The recipe.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a combination that cannot work.
    """
    recipe = _read(Recipe, dict(config), '')
    check(recipe)
    return recipe


def check(recipe: Recipe) -> None:
    """Raises ConfigError, naming the key, for a recipe that cannot be run."""
    _one_of('data.name', recipe.data.name, ('digits', 'cifar10', 'cifar100'))
    _one_of('data.profile', recipe.data.profile, tuple(long_tail.PROFILES))
    if recipe.data.imbalance_factor < 1:
        got = recipe.data.imbalance_factor
        raise ConfigError(f'data.imbalance_factor: got {got:g}, wanted n_max / n_min of at least 1')
    if not 0 <= recipe.data.held_out < 1:
        raise ConfigError(f'data.held_out: got {recipe.data.held_out}, wanted 0 to less than 1')
    _one_of('data.augmentation', recipe.data.augmentation, AUGMENTATIONS)
    if recipe.data.augmentation == 'cifar' and recipe.data.name == 'digits':
        raise ConfigError("data.augmentation: got 'cifar' for digits, wanted images of 3 channels")
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
    _one_of('evaluation.classifier', evaluation.classifier, TEST_CLASSIFIERS)
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
        _one_of('evaluation.test_priors', prior, ('uniform', 'train', 'reversed'))
    if 'uniform' not in evaluation.test_priors:
        raise ConfigError("evaluation.test_priors: wanted 'uniform' among them")
    _positive('evaluation.batch_size', evaluation.batch_size)
    _positive('evaluation.gradient_examples', evaluation.gradient_examples)
    _positive('records.checkpoint_every', recipe.records.checkpoint_every)
    _positive('records.keep', recipe.records.keep)
    _positive('records.rates_every', recipe.records.rates_every)
    for key in (
        'seed',
        'devices',
        'steps_per_call',
        'data.head_count',
        'model.width',
        'model.experts',
        'evaluation.every',
    ):
        value: Any = recipe
        for part in key.split('.'):
            value = getattr(value, part)
        if value < 0:
            raise ConfigError(f'{key}: got {value}, wanted at least 0')


def check_against_data(recipe: Recipe, class_counts: tuple[int, ...]) -> None:
    """Raises ConfigError for a batch that the classes of the training set cannot fill."""
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


def _check_stage(name: str, stage: Stage) -> None:
    if stage.steps < 0:
        raise ConfigError(f'{name}.steps: got {stage.steps}, wanted at least 0')
    for key in ('batch_size', 'views'):
        _positive(f'{name}.{key}', getattr(stage, key))
    _one_of(f'{name}.trains', stage.trains, ('all', 'classifier', 'scales'))
    _check_loss(f'{name}.loss', stage)
    _one_of(f'{name}.features', stage.features, ('cached', 'recomputed'))
    _one_of(f'{name}.draws', stage.draws, DRAWS)
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
    _positive(f'{name}.optimizer.hold', optimizer.hold)
    _one_of(f'{name}.mixup_partners', stage.mixup_partners, ('batch', 'class_balanced'))
    if not 0 <= stage.averaging < 1:
        raise ConfigError(f'{name}.averaging: got {stage.averaging}, wanted 0 to less than 1')
    if stage.mixup < 0:
        raise ConfigError(f'{name}.mixup: got {stage.mixup}, wanted at least 0')
    _one_of(f'{name}.meta.rebalancer', meta.rebalancer, ('none', *REBALANCERS))
    if meta.rebalancer == 'none':
        return
    _one_of(f'{name}.meta.source', meta.source, META_SOURCES)
    _one_of(f'{name}.meta.draws', meta.draws, ('stratified', 'class_balanced'))
    _one_of(f'{name}.meta.estimator', meta.estimator, tuple(ESTIMATORS))
    if not meta.temperature > 0:
        raise ConfigError(
            f'{name}.meta.temperature: got {meta.temperature}, wanted a number above 0'
        )
    _one_of(f'{name}.meta.mode', meta.mode, tuple(meta_gradients.MODES))
    _positive(f'{name}.meta.batch_size', meta.batch_size)
    if stage.draws != 'shuffled':
        raise ConfigError(
            f'{name}.draws: got {stage.draws!r} beside meta.rebalancer = {meta.rebalancer!r}, '
            "which draws its own batches: wanted 'shuffled', the default"
        )
    if stage.mixup:
        raise ConfigError(f'{name}.mixup: got {stage.mixup} beside a rebalancer, wanted 0')
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


def _check_loss(name: str, stage: Stage) -> None:
    loss = stage.loss
    _one_of(f'{name}.name', loss.name, LOSSES)
    _one_of(f'{name}.class_weights', loss.class_weights, CLASS_WEIGHTS)
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


def _read(cls: type, values: dict[str, Any], prefix: str) -> Any:
    types = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            near = ', '.join(sorted(known))
            raise ConfigError(f'{prefix}{key}: no such key; wanted one of {near}')
    arguments = {}
    for key, value in values.items():
        kind = types[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping | ConfigDict):
                raise ConfigError(f'{prefix}{key}: got {value!r}, wanted a table of keys')
            arguments[key] = _read(typing.cast(type, kind), dict(value), f'{prefix}{key}.')
        else:
            arguments[key] = _value(f'{prefix}{key}', kind, value)
    return cls(**arguments)


def _value(key: str, kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ConfigError(f'{key}: got {value!r}, wanted names')
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = type(value).__name__
        raise ConfigError(f'{key}: got {value!r} of type {got}, wanted {kind.__name__}')
    if kind is float and not abs(value) < float('inf'):
        raise ConfigError(f'{key}: got {value}, wanted a finite number')
    return value


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f'{key}: got {value!r}, wanted one of {", ".join(choices)}')


def _positive(key: str, value: int) -> None:
    if not value > 0:
        raise ConfigError(f'{key}: got {value}, wanted at least 1')
