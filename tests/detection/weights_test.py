"""A detector starts from all that fits of a file, says what does not, and refuses the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import models
from balms_jax.detection import networks
from balms_jax.detection.weights import start_from
from balms_jax.models import detector_weights, weights
from balms_jax.models.weights import WeightsError, flatten

pytestmark = pytest.mark.usefixtures('standard_promotion')

TINY = networks.Architecture(5, depth=10, width=4, channels=8, box_features=16, background=True)
NAME = detector_weights.detector_name(10)


def filled(architecture, seed):
    """Random (params, batch_stats), every one different."""
    random = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(networks.build(architecture).init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


def saved(path, architecture=TINY, **change):
    params, stats = filled(architecture, 1)
    made = detector_weights.DetectorWeights(NAME, architecture.background, params, stats)
    detector_weights.save(path, made._replace(**change))
    return params, stats


def unequal(found, wanted):
    """The layers that are not as wanted."""
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    return {
        key.rpartition('/')[0]
        for key in wanted
        if not np.array_equal(np.asarray(found[key]), wanted[key])
    }


def test_a_detector_of_the_same_heads_is_taken_whole(tmp_path):
    # Nothing of the fresh one may survive, statistics included.
    wanted = saved(tmp_path / 'a.npz')
    fresh = filled(TINY, 2)
    *found, left_out = start_from(tmp_path / 'a.npz', *fresh, TINY)
    assert left_out == ''
    for mine, expected in zip(found, wanted, strict=True):
        assert unequal(mine, expected) == set()


CHANGES = [
    # LVIS's many categories on COCO's detector.
    (
        {'categories': 9},
        ['classifier/Dense_0', 'boxes/deltas', 'masks/logits'],
        'classifier/Dense_0 (6 outputs of a softmax, wanted 10), '
        'boxes/deltas (20 outputs, wanted 36), masks/logits (5 outputs, wanted 9)',
    ),
    # The same categories by sigmoids: their boxes and masks are as good.
    (
        {'background': False},
        ['classifier/Dense_0'],
        'classifier/Dense_0 (6 outputs of a softmax, wanted 5 sigmoids)',
    ),
    # As many logits, of which the last was the background's.
    (
        {'background': False, 'categories': 6},
        ['classifier/Dense_0', 'boxes/deltas', 'masks/logits'],
        'classifier/Dense_0 (6 outputs of a softmax, wanted 6 sigmoids)',
    ),
    (
        {'agnostic_boxes': True, 'agnostic_masks': True},
        ['boxes/deltas', 'masks/logits'],
        'boxes/deltas (20 outputs, wanted 4), masks/logits (5 outputs, wanted 1)',
    ),
]


@pytest.mark.parametrize(('change', 'afresh', 'words'), CHANGES)
def test_layers_of_other_outputs_stay_fresh_and_are_named(tmp_path, change, afresh, words):
    # The usual case: a detector of other categories. All else is taken, and nothing silently not.
    path = tmp_path / 'a.npz'
    wanted = saved(path)
    architecture = dataclasses.replace(TINY, **change)
    fresh = filled(architecture, 2)
    params, stats, left_out = start_from(path, *fresh, architecture)
    assert left_out.startswith(f'{path}: left out, and started afresh: ')
    assert words in left_out
    assert '\n' not in left_out
    assert unequal(stats, wanted[1]) == set()
    layers = {key.rpartition('/')[0] for key in flatten(params)}
    assert unequal(params, fresh[0]) == layers - set(afresh)
    assert unequal(params, wanted[0]) == set(afresh)


def test_a_classifiers_backbone_is_taken(tmp_path):
    # As it is trained here, or converted: its classifier has no place, and the heads stay fresh.
    network = models.build('resnet10', 7, width=4)
    trained, stats = jax.jit(network.init)(jax.random.key(3), jnp.zeros((1, 64, 64, 3)))
    stats = jax.tree.map(lambda leaf: leaf + 0.5, stats)
    path = tmp_path / 'resnet10.npz'
    made = weights.Weights('resnet10', trained['backbone'], stats, trained['classifier'])
    weights.save(path, made)
    fresh = filled(TINY, 2)
    params, found_stats, left_out = start_from(path, *fresh, TINY)
    assert left_out == f"{path}: of a classifier: all but the detector's backbone starts afresh"
    assert unequal(found_stats, stats) == set()
    assert unequal(params['backbone'], trained['backbone']) == set()
    for part in ('pyramid', 'proposals', 'boxes', 'classifier', 'masks'):
        assert unequal(params[part], fresh[0][part]) == set()


def test_what_is_left_out_is_known_from_shapes(tmp_path):
    # So that a job can say so, or refuse, before it spends anything.
    path = tmp_path / 'a.npz'
    saved(path)
    sigmoids = dataclasses.replace(TINY, background=False)
    shapes = jax.eval_shape(lambda: filled(sigmoids, 2))
    params, _, left_out = start_from(path, *shapes, sigmoids)
    assert 'classifier/Dense_0' in left_out
    assert isinstance(params['classifier']['Dense_0']['bias'], jax.ShapeDtypeStruct)


def test_the_own_types_are_kept(tmp_path):
    # A step compiled for float32 would be compiled again, or refuse, for what a file holds.
    path = tmp_path / 'a.npz'
    params, _ = filled(TINY, 1)
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    saved(path, params=double)
    found, _, _ = start_from(path, *filled(TINY, 2), TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('float32')}
    assert unequal(found, params) == set()


def refused(path, architecture=TINY):
    with pytest.raises(WeightsError) as error:
        start_from(path, *filled(architecture, 2), architecture)
    assert str(path) in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_refused_by_file_and_key(tmp_path):
    # A backbone of other sizes, or half a file, must never be trained on as if it had been read.
    path = tmp_path / 'a.npz'
    saved(path, dataclasses.replace(TINY, width=8))
    assert 'another shape: backbone/BasicBlock_0/BatchNorm_0/bias (8,), wanted (4,)' in refused(
        path
    )
    params, _ = filled(TINY, 1)
    del params['masks']['logits']['bias']
    saved(path, params=params)
    assert 'missing: masks/logits/bias' in refused(path)
    # Other outputs are no excuse for other inputs.
    saved(path, dataclasses.replace(TINY, categories=9, box_features=32))
    assert 'boxes/deltas/kernel (32, 36), wanted (16, 36)' in refused(path)
    assert 'no file of weights' in refused(tmp_path / 'absent.npz')


def test_a_file_without_the_kind_of_head_is_refused(tmp_path):
    # Softmax or sigmoids cannot be told from shapes.
    params, stats = filled(TINY, 1)
    weights.write(tmp_path / 'a.npz', NAME, {**params, 'batch_stats': stats})
    assert 'missing: background' in refused(tmp_path / 'a.npz')


@pytest.mark.parametrize('network', ['resnet18', 'resnext50', 'maskrcnn_resnet18_fpn'])
def test_a_file_of_another_network_is_refused(tmp_path, network):
    # By the network's name, which says more than the keys that differ.
    path = tmp_path / 'a.npz'
    weights.write(path, network, {'backbone': {'bias': np.zeros(2)}})
    assert f"of '{network}', wanted 'maskrcnn_resnet10_fpn' or 'resnet10'" in refused(path)
