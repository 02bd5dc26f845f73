"""What a run of a detector is: the recipe and its defaults; what fits, ``checks`` tells."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from balms_jax.detection.anchors import SIZES
from balms_jax.training.recipe import Records

LOSSES = (
    'sigmoid',
    'balanced_sigmoid',
    'equalization',
    'focal',
    'class_balanced',
    'softmax',
    'seesaw',
)
WITH_BACKGROUND = ('softmax', 'seesaw')  # Their softmax has the background as its last class.
META_LOSSES = ('sigmoid', 'same')
REGIONS = ('fresh', 'cached')
TRAINS = ('all', 'classifier')
OPTIMIZERS = ('sgd', 'adam')
SCHEDULES = ('drops', 'cosine')
REBALANCERS = ('none', 'meta_reweighter')


@dataclass(frozen=True)
class Data:
    """Which images with which annotations, and how they become batches."""

    name: str = 'scenes'  # Drawn here; any other name is that of files.
    data_dir: str = ''
    # In data_dir: JSON files of LVIS or COCO, and the folders that their file names are told from.
    train: str = ''
    test: str = ''
    train_images: str = ''
    test_images: str = ''
    missing: str = 'error'  # Where an image is not there; or skip
    corrupt: str = 'error'  # Where one cannot be read; or skip: another one instead
    lvis: bool = (
        True  # Whether images are judged by categories known to be there or not; or as COCO
    )
    # Of drawn scenes: objects of the most frequent category, of it to the rarest, of each at test.
    head_count: int = 400
    imbalance_factor: float = 200.0
    test_count: int = 8
    seed: int = 0  # Of the scenes, apart from the run's.
    height: int = 1024  # of the padded images, in pixels; a multiple of 64
    width: int = 1024
    shortest: tuple[int, ...] = (800,)  # of a training image, one of which is drawn, in pixels
    shortest_at_test: int = 800
    mirrored: float = 0.5  # how often
    most_objects: int = 100  # of a training image; its largest ones
    mask_size: int = 112  # rows and columns that a mask is kept in
    repeat_threshold: float = 0.001  # t of the repeat factors; 0: images are drawn equally often
    workers: int = 2  # processes that read images
    prefetch: int = 2  # How many batches they are ahead.


@dataclass(frozen=True)
class Detector:
    """A Mask R-CNN with a residual network and a feature pyramid."""

    depth: int = 50
    width: int = 64  # Channels of the stem.
    channels: int = 256  # of the pyramid and of the mask head
    box_features: int = 1024  # of a region
    prior: float = 0.001  # that each sigmoid begins with
    agnostic_boxes: bool = False  # Whether categories share a region's deltas,
    agnostic_masks: bool = False  # and its mask.
    frozen_norm: bool = True
    frozen_groups: int = 2  # of stem and groups of blocks, the first ones
    dtype: str = 'float32'  # or bfloat16
    remat: bool = False
    anchor_sizes: tuple[float, ...] = SIZES  # of the five levels, in pixels
    weights: str = ''  # A file that models.convert wrote, of a detector or a backbone; '': none.


@dataclass(frozen=True)
class Draws:
    """Which anchors and regions of an image a step learns from, and which are found at test."""

    anchors: int = 256
    anchor_fraction: float = 0.5  # of foreground at most
    regions: int = 512
    region_fraction: float = 0.25  # of foreground at most
    proposals_per_level: int = 2000
    proposals: int = 2000
    test_proposals_per_level: int = 1000
    test_proposals: int = 1000


@dataclass(frozen=True)
class Optimizer:
    """SGD with L2 decay of what is trained, or Adam; its rate warmed up, then dropped."""

    name: str = 'sgd'
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 0
    warmup_factor: float = 0.001  # of the rate, at first
    schedule: str = 'drops'  # or cosine, to 0 at the last step
    drops: tuple[int, ...] = ()  # steps, at each of which the rate falls to a tenth
    clip: float = 0.0  # The largest norm of a gradient; 0: any.


@dataclass(frozen=True)
class Loss:
    """The loss of a region's category."""

    name: str = 'sigmoid'
    threshold: float = 1.77e-3  # λ of equalization: the share of images below which a class is rare
    gamma: float = 2.0  # of focal
    beta: float = 0.9999  # of class_balanced


@dataclass(frozen=True)
class Meta:
    """The Meta Reweighter: ψ, which weighs the foreground's losses by category."""

    rebalancer: str = 'none'
    loss: str = 'sigmoid'  # L_meta's; or same: the stage's own, as the released code's in effect
    batch_size: int = 16  # images
    learning_rate: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    mode: str = 'reverse'


@dataclass(frozen=True)
class Stage:
    """One training: of everything, or of the class layer alone, which goes on from the first's."""

    steps: int = 0
    batch_size: int = 16  # images
    trains: str = 'all'  # or classifier
    regions: str = 'fresh'  # of the class layer alone: read at every step, or cached once
    views: int = 1  # How many ways each image's regions are cached in.
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    meta: Meta = field(default_factory=Meta)


@dataclass(frozen=True)
class Evaluation:
    """How the detector is tested."""

    detections: int = 300  # of an image at most
    score: float = 1e-4  # above which a region is one
    candidates: int = 3000  # pairs of region and category that are looked at
    batch_size: int = 8
    every: int = 0  # steps between evaluations; 0: at the end of a stage
    pictures: int = 8  # test images that are kept with what is found in them
    gradient_images: int = 200  # training images whose regions tell the gradient weights


@dataclass(frozen=True)
class Recipe:
    """A whole run. ``stage_2.steps = 0`` trains in one stage."""

    method: str = 'sigmoid'
    name: str = 'paper'
    seed: int = 0
    devices: int = 0  # of the mesh; 0: all
    data: Data = field(default_factory=Data)
    detector: Detector = field(default_factory=Detector)
    draws: Draws = field(default_factory=Draws)
    stage_1: Stage = field(default_factory=Stage)
    stage_2: Stage = field(default_factory=Stage)
    evaluation: Evaluation = field(default_factory=Evaluation)
    records: Records = field(default_factory=lambda: Records(rates_every=100))

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages that run, in order."""
        stages = {'stage_1': self.stage_1, 'stage_2': self.stage_2}
        return {name: stage for name, stage in stages.items() if stage.steps}

    @property
    def has_background(self) -> bool:
        """Whether a softmax with a background class scores regions, not a sigmoid a category."""
        return self.stage_1.loss.name in WITH_BACKGROUND


def with_loss(recipe: Recipe, stage: str, loss: str) -> Recipe:
    """The recipe with another loss in a stage.

    Args:
        recipe: the recipe.
        stage: ``'stage_1'`` or ``'stage_2'``.
        loss: one of :data:`LOSSES`.

    Returns:
        The new recipe.
    """
    settings: Stage = getattr(recipe, stage)
    changed = dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, name=loss))
    stages: dict[str, Any] = {stage: changed}
    return dataclasses.replace(recipe, **stages)
