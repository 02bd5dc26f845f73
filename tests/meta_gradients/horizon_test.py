"""K steps are K plain steps, differentiated exactly; only time and memory depend on how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import meta_gradients

pytestmark = pytest.mark.usefixtures('standard_promotion')


def normalised(params, stats, inputs):
    """A hidden layer whose running mean is carried from step to step, as batch norm's is."""
    hidden = inputs @ params['hidden']
    new_stats = 0.9 * stats + 0.1 * hidden.mean(0)
    return jnp.tanh(hidden - new_stats[None, :]) @ params['kernel'], new_stats


def train_loss(params, psi, batch, stats):
    inputs, labels = batch
    logits, new_stats = normalised(params, stats, inputs)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(jax.nn.sigmoid(psi)[labels] * values), new_stats


def meta_loss(params, batch, stats):
    """Reads the statistics of the last step, as a network in evaluation mode does."""
    inputs, labels = batch
    logits = jnp.tanh(inputs @ params['hidden'] - stats[None, :]) @ params['kernel']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), None


def problem(steps):
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        'hidden': jax.random.normal(keys[0], (3, 4)),
        'kernel': jax.random.normal(keys[1], (4, 2)),
    }
    batches = jax.random.normal(keys[2], (steps, 6, 3)), jnp.arange(6 * steps).reshape(steps, 6) % 2
    meta_batch = jax.random.normal(keys[3], (6, 3)), jnp.arange(6) % 2
    return jnp.array([0.3, -0.5]), params, batches, meta_batch, jnp.zeros(4)


def written_out(optimizer, steps):
    """What jax.grad makes of the loop as one would write it."""
    psi, params, batches, meta_batch, stats = problem(steps)

    def through_the_steps(psi):
        after, opt_state, carry = params, optimizer.init(params), stats
        for k in range(steps):
            batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
            grads, carry_next = jax.grad(train_loss, has_aux=True)(after, psi, batch, carry)
            updates, opt_state = optimizer.update(grads, opt_state, after)
            after, carry = optax.apply_updates(after, updates), carry_next
        return meta_loss(after, meta_batch, carry)[0], (after, carry)

    return jax.jit(jax.grad(through_the_steps, has_aux=True))(psi)


@pytest.mark.parametrize(
    ('mode', 'steps', 'segment', 'scan'),
    [
        ('reverse', 3, None, False),
        ('forward_over_reverse', 3, 0, False),
        ('lean', 5, None, False),
        ('lean', 5, 1, False),
        ('lean', 3, 2, True),
        ('lean', 1, None, False),
        ('finite_difference', 3, None, False),
    ],
)
def test_a_carry_is_differentiated_through_every_step(mode, steps, segment, scan):
    """The meta loss reads statistics that every step's parameters have moved, and so has ψ."""
    optimizer = optax.sgd(0.3, 0.9)
    with jax.enable_x64(True):
        psi, params, batches, meta_batch, stats = problem(steps)
        step = meta_gradients.value_and_meta_grad(
            train_loss, meta_loss, optimizer, mode=mode, steps=steps, segment=segment, scan=scan
        )
        if steps == 1:
            batches = jax.tree.map(lambda leaf: leaf[0], batches)
        out = jax.jit(step)(psi, params, optimizer.init(params), batches, meta_batch, stats)
        wanted, (after, carry) = written_out(optimizer, steps)
        tolerance = 1e-6 if mode == 'finite_difference' else 1e-12
        assert np.linalg.norm(out.psi_grad - wanted) < tolerance * np.linalg.norm(wanted)
        np.testing.assert_allclose(out.params['hidden'], after['hidden'], rtol=1e-12)
        np.testing.assert_allclose(out.train_aux, carry, rtol=1e-12)
        assert out.train_loss.shape == (() if steps == 1 else (steps,))


def test_the_carry_matters():
    """A meta-gradient that took the last statistics for constants would be another."""
    with jax.enable_x64(True):
        psi, params, batches, meta_batch, stats = problem(3)
        optimizer = optax.sgd(0.3, 0.9)
        step = meta_gradients.value_and_meta_grad(
            train_loss, meta_loss, optimizer, mode='lean', steps=3
        )
        out = jax.jit(step)(psi, params, optimizer.init(params), batches, meta_batch, stats)

        def constant(params, batch, stats):
            return meta_loss(params, batch, jax.lax.stop_gradient(stats))

        step = meta_gradients.value_and_meta_grad(
            train_loss, constant, optimizer, mode='lean', steps=3
        )
        other = jax.jit(step)(psi, params, optimizer.init(params), batches, meta_batch, stats)
        gap = np.linalg.norm(out.psi_grad - other.psi_grad)
        assert gap > 1e-3 * np.linalg.norm(out.psi_grad)


@pytest.mark.parametrize('mode', ['reverse', 'forward_over_reverse', 'finite_difference'])
@pytest.mark.parametrize('scan', [False, True])
def test_a_loss_may_close_over_what_is_traced(mode, scan):
    """A user's jitted step closes over its features, the way one writes such a loss."""

    @jax.jit
    def psi_grad(scales, places):
        def scaled_loss(params, psi, batch, stats):
            inputs, labels = batch
            return train_loss(params, psi, (inputs * scales[places], labels), stats)

        psi, params, batches, meta_batch, stats = problem(4)
        optimizer = optax.sgd(0.3, 0.9)
        step = meta_gradients.value_and_meta_grad(
            scaled_loss, meta_loss, optimizer, mode=mode, steps=4, scan=scan
        )
        return step(psi, params, optimizer.init(params), batches, meta_batch, stats).psi_grad

    with jax.enable_x64(True):
        found = psi_grad(jnp.array([7.0, 1.0]), jnp.array([1, 1, 1]))
        wanted, _ = written_out(optax.sgd(0.3, 0.9), 4)
        tolerance = 1e-6 if mode == 'finite_difference' else 1e-12
        assert np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted)


def deep_loss(weights, psi, inputs):
    for kernel in weights:
        inputs = jnp.tanh(inputs @ kernel)
    return jnp.mean(jax.nn.sigmoid(psi) * inputs**2), None


def temp_memory(optimizer, mode, steps, segment=None, width=8, examples=2000):
    weights = [jnp.ones((width, width)) for _ in range(5)]
    psi, inputs = jnp.zeros(()), jnp.ones((steps, examples, width))
    step = meta_gradients.value_and_meta_grad(
        deep_loss,
        lambda w, x: deep_loss(w, 0.0, x),
        optimizer,
        mode=mode,
        steps=steps,
        segment=segment,
    )
    batch = inputs[0] if steps == 1 else inputs
    lowered = jax.jit(step).lower(psi, weights, optimizer.init(weights), batch, inputs[0])
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_sixteen_steps_take_little_more_memory_than_one():
    """Nothing of a step's backward pass is kept: what grows is parameters and optimizer state.

    Beside one step that keeps its linearisation. A Hessian-vector product holds two forward passes,
    so that beside the lean single step, which needs none, it is twice the memory.
    """
    optimizer = optax.sgd(0.3, 0.9)
    one = temp_memory(optimizer, 'forward_over_reverse', 1)
    for segment in (None, 0):
        assert temp_memory(optimizer, 'lean', 16, segment) < 1.5 * one


@pytest.mark.parametrize('optimizer', [optax.sgd(0.3, 0.9), optax.adam(1e-3)])
@pytest.mark.parametrize('segment', [None, 0])
def test_a_step_adds_its_parameters_and_optimizer_state(optimizer, segment):
    """Where parameters outweigh activations they are what is left to grow."""
    sizes = [temp_memory(optimizer, 'lean', k, segment, width=128, examples=64) for k in (4, 12)]
    state = jax.eval_shape(optimizer.init, [jnp.ones((128, 128))] * 5)
    state_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(state))
    assert (sizes[1] - sizes[0]) / 8 < 1.2 * (5 * 128 * 128 * 4 + state_bytes)


def test_reverse_keeps_the_backward_passes():
    """So that the modes above are known to save something."""
    optimizer = optax.sgd(0.3, 0.9)
    growth = [
        temp_memory(optimizer, mode, 4, 0) / temp_memory(optimizer, mode, 2, 0)
        for mode in ('lean', 'reverse')
    ]
    assert growth[0] < 1.25 < 1.5 < growth[1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'steps': 0}, 'steps: got 0, wanted a whole number of at least 1'),
        ({'steps': 2, 'segment': 3}, 'segment: got 3, wanted 0 to the 2 steps'),
        ({'steps': 2, 'mode': 'per_example'}, "mode: got 'per_example' for 2 steps"),
        ({'steps': 2, 'mode': 'ghost_product'}, "mode: got 'ghost_product' for 2 steps"),
    ],
)
def test_steps_are_checked(arguments, message):
    """Before anything is traced."""
    with pytest.raises(ValueError, match=message):
        meta_gradients.value_and_meta_grad(train_loss, meta_loss, optax.sgd(0.1), **arguments)


def test_a_batch_without_the_axis_of_steps_is_refused():
    """It would be cut into examples."""
    psi, params, batches, meta_batch, stats = problem(3)
    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optax.sgd(0.1), steps=2)
    with pytest.raises(
        ValueError, match=r'batch: got an array of shape \(3, 6, 3\), wanted a lead'
    ):
        step(psi, params, optax.sgd(0.1).init(params), batches, meta_batch, stats)


@pytest.mark.parametrize('mode', ['per_example', 'ghost_product'])
def test_a_carry_is_refused_by_modes_of_one_example_at_a_time(mode):
    """They would fall back on another order of differentiation, and give no example's part."""
    psi, params, batches, meta_batch, stats = problem(1)
    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optax.sgd(0.1), mode=mode)
    with pytest.raises(ValueError, match=f"carry: got one for mode '{mode}'"):
        step(psi, params, optax.sgd(0.1).init(params), batches, meta_batch, stats)
