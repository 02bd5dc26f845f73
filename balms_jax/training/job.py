"""A whole run: data, stages, evaluation, records, page."""

import dataclasses
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from balms_jax import models
from balms_jax.models import Network
from balms_jax.rebalancers import Rebalancer
from balms_jax.training import mesh, stages, steps
from balms_jax.training.checkpoints import CheckpointError
from balms_jax.training.checks import cautions, check, check_against_data
from balms_jax.training.cost_schedule import make_schedule
from balms_jax.training.inputs import stage_inputs
from balms_jax.training.interruption import Interruption
from balms_jax.training.material import Material, load_material
from balms_jax.training.measures import (
    classified,
    final_evaluation,
    stage_evaluation,
    whole_network,
)
from balms_jax.training.post_hoc import calibration_temperature, with_test_classifier
from balms_jax.training.progress import Progress
from balms_jax.training.recipe import ConfigError, Recipe, Stage
from balms_jax.training.records import Records, WorkdirError, write_json
from balms_jax.training.stage_states import build_network, first_state, open_checkpoints
from balms_jax.training.stages import NonFiniteLossError
from balms_jax.training.state import TrainState

PyTree = Any
# What a run may end in for a reason that its message tells.
FAILURES = (CheckpointError, NonFiniteLossError, OSError, ValueError, WorkdirError)
META_SETS = {
    'train': 'the training set',
    'redraw': 'a redraw of the long-tailed subset',
    'held_out': 'a part held out of the training set',
}
SCANNED_STEPS = 50  # in one compiled call, where a scan is no slower


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
    check(recipe)
    workdir, progress = Path(workdir), progress or Progress(quiet=True)
    config = config if config is not None else dataclasses.asdict(recipe)
    devices = mesh.data_mesh(recipe.devices)
    _check_divisible(recipe, devices.size)
    material = load_material(recipe)
    check_against_data(recipe, material.class_counts)
    for caution in cautions(recipe, material.class_counts):
        progress.say(f'caution: {caution}')
    network = build_network(recipe, material)
    if stage_1_from is not None:
        check_stage_1(Path(stage_1_from), recipe, material)
    records = Records(workdir, config, tensorboard=recipe.records.tensorboard)
    if stage_1_from is not None:
        take_over_stage_1(Path(stage_1_from), workdir, recipe.stage_1.steps)
    try:
        with Interruption() as interruption:
            final = _run_stages(recipe, material, network, devices, records, interruption, progress)
        final, chosen = with_test_classifier(recipe, material, network, final)
        write_json(workdir / 'run.json', facts(recipe, material, devices, final) | chosen)
        temperature = calibration_temperature(recipe, material, network, final)
        result = final_evaluation(recipe, material, network, final, temperature)
        write_json(workdir / 'evaluation.json', result)
    finally:
        records.close()
    return result


def check_stage_1(run: Path, recipe: Recipe, material: Material) -> None:
    """Refuses a run whose first stage is not this recipe's, or not finished.

    Raises:
        WorkdirError: with what differs.
    """
    theirs, steps = run / 'checkpoints' / 'stage_1', recipe.stage_1.steps
    if not (theirs / str(steps)).is_dir():
        raise WorkdirError(f'stage_1_from: {run} holds no first stage finished at step {steps}')
    checkpoints = open_checkpoints(run, recipe, 'stage_1', material)
    try:
        checkpoints.check(steps)
    except CheckpointError as error:
        raise WorkdirError(f'stage_1_from: {error}') from error
    finally:
        checkpoints.close()


def take_over_stage_1(run: Path, workdir: Path, steps: int) -> None:
    """Copies the finished first stage of another run: its last checkpoint and its records.

    Nothing is done where the work directory has a first stage already.
    """
    theirs, ours = (folder / 'checkpoints' / 'stage_1' for folder in (run, workdir))
    if ours.exists():
        return
    lines = (run / 'metrics.jsonl').read_text().splitlines(keepends=True)
    ours_unfinished = ours.with_name('.stage_1.unfinished')
    shutil.rmtree(ours_unfinished, ignore_errors=True)
    shutil.copytree(theirs / str(steps), ours_unfinished / str(steps))
    first_stage = [line for line in lines if '"stage": "stage_1"' in line]
    (workdir / 'metrics.jsonl').write_text(''.join(first_stage))
    ours_unfinished.rename(ours)


def facts(recipe: Recipe, material: Material, devices: Any, final: TrainState) -> dict[str, Any]:
    """What stands in run.json."""
    metas = [s.meta for s in recipe.stages.values() if s.meta.rebalancer != 'none']
    packages = ('balms_jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'method': recipe.method,
        'dataset': recipe.data.name,
        'imbalance_factor': recipe.data.imbalance_factor,
        'profile': recipe.data.profile,
        'seed': recipe.seed,
        'subset_seed': recipe.data.seed,
        'recipe': recipe.name,
        'network': f'{recipe.model.name}, width {recipe.model.width}, '
        f'{recipe.model.classifier} classifier',
        'parameter_count': models.count_parameters(final.params),
        'class_counts': list(material.class_counts),
        'class_names': list(material.source.class_names),
        'meta_set': f'{META_SETS[metas[0].source]}, {metas[0].draws}' if metas else None,
        'held_out_examples': sum(material.held_out_counts),
        'selection_rule': 'last epoch',
        'data_fingerprint': material.fingerprint,
        'device': f'{devices.size} x {devices.devices.flat[0].device_kind}',
        'versions': {
            'python': platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        'stages': [
            {'name': name, 'steps': stage.steps, 'batch_size': stage.batch_size}
            for name, stage in recipe.stages.items()
        ],
    }


def _run_stages(
    recipe: Recipe,
    material: Material,
    network: Network,
    devices: Any,
    records: Records,
    interruption: Interruption,
    progress: Progress,
) -> TrainState:
    key = jax.random.key(recipe.seed)
    all_checkpoints = {
        name: open_checkpoints(records.workdir, recipe, name, material) for name in recipe.stages
    }
    steps_done = {name: each.latest_step for name, each in all_checkpoints.items()}
    records.resume({name: step for name, step in steps_done.items() if step is not None})
    current: TrainState | None = None
    for index, (name, stage) in enumerate(recipe.stages.items()):
        stage_key = jax.random.fold_in(key, index)
        rebalancer = steps.make_rebalancer(stage.meta, material.class_counts)
        first = first_state(network, stage, stage_key, material, current, rebalancer)
        fresh = _place(devices, first)
        if index == 0:
            write_json(records.workdir / 'run.json', facts(recipe, material, devices, fresh))
        checkpoints, done = all_checkpoints[name], steps_done[name]
        try:
            current = fresh if done is None else _place(devices, checkpoints.restore(fresh))
            if done == stage.steps:
                progress.say(f'{progress.title} {name}: finished before')
                continue
            if done is not None:
                progress.say(f'{progress.title} {name}: goes on from step {done}')
            records.begin(name)
            loop = _loop(recipe, name, material, network, devices, rebalancer, current)
            current = stages.run(loop, current, checkpoints, records, interruption, progress)
        finally:
            checkpoints.close()
    assert current is not None
    return current.tested


def _loop(
    recipe: Recipe,
    name: str,
    material: Material,
    network: Network,
    devices: Any,
    rebalancer: Rebalancer | None,
    current: TrainState,
) -> stages.Loop:
    """Lays the stage's data out on the devices and ties its functions together."""
    stage = recipe.stages[name]
    cached = stage.trains != 'all' and stage.features == 'cached'
    inputs = stage_inputs(recipe, stage, material, network, current, cached=cached)
    logits = _stage_logits(network, stage, cached=cached)
    task = steps.Task(
        logits=logits,
        read=inputs.read,
        class_counts=material.class_counts,
        meta_counts=material.meta_counts,
        place=lambda batch: jax.lax.with_sharding_constraint(batch, mesh.by_example(devices)),
    )
    scans = cached or jax.default_backend() != 'cpu'
    return stages.Loop(
        name=name,
        stage=stage,
        recipe=recipe,
        step=steps.make_step(task, stage, rebalancer),
        train_inputs=jax.device_put(inputs.train, mesh.replicated(devices)),
        meta_inputs=jax.device_put(inputs.meta, mesh.replicated(devices)),
        evaluate=stage_evaluation(recipe, stage, material, logits, inputs, rebalancer),
        steps_per_call=recipe.steps_per_call or (SCANNED_STEPS if scans else 1),
        between=make_schedule(material, network) if stage.loss.name == 'cost_sensitive' else None,
        epoch=-(-sum(material.class_counts) // stage.batch_size),
    )


def _stage_logits(network: Network, stage: Stage, *, cached: bool) -> steps.Logits:
    """What the stage computes of its inputs: the whole network, or its classifier of features."""
    whole = whole_network(network)

    def logits(
        params: PyTree, batch_stats: PyTree, inputs: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if cached:
            return classified(network, params, inputs, train), batch_stats
        # A frozen backbone is used as at test: its batch statistics do not move.
        return whole(params, batch_stats, inputs, train and stage.trains == 'all')

    return logits


def _place(devices: Any, current: TrainState) -> TrainState:
    return jax.device_put(current, mesh.replicated(devices))


def _check_divisible(recipe: Recipe, devices: int) -> None:
    for name, stage in recipe.stages.items():
        sizes = {f'{name}.batch_size': stage.batch_size}
        if stage.meta.rebalancer != 'none':
            sizes[f'{name}.meta.batch_size'] = stage.meta.batch_size
        for key, size in sizes.items():
            if size % devices:
                raise ConfigError(f'{key}: got {size}, wanted a multiple of the {devices} devices')
