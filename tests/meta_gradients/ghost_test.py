"""One backward pass gives every example's ⟨u, ∇ℓ_b⟩, for any network of independent examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from balms_jax import meta_gradients
from balms_jax.models import classifiers

pytestmark = pytest.mark.usefixtures('standard_promotion')

BATCH, CLASSES, FEATURES, TIMES = 4, 3, 6, 5
QUICK = {'xla_backend_optimization_level': 0}  # Compiling is what costs.


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def data():
    """Every array's rows are examples."""
    return {
        'vectors': normal(BATCH, FEATURES),
        'images': normal(BATCH, 6, 6, 2, seed=1),
        'tokens': normal(BATCH, TIMES, FEATURES, seed=2),
        'words': jnp.arange(BATCH * TIMES, dtype=jnp.int32).reshape(BATCH, TIMES) % 7,
        'labels': jnp.arange(BATCH, dtype=jnp.int32) % CLASSES,
    }


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels'])


class Convolutional(nn.Module):
    """Strides, padding, groups, affine norms, pools, a frozen batch norm, a cosine head."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (3, 3), (2, 1), padding=1)(images)
        x = nn.relu(nn.GroupNorm(2)(x))
        x = nn.max_pool(x, (2, 2), padding='SAME')
        x = nn.Conv(4, (3, 3), feature_group_count=2, use_bias=False)(x)
        x = nn.gelu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.avg_pool(x, (2, 2), (1, 1))
        x = nn.LayerNorm()(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return classifiers.Cosine(CLASSES, 4.0)(x)


class Transformer(nn.Module):
    """An embedding, positions, a class token, attention, and the embedding again as the head."""

    @nn.compact
    def __call__(self, words):
        embed = nn.Embed(7, FEATURES)
        positions = self.param('positions', nn.initializers.normal(1.0), (TIMES + 1, FEATURES))
        token = self.param('token', nn.initializers.normal(1.0), (1, 1, FEATURES))
        token = jnp.broadcast_to(token, (words.shape[0], 1, FEATURES))
        x = jnp.concatenate([token, embed(words)], 1) + positions[None]
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(num_heads=2)(x))
        return embed.attend(x[:, 0])[:, :CLASSES]


def of_flax(module, name):
    batch = data()
    variables = module.init(jax.random.key(0), batch[name][:1])
    rest = {key: value for key, value in variables.items() if key != 'params'}

    def losses(params, batch):
        return cross_entropy(module.apply({'params': params, **rest}, batch[name]), batch)

    return variables['params'], losses


def of_function(logits, **params):
    return params, lambda params, batch: cross_entropy(logits(params, batch), batch)


def stacked_layers(params, batch):
    def layer(x, w):
        return jnp.tanh(x @ w['kernel'] + w['bias']), None

    layers = {'kernel': params['kernel'], 'bias': params['bias']}
    return lax.scan(layer, batch['vectors'], layers)[0] @ params['head']


def counting_recurrence(params, batch):
    """Of what the loop gives, the count is shared, and examples lie along different axes."""

    def step(carry, x):
        count, hidden, penalty = carry
        hidden = jnp.tanh(x @ params['kernel'] / count + hidden)
        return (count + 1, hidden, penalty + jnp.sum(params['kernel'] ** 2) / count), hidden * count

    start = 1.0, jnp.zeros_like(batch['vectors']), 0.0
    (count, hidden, penalty), every = lax.scan(step, start, batch['tokens'].swapaxes(0, 1))
    return ((hidden + every.mean(0)) @ params['head'] + params['bias'] * count) / (1 + penalty)


def switched(params, batch):
    flag = jnp.sum(params['kernel']) > -1e3
    hidden = lax.cond(
        flag, lambda w, x: jnp.tanh(x @ w), lambda w, x: x, params['kernel'], batch['vectors']
    )
    return hidden @ params['head']


@jax.custom_jvp
def scaled_tanh(x, scale):
    return scale * jnp.tanh(x)


@scaled_tanh.defjvp
def _(primals, tangents):
    (x, scale), (dx, dscale) = primals, tangents
    y = jnp.tanh(x)
    return scale * y, scale * (1 - y**2) * dx + dscale * y


def rematerialised(params, batch):
    layer = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))
    return layer(params['head'], layer(params['kernel'], batch['vectors']))


def tied(params, batch):
    """One matrix as two layers, transposed, and as a penalty's argument."""
    hidden = jnp.tanh(jnp.tanh(batch['vectors'] @ params['kernel']) @ params['kernel'].T)
    return hidden @ params['kernel'][:, :CLASSES]


def penalised(params, batch):
    penalty = 0.1 * jnp.sum(params['kernel'] ** 2) * jnp.sum(params['bias'] ** 2)
    return cross_entropy(batch['vectors'] @ params['kernel'] + params['bias'], batch) + penalty


def networks():
    kernel, head = normal(FEATURES, FEATURES, seed=3), normal(FEATURES, CLASSES, seed=4)
    bias = normal(CLASSES, seed=5)
    return {
        'convolutional': lambda: of_flax(Convolutional(), 'images'),
        'rematerialised': lambda: of_function(rematerialised, kernel=kernel, head=head),
        'transformer': lambda: of_flax(Transformer(), 'words'),
        'stacked layers': lambda: of_function(
            stacked_layers,
            kernel=normal(2, FEATURES, FEATURES),
            bias=normal(2, FEATURES),
            head=head,
        ),
        'recurrence': lambda: of_function(counting_recurrence, kernel=kernel, head=head, bias=bias),
        'cond': lambda: of_function(switched, kernel=kernel, head=head),
        'custom_jvp': lambda: of_function(
            lambda w, batch: scaled_tanh(batch['vectors'] @ w['head'], w['bias']),
            head=head,
            bias=bias,
        ),
        'tied': lambda: of_function(tied, kernel=kernel),
        'standardised': lambda: of_function(
            lambda w, batch: batch['vectors'] @ jax.nn.standardize(w['head'], 0), head=head
        ),
        'vmapped': lambda: of_function(
            lambda w, batch: jax.vmap(lambda x: jnp.tanh(w['kernel'] @ x)[:CLASSES])(
                batch['vectors']
            ),
            kernel=kernel,
        ),
        'penalised': lambda: ({'kernel': head, 'bias': bias}, penalised),
        'unused': lambda: of_function(
            lambda w, batch: batch['vectors'] @ w['head'], head=head, unused=kernel
        ),
    }


def weighted(losses):
    """ψ are the weights themselves."""
    return meta_gradients.WeightedLosses(
        lambda params, batch: (losses(params, batch), None), lambda psi, batch, values: psi
    )


def direction(params):
    leaves, structure = jax.tree.flatten(params)
    moved = [normal(*leaf.shape, seed=i).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


def inner(mode, losses, params, psi, batch, u):
    gradient = meta_gradients.MODES[mode].inner_gradient(weighted(losses), params, psi, batch)
    return gradient.grads, gradient.mixed_product(u)


def one_by_one(losses, params, psi, batch, u):
    """⟨u, ∇ℓ_b⟩ / B by every example's gradient in full, each example in a batch of its own."""

    def alone(row):
        def loss(params):
            return losses(params, jax.tree.map(lambda leaf: leaf[None], row))[0]

        return jax.grad(loss)(params)

    grads = jax.vmap(alone)(batch)
    products = jax.tree.map(lambda g, v: (g * v).reshape(BATCH, -1).sum(1), grads, u)
    mean = jax.tree.map(lambda g: jnp.tensordot(psi.astype(g.dtype), g, 1) / BATCH, grads)
    return mean, sum(jax.tree.leaves(products)) / BATCH


def assert_close(a, b, rtol):
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b) > 0


@pytest.mark.parametrize('name', networks())
def test_products_equal_those_of_every_examples_gradient(name):
    """Exactly, wherever parameters enter; also of examples whose weight is exactly 0.

    δ_b comes out of the backward pass times z_b, and is divided by it.
    """
    with jax.enable_x64(True):
        params, losses = networks()[name]()
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        psi = jnp.array([0.0, 1.0, -2.0, 1e-9])

        def both(params, batch):
            u = direction(params)
            ghost = inner('ghost_product', losses, params, psi, batch, u)
            return ghost, one_by_one(losses, params, psi, batch, u)

        run = jax.jit(both, compiler_options=QUICK)
        (grads, product), (wanted_grads, wanted) = run(params, data())
        assert_close(grads, wanted_grads, 1e-12)
        assert_close(product.examples, wanted, 1e-12)
        np.testing.assert_array_equal(product.psi, product.examples)


def test_data_may_mix_before_it_meets_the_parameters():
    """The data is constant: only what parameters touched must stay apart, as after mixup."""
    with jax.enable_x64(True):
        params, batch, psi = {'kernel': normal(FEATURES, CLASSES)}, data(), normal(BATCH)
        # Not as long as the batch, so it is shared.
        batch['log_prior'], batch['share'] = normal(CLASSES), jnp.asarray(0.3)

        def losses(params, batch):
            mixed = (
                batch['share'] * batch['vectors'] + (1 - batch['share']) * batch['vectors'][::-1]
            )
            return cross_entropy(jnp.tanh(mixed @ params['kernel']) + batch['log_prior'], batch)

        u = direction(params)
        _, product = inner('ghost_product', losses, params, psi, batch, u)
        wanted = jax.jvp(lambda params: losses(params, batch), (params,), (u,))[1] / BATCH
        assert_close(product.examples, wanted, 1e-12)


def test_one_example_is_a_batch():
    """Its axis is as long as every axis of 1 beside it."""
    with jax.enable_x64(True):
        params = {'kernel': normal(FEATURES, FEATURES), 'head': normal(FEATURES, CLASSES)}
        batch = jax.tree.map(lambda leaf: leaf[:1], data())

        def losses(params, batch):
            hidden = jnp.tanh(batch['tokens'][:, :1] @ params['kernel']).reshape(1, FEATURES)
            return cross_entropy(hidden @ params['head'], batch)

        u = direction(params)
        _, product = inner('ghost_product', losses, params, jnp.ones(1), batch, u)
        wanted = jax.jvp(lambda params: losses(params, batch), (params,), (u,))[1]
        assert_close(product.examples, wanted, 1e-12)


def test_weights_whose_loss_is_zero_everywhere():
    """Where all of z is 0, so is g, and every example still has its product."""
    with jax.enable_x64(True):
        params, losses = networks()['tied']()
        u = direction(params)
        grads, product = inner('ghost_product', losses, params, jnp.zeros(BATCH), data(), u)
        _, wanted = inner('ghost_product', losses, params, jnp.ones(BATCH), data(), u)
        assert float(optax.tree.norm(grads)) < 1e-18
        assert_close(product.examples, wanted.examples, 1e-12)


def test_single_precision_has_products_of_zero_weights():
    """The stand-in for z = 0 must stay clear of the smallest numbers."""
    params, losses = networks()['tied']()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    u = jax.tree.map(lambda leaf: 1e-6 * leaf, direction(params))
    _, product = inner('ghost_product', losses, params, jnp.zeros(BATCH), data(), u)
    _, wanted = inner('per_example', losses, params, jnp.zeros(BATCH), data(), u)
    assert_close(product.examples, wanted.examples, 1e-4)


def test_computed_in_sixteen_bits_with_parameters_in_thirty_two():
    """A tap has its operation's type; the products' error is that of eight bits."""
    params, losses = networks()['tied']()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    def rounded(params, batch):
        return losses(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), batch)

    batch = {**data(), 'vectors': data()['vectors'].astype(jnp.bfloat16)}
    u, psi = direction(params), jnp.ones(BATCH)
    grads, product = inner('ghost_product', rounded, params, psi, batch, u)
    _, wanted = inner('ghost_product', losses, params, psi, data(), u)
    assert grads['kernel'].dtype == jnp.float32
    assert_close(product.examples, wanted.examples, 0.1)


@pytest.mark.parametrize('name', ['batch norm', 'contrastive'])
def test_coupled_networks_are_refused(name):
    """Their δ_b would hold other examples' losses, and the products be wrong without a sign."""

    def losses(params, batch):
        x = batch['vectors'] @ params['kernel']
        coupled = {'batch norm': lambda: (x - x.mean(0)) / x.std(0), 'contrastive': lambda: x @ x.T}
        return cross_entropy(coupled[name](), batch)

    params = {'kernel': normal(FEATURES, BATCH)}
    with pytest.raises(meta_gradients.CoupledExamplesError, match=r'coupled by .*ghost_test\.py'):
        inner('ghost_product', losses, params, jnp.ones(BATCH), data(), direction(params))


@pytest.mark.parametrize('mode', ['ghost_product', 'per_example'])
def test_a_plain_loss_is_refused_by_the_modes_name(mode):
    """A mean does not say what an example's loss is."""

    def train_loss(params, psi, batch):
        return jnp.mean(psi * params * batch), None

    step = meta_gradients.value_and_meta_grad(
        train_loss, lambda params, batch: (params, None), optax.sgd(0.1), mode=mode
    )
    ones, params = jnp.ones(BATCH), jnp.ones(())
    with pytest.raises(ValueError, match=rf"wanted WeightedLosses for mode '{mode}'"):
        step(ones, params, optax.sgd(0.1).init(params), ones, ones)
