"""The steps of a classifier's run, lowered for devices that need not be there."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from balms_jax.planning import shapes
from balms_jax.planning.shapes import placed
from balms_jax.planning.targets import Target
from balms_jax.training import (
    checks,
    evaluation,
    facts,
    inputs,
    learners,
    measures,
    mesh,
    step_parts,
    steps,
)
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any


@dataclass(frozen=True)
class Classifier:
    """A run that a plan is made of: see :class:`plan.Run`."""

    of: shapes.Whole

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.of.recipe

    def changed(self, recipe: Recipe) -> 'Classifier':
        """The run with another recipe."""
        return Classifier(self.of._replace(recipe=recipe))

    def check(self) -> None:
        """Raises ConfigError for what does not fit the data."""
        checks.check_against_data(self.recipe, self.of.material.class_counts)

    def check_cut(self, name: str, devices: int) -> None:
        """Raises ConfigError if a stage cannot be cut over so many devices."""
        # Of the planned stage alone: another one may be planned for other devices.
        stages: dict[str, Any] = {'stage_1': Stage(), 'stage_2': Stage()}
        stages[name] = self.recipe.stages[name]
        checks.check_divisible(dataclasses.replace(self.recipe, **stages), devices)

    def facts(self) -> dict[str, Any]:
        """What is trained on what."""
        material = self.of.material
        return {
            'network': facts.described(self.recipe.model),
            'image': list(material.train_images.shape[1:]),
            'classes': material.source.num_classes,
            'class_shards': self.recipe.class_shards,
            'examples': sum(material.class_counts),
        }

    def first_state(self, name: str) -> TrainState:
        """The shapes of the state that a stage starts from."""
        return shapes.first_state(self.of, name, self.recipe.stages[name])

    def evaluated(self, target: Target) -> int:
        """Images of a batch of the evaluation."""
        return evaluation.whole_batch(self.recipe.evaluation.batch_size, target.mesh)

    def least_meta_batch(self, name: str) -> int:
        """Below so many images the stage's meta set cannot be drawn."""
        stratified = self.recipe.stages[name].meta.draws == 'stratified'
        return self.of.material.source.num_classes if stratified else 1

    def lowered(self, name: str, kind: str, target: Target) -> Any:
        """One step as training would compile it, without data.

        The examples are drawn by the step; its images, already augmented, come as one global batch
        cut over the devices, in place of a data set that every device holds. Where devices share
        the classes, the classifier and the logits are cut by class.
        """
        if kind == 'evaluation':
            return _evaluation(self.of, target)
        return _train(self.of, name, kind, target)


def plain_stage(stage: Stage) -> Stage:
    """The stage without its rebalancer."""
    return dataclasses.replace(stage, meta=dataclasses.replace(stage.meta, rebalancer='none'))


def _train(of: shapes.Whole, name: str, kind: str, target: Target) -> Any:
    settings = of.recipe.stages[name]
    stage = settings if kind == 'meta' else plain_stage(settings)
    state = shapes.first_state(of, name, stage)
    cached = stage.trains != 'all' and stage.features == 'cached'
    source, counts, network = of.material.source, of.material.class_counts, of.network
    if of.recipe.model.batch_norm == 'device':
        network = mesh.normalised_by_device(target.mesh, network)
    task = step_parts.Task(
        logits=measures.stage_logits(network, stage, cached=cached, devices=target.mesh),
        read=lambda batch, examples, key: inputs.normalised(batch, source),
        class_counts=counts,
        meta_counts=of.material.meta_counts,
        place=mesh.placed_by_example(target.mesh),
    )
    if of.recipe.model.batch_norm == 'device':
        task = dataclasses.replace(task, deal=mesh.dealt_out(target.mesh))
    step = steps.make_step(task, stage, learners.make_rebalancer(stage.meta, counts))
    run_steps: Any = steps.compile_steps(step)

    def batch(size: int) -> PyTree:
        images = jax.ShapeDtypeStruct((size, *of.material.train_images.shape[1:]), np.uint8)
        given = _features(of, state, images) if cached else images
        return placed(given, mesh.by_example(target.mesh))

    return run_steps.lower(
        placed(state, mesh.of_state(target.mesh, state)),
        batch(stage.batch_size),
        batch(stage.meta.batch_size if kind == 'meta' else stage.batch_size),
        steps=1,
    )


def _features(of: shapes.Whole, state: Any, images: jax.ShapeDtypeStruct) -> PyTree:
    """The shape of a batch of features of the frozen backbone."""
    return jax.eval_shape(
        lambda params, batch_stats, images: of.network.features(
            params, batch_stats, inputs.normalised(images, of.material.source), False
        )[0],
        state.params['backbone'],
        state.batch_stats,
        images,
    )


def _evaluation(of: shapes.Whole, target: Target) -> Any:
    settings, source = of.recipe.evaluation, of.material.source
    stage = of.recipe.stage_1
    state = shapes.first_state(of, 'stage_1', stage)
    logits = measures.stage_logits(of.network, stage, cached=False, devices=target.mesh)
    batch_sums = evaluation.make_batch_sums(
        measures.at_test(logits, source), of.material.class_counts, settings.test_priors
    )
    size = evaluation.whole_batch(settings.batch_size, target.mesh)
    prior_count = len(settings.test_priors)
    variables = (state.params, state.batch_stats)
    images = jax.ShapeDtypeStruct((size, *source.test_images.shape[1:]), np.uint8)
    others = (
        jax.ShapeDtypeStruct((size,), np.int32),
        jax.ShapeDtypeStruct((prior_count, size), np.float32),
        jax.ShapeDtypeStruct((prior_count, source.num_classes), np.float32),
    )
    return batch_sums.lower(
        placed(variables, mesh.of_state(target.mesh, variables)),
        placed(images, mesh.by_example(target.mesh)),
        *placed(others, mesh.replicated(target.mesh)),
    )
