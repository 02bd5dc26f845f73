"""What a stage starts from, its checkpoints, and what a finished run ends in."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from balms_jax.models import Network, weights
from balms_jax.rebalancers import Rebalancer
from balms_jax.training import checks, cost_schedule, learners, state
from balms_jax.training.checkpoints import Checkpoints
from balms_jax.training.material import Material, load_material, meta_source
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
    recipe = checks.from_config(config)
    wanted = stage or list(recipe.stages)[-1]
    if wanted not in recipe.stages:
        names = ', '.join(recipe.stages)
        raise WorkdirError(f'stage: got {stage!r}, wanted one of those of {run}: {names}')
    # What it started from is known by its fingerprint; the file itself may be gone.
    without = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=''))
    material = dataclasses.replace(
        load_material(without), weights_fingerprint=_weights_fingerprint(run, recipe)
    )
    network = build_network(recipe, material)
    current: TrainState | None = None
    for name, settings in recipe.stages.items():
        rebalancer = learners.make_rebalancer(settings.meta, material.class_counts)
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
    return checks.build_network(recipe.model, material.source.num_classes)


def check_weights(recipe: Recipe, network: Network, material: Material) -> str:
    """Whether the network can start from the weights of the recipe, if any.

    Args:
        recipe: that names the network.
        network: its functions.
        material: with the weights.

    Returns:
        A sentence if their classifier is left out, else nothing.

    Raises:
        WeightsError: naming what does not fit.
    """
    first = material.weights
    if first is None:
        return ''
    if first.network != recipe.model.name:
        raise weights.WeightsError(
            f'model.weights: are of {first.network!r}, and model.name is {recipe.model.name!r}'
        )
    shapes = jax.eval_shape(network.init, jax.random.key(0), _one_image(material))
    return weights.check(first, *shapes)


def open_checkpoints(workdir: Path, recipe: Recipe, name: str, material: Material) -> Checkpoints:
    """The checkpoints of a stage, for none but the run, or runs, that share it."""
    config = dataclasses.asdict(recipe)
    stages = list(recipe.stages)
    keys = ['seed', 'data', 'model', *stages[: stages.index(name) + 1]]
    shared = identity({key: config[key] for key in keys})
    shared['data_fingerprint'] = material.fingerprint
    if material.weights_fingerprint:
        shared['weights_fingerprint'] = material.weights_fingerprint
    return Checkpoints(workdir / 'checkpoints' / name, keep=recipe.records.keep, identity=shared)


def open_features(
    workdir: Path, recipe: Recipe, stage: Stage, material: Material
) -> Checkpoints | None:
    """Where the features that a second stage is trained on are kept.

    Only those of image files are: of others they are sooner extracted again than read. The first
    stage does not tell whether there is a meta set apart, whose features are kept too.
    """
    if stage.trains == 'all' or stage.features != 'cached' or not recipe.data.files.train:
        return None
    like = open_checkpoints(workdir, recipe, 'stage_1', material).identity | {'views': stage.views}
    if (source := meta_source(recipe)) != 'train':  # So that earlier runs' features stay theirs.
        like['meta_source'] = source
    return Checkpoints(workdir / 'features', keep=1, identity=like)


def first_state(
    network: Network,
    stage: Stage,
    key: jax.Array,
    material: Material,
    earlier: TrainState | None,
    rebalancer: Rebalancer | None,
) -> TrainState:
    """The state that a stage starts from: fresh, of weights, or of an earlier stage's last one."""
    init_key, step_key = jax.random.split(key)
    images = _one_image(material)
    if earlier is None:
        trained, batch_stats = jax.jit(network.init)(init_key, images)
        frozen: PyTree = {}
        if material.weights is not None:
            trained, batch_stats = weights.start(material.weights, trained, batch_stats)
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
        learners.make_optimizer(stage.optimizer, stage.steps),
        rebalancer.psi if rebalancer else None,
        learners.make_psi_optimizer(stage.meta),
        averages=stage.averaging > 0,
        staleness=stage.meta.staleness,
    )
    if stage.loss.name == 'cost_sensitive':
        costs = cost_schedule.first_costs(stage, len(material.class_counts))
        return dataclasses.replace(first, psi=costs)
    return first


def _one_image(material: Material) -> jax.Array:
    return jnp.zeros((1, *material.train_images.shape[1:]), jnp.float32)


def _weights_fingerprint(run: Path, recipe: Recipe) -> str:
    """Of the weights that a run started from, as it was recorded."""
    if not recipe.model.weights:
        return ''
    try:
        return json.loads((run / 'run.json').read_text())['weights_fingerprint']
    except (KeyError, OSError, ValueError) as error:
        raise WorkdirError(f'{run}: its run.json names no weights_fingerprint ({error})') from error


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
