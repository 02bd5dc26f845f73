"""The steps of a detector's run, lowered for devices that need not be there."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.detection import networks
from balms_jax.detection.annotations import Annotations, Category
from balms_jax.detection.curation import Dropped
from balms_jax.detection.image_sets import ImageSet, PixelArrays, View
from balms_jax.detection.steps import Batch
from balms_jax.detection.targets import Objects
from balms_jax.detection_training import checks, evaluation, facts, steps
from balms_jax.detection_training.material import Material, load_material
from balms_jax.detection_training.recipe import Data, Recipe, Stage
from balms_jax.planning.shapes import placed
from balms_jax.planning.targets import Target
from balms_jax.training import mesh
from balms_jax.training.state import TrainState
from balms_jax.training.steps import compile_steps

PyTree = Any
# Data sets from outside: categories, and training images.
SIZES = {'lvis_v0.5': (1230, 57_263), 'lvis_v1': (1203, 100_170)}


@dataclass(frozen=True)
class DetectorRun:
    """A run that a plan is made of: see :class:`plan.Run`."""

    recipe: Recipe
    material: Material
    train_images: int

    def changed(self, recipe: Recipe) -> 'DetectorRun':
        """The run with another recipe."""
        return dataclasses.replace(self, recipe=recipe)

    def check(self) -> None:
        """Does nothing: whatever data there are fit."""

    def check_cut(self, name: str, devices: int) -> None:
        """Raises ConfigError if a stage cannot be cut over so many devices."""
        # Of the planned stage alone: another one may be planned for other devices.
        stages: dict[str, Any] = {'stage_1': Stage(), 'stage_2': Stage()}
        stages[name] = self.recipe.stages[name]
        checks.check_divisible(dataclasses.replace(self.recipe, **stages), devices)

    def facts(self) -> dict[str, Any]:
        """What is trained on what."""
        data = self.recipe.data
        return {
            'network': facts.described(self.recipe.detector),
            'image': [data.height, data.width, 3],
            'classes': len(self.material.categories),
            'class_shards': 1,
            'examples': self.train_images,
        }

    def first_state(self, name: str) -> TrainState:
        """The shapes of the state that a stage starts from."""
        return self._state(self.recipe.stages[name])

    def evaluated(self, target: Target) -> int:
        """Images of a batch of the evaluation."""
        del target
        return self.recipe.evaluation.batch_size

    def least_meta_batch(self, name: str) -> int:
        """Images of a meta batch are drawn independently: one is enough."""
        del name
        return 1

    def lowered(self, name: str, kind: str, target: Target) -> Any:
        """One step as training would compile it, without data.

        Images come as global batches of uint8 cut over the devices, as they do from a stream. A
        class layer that learns from cached regions is planned with fresh ones.
        """
        if kind == 'evaluation':
            return self._evaluation(target)
        stage = dataclasses.replace(self.recipe.stages[name], regions='fresh')
        if kind == 'plain':
            meta = dataclasses.replace(stage.meta, rebalancer='none')
            stage = dataclasses.replace(stage, meta=meta)
        step: Any = compile_steps(steps.make_step(self.recipe, stage, self.material, target.mesh))
        return step.lower(
            placed(self._state(stage), mesh.replicated(target.mesh)),
            self._batch(stage.batch_size, target),
            self._batch(stage.meta.batch_size, target) if kind == 'meta' else (),
            steps=1,
        )

    def _state(self, stage: Stage) -> TrainState:
        def first(key: jax.Array) -> TrainState:
            params, batch_stats = networks.build(self._architecture()).init(key, self._one_image())
            return steps.first_state(self.recipe, stage, key, params, batch_stats)

        return jax.eval_shape(first, jax.random.key(0))

    def _architecture(self) -> networks.Architecture:
        return steps.architecture_of(self.recipe, len(self.material.categories))

    def _one_image(self) -> jax.Array:
        return jnp.zeros((1, self.recipe.data.height, self.recipe.data.width, 3))

    def _batch(self, size: int, target: Target) -> Batch:
        data = self.recipe.data
        number, side = data.most_objects, data.mask_size

        def of(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((size, *shape), dtype)

        objects = Objects(
            boxes=of(np.float32, number, 4),
            categories=of(np.int32, number),
            masks=of(np.float32, number, side, side),
            frames=of(np.float32, number, 4),
            where=of(np.bool_, number),
            crowd=of(np.bool_, number),
        )
        images = of(np.uint8, data.height, data.width, 3)
        batch = Batch(images, of(np.float32, 2), objects)
        laid: Batch = placed(batch, mesh.by_example(target.mesh))
        return laid

    def _evaluation(self, target: Target) -> Any:
        functions: Any = evaluation.compiled(
            self.recipe, len(self.material.categories), target.mesh
        )
        size, data = self.recipe.evaluation.batch_size, self.recipe.data
        state = self._state(self.recipe.stage_1)
        # A batch that cannot be cut evenly is whole on every device, as in testing.
        even = size % target.mesh.shape['data'] == 0
        cut = mesh.by_example(target.mesh) if even else mesh.replicated(target.mesh)
        images = jax.ShapeDtypeStruct((size, data.height, data.width, 3), np.uint8)
        sizes = jax.ShapeDtypeStruct((size, 2), np.float32)
        variables = placed((state.params, state.batch_stats), mesh.replicated(target.mesh))
        return functions.infer.lower(*variables, placed(images, cut), placed(sizes, cut))


def detector_run(recipe: Recipe) -> DetectorRun:
    """The run of a recipe; of a data set of :data:`SIZES` nothing is read.

    Args:
        recipe: the recipe.

    Returns:
        The run.

    Raises:
        FileNotFoundError, ValueError: if the data of another set are not there.
    """
    if recipe.data.name not in SIZES:
        material = load_material(recipe)
        return DetectorRun(recipe, material, len(material.train))
    categories, images = SIZES[recipe.data.name]
    return DetectorRun(recipe, _empty_material(recipe.data, categories), images)


def _empty_material(data: Data, categories: int) -> Material:
    """The data of a run without its images: a step's cost does not depend on the counts."""
    named = tuple(Category(j + 1, str(j), 1, 1, 'r') for j in range(categories))
    view = View((data.height, data.width), data.shortest)
    none = ImageSet(Annotations(named, ()), PixelArrays(()), view)
    return Material(
        named,
        none,
        Dropped(0, 0, 0, 0),
        none,
        {},
        np.full(categories, 1 / categories, np.float32),
        np.ones(categories, np.int64),
        np.ones(0),
        np.ones(0),
        '',
    )
