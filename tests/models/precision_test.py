"""Rematerialised blocks change no number; bfloat16 changes them by rounding, and no parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import models
from balms_jax.training import learners, recipe, state, step_parts, steps

pytestmark = pytest.mark.usefixtures('standard_promotion')

# Each at a width that computes fast.
NARROW = {'resnet8': 4, 'resnet10': 4, 'resnet50': 4, 'resnext50': 16, 'vit_s_16': 8}
SMALL = ('resnet8', 'vit_s_16')


def shapes_of(name, **options):
    """Names, shapes and types of the parameters and the statistics, without computing any."""
    network = models.build(name, 3, width=NARROW.get(name, 4), **options)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)


def start(name, **options):
    network = models.build(name, 3, width=NARROW.get(name, 4), **options)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    return network, images, *jax.jit(network.init)(jax.random.key(0, impl='rbg'), images)


def value_and_grad(network, images, params, stats):
    """Of plain cross-entropy, and the next statistics, compiled."""

    def loss(params):
        features, after = network.features(params['backbone'], stats, images, True)
        logits = network.logits(params['classifier'], features)
        labels = jnp.array([0, 1, 2, 0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (features, logits, after)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def assert_close(found, wanted, tolerance):
    """Leaf by leaf, to a share of the leaf's largest number."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        largest = max(float(np.abs(theirs).max()), 1e-3)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize('name', [*NARROW, 'digits_net'])
def test_parameters_are_the_same_in_every_precision(name):
    """So that a run can be evaluated, or begun, with other settings than it was trained with."""
    wanted = shapes_of(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(wanted)} == {jnp.dtype('float32')}
    assert shapes_of(name, dtype='bfloat16') == wanted
    if name != 'digits_net':
        assert shapes_of(name, remat=True) == wanted
        assert shapes_of(name, dtype='bfloat16', remat=True) == wanted


@pytest.mark.parametrize('name', SMALL)
def test_rematerialised_blocks_give_the_same_gradients(name):
    """They are computed from the same formulas, in an order that the compiler may change."""
    network, images, params, stats = start(name)
    again, _, params_again, _ = start(name, remat=True)
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    (wanted, aux), grads = value_and_grad(network, images, params, stats)
    (found, aux_again), grads_again = value_and_grad(again, images, params, stats)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert_close(aux_again, aux, 1e-5)
    assert_close(grads_again, grads, 1e-4)


def test_rematerialised_blocks_are_computed_again():
    """Else nothing would be saved: the backward pass holds each block's convolutions twice."""

    def convolutions(remat):
        network = models.build('resnet8', 3, width=4, remat=remat)
        images = jnp.zeros((2, 32, 32, 3))
        params, stats = jax.eval_shape(network.init, jax.random.key(0), images)

        def total(params, stats):
            return network.features(params['backbone'], stats, images, True)[0].sum()

        jaxpr = str(jax.make_jaxpr(jax.grad(total))(params, stats))
        return jaxpr.count('conv_general_dilated[')

    assert convolutions(True) == convolutions(False) + 3 * 2


@pytest.mark.parametrize('name', [*SMALL, 'digits_net'])
def test_bfloat16_rounds_what_a_backbone_computes_and_nothing_else(name):
    """Eight bits: some per cent after several layers. What is kept and handed on is float32."""
    network, images, params, stats = start(name)
    short, *_ = start(name, dtype='bfloat16')
    (wanted, aux), grads = value_and_grad(network, images, params, stats)
    (found, aux_short), grads_short = value_and_grad(short, images, params, stats)
    for leaf in jax.tree.leaves((found, aux_short, grads_short)):
        assert leaf.dtype == jnp.float32
    features, logits, after = aux_short
    assert np.any(features != aux[0])
    assert_close((features, logits), aux[:2], 0.1)
    assert_close(after, aux[2], 0.05)
    assert float(found) == pytest.approx(float(wanted), rel=0.1)
    distance = jax.tree.map(jnp.subtract, grads_short, grads)
    assert float(optax.tree.norm(distance)) < 0.2 * float(optax.tree.norm(grads))


def test_bfloat16_keeps_the_batchs_statistics_in_float32():
    """A mean that is large beside the deviation would be lost in eight bits."""
    network = models.build('digits_net', 3, width=4, dtype='bfloat16')
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
    params, stats = network.init(jax.random.key(0), images)
    _, after = network.features(params['backbone'], stats, images, True)
    mean = np.asarray(after['BatchNorm_0']['mean'])
    assert np.any(mean != mean.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize('name', ['resnet8', 'vit_s_16'])
def test_a_meta_step_through_rematerialised_blocks_is_the_same(name):
    """Forward over reverse differentiates the second forward pass too."""
    counts = (4, 2)
    stage = recipe.Stage(
        steps=5, batch_size=4, meta=recipe.Meta(rebalancer='meta_reweighter', batch_size=4)
    )
    images = jax.random.normal(jax.random.key(1), (6, 16, 16, 3))

    def step_of(remat):
        network = models.build(name, 2, width=4, remat=remat)

        def logits(params, stats, inputs, train):
            features, stats = network.features(params['backbone'], stats, inputs, train)
            return network.logits(params['classifier'], features), stats

        task = step_parts.Task(
            logits=logits,
            read=lambda inputs, examples, key: inputs[examples],
            class_counts=counts,
            meta_counts=counts,
        )
        rebalancer = learners.make_rebalancer(stage.meta, counts)
        params, stats = jax.jit(network.init)(jax.random.key(0, impl='rbg'), images)
        first = state.create(
            jax.random.key(0),
            params,
            {},
            stats,
            learners.make_optimizer(stage.optimizer, stage.steps),
            rebalancer.psi,
            learners.make_psi_optimizer(stage.meta),
        )
        return jax.jit(steps.make_step(task, stage, rebalancer))(first, images, images)

    (wanted, metrics), (found, metrics_again) = step_of(False), step_of(True)
    assert np.any(np.asarray(wanted.psi) != 0)
    for key in ('trained', 'batch_stats', 'psi', 'psi_opt_state'):
        assert_close(getattr(found, key), getattr(wanted, key), 1e-5)
    assert_close(metrics_again, metrics, 1e-5)
