"""All exact modes are one derivative, of any small problem, on a mesh, and of any form of it."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import losses, meta_gradients, priors, rebalancers
from balms_jax.training import mesh

pytestmark = pytest.mark.usefixtures('standard_promotion')

EXACT = ('reverse', 'forward_over_reverse', 'lean', 'per_example', 'ghost_product')
OPTIMIZERS = {
    'sgd': optax.sgd(0.3),
    'momentum': optax.sgd(0.3, 0.9, nesterov=True),
    'decay': optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3, 0.9)),
    'clip': optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(0.3)),
    'rmsprop': optax.rmsprop(0.1),
    'adam': optax.adam(0.1, eps=1e-2),  # Well away from a sign, whose derivative cancels.
}
LOSSES = {
    'balanced': losses.balanced_softmax_cross_entropy_with_integer_labels,
    'plain': lambda logits, labels, prior: optax.softmax_cross_entropy_with_integer_labels(
        logits, labels
    ),
    'focal': lambda logits, labels, prior: (
        jnp.square(1 - jnp.exp(-optax.softmax_cross_entropy_with_integer_labels(logits, labels)))
        * optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    ),
}


def network(params, inputs, around=lambda layer: layer):
    for kernel in params['hidden']:
        inputs = around(lambda x, w: jnp.tanh(x @ w))(inputs, kernel)
    return inputs @ params['kernel'] + params['bias']


def problem(classes, widths, batch, loss='balanced', rebalancer='meta_sampler', network=network):
    counts = np.arange(classes, 0, -1) * 7
    keys = jax.random.split(jax.random.key(classes + batch), 5)
    sizes = [3, *widths]
    params = {
        'hidden': [
            jax.random.normal(jax.random.fold_in(keys[0], i), pair)
            for i, pair in enumerate(itertools.pairwise(sizes))
        ],
        'kernel': jax.random.normal(keys[1], (sizes[-1], classes)),
        'bias': jnp.zeros(classes),
    }
    learned = rebalancers.REBALANCERS[rebalancer](counts)
    psi = jax.random.normal(keys[2], (classes,))
    draw = learned.draw(keys[3], psi, batch)
    inputs = jax.random.normal(keys[4], (2, batch, 3))
    prior = priors.log_prior(counts)

    def example_losses(params, batch):
        return LOSSES[loss](network(params, batch[0]), batch[1].classes, prior), None

    def meta_loss(params, batch):
        values = optax.softmax_cross_entropy_with_integer_labels(
            network(params, batch[0]), batch[1]
        )
        return values.mean(), None

    train_loss = meta_gradients.WeightedLosses(
        example_losses, lambda psi, batch, values: learned.weights(psi, batch[1], values)
    )
    labels = jnp.arange(batch, dtype=jnp.int32) % classes
    return train_loss, meta_loss, (psi, params, (inputs[0], draw), (inputs[1], labels))


def psi_grad(mode, optimizer, train_loss, meta_loss, arguments):
    psi, params, batch, meta_batch = arguments
    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer, mode=mode)
    # Compiled whole: operation by operation every new shape would be compiled a hundred times.
    return jax.jit(step)(psi, params, optimizer.init(params), batch, meta_batch).psi_grad


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    classes=st.integers(2, 5),
    widths=st.lists(st.integers(1, 4), max_size=2),
    batch=st.integers(2, 6),
    loss=st.sampled_from(sorted(LOSSES)),
    rebalancer=st.sampled_from(['meta_reweighter', 'meta_sampler']),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    double=st.booleans(),
)
def test_exact_modes_agree_on_any_small_problem(
    classes, widths, batch, loss, rebalancer, optimizer, double
):
    """Whatever the shapes, the loss, the weighting, the optimizer and the precision."""
    with jax.enable_x64(double), jax.numpy_rank_promotion('allow'):
        parts = problem(classes, widths, batch, loss, rebalancer)
        grads = [psi_grad(mode, OPTIMIZERS[optimizer], *parts) for mode in EXACT]
        assert np.all(np.isfinite(grads))
        scale = max(np.linalg.norm(grads[0]), 1e-6)
        for grad in grads[1:]:
            gap = np.linalg.norm(np.asarray(grad) - np.asarray(grads[0]))
            assert gap < (1e-10 if double else 2e-3) * scale


@pytest.mark.parametrize('mode', EXACT)
def test_a_mesh_of_devices_gives_what_one_device_gives(mode):
    """The batch is cut over eight devices; sums over it are in another order, and no more."""
    with jax.enable_x64(True):
        train_loss, meta_loss, arguments = problem(4, [4], 16)
        run = functools.partial(psi_grad, mode, OPTIMIZERS['decay'], train_loss, meta_loss)
        devices = mesh.data_mesh()
        psi, params, *batches = arguments
        laid_out = (
            *jax.device_put((psi, params), mesh.replicated(devices)),
            *jax.device_put(tuple(batches), mesh.by_example(devices)),
        )
        alone, spread = jax.jit(run)(arguments), jax.jit(run)(laid_out)
        assert distance(spread, alone) < 1e-12


@pytest.mark.parametrize('mode', EXACT)
def test_a_rematerialised_network_has_the_same_gradient(mode):
    """Computing a layer again changes time and memory alone."""
    with jax.enable_x64(True):
        plain = psi_grad(mode, OPTIMIZERS['momentum'], *problem(3, [4, 4], 6))
        again = problem(3, [4, 4], 6, network=functools.partial(network, around=jax.checkpoint))
        assert distance(psi_grad(mode, OPTIMIZERS['momentum'], *again), plain) < 1e-12


@pytest.mark.parametrize('mode', EXACT)
def test_a_network_that_computes_in_bfloat16_keeps_the_direction(mode):
    """Parameters, losses and ψ are float32; eight bits of mantissa are what is lost."""

    def in_bfloat16(params, inputs):
        cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, inputs))
        return network(*cast).astype(jnp.float32)

    full = psi_grad(mode, OPTIMIZERS['momentum'], *problem(4, [8], 32))
    half = psi_grad(mode, OPTIMIZERS['momentum'], *problem(4, [8], 32, network=in_bfloat16))
    assert half.dtype == jnp.float32
    cosine = jnp.vdot(half, full) / jnp.linalg.norm(half) / jnp.linalg.norm(full)
    assert cosine > 0.95
    assert distance(half, full) < 0.3
