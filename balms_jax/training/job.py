"""A whole run: data, stages, evaluation, records, page."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from balms_jax.data.decoding import CorruptImageError
from balms_jax.models import Network
from balms_jax.rebalancers import Rebalancer
from balms_jax.training import learners, mesh, processes, stages, step_parts, steps
from balms_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    describe_differences,
    flatten,
)
from balms_jax.training.checks import cautions, check, check_against_data, check_divisible
from balms_jax.training.cost_schedule import make_schedule
from balms_jax.training.facts import facts
from balms_jax.training.inputs import stage_inputs
from balms_jax.training.interruption import Interruption
from balms_jax.training.material import Material, load_material
from balms_jax.training.measures import (
    final_evaluation,
    stage_evaluation,
    stage_logits,
)
from balms_jax.training.post_hoc import calibration_temperature, with_test_classifier
from balms_jax.training.progress import Progress
from balms_jax.training.recipe import ConfigError, Recipe
from balms_jax.training.records import Records, WorkdirError
from balms_jax.training.stage_states import (
    build_network,
    check_weights,
    first_state,
    open_checkpoints,
    open_features,
)
from balms_jax.training.stage_streams import stage_streams
from balms_jax.training.stages import NonFiniteLossError
from balms_jax.training.state import TrainState
from balms_jax.training.takeover import check_stage_1, take_over_stage_1

PyTree = Any
# What a run may end in for a reason that its message tells.
FAILURES = (
    CheckpointError,
    CorruptImageError,
    NonFiniteLossError,
    OSError,
    ValueError,
    WorkdirError,
)
SCANNED_STEPS = 50  # in one compiled call, where a scan is no slower


class RunSpec(NamedTuple):
    """A run that is wanted."""

    recipe: Recipe
    workdir: Path  # where it is recorded: this run's alone
    config: dict[str, Any] | None = None  # that the recipe was read from, for the record
    stage_1_from: Path | None = None
    """Another run whose finished first stage, the same as this one's, is taken over."""


def train(
    recipe: Recipe,
    workdir: Path | str,
    *,
    config: dict[str, Any] | None = None,
    stage_1_from: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs a recipe, or goes on with it where the work directory stands.

    Args:
        recipe: what to train.
        workdir: where it is recorded: this run's alone.
        config: the config the recipe was read from, for the record; by default the recipe itself.
        stage_1_from: another run whose finished first stage, the same as this one's, is taken over.
        progress: where to show how far it is.

    Returns:
        The final evaluation, by test prior, as in ``evaluation.json``.

    Raises:
        ConfigError, DataNotFoundError, ValueError: before any work, if it cannot be run.
        WorkdirError, CheckpointError: if the work directory is another run's, or damaged.
        NonFiniteLossError: if the loss is not finite.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    donor = None if stage_1_from is None else Path(stage_1_from)
    return train_together([RunSpec(recipe, Path(workdir), config, donor)], progress)[0]


def train_together(
    runs: Sequence[RunSpec], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Trains runs that differ in their seed alone, under one ``vmap`` where they are at one step.

    Each leaves what it would leave alone, but for rounding, and can go on alone. What is gained is
    one compilation. Convolutions of several networks become grouped ones: a step of three ResNet-32
    with batches of 512 takes an H100 67 ms in float32 and 27 ms in bfloat16, and three steps of one
    take it 31 ms and 19 ms.

    Args:
        runs: what to train, and where.
        progress: where to show how far they are.

    Returns:
        The final evaluation of each.

    Raises:
        ConfigError: if they differ in more than their seeds.
        Exception: what :func:`train` raises, for any of them.
    """
    recipe, progress = runs[0].recipe, progress or Progress(quiet=True)
    check(recipe)
    _check_alike(runs)
    devices = mesh.data_mesh(recipe.devices, recipe.class_shards)
    check_divisible(recipe, devices.shape['data'])
    material = load_material(recipe)
    check_against_data(recipe, material.class_counts)
    processes.check_same('config', [dataclasses.asdict(spec.recipe) for spec in runs])
    processes.check_same('data', material.fingerprint)
    for caution in cautions(recipe, material.class_counts):
        progress.say(f'caution: {caution}')
    network = build_network(recipe, material)
    if recipe.model.batch_norm == 'device':
        network = mesh.normalised_by_device(devices, network)
    if left_out := check_weights(recipe, network, material):
        progress.say(left_out)
    for spec in runs:
        if spec.stage_1_from is not None:
            check_stage_1(spec.stage_1_from, spec.recipe, material)
    with contextlib.ExitStack() as opened:
        ours = [_open(spec, material, opened) for spec in runs]
        interruption = opened.enter_context(Interruption())
        finals = _run_stages(ours, material, network, devices, interruption, progress)
        return [
            _finish(run, material, network, devices, final)
            for run, final in zip(ours, finals, strict=True)
        ]


class _Run(NamedTuple):
    """A run that is opened."""

    recipe: Recipe
    records: Records
    checkpoints: dict[str, Checkpoints]  # by stage
    done: dict[str, int | None]  # the step of each stage's last checkpoint, as it was opened
    skipped: Counter[str]
    """How often each corrupt image of a stream was replaced, by path, as this process saw it; in
    the first one since the run began."""


def _open(spec: RunSpec, material: Material, opened: contextlib.ExitStack) -> _Run:
    """Opens the work directory, to go on where it stands."""
    recipe, workdir = spec.recipe, spec.workdir
    config = spec.config if spec.config is not None else dataclasses.asdict(recipe)
    first = processes.is_first()
    records = Records(workdir, config, tensorboard=recipe.records.tensorboard, writes=first)
    opened.callback(records.close)
    if spec.stage_1_from is not None and first:
        take_over_stage_1(spec.stage_1_from, workdir, recipe, material)
    processes.wait(f'{workdir} is there')
    checkpoints = {
        name: open_checkpoints(workdir, recipe, name, material) for name in recipe.stages
    }
    for each in checkpoints.values():
        opened.callback(each.close)
    done = {name: each.latest_step for name, each in checkpoints.items()}
    records.resume({name: step for name, step in done.items() if step is not None})
    return _Run(recipe, records, checkpoints, done, records.replaced_images())


def _finish(
    run: _Run, material: Material, network: Network, devices: Any, final: TrainState
) -> dict[str, Any]:
    """Evaluates and records a run that has taken its last step."""
    recipe = run.recipe
    final, chosen = with_test_classifier(recipe, material, network, final)
    known = facts(recipe, material, devices, final)
    run.records.json('run', known | chosen | _replaced(run.skipped))
    temperature = calibration_temperature(recipe, material, network, final)
    result = final_evaluation(recipe, material, network, final, temperature)
    run.records.json('evaluation', result)
    return result


def _replaced(skipped: Counter[str]) -> dict[str, Any]:
    """What run.json tells of corrupt images, if there were any; all processes ask at once."""
    replaced = processes.total(skipped)
    return {'replaced_images': dict(replaced)} if replaced else {}


def _run_stages(
    runs: Sequence[_Run],
    material: Material,
    network: Network,
    devices: Any,
    interruption: Interruption,
    progress: Progress,
) -> list[TrainState]:
    """Takes every run through its stages; returns what they end in."""
    earlier: list[TrainState | None] = [None] * len(runs)
    for index, (name, stage) in enumerate(runs[0].recipe.stages.items()):
        rebalancer = learners.make_rebalancer(stage.meta, material.class_counts)
        current: list[TrainState] = []
        for run, before in zip(runs, earlier, strict=True):
            key = jax.random.fold_in(jax.random.key(run.recipe.seed), index)
            first = first_state(network, stage, key, material, before, rebalancer)
            state = mesh.lay_out(devices, first, mesh.of_state(devices, first))
            if index == 0:
                known = facts(run.recipe, material, devices, state)
                run.records.json('run', known | _replaced(run.skipped))
            if run.done[name] is not None:
                state = run.checkpoints[name].restore(state)
            current.append(state)
            run.records.begin(name)
        title = f'{progress.title} {name}'
        for done in dict.fromkeys(run.done[name] for run in runs):
            if done == stage.steps:
                progress.say(f'{title}: finished before')
                continue
            if done is not None:
                progress.say(f'{title}: goes on from step {done}')
            places = [i for i, run in enumerate(runs) if run.done[name] == done]
            together = [(runs[i], current[i]) for i in places]
            after = _run_stage(
                name, together, material, network, devices, rebalancer, interruption, progress
            )
            for i, state in zip(places, after, strict=True):
                current[i] = state
        earlier = list(current)
    return [state.tested for state in current]


def _run_stage(
    name: str,
    runs: Sequence[tuple[_Run, TrainState]],
    material: Material,
    network: Network,
    devices: Any,
    rebalancer: Rebalancer | None,
    interruption: Interruption,
    progress: Progress,
) -> list[TrainState]:
    """Lays the stage's data out on the devices, ties its functions together, and runs it."""
    recipe = runs[0][0].recipe
    stage = recipe.stages[name]
    cached = stage.trains != 'all' and stage.features == 'cached'
    logits = stage_logits(network, stage, cached=cached, devices=devices)
    inputs = []
    for run, current in runs:
        with contextlib.ExitStack() as opened:
            features = open_features(run.records.workdir, run.recipe, stage, material)
            if features is not None:
                opened.callback(features.close)
                known = 'reading' if features.latest_step is not None else 'extracting'
                progress.say(f'{progress.title} {name}: {known} the features of all images')
            inputs.append(
                stage_inputs(
                    run.recipe, stage, material, network, current, cached=cached, kept=features
                )
            )
    task = step_parts.Task(
        logits=logits,
        read=inputs[0].read,
        class_counts=material.class_counts,
        meta_counts=material.meta_counts,
        place=mesh.placed_by_example(devices),
    )
    if recipe.model.batch_norm == 'device':
        task = dataclasses.replace(task, deal=mesh.dealt_out(devices))
    streams = recipe.data.files.streamed and not cached
    scans = not streams and (cached or jax.default_backend() != 'cpu')
    loop = stages.Loop(
        name=name,
        step=steps.make_step(task, stage, rebalancer),
        total=stage.steps,
        batch_size=stage.batch_size,
        evaluation_every=recipe.evaluation.every,
        records=recipe.records,
        steps_per_call=recipe.steps_per_call or (SCANNED_STEPS if scans else 1),
        own_inputs=cached and len(runs) > 1,  # Features are each run's, images are for all.
        between=make_schedule(material, network) if stage.loss.name == 'cost_sensitive' else None,
        epoch=-(-sum(material.class_counts) // stage.batch_size),
    )
    kept = [
        stages.Kept(
            stage_evaluation(run.recipe, stage, material, logits, own, rebalancer),
            run.checkpoints[name],
            run.records,
        )
        for (run, _), own in zip(runs, inputs, strict=True)
    ]
    states = [current for _, current in runs]
    if not streams:
        train, meta = (
            _laid_out(devices, [getattr(each, of) for each in inputs], apart=loop.own_inputs)
            for of in ('train', 'meta')
        )
        return stages.run(loop, states, lambda state: (train, meta), kept, interruption, progress)
    skipped, keeps = runs[0][0].skipped, kept[0].records
    if recipe.data.files.corrupt == 'skip':
        # For a run that goes on. Of a checkpoint that a kill cuts off the steps count twice.
        told = facts(recipe, material, devices, states[0])

        def count() -> None:
            keeps.json('run', told | _replaced(skipped))

        kept = [kept[0]._replace(beside=count)]
    with stage_streams(
        recipe, stage, material, rebalancer, devices, states[0], skipped, task.deal
    ) as next_batches:
        return stages.run(loop, states, next_batches, kept, interruption, progress)


def _laid_out(devices: Mesh, arrays: Sequence[Any], *, apart: bool) -> jax.Array:
    """The data of one run for all of them, or stacked those of each."""
    return mesh.lay_out(devices, np.stack(arrays) if apart else arrays[0])


def _check_alike(runs: Sequence[RunSpec]) -> None:
    first = flatten(dataclasses.asdict(runs[0].recipe))
    if len(runs) > 1 and runs[0].recipe.data.files.streamed:
        raise ConfigError('data.files.streamed: got True for several runs, wanted one at a time')
    for spec in runs:
        other = {**flatten(dataclasses.asdict(spec.recipe)), 'seed': first['seed']}
        if differences := describe_differences(other, first):
            raise ConfigError(
                f'runs: {spec.workdir} cannot be trained together with {runs[0].workdir}, wanted '
                f'runs that differ in their seed alone: {differences}'
            )
    if len({spec.workdir.resolve() for spec in runs}) < len(runs):
        raise ConfigError('runs: got a work directory twice, wanted one for each run')
