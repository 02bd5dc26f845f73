"""Examples that are called independent are: no loss moves with another example."""

from pathlib import Path

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from balms_jax import losses, priors
from balms_jax.meta_gradients import CoupledExamplesError
from balms_jax.meta_gradients.ghost import tapped
from balms_jax.meta_gradients.independence import SHARED, Coupled, axes_of_jaxpr
from balms_jax.training import mesh

pytestmark = pytest.mark.usefixtures('standard_promotion')

BATCH, FEATURES, TIMES = 3, 6, 4
GENERATOR = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(GENERATOR.normal(size=shape), jnp.float32)


W = {
    'dense': normal(FEATURES, FEATURES),
    'stacked': normal(2, FEATURES, FEATURES),
    'kernel': normal(3, 3, 2, 4),
    'token': normal(1, FEATURES),
    'depth': jnp.asarray(2.5),
}
DATA = {
    'vectors': normal(BATCH, FEATURES),
    'images': normal(BATCH, 4, 4, 2),
    'tokens': normal(BATCH, TIMES, FEATURES),
}
LABELS = jnp.array([2, 0, 5], jnp.int32)
NHWC = ('NHWC', 'HWIO', 'NHWC')


def dense(w, data):
    """What the examples' values are before the operation in question: parameters met them."""
    return data['vectors'] @ w['dense']


def squares(values):
    """One loss an example, in which no two of its values cancel."""
    return jnp.sum(values**2, tuple(range(1, values.ndim)))


def convolve(images, kernel, strides=(1, 1), padding='SAME', numbers=NHWC, **options):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=numbers, **options
    )


def of_flax(module):
    """A Flax module at its initial parameters."""

    def apply(values):
        variables = module.init(jax.random.key(0), jnp.zeros((1, *values.shape[1:]), values.dtype))
        return module.apply(variables, values)

    return apply


@jax.custom_jvp
def cube(x):
    return x**3


@cube.defjvp
def _(primals, tangents):
    return cube(*primals), 3 * primals[0] ** 2 * tangents[0]  # It calls itself, as many do.


@jax.custom_jvp
def centred_forwards(x):
    return jnp.tanh(x)


@centred_forwards.defjvp
def _(primals, tangents):
    return jnp.tanh(*primals), tangents[0] - tangents[0].mean(0)


def with_backward_pass(function, backward):
    """A custom_vjp of (x, cotangent) → cotangent."""
    custom = jax.custom_vjp(function)
    custom.defvjp(lambda x: (function(x), x), lambda x, g: (backward(x, g),))
    return custom


def scan_over_time(w, data):
    def step(hidden, x):
        hidden = jnp.tanh(x @ w['dense'] + hidden)
        return hidden, hidden

    tokens = data['tokens'].swapaxes(0, 1)
    last, every = lax.scan(step, jnp.zeros((BATCH, FEATURES)), tokens)
    return last + every.transpose(1, 2, 0).sum(2)


def attention(w, data):
    x = (data['tokens'] @ w['dense']).reshape(BATCH, TIMES, 2, 3)
    return jax.nn.dot_product_attention(x, x, x, is_causal=True)


def vmapped(w, data):
    def one(x, image, tokens):
        scores = jax.nn.softmax(tokens @ w['dense'] @ tokens.T)
        cut = lax.dynamic_slice(x @ w['dense'], (1,), (3,))
        return (jnp.sort(x)[:3] + cut) * scores.max() * convolve(image[None], w['kernel']).sum()

    return jax.vmap(one)(data['vectors'], data['images'], data['tokens'])


def rematerialised(w, data):
    policy = jax.checkpoint_policies.save_only_these_names('kept')
    layer = jax.checkpoint(lambda x: jnp.tanh(x @ w['dense']))
    return of_flax(nn.remat(nn.Dense, policy=policy)(6))(
        checkpoint_name(layer(data['vectors']), 'kept')
    )


def on_a_mesh(w, data):
    layout = jax.sharding.NamedSharding(mesh.data_mesh(BATCH), PartitionSpec('data'))
    return lax.with_sharding_constraint(dense(w, data), layout)


def transposed_and_back(w, data):
    x = data['tokens'].transpose(2, 1, 0)
    return jnp.tanh(jnp.einsum('ftb,fg->tgb', x, w['dense'])).swapaxes(0, 2)


def losses_of_this_library(w, data):
    logits, targets = dense(w, data), jax.nn.softmax(data['vectors'])
    log_prior = priors.log_prior(np.arange(1, FEATURES + 1))
    sigmoid = losses.balanced_sigmoid_binary_cross_entropy(
        logits, jax.nn.one_hot(LABELS, FEATURES), jnp.linspace(0.1, 0.9, FEATURES)
    )
    return (
        losses.balanced_softmax_cross_entropy_with_integer_labels(logits, LABELS, log_prior)
        + losses.balanced_softmax_cross_entropy(logits, targets, log_prior, tau=0.5)
        + sigmoid.sum(1)
    )


def losses_of_optax(w, data):
    logits, one_hot = dense(w, data), jax.nn.one_hot(LABELS, FEATURES)
    return (
        optax.losses.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        + optax.losses.safe_softmax_cross_entropy(logits, one_hot)
        + optax.losses.poly_loss_cross_entropy(logits, one_hot)
        + optax.losses.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(data['vectors']))
        + optax.losses.sigmoid_focal_loss(logits, one_hot).sum(1)
        + optax.losses.cosine_distance(logits, data['vectors'], epsilon=1e-6)
        + optax.losses.huber_loss(logits, data['vectors']).sum(1)
        + optax.losses.multiclass_hinge_loss(logits, LABELS)
    )


# Each gives values [batch, ...] of (parameters, data).
INDEPENDENT = {
    # Layers.
    'strided padded convolution, max pool': lambda w, data: nn.max_pool(
        convolve(data['images'], w['kernel'], (2, 1)), (2, 2), (1, 2), padding='SAME'
    ),
    'dilated convolution, channels first': lambda w, data: convolve(
        data['images'].transpose(3, 0, 1, 2),
        w['kernel'].transpose(3, 2, 0, 1),
        padding=[(2, 1), (0, 2)],
        numbers=('CNHW', 'OIHW', 'NCHW'),
        rhs_dilation=(2, 1),
    ),
    'grouped convolution': lambda w, data: convolve(
        data['images'], w['kernel'][:, :, :1], padding='VALID', feature_group_count=2
    ),
    'average pool': lambda w, data: nn.avg_pool(
        data['images'] * w['depth'], (3, 3), (1, 1), padding='SAME'
    ),
    'window over features': lambda w, data: lax.reduce_window(
        dense(w, data), 0.0, lax.add, (1, 3), (1, 2), 'SAME'
    ),
    'global average pool': lambda w, data: jnp.mean(data['images'] * w['depth'], (1, 2)),
    'group norm': lambda w, data: of_flax(nn.GroupNorm(2))(data['images'] * w['depth']),
    'layer norm': lambda w, data: of_flax(nn.LayerNorm())(dense(w, data)),
    'batch norm with running statistics': lambda w, data: of_flax(
        nn.BatchNorm(use_running_average=True)
    )(dense(w, data)),
    'weight standardisation': lambda w, data: data['vectors'] @ jax.nn.standardize(w['dense'], 0),
    'distances to prototypes': lambda w, data: jnp.sum(
        (data['vectors'][:, None] - w['dense'][None]) ** 2, -1
    ),
    'attention over tokens': lambda w, data: of_flax(nn.MultiHeadDotProductAttention(2))(
        data['tokens'] @ w['dense']
    ),
    'causal attention': attention,
    'class token': lambda w, data: jnp.concatenate(
        [jnp.broadcast_to(w['token'], (BATCH, 1, FEATURES)), data['tokens']], 1
    ),
    'embedding': lambda w, data: (
        jnp.take(w['dense'], jnp.argmax(data['tokens'], -1), axis=0) * data['tokens']
    ),
    'embedding of Flax': lambda w, data: of_flax(nn.Embed(FEATURES, 4))(
        jnp.argmax(data['tokens'] @ w['dense'], -1)
    ),
    'scan over stacked layers': lambda w, data: lax.scan(
        lambda x, layer: (jnp.tanh(x @ layer), None), data['vectors'], w['stacked']
    )[0],
    'scan over time': scan_over_time,
    'recurrent network of Flax': lambda w, data: of_flax(nn.RNN(nn.SimpleCell(6)))(
        data['tokens'] @ w['dense']
    ),
    'rematerialised': rematerialised,
    'dropout': lambda w, data: jnp.where(
        jax.random.bernoulli(jax.random.key(0), 0.5, (BATCH, FEATURES)), dense(w, data), 0.0
    ),
    'laid out on a mesh': on_a_mesh,
    # Ways of the example axis.
    'transposed and back': transposed_and_back,
    'flattened': lambda w, data: (
        (data['images'] * w['depth']).reshape(BATCH, -1).reshape(BATCH, 4, 8)
    ),
    'examples last': lambda w, data: (
        (data['tokens'] @ w['dense']).transpose(1, 2, 0).reshape(-1, BATCH).T
    ),
    'broadcast and squeezed': lambda w, data: lax.squeeze(
        jnp.broadcast_to(dense(w, data)[None, :, None], (2, BATCH, 4, FEATURES))[:1], (0,)
    ),
    'vmapped': vmapped,
    # Operations on an example's own entries.
    'own label': lambda w, data: jnp.take_along_axis(dense(w, data), LABELS[:, None], 1),
    'own largest': lambda w, data: (
        dense(w, data) * jax.nn.one_hot(jnp.argmax(dense(w, data), 1), 6)
    ),
    'softmax': lambda w, data: jax.nn.softmax(dense(w, data)),
    'logsumexp': lambda w, data: jax.nn.logsumexp(dense(w, data), 1),
    'columns': lambda w, data: dense(w, data)[:, ::2] + dense(w, data)[:, jnp.array([5, 1, 1])],
    'split and joined': lambda w, data: jnp.concatenate(jnp.split(dense(w, data), 2, 1)[::-1], 1),
    'stacked and unstacked': lambda w, data: jnp.unstack(jnp.stack([dense(w, data)] * 2), axis=0)[
        1
    ],
    'repeated and tiled': lambda w, data: jnp.tile(jnp.repeat(dense(w, data), 2, 1), (1, 2)),
    'cumulative': lambda w, data: jnp.cumsum(dense(w, data), 1),
    'sorted': lambda w, data: jnp.sort(dense(w, data), 1),
    'two largest': lambda w, data: lax.top_k(dense(w, data), 2)[0],
    'reversed': lambda w, data: dense(w, data)[:, ::-1],
    'padded and rolled': lambda w, data: jnp.roll(jnp.pad(dense(w, data), ((0, 0), (1, 2))), 1, 1),
    'cond on a shared flag': lambda w, data: lax.cond(
        w['depth'] > 0, lambda x: x @ w['dense'], lambda x: 2 * x, data['vectors']
    ),
    'scaled by its own constant': lambda w, data: (
        dense(w, data) * lax.stop_gradient(dense(w, data).max(1, keepdims=True))
    ),
    # Functions with derivatives of their own.
    **{
        function.__name__: lambda w, data, function=function: function(dense(w, data))
        for function in (jax.nn.relu, jax.nn.relu6, jax.nn.gelu, jax.nn.silu, jax.nn.elu)
    },
    'custom_jvp': lambda w, data: cube(dense(w, data)),
    'custom_vjp': lambda w, data: with_backward_pass(jnp.sign, lambda x, g: g * (jnp.abs(x) < 2))(
        dense(w, data)
    ),
    # Losses.
    'losses of this library': losses_of_this_library,
    'losses of optax': losses_of_optax,
    'penalty of the parameters': lambda w, data: dense(w, data).sum(1) + jnp.sum(w['dense'] ** 2),
}


def normalised(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def contrastive(x):
    """Each example is to find the next one."""
    similar = normalised(x) @ normalised(x).T
    return optax.softmax_cross_entropy_with_integer_labels(similar, jnp.array([1, 2, 0]))


def batch_norm(x):
    module = nn.BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), jnp.zeros_like(x))
    return module.apply(variables, x, mutable=['batch_stats'])[0]


def all_filter_all(x):
    """Every image is a filter as well, along the same axis."""
    x = x.reshape(BATCH, 1, 2, 3)
    return convolve(x, x, padding='VALID', numbers=('NCHW', 'OIHW', 'NCHW'))


def couples_at_the_second_turn(x):
    def step(carry, _):
        one, two = carry
        return (two, one - one.mean(0)), None

    return lax.scan(step, (x, x), None, 2)[0][0]


def couples_twice_and_swaps(x):
    def step(carry, _):
        one, two = carry
        return (two - two.mean(0), one / one.max(0)), None

    return lax.scan(step, (x, x), None, 2)[0][0]


# Each gives values [batch, ...] of values that parameters have met.
COUPLED = {
    'batch norm in training mode': batch_norm,
    'centred by the batch': lambda x: x - x.mean(0),
    'scaled by the sum': lambda x: x / x.sum(),
    'scaled by the largest': lambda x: x / x.max(0),
    'softmax over the batch': lambda x: jax.nn.softmax(x, 0),
    'cumulative over the batch': lambda x: jnp.cumsum(x, 0),
    'sorted over the batch': lambda x: jnp.sort(x, 0),
    'largest of the batch': lambda x: x * lax.top_k(x.T, 1)[0].T,
    'reversed batch': lambda x: x * x[::-1],
    'products of examples': lambda x: x @ x.T,
    'differences of examples': lambda x: x[:, None] - x[None],
    'attention over the batch': lambda x: jax.nn.softmax(x @ x.T) @ x,
    'contracted with features': lambda x: jnp.einsum('bk,lb->lk', x, x[:, :BATCH]),
    'contrastive loss': contrastive,
    'contrastive loss of optax': lambda x: (
        jnp.ones(BATCH) * optax.losses.ntxent(x, jnp.array([0, 0, 1]))
    ),
    'shifted by one': lambda x: x + jnp.roll(x, 1, 0),
    'padded and cut by one': lambda x: x + jnp.pad(x, ((1, 0), (0, 0)))[:BATCH],
    'window over the batch': lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 1), (1, 1), 'SAME'),
    'joined along the batch': lambda x: x * jnp.concatenate([x[1:], x[:1]], 0),
    'tiled along the batch': lambda x: x * jnp.tile(x, (2, 1))[1 : BATCH + 1],
    'unstacked': lambda x: x * jnp.unstack(x)[0],
    'taken from others': lambda x: 0.7 * x + 0.3 * x[jnp.array([1, 2, 0])],
    'looked up by each other': lambda x: jnp.take(x, jnp.argmax(x, 1), axis=1),
    'own entries at the places of others': lambda x: jnp.take_along_axis(
        x, jnp.broadcast_to(jnp.argmax(x, 1)[None], (BATCH, BATCH)), 1
    ),
    'filtered by each other': all_filter_all,
    'reshaped across examples': lambda x: x.reshape(FEATURES, BATCH).T,
    'reshaped in another order': lambda x: lax.reshape(x, x.shape, (1, 0)),
    'scan over the examples': lambda x: lax.scan(lambda c, row: (c + row, c + row), x[0], x)[1],
    'scan that couples at the second turn': couples_at_the_second_turn,
    'scan that couples twice and swaps': couples_twice_and_swaps,
    'while over data': lambda x: lax.while_loop(lambda x: jnp.sum(x**2) > 1, lambda x: x / 2, x),
    'cond on the batch': lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: x**2, x),
    'derivative of custom_jvp': centred_forwards,
    'derivative of custom_vjp': with_backward_pass(jnp.tanh, lambda _, g: g - g.mean(0)),
}


def verdict(function):
    """The axis of the examples, SHARED or Coupled, as read off the operations."""
    jaxpr = jax.make_jaxpr(lambda w, data: squares(function(w, data)))(W, DATA)
    return axes_of_jaxpr(jaxpr, [SHARED] * len(W) + [0] * len(DATA))[0]


def is_coupled(function):
    """The truth: whether a loss moves, or has a derivative, with another example's data."""

    def losses_and_jacobian(data):
        value = squares(function(W, data))
        if 'while' in str(jax.make_jaxpr(function)(W, data)):
            return value, {}  # No derivative through such a loop.
        return value, jax.jacobian(lambda data: squares(function(W, data)))(data)

    # Compiling is what costs.
    run = jax.jit(losses_and_jacobian, compiler_options={'xla_backend_optimization_level': 0})
    value, jacobian = run(DATA)
    own = np.eye(BATCH, dtype=bool)
    for leaf in jax.tree.leaves(jacobian):
        if np.any(np.asarray(leaf).reshape(BATCH, BATCH, -1)[~own]):
            return True
    for b in range(BATCH):
        others = jax.tree.map(lambda leaf, b=b: (3 + leaf[::-1]).at[b].set(leaf[b]), DATA)
        if not np.isclose(run(others)[0][b], value[b], rtol=1e-4):
            return True
    return False


@pytest.mark.parametrize('name', INDEPENDENT)
def test_independent_examples_are_accepted(name):
    """What networks are made of; that the truth agrees makes each a test of the test as well."""
    assert verdict(INDEPENDENT[name]) == 0
    assert not is_coupled(INDEPENDENT[name])


@pytest.mark.parametrize('name', COUPLED)
def test_coupled_examples_are_refused(name):
    """A loss that moves with another example would give that example a wrong gradient."""

    def function(w, data):
        return COUPLED[name](dense(w, data))

    assert is_coupled(function)
    assert isinstance(verdict(function), Coupled)
    with pytest.raises(CoupledExamplesError, match='losses: examples may be coupled by '):
        tapped(lambda w, data: (squares(function(w, data)), None), W, DATA)


def test_the_message_names_the_operation_and_its_line():
    """The reader must find what to change."""

    def function(w, data):
        return squares(dense(w, data) - dense(w, data).mean(0))  # Here.

    source = Path(__file__).read_text(encoding='utf-8').splitlines()
    line = 1 + next(i for i, text in enumerate(source) if text.endswith('# Here.'))
    where = (
        rf'coupled by reduce_sum \({Path(__file__).name}, line {line}\); freeze batch statistics'
    )
    with pytest.raises(CoupledExamplesError, match=where):
        tapped(lambda w, data: (function(w, data), None), W, DATA)


def test_one_loss_an_example_is_wanted():
    """A mean over the batch, or losses without examples, have no gradient of each."""
    with pytest.raises(ValueError, match=r'losses: got shape \(\), wanted \[batch\]'):
        tapped(lambda w, data: (dense(w, data).mean(), None), W, DATA)
    with pytest.raises(ValueError, match='losses: depend on no array of the batch'):
        tapped(lambda w, data: (jnp.sum(w['dense'], 1), None), W, DATA)


# Every axis is as long as the batch, so that only the operations tell them apart.
ANY_OPERATION = {
    'add': lambda x, y, axis, order: x + y,
    'transpose': lambda x, y, axis, order: x.transpose(order),
    'reshape': lambda x, y, axis, order: x.reshape(4, 2).T.reshape(2, 2, 2),
    'merge': lambda x, y, axis, order: jnp.tanh(x.reshape(2, 4)).reshape(2, 2, 2),
    'centre': lambda x, y, axis, order: x - x.mean(axis, keepdims=True),
    'softmax': lambda x, y, axis, order: jax.nn.softmax(x, axis),
    'cumsum': lambda x, y, axis, order: jnp.cumsum(x, axis),
    'sort': lambda x, y, axis, order: jnp.sort(x, axis),
    'flip': lambda x, y, axis, order: jnp.flip(x, axis),
    'take': lambda x, y, axis, order: jnp.take(x, jnp.array([1, 1]), axis),
    'take_along': lambda x, y, axis, order: jnp.take_along_axis(x, jnp.argsort(y, axis), axis),
    'window': lambda x, y, axis, order: lax.reduce_window(
        x, 0.0, lax.add, tuple(1 + (i == axis) for i in range(3)), (1, 1, 1), 'SAME'
    ),
    'scan': lambda x, y, axis, order: lax.scan(
        lambda c, row: (c + row, c * row), y[0], jnp.moveaxis(x, axis, 0)
    )[1],
    'contraction': lambda x, y, axis, order: jnp.einsum(
        f'abc,{"".join("bcd"[i] for i in order)}->adb', x, y
    ),
    'product': lambda x, y, axis, order: jnp.einsum(
        f'abc,{"".join("abc"[i] for i in order)}->abc', x, y
    ),
    'convolution': lambda x, y, axis, order: lax.conv_general_dilated(
        x,
        y,
        (1,),
        'SAME',
        dimension_numbers=('NCH', ''.join('OIH'[i] for i in order), 'NCH'),
    ),
    'join': lambda x, y, axis, order: lax.slice_in_dim(
        jnp.concatenate([x, y], axis), 1, 3, axis=axis
    ),
}
PLACE = st.integers(0, 5)  # Of a value, counted from the last.
STEPS = st.tuples(
    st.sampled_from(list(ANY_OPERATION)), PLACE, PLACE, st.integers(0, 2), st.permutations(range(3))
)


@hypothesis.given(st.lists(STEPS, min_size=1, max_size=4))
@hypothesis.settings(derandomize=True, deadline=None, max_examples=150, database=None)
def test_no_random_program_is_wrongly_called_independent(steps):
    """Soundness: where another example moves a loss, they are not independent."""

    def program(weights, examples):
        values = [examples, weights]
        for name, x, y, axis, order in steps:
            x, y = values[-1 - x % len(values)], values[-1 - y % len(values)]
            values.append(ANY_OPERATION[name](x, y, axis, order))
        return values[-1].sum((1, 2))

    weights, examples, others = (normal(2, 2, 2) for _ in range(3))
    axis = axes_of_jaxpr(jax.make_jaxpr(program)(weights, examples), [SHARED, 0])[0]
    if not isinstance(axis, Coupled):
        losses = program(weights, examples)
        for kept in (0, 1):
            moved = program(weights, others.at[kept].set(examples[kept]))
            np.testing.assert_allclose(moved[kept], losses[kept], rtol=1e-4)
