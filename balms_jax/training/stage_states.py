"""What a stage starts from, its checkpoints, and what a finished run ends in."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from balms_jax import models
from balms_jax.models import Network
from balms_jax.rebalancers import Rebalancer
from balms_jax.training import cost_schedule, state, steps
from balms_jax.training.checkpoints import Checkpoints
from balms_jax.training.checks import from_config
from balms_jax.training.material import Material, load_material
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.records import WorkdirError, identity
from balms_jax.training.state import TrainState

PyTree = Any


class Trained(NamedTuple):
    """A run that has trained a stage to its end, ready to be used."""

    recipe: Recipe
    material: Material
    network: Network
    state: TrainState  # its averages in place, where they are kept


def load_trained(run: Path | str, data_dir: str | None = None, stage: str = '') -> Trained:
    """Reads the network that a run has trained from its last checkpoint.

    Args:
        run: its work directory.
        data_dir: where the data are now; as the run was told, if None.
        stage: ``'stage_1'`` or ``'stage_2'``; the last one if empty.

    Returns:
        The network's functions, its state, the recipe and the data.

    Raises:
        WorkdirError: if there is no such run, or the stage is not finished.
        CheckpointError: if the checkpoint is damaged.
        DataNotFoundError: if the data are not there.
    """
    run = Path(run)
    try:
        config = json.loads((run / 'config.json').read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f'{run}: holds no run ({error})') from error
    if data_dir is not None:
        config['data']['data_dir'] = data_dir
    recipe = from_config(config)
    wanted = stage or list(recipe.stages)[-1]
    if wanted not in recipe.stages:
        names = ', '.join(recipe.stages)
        raise WorkdirError(f'stage: got {stage!r}, wanted one of those of {run}: {names}')
    material = load_material(recipe)
    network = build_network(recipe, material)
    current: TrainState | None = None
    for name, settings in recipe.stages.items():
        rebalancer = steps.make_rebalancer(settings.meta, material.class_counts)
        key = jax.random.key(recipe.seed)
        current = first_state(network, settings, key, material, current, rebalancer)
        if name == wanted:
            break
    assert current is not None
    checkpoints = open_checkpoints(run, recipe, wanted, material)
    try:
        if checkpoints.latest_step != recipe.stages[wanted].steps:
            raise WorkdirError(f'{run}: its {wanted} is not finished')
        return Trained(recipe, material, network, checkpoints.restore(current).tested)
    finally:
        checkpoints.close()


def build_network(recipe: Recipe, material: Material) -> Network:
    """The network that a recipe names, for the classes of its data."""
    return models.build(
        recipe.model.name,
        material.source.num_classes,
        width=recipe.model.width,
        classifier=recipe.model.classifier,
        scale=recipe.model.scale,
        experts=recipe.model.experts,
    )


def open_checkpoints(workdir: Path, recipe: Recipe, name: str, material: Material) -> Checkpoints:
    """The checkpoints of a stage, for none but the run, or runs, that share it."""
    config = dataclasses.asdict(recipe)
    stages = list(recipe.stages)
    keys = ['seed', 'data', 'model', *stages[: stages.index(name) + 1]]
    shared = identity({key: config[key] for key in keys})
    return Checkpoints(
        workdir / 'checkpoints' / name,
        keep=recipe.records.keep,
        identity={**shared, 'data_fingerprint': material.fingerprint},
    )


def first_state(
    network: Network,
    stage: Stage,
    key: jax.Array,
    material: Material,
    earlier: TrainState | None,
    rebalancer: Rebalancer | None,
) -> TrainState:
    """The state that a stage starts from: fresh, or made of an earlier stage's last one."""
    init_key, step_key = jax.random.split(key)
    images = jnp.zeros((1, *material.train_images.shape[1:]), jnp.float32)
    if earlier is None:
        trained, batch_stats = jax.jit(network.init)(init_key, images)
        frozen: PyTree = {}
    else:
        # A copy: the state is donated to its steps, and features may still be read from it.
        params, batch_stats = jax.tree.map(
            jnp.copy, (earlier.tested.params, earlier.tested.batch_stats)
        )
        trained, frozen = _shared_out(network, stage, init_key, images, params, batch_stats)
    first = state.create(
        step_key,
        trained,
        frozen,
        batch_stats,
        steps.make_optimizer(stage.optimizer, stage.steps),
        rebalancer.psi if rebalancer else None,
        steps.make_psi_optimizer(stage.meta),
        averages=stage.averaging > 0,
    )
    if stage.loss.name == 'cost_sensitive':
        costs = cost_schedule.first_costs(stage, len(material.class_counts))
        return dataclasses.replace(first, psi=costs)
    return first


def _shared_out(
    network: Network,
    stage: Stage,
    key: jax.Array,
    images: jax.Array,
    params: PyTree,
    batch_stats: PyTree,
) -> tuple[PyTree, PyTree]:
    """What a second stage trains of the first one's network, and what it leaves."""
    if stage.trains == 'all':
        return params, {}
    features = jax.eval_shape(
        lambda params: network.features(params['backbone'], batch_stats, images, False)[0], params
    )
    features = jnp.zeros(features.shape, features.dtype)
    if stage.trains == 'scales':
        logits = network.logits(params['classifier'], features)
        return {'scales': jnp.ones(logits.shape[-1], logits.dtype)}, params
    return {'classifier': network.init_classifier(key, features)}, {'backbone': params['backbone']}
