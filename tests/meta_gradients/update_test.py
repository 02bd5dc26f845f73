"""ψ may set the update's own hyperparameters; and no update's derivative is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import meta_gradients
from balms_jax.meta_gradients.update import differentiable_update

pytestmark = pytest.mark.usefixtures('standard_promotion')


def network(params, inputs):
    return jnp.tanh(inputs @ params['hidden']) @ params['kernel']


def train_loss(params, psi, batch):
    """Reads ψ too, where it has an entry for the loss."""
    return jnp.mean(psi.get('weight', 1.0) * (network(params, batch[0]) - batch[1]) ** 2), None


def meta_loss(params, batch):
    return jnp.mean((network(params, batch[0]) - batch[1]) ** 2), None


def problem(steps=1):
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        'hidden': jax.random.normal(keys[0], (3, 4)),
        'kernel': jax.random.normal(keys[1], (4, 1)),
    }
    inputs = jax.random.normal(keys[2], (steps, 5, 3))
    targets = jax.random.normal(keys[3], (steps, 5, 1))
    return params, (inputs, targets), (inputs[0, ::-1], targets[0])


def injected(psi):
    """Hyperparameters in the optimizer's state, set before each of its steps."""
    inner = optax.inject_hyperparams(optax.adamw)(learning_rate=0.1, weight_decay=0.01)

    def update(grads, state, params):
        return inner.update(grads, state._replace(hyperparams={**state.hyperparams, **psi}), params)

    return optax.GradientTransformation(inner.init, update)


CASES = {
    'sgd': (lambda psi: optax.sgd(psi['rate'], psi['momentum']), {'rate': 0.1, 'momentum': 0.8}),
    'adamw': (
        lambda psi: optax.adamw(psi['rate'], weight_decay=psi['decay']),
        {'rate': 0.1, 'decay': 0.05},
    ),
    'injected': (injected, {'learning_rate': 0.1, 'weight_decay': 0.05}),
    'both': (lambda psi: optax.sgd(psi['rate']), {'rate': 0.1, 'weight': 0.7}),
}


@pytest.mark.parametrize('steps', [1, 3])
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('mode', ['forward_over_reverse', 'lean'])
def test_hyperparameters_of_the_update_have_their_gradient(name, mode, steps):
    """It is jax.grad's of the loop with ψ in the optimizer's place, and the slope of the loss."""
    make, values = CASES[name]
    with jax.enable_x64(True):
        psi = jax.tree.map(jnp.asarray, values)
        params, batches, meta_batch = problem(steps)

        def through_the_steps(psi):
            optimizer, after = make(psi), params
            state = make(jax.tree.map(jnp.asarray, values)).init(params)
            for k in range(steps):
                batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
                grads = jax.grad(lambda p, batch=batch: train_loss(p, psi, batch)[0])(after)
                updates, state = optimizer.update(grads, state, after)
                after = optax.apply_updates(after, updates)
            return meta_loss(after, meta_batch)[0]

        step = meta_gradients.value_and_meta_grad(
            train_loss, meta_loss, make, mode=mode, steps=steps
        )
        batch = batches if steps > 1 else jax.tree.map(lambda leaf: leaf[0], batches)
        out = step(psi, params, make(psi).init(params), batch, meta_batch)
        wanted = jax.grad(through_the_steps)(psi)
        for key in psi:
            np.testing.assert_allclose(out.psi_grad[key], wanted[key], rtol=1e-9)
            h = 1e-6
            ends = [through_the_steps({**psi, key: psi[key] + sign * h}) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * h)
            np.testing.assert_allclose(out.psi_grad[key], slope, rtol=1e-5, atol=1e-8)


UPDATES = {
    'adam': optax.adam(0.1),
    'adamw': optax.adamw(0.1),
    'adafactor': optax.adafactor(0.1),
    'muon': optax.contrib.muon(0.1),
    'lion': optax.lion(0.1),
    'rmsprop': optax.rmsprop(0.1),
    'adagrad': optax.adagrad(0.1),
    'clip': optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    'clip_adam': optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
    'several': optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    'lamb': optax.lamb(0.1),
}


@pytest.mark.parametrize('name', UPDATES)
def test_a_gradient_of_zero_makes_no_nan(name):
    """Where every weight is 0, as Learning to Reweight starts, so is g: each root is at its 0/0."""
    params, batches, meta_batch = problem()
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    weighted = meta_gradients.WeightedLosses(
        lambda params, batch: ((network(params, batch[0]) - batch[1])[:, 0] ** 2, None),
        lambda psi, batch, values: psi,
    )
    step = meta_gradients.value_and_meta_grad(weighted, meta_loss, UPDATES[name], mode='lean')
    out = step(jnp.zeros(5), params, UPDATES[name].init(params), batch, meta_batch)
    assert np.all(np.isfinite(out.psi_grad))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out.params))


@pytest.mark.parametrize('eps', [1e-3, 1e-6, 1e-8, 1e-9])
def test_adams_slope_at_zero_is_that_of_its_eps(eps):
    """Its first step is −g / (|g| + ε). The place where it is read is small beside these ε."""
    optimizer = optax.adam(1.0, eps=eps)
    update = differentiable_update(optimizer)
    at = jnp.zeros([])
    slope = jax.grad(lambda g: update(g, optimizer.init(at), at, None)[0])(at)
    np.testing.assert_allclose(slope, -1 / eps, rtol=0.01)


@pytest.mark.parametrize('mode', ['reverse', 'ghost_product'])
def test_float16_is_refused_by_its_array(mode):
    """A stand-in for a gradient of 0 is either no longer small in it, or its square is 0."""
    half, single = jnp.ones(2, jnp.float16), jnp.ones(2)
    for psi, params, message in (
        ({'weight': half}, {'w': single}, r"^psi\['weight'\]: got float16, wanted bfloat16"),
        ({'weight': single}, {'w': half}, r"^params\['w'\]: got float16, wanted bfloat16"),
    ):
        step = meta_gradients.value_and_meta_grad(
            meta_gradients.WeightedLosses(
                lambda params, x: ((params['w'] - x) ** 2, None),
                lambda psi, x, values: psi['weight'],
            ),
            lambda params, x: (jnp.mean((params['w'] - x) ** 2), None),
            optax.sgd(0.1),
            mode=mode,
        )
        with pytest.raises(ValueError, match=message):
            step(psi, params, optax.sgd(0.1).init(params), single, single)


def test_nor_does_the_ghost_product_take_losses_of_float16():
    """It divides by what stands in for a weight of 0; weights alone may be of any type."""

    def take(losses_type, weights_type):
        step = meta_gradients.value_and_meta_grad(
            meta_gradients.WeightedLosses(
                lambda w, x: (((w - x) ** 2).astype(losses_type), None),
                lambda psi, x, values: psi.astype(weights_type),
            ),
            lambda w, x: (jnp.mean((w - x) ** 2), None),
            optax.sgd(0.1),
            mode='ghost_product',
        )
        x, w = jnp.array([1.0, 2.0]), jnp.zeros([])
        return step(jnp.array([0.0, 1.0]), w, optax.sgd(0.1).init(w), x, x)

    with pytest.raises(ValueError, match='losses: got float16'):
        take(jnp.float16, jnp.float32)
    wanted = take(jnp.float32, jnp.float32).psi_grad
    np.testing.assert_allclose(take(jnp.float32, jnp.float16).psi_grad, wanted, rtol=1e-3)


@pytest.mark.parametrize('mode', ['lean', 'per_example', 'ghost_product', 'finite_difference'])
def test_weights_of_zero_have_the_gradient_of_learning_to_reweight(mode):
    """At z = 0 and SGD it is −lr/B ⟨∇L_meta(θ), ∇ℓ_b(θ)⟩, although the real step is none."""
    with jax.enable_x64(True):
        params, batches, meta_batch = problem()
        batch = jax.tree.map(lambda leaf: leaf[0], batches)

        def losses(params, batch):
            return (network(params, batch[0]) - batch[1])[:, 0] ** 2, None

        weighted = meta_gradients.WeightedLosses(losses, lambda psi, batch, values: psi)
        step = meta_gradients.value_and_meta_grad(weighted, meta_loss, optax.sgd(0.1), mode=mode)
        out = step(jnp.zeros(5), params, optax.sgd(0.1).init(params), batch, meta_batch)
        meta_grads = jax.grad(lambda p: meta_loss(p, meta_batch)[0])(params)
        along = jax.jvp(lambda p: losses(p, batch)[0], (params,), (meta_grads,))[1]
        np.testing.assert_allclose(out.psi_grad, -0.1 / 5 * along, rtol=1e-6)
