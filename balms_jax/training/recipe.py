"""What a run is: the recipe and its defaults.

The only place that reads a config. Everything else takes these plain, frozen values.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from balms_jax.models import NETWORKS

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
SOURCES = ('digits', 'cifar10', 'cifar100')  # Any other name is that of a set of files.
AUGMENTATIONS = ('none', 'flip', 'crop_flip', 'flip_jitter', 'cifar')
CROPS = ('centre', 'random_resized')
META_SOURCES = ('train', 'redraw', 'held_out')
BATCH_NORMS = ('global', 'device')
TEST_CLASSIFIERS = ('trained', 'tau_normalized', 'nearest_mean')


Settings = typing.TypeVar('Settings')


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key."""


@dataclass(frozen=True)
class Files:
    """A data set of image files, and how they become pixels."""

    # In data_dir: lines of "path label", iNaturalist's JSON, class folders, or tfds:NAME:SPLIT.
    train: str = ''
    test: str = ''
    prefixes: tuple[str, ...] = ()  # 'old=new' beginnings of the paths that are listed
    missing: str = 'error'  # Where a listed file is not there; or skip
    corrupt: str = 'error'  # Where one cannot be decoded; or skip: another of its class instead
    size: int = 224  # of an image, in pixels
    resize: int = 256  # of its shorter side, before the central crop
    crop: str = 'centre'  # of training images; or random_resized
    streamed: bool = False  # Whether they are decoded while training, or all before it.
    workers: int = 2  # that decode: processes of a stream, threads elsewhere
    prefetch: int = 2  # How many batches a stream decodes ahead.


@dataclass(frozen=True)
class Data:
    """Which images, and the long tail that is cut out of them."""

    name: str = 'digits'
    data_dir: str = ''
    download: bool = False
    files: Files = field(default_factory=Files)
    profile: str = 'exponential'  # or step, pareto; given: as many as there are
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
    dtype: str = 'float32'  # or bfloat16: what the backbone computes in; parameters are float32
    remat: bool = False  # Whether a block's activations are computed again on the way back.
    batch_norm: str = 'global'  # or device: whose statistics normalise, the batch's or each share's
    weights: str = ''  # A file that models.convert wrote, which stage_1 starts from; '': none.

    def __post_init__(self) -> None:
        # So that a run is known, and recorded, by the number itself.
        if self.width == 0 and self.name in NETWORKS:
            object.__setattr__(self, 'width', NETWORKS[self.name].width)


@dataclass(frozen=True)
class Optimizer:
    """SGD with L2 decay of all parameters; its rate is warmed up, then falls in a cosine to 0."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_steps: int = 0
    warmup_from: float = 0.05
    drops: tuple[int, ...] = ()  # In place of the cosine: steps at which it falls to a tenth.
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
    staleness: int = 0  # How many steps before its own a batch is drawn, where draws follow ψ.
    importance: bool = False  # Whether a stale draw is weighed by today's probabilities over its.


@dataclass(frozen=True)
class Stage:
    """One training: of everything, of a fresh classifier on a frozen backbone, or of scales.

    A second stage that trains all goes on with the first one's network.
    """

    steps: int = 0
    batch_size: int = 128
    trains: str = 'all'  # or classifier, or scales: one factor for each class's logit
    features: str = 'cached'  # Where only the classifier trains: cached, or recomputed.
    accumulation: int = 1  # Micro-batches whose gradients make a step; batch norm sees each alone.
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
    class_shards: int = 1  # How many of them share the classes of the classifier.
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


def to_config(recipe: Any) -> ConfigDict:
    """A recipe, of a classifier or of a detector, as a config that flags can override."""
    return ConfigDict(dataclasses.asdict(recipe))


def read(config: Mapping[str, Any]) -> Recipe:
    """Reads a config key by key; whether the whole can be run, ``checks`` tells.

    Args:
        config: a (nested) mapping with the fields of :class:`Recipe`; absent ones get the default.

    Returns:
        The recipe.

    Raises:
        ConfigError: for an unknown key or a wrong type.
    """
    return read_as(Recipe, config)


def read_as(cls: type[Settings], values: Mapping[str, Any], prefix: str = '') -> Settings:
    """Reads settings, tables of them within tables, into frozen dataclasses.

    Args:
        cls: of the settings.
        values: by the names of its fields; absent ones get the default.
        prefix: of their keys in messages.

    Returns:
        The settings.

    Raises:
        ConfigError: for an unknown key or a wrong type.
    """
    types = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in values:
        if key not in known:
            near = ', '.join(sorted(known))
            raise ConfigError(f'{prefix}{key}: no such key; wanted one of {near}')
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        kind = types[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping | ConfigDict):
                raise ConfigError(f'{prefix}{key}: got {value!r}, wanted a table of keys')
            arguments[key] = read_as(typing.cast(type, kind), dict(value), f'{prefix}{key}.')
        else:
            arguments[key] = _value(f'{prefix}{key}', kind, value)
    return cls(**arguments)


def _value(key: str, kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(kind) is tuple:
        of_each = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            wanted = 'names' if of_each is str else 'numbers'
            raise ConfigError(f'{key}: got {value!r}, wanted {wanted}')
        return tuple(_value(key, of_each, each) for each in value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = type(value).__name__
        raise ConfigError(f'{key}: got {value!r} of type {got}, wanted {kind.__name__}')
    if kind is float and not abs(value) < float('inf'):
        raise ConfigError(f'{key}: got {value}, wanted a finite number')
    return value


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError for what is no choice of a key."""
    if value not in choices:
        raise ConfigError(f'{key}: got {value!r}, wanted one of {", ".join(choices)}')


def positive(key: str, value: int) -> None:
    """Raises ConfigError for a number below 1."""
    if not value > 0:
        raise ConfigError(f'{key}: got {value}, wanted at least 1')
