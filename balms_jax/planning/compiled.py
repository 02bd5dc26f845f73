"""Compiles a stage's steps for devices that need not be there, and reads what the compiler says."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from balms_jax.planning import collectives, shapes
from balms_jax.planning.collectives import Collective
from balms_jax.planning.targets import Target
from balms_jax.training import evaluation, inputs, measures, mesh, steps
from balms_jax.training.recipe import Stage

PyTree = Any
KINDS = ('plain', 'meta', 'evaluation')


class DoesNotFitError(ValueError):
    """The compiler finds no way to hold the step in memory; the message is its own."""


class Memory(NamedTuple):
    """Bytes of one device, by kind."""

    arguments: int  # the state and the batch
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporaries: int
    code: int
    peak: int  # what the device must hold at once


class Compiled(NamedTuple):
    """What the compiler says of one step."""

    memory: Memory
    flops: float  # of one device
    bytes_accessed: float  # of one device, main memory and what lies nearer together
    collectives: list[Collective]
    seconds: float  # that compiling took


def compile_step(of: shapes.Whole, name: str, kind: str, target: Target) -> Compiled:
    """Compiles one step as training would, without data.

    The examples are drawn by the step; its images, already augmented, come as one global batch cut
    over the devices, in place of a data set that every device holds. Where devices share the
    classes, the classifier and the logits are cut by class.

    Args:
        of: the run.
        name: of the stage.
        kind: ``'plain'``: without the rebalancer; ``'meta'``: with it; or ``'evaluation'``.
        target: the devices, which share the classes as the recipe says.

    Returns:
        What the compiler says.

    Raises:
        DoesNotFitError: if the step needs more memory than the devices have.
    """
    lowered = _evaluation(of, target) if kind == 'evaluation' else _train(of, name, kind, target)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise DoesNotFitError(str(error).splitlines()[0]) from error
    seconds = time.monotonic() - start
    # One table for the program, or one for each of its partitions, by version and backend.
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return Compiled(
        _memory(compiled.memory_analysis()),
        float(costs.get('flops', 0.0)),
        float(costs.get('bytes accessed', 0.0)),
        collectives.parse(compiled.as_text()),
        seconds,
    )


def plain_stage(stage: Stage) -> Stage:
    """The stage without its rebalancer."""
    return dataclasses.replace(stage, meta=dataclasses.replace(stage.meta, rebalancer='none'))


def _memory(sizes: Any) -> Memory:
    arguments, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    aliased, temporaries = sizes.alias_size_in_bytes, sizes.temp_size_in_bytes
    code = sizes.generated_code_size_in_bytes
    # Not the compiler's own peak, which leaves the program out and is 0 on some backends.
    peak = arguments + outputs - aliased + temporaries + code
    return Memory(arguments, outputs, aliased, temporaries, code, peak)


def _train(of: shapes.Whole, name: str, kind: str, target: Target) -> Any:
    settings = of.recipe.stages[name]
    stage = settings if kind == 'meta' else plain_stage(settings)
    state = shapes.first_state(of, name, stage)
    cached = stage.trains != 'all' and stage.features == 'cached'
    source, counts, network = of.material.source, of.material.class_counts, of.network
    if of.recipe.model.batch_norm == 'device':
        network = mesh.normalised_by_device(target.mesh, network)
    task = steps.Task(
        logits=measures.stage_logits(network, stage, cached=cached, devices=target.mesh),
        read=lambda batch, examples, key: inputs.normalised(batch, source),
        class_counts=counts,
        meta_counts=of.material.meta_counts,
        place=mesh.placed_by_example(target.mesh),
    )
    if of.recipe.model.batch_norm == 'device':
        task = dataclasses.replace(task, deal=mesh.dealt_out(target.mesh))
    step = steps.make_step(task, stage, steps.make_rebalancer(stage.meta, counts))
    run_steps: Any = steps.compile_steps(step)

    def batch(size: int) -> PyTree:
        images = jax.ShapeDtypeStruct((size, *of.material.train_images.shape[1:]), np.uint8)
        given = _features(of, state, images) if cached else images
        return _placed(given, mesh.by_example(target.mesh))

    return run_steps.lower(
        _placed(state, mesh.of_state(target.mesh, state)),
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
        _placed(variables, mesh.of_state(target.mesh, variables)),
        _placed(images, mesh.by_example(target.mesh)),
        *_placed(others, mesh.replicated(target.mesh)),
    )


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """A tree of shapes where they lie: each by its own sharding, or all by one."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
