"""A run starts from weights, and is known by what is in them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from balms_jax.models import weights
from balms_jax.training import checks, job, stage_states
from balms_jax.training.checkpoints import CheckpointError
from balms_jax.training.material import load_material

pytestmark = pytest.mark.usefixtures('standard_promotion')


def saved(recipe, path, classes=10, seed=1):
    """Random weights of the recipe's network, in a file."""
    network = checks.build_network(recipe.model, classes)
    params, stats = network.init(jax.random.key(seed), np.zeros((1, 8, 8, 1), np.float32))
    parts = jax.tree.map(np.asarray, (params['backbone'], stats, params['classifier']))
    made = weights.Weights(recipe.model.name, *parts)
    weights.save(path, made)
    return made


def started_from(recipe, path):
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=str(path)))


@pytest.mark.parametrize('classes', [10, 7])
def test_the_first_stage_starts_from_the_weights(small_recipe, tmp_path, classes):
    """A classifier of other classes is the fresh one that it would have been without them."""
    recipe = small_recipe('softmax')
    made = saved(recipe, tmp_path / 'a.npz', classes)
    states = []
    for each in (recipe, started_from(recipe, tmp_path / 'a.npz')):
        material = load_material(each)
        network = stage_states.build_network(each, material)
        said = stage_states.check_weights(each, network, material)
        key, stage = jax.random.key(0), each.stage_1
        states.append(stage_states.first_state(network, stage, key, material, None, None))
    fresh, first = states
    assert bool(said) == (classes == 7)
    jax.tree.map(np.testing.assert_array_equal, first.trained['backbone'], made.backbone)
    wanted = made.classifier if classes == 10 else fresh.trained['classifier']
    jax.tree.map(np.testing.assert_array_equal, first.trained['classifier'], wanted)


def test_a_run_is_tied_to_the_content_of_its_weights(small_recipe, tmp_path):
    """The file may move, and be gone when the network is read back; others are another run."""
    recipe, path = small_recipe('softmax', steps=5), tmp_path / 'a.npz'
    made = saved(recipe, path)
    result = job.train(started_from(recipe, path), tmp_path / 'run')
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert facts['weights_fingerprint'] == weights.fingerprint(made)
    shutil.move(path, tmp_path / 'moved.npz')
    assert job.train(started_from(recipe, tmp_path / 'moved.npz'), tmp_path / 'run') == result
    (tmp_path / 'moved.npz').unlink()
    assert int(stage_states.load_trained(tmp_path / 'run').state.step) == 5
    saved(recipe, tmp_path / 'other.npz', seed=2)
    for other in (started_from(recipe, tmp_path / 'other.npz'), recipe):
        with pytest.raises(CheckpointError, match=r'weights_fingerprint is .* there and'):
            job.train(other, tmp_path / 'run')


def test_weights_that_do_not_fit_are_refused_before_any_work(small_recipe, tmp_path):
    recipe, path = small_recipe('softmax'), tmp_path / 'a.npz'
    wider = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, width=6))
    made = saved(wider, path)
    with pytest.raises(
        weights.WeightsError, match=r'another shape: backbone/BatchNorm_0/bias \(6,'
    ):
        job.train(started_from(recipe, path), tmp_path / 'run')
    weights.save(path, made._replace(network='resnet8'))
    with pytest.raises(weights.WeightsError, match=r"are of 'resnet8', and model\.name is 'digits"):
        job.train(started_from(recipe, path), tmp_path / 'run')
    with pytest.raises(weights.WeightsError, match='absent is no file of weights'):
        job.train(started_from(recipe, tmp_path / 'absent'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
