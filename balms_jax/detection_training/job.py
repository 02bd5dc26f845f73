"""A detector's whole run: data, stages, evaluation, records."""

import contextlib
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from balms_jax.detection import networks
from balms_jax.detection.anchors import STRIDES
from balms_jax.detection.weights import start_from
from balms_jax.detection_training import evaluation, inputs, steps
from balms_jax.detection_training.checks import check, check_divisible
from balms_jax.detection_training.evaluation import Compiled
from balms_jax.detection_training.facts import facts
from balms_jax.detection_training.material import Material, load_material
from balms_jax.detection_training.pictures import PICTURES, keep_pictures
from balms_jax.detection_training.recipe import Recipe
from balms_jax.training import mesh, processes, stages
from balms_jax.training.checkpoints import Checkpoints
from balms_jax.training.interruption import Interruption
from balms_jax.training.progress import Progress
from balms_jax.training.records import Records, identity
from balms_jax.training.state import TrainState
from balms_jax.training.takeover import check_finished, copy_stage_1

PyTree = Any
# The smallest that every level is a cell of: parameters do not depend on an image's size.
ONE_IMAGE = np.zeros((1, STRIDES[-1], STRIDES[-1], 3), np.float32)
SCANNED_STEPS = 50  # of cached regions, in one compiled call


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
        The final evaluation, as in ``evaluation.json``.

    Raises:
        ConfigError, FileNotFoundError, ValueError: before any work, if it cannot be run.
        WeightsError: if it cannot start from the weights that are told.
        WorkdirError, CheckpointError: if the work directory is another run's, or damaged.
        CorruptImageError: if an image cannot be read, and nothing may take its place.
        NonFiniteLossError: if the loss is not finite.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    workdir, progress = Path(workdir), progress or Progress(quiet=True)
    check(recipe)
    devices = mesh.data_mesh(recipe.devices)
    check_divisible(recipe, devices.shape['data'])
    material = load_material(recipe)
    processes.check_same('config', dataclasses.asdict(recipe))
    processes.check_same('data', material.fingerprint)
    if left_out := check_weights(recipe, material):
        progress.say(left_out)
    if any(material.dropped):
        progress.say(f'left out of training: {counted(material.dropped._asdict())}')
    if stage_1_from is not None:
        theirs = open_checkpoints(Path(stage_1_from), recipe, 'stage_1', material)
        check_finished(Path(stage_1_from), recipe.stage_1.steps, theirs)
    with contextlib.ExitStack() as opened:
        run = _open(recipe, workdir, config, stage_1_from, material, opened)
        interruption = opened.enter_context(Interruption())
        functions = evaluation.compiled(recipe, len(material.categories), devices)
        final = _run_stages(run, material, devices, functions, interruption, progress)
        last = list(recipe.stages.values())[-1]
        result, pictures = evaluation.final_evaluation(
            recipe, last, material, devices, functions, final
        )
        replaced = processes.total(run.skipped)
        run.records.json('run', facts(recipe, material, devices, final, replaced))
        if processes.is_first():
            keep_pictures(workdir / PICTURES, material, pictures)
        run.records.json('evaluation', result)
        return result


def counted(counts: dict[str, int]) -> str:
    """``{'images': 2, 'boxes': 0}`` → ``2 images``."""
    return ', '.join(f'{n} {name.replace("_", " ")}' for name, n in counts.items() if n)


def open_checkpoints(workdir: Path, recipe: Recipe, name: str, material: Material) -> Checkpoints:
    """The checkpoints of a stage, for none but the run, or runs, that share it."""
    config = dataclasses.asdict(recipe)
    names = list(recipe.stages)
    keys = ['seed', 'data', 'detector', 'draws', *names[: names.index(name) + 1]]
    shared = identity({key: config[key] for key in keys})
    shared['data_fingerprint'] = material.fingerprint
    if material.weights_fingerprint:
        shared['weights_fingerprint'] = material.weights_fingerprint
    return Checkpoints(workdir / 'checkpoints' / name, keep=recipe.records.keep, identity=shared)


class _Run(NamedTuple):
    """The run, opened."""

    recipe: Recipe
    records: Records
    checkpoints: dict[str, Checkpoints]  # by stage
    skipped: Counter[str]
    """How often each corrupt image was replaced, by name, as this process saw it; in the first one
    since the run began."""


def _open(
    recipe: Recipe,
    workdir: Path,
    config: dict[str, Any] | None,
    stage_1_from: Path | str | None,
    material: Material,
    opened: contextlib.ExitStack,
) -> _Run:
    """Opens the work directory, to go on where it stands."""
    first = processes.is_first()
    records = Records(
        workdir,
        config if config is not None else dataclasses.asdict(recipe),
        tensorboard=recipe.records.tensorboard,
        writes=first,
    )
    opened.callback(records.close)
    if stage_1_from is not None and first:
        copy_stage_1(Path(stage_1_from), workdir, recipe.stage_1.steps)
    processes.wait(f'{workdir} is there')
    checkpoints = {
        name: open_checkpoints(workdir, recipe, name, material) for name in recipe.stages
    }
    for each in checkpoints.values():
        opened.callback(each.close)
    steps_done = {name: each.latest_step for name, each in checkpoints.items()}
    records.resume({name: step for name, step in steps_done.items() if step is not None})
    return _Run(recipe, records, checkpoints, records.replaced_images())


def _run_stages(
    run: _Run,
    material: Material,
    devices: Mesh,
    functions: Compiled,
    interruption: Interruption,
    progress: Progress,
) -> TrainState:
    """Takes the run through its stages; returns what they end in."""
    recipe = run.recipe
    init_key, key = jax.random.split(jax.random.key(recipe.seed))
    params, batch_stats = first_weights(recipe, material, init_key)
    for index, (name, stage) in enumerate(recipe.stages.items()):
        first = steps.first_state(
            recipe, stage, jax.random.fold_in(key, index), params, batch_stats
        )
        state = mesh.lay_out(devices, first)
        run.records.begin(name)
        if index == 0:
            replaced = processes.total(run.skipped)
            run.records.json('run', facts(recipe, material, devices, state, replaced))
        done = run.checkpoints[name].latest_step
        if done is not None:
            state = run.checkpoints[name].restore(state)
        title = f'{progress.title} {name}'
        if done == stage.steps:
            progress.say(f'{title}: finished before')
        else:
            if done is not None:
                progress.say(f'{title}: goes on from step {done}')
            state = _run_stage(
                run, name, material, devices, functions, state, interruption, progress
            )
        # A copy: a state is donated to its steps, and the next stage's begins with these arrays.
        params, batch_stats = jax.tree.map(jnp.copy, (state.params, state.batch_stats))
    return state


def first_weights(recipe: Recipe, material: Material, key: jax.Array) -> tuple[PyTree, PyTree]:
    """The parameters and statistics that the first stage starts from."""
    architecture = steps.architecture_of(recipe, len(material.categories))
    params, batch_stats = jax.jit(networks.build(architecture).init)(key, ONE_IMAGE)
    if recipe.detector.weights:
        params, batch_stats, _ = start_from(
            recipe.detector.weights, params, batch_stats, architecture
        )
    return params, batch_stats


def check_weights(recipe: Recipe, material: Material) -> str:
    """Whether the detector can start from the weights of the recipe, if any.

    Args:
        recipe: the recipe.
        material: with the categories.

    Returns:
        A sentence on what starts afresh; an empty one if nothing does, or there are no weights.

    Raises:
        WeightsError: naming what does not fit.
    """
    if not recipe.detector.weights:
        return ''
    architecture = steps.architecture_of(recipe, len(material.categories))
    init = networks.build(architecture).init
    params, batch_stats = jax.eval_shape(init, jax.random.key(0), ONE_IMAGE)
    return start_from(recipe.detector.weights, params, batch_stats, architecture)[2]


def _run_stage(
    run: _Run,
    name: str,
    material: Material,
    devices: Mesh,
    functions: Compiled,
    state: TrainState,
    interruption: Interruption,
    progress: Progress,
) -> TrainState:
    """Opens what the stage's steps are given, and runs it."""
    recipe, stage = run.recipe, run.recipe.stages[name]
    cached = stage.trains == 'classifier' and stage.regions == 'cached'
    loop = stages.Loop(
        name=name,
        step=steps.make_step(recipe, stage, material, devices),
        total=stage.steps,
        batch_size=stage.batch_size,
        evaluation_every=recipe.evaluation.every,
        records=recipe.records,
        steps_per_call=SCANNED_STEPS if cached else 1,
        evaluates_ends=False,
    )

    def evaluate(state: TrainState) -> dict[str, Any]:
        found = evaluation.find(
            recipe, material, devices, functions, state.params, state.batch_stats
        )
        of_kinds = evaluation.scalars(evaluation.precision(recipe, material, found))
        return next(iter(of_kinds.values()))  # Of the masks, where there are any.

    known = facts(recipe, material, devices, state)

    def count() -> None:
        replaced = {'replaced_images': dict(processes.total(run.skipped))}
        run.records.json('run', known | replaced)

    beside = count if recipe.data.corrupt == 'skip' and not cached else None
    kept = stages.Kept(evaluate, run.checkpoints[name], run.records, beside)
    progress.say(f'{progress.title} {name}: the first step is compiled, minutes on a CPU')
    with contextlib.ExitStack() as opened:
        if cached:
            progress.say(f'{progress.title} {name}: reading the regions of all images')
            cached_once = inputs.cached_regions(recipe, stage, material, devices, functions, state)
            given = inputs.resident(cached_once, devices)
        else:
            given = opened.enter_context(
                inputs.streams(recipe, stage, material, devices, int(state.step), run.skipped)
            )
        (after,) = stages.run(loop, [state], given, [kept], interruption, progress)
        return after
