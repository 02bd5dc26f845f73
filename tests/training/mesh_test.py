"""Where arrays live: that classes cut over devices are never put together."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from balms_jax import meta_gradients, models
from balms_jax.losses import balanced_softmax_cross_entropy_with_integer_labels
from balms_jax.planning import collectives, shapes
from balms_jax.training import mesh

CLASSES, FEATURES, BATCH = 1_000_000, 4, 16


def largest_array(compiled):
    """The most elements that an array of the compiled program has on one device."""
    shapes = re.findall(r'\b(?:f32|s32|u32|pred)\[([\d,]+)\]', compiled.as_text())
    return max(int(np.prod([int(size) for size in shape.split(',')])) for shape in shapes)


def test_a_million_classes_are_never_whole_on_a_device():
    """The loss, its gradient and its meta-gradient: logits [16, 10⁶] stay cut 2 × 4."""
    devices = mesh.data_mesh(8, class_shards=4)

    def arrays(shape, *spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(devices, PartitionSpec(*spec))
        )

    def losses(kernel, adjustment, batch):
        inputs, labels = batch
        logits = jax.lax.with_sharding_constraint(inputs @ kernel, mesh.by_class(devices, 2))
        return balanced_softmax_cross_entropy_with_integer_labels(logits, labels, adjustment)

    def train_loss(kernel, psi, batch):
        return losses(kernel, psi, batch).mean(), None

    def meta_loss(kernel, batch):
        return losses(kernel, jnp.zeros(CLASSES), batch).mean(), None

    optimizer = optax.sgd(0.1)
    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer)
    batch = (arrays((BATCH, FEATURES), 'data'), arrays((BATCH,), 'data', dtype=jnp.int32))
    kernel, psi = arrays((FEATURES, CLASSES), None, 'model'), arrays((CLASSES,), 'model')
    opt_state = jax.eval_shape(optimizer.init, kernel)
    compiled = jax.jit(step).lower(psi, kernel, opt_state, batch, batch).compile()
    assert largest_array(compiled) <= BATCH // 2 * CLASSES // 4
    assert 'all-gather' not in compiled.as_text()


def test_devices_that_cannot_share_the_classes_are_refused():
    """Some would have no classes, or no examples."""
    with pytest.raises(ValueError, match='class_shards: got 3, wanted a divisor of the 8 devices'):
        mesh.data_mesh(8, class_shards=3)


def digits_by_hand(params, stats, images, groups):
    """Features and statistics of ``digits_net``, each group of images normalised by itself."""
    x, after = images, {}
    for layer, stride in ((0, 1), (1, 2)):
        norm, conv = f'BatchNorm_{layer}', params[f'Conv_{layer}']['kernel']
        x = jax.lax.conv_general_dilated(
            x, conv, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        apart = x.reshape(groups, -1, *x.shape[1:])
        mean, var = (f(apart, (1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        x = ((apart - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
        x = jax.nn.relu(x * params[norm]['scale'] + params[norm]['bias'])
        after[norm] = {
            name: 0.9 * stats[norm][name] + 0.1 * s.mean((0, 1, 2, 3))
            for name, s in (('mean', mean), ('var', var))
        }
    dense = params['Dense_0']
    hidden = x.reshape(len(x), -1) @ dense['kernel'] + dense['bias']
    return jax.nn.relu(hidden), after


@pytest.fixture(scope='module')
def digits():
    """A small network, what it starts from, and a batch whose groups differ."""
    network = models.build('digits_net', 10, width=4)
    shift = jnp.arange(16.0).reshape(16, 1, 1, 1)
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1)) + shift
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        params, stats = network.init(jax.random.key(1), images[:1])
    return network, params['backbone'], stats, images


def features_and_gradients(features, of):
    """In one program: features, the next statistics, and the gradient of a loss of both."""
    _, params, stats, images = of

    def loss(params, images):
        output, after = features(params, stats, images)
        # The statistics too, so that their derivative is compared.
        moved = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(after))
        return jnp.sum(jnp.sin(output)) + moved, (output, after)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, images)


@pytest.mark.usefixtures('standard_promotion')
def test_each_device_normalises_its_share_of_the_batch(digits):
    """Two images a group, of other brightness: the global batch's statistics are far from theirs.

    Gradients as well, of which the parameters' are summed over the devices.
    """
    network, *_ = digits
    by_device = mesh.normalised_by_device(mesh.data_mesh(8), network)
    ours = features_and_gradients(lambda *a: by_device.features(*a, True), digits)
    by_hand = features_and_gradients(lambda *a: digits_by_hand(*a, groups=8), digits)
    globally = features_and_gradients(lambda *a: network.features(*a, True), digits)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, by_hand)
    assert float(jnp.abs(ours[0][1][0] - globally[0][1][0]).max()) > 0.1


@pytest.mark.usefixtures('standard_promotion')
def test_the_only_device_has_the_whole_batch(digits):
    """Then its share's statistics are the batch's."""
    network, *_ = digits
    by_device = mesh.normalised_by_device(mesh.data_mesh(1), network)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        *(
            features_and_gradients(lambda *a, f=each.features: f(*a, True), digits)
            for each in (by_device, network)
        ),
    )


@pytest.mark.usefixtures('standard_promotion')
def test_at_test_nothing_is_normalised_by_device(digits):
    """A batch at test may be of any size, and its statistics are the stored ones."""
    network, params, stats, images = digits
    by_device = mesh.normalised_by_device(mesh.data_mesh(8), network)
    ours, same = by_device.features(params, stats, images[:3], False)
    np.testing.assert_array_equal(ours, network.features(params, stats, images[:3], False)[0])
    assert same is stats


def all_reduced(function, devices, params, images):
    """Bytes that a compiled function all-reduces, the images cut over the devices."""
    placed = jax.device_put(params, mesh.replicated(devices))
    cut = jax.device_put(images, mesh.by_example(devices))
    text = jax.jit(function).lower(placed, cut).compile().as_text()
    assert {c.kind for c in collectives.parse(text)} <= {'all-reduce'}
    return sum(c.bytes for c in collectives.parse(text))


@pytest.mark.usefixtures('standard_promotion')
def test_of_a_share_nothing_but_gradients_and_running_statistics_is_reduced(digits):
    """A batch norm that waits for all devices in every layer is what the option is to avoid."""
    network, params, stats, images = digits
    devices = mesh.data_mesh(8)
    by_device = mesh.normalised_by_device(devices, network)

    def output(network):
        return lambda params, images: network.features(params, stats, images, True)[0]

    def after(network):
        return lambda params, images: network.features(params, stats, images, True)[1]

    def gradient(network):
        return jax.grad(lambda params, images: jnp.sum(jnp.sin(output(network)(params, images))))

    arguments = (devices, params, images)
    assert all_reduced(output(by_device), *arguments) == 0
    assert all_reduced(output(network), *arguments) > 0
    assert all_reduced(after(by_device), *arguments) == shapes.bytes_of_device(devices, stats)
    assert all_reduced(gradient(by_device), *arguments) == shapes.bytes_of_device(devices, params)
    assert all_reduced(gradient(network), *arguments) > shapes.bytes_of_device(devices, params)


def normalising_network(groups):
    """One batch norm by hand, over so many groups of the batch."""

    def features(params, stats, inputs, train):
        hidden = (inputs @ params['w']).reshape(groups, -1, 3)
        mean = hidden.mean(1, keepdims=True)
        scale = jax.lax.rsqrt(hidden.var(1, keepdims=True) + 1e-5)
        output = jnp.tanh((hidden - mean) * scale).reshape(-1, 3)
        return output, 0.9 * stats + 0.1 * mean.mean((0, 1))

    return models.Network(None, features, lambda params, features: features @ params, None)


@pytest.mark.parametrize(
    'mode', ['reverse', 'forward_over_reverse', 'lean', 'per_example', 'finite_difference']
)
@pytest.mark.parametrize('class_shards', [1, 2])
def test_a_meta_gradient_goes_through_each_shares_statistics(mode, class_shards):
    """Shares couple their own examples alone, in the second derivative too."""
    devices = mesh.data_mesh(8, class_shards)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        'backbone': {'w': jax.random.normal(keys[0], (5, 3))},
        'classifier': jax.random.normal(keys[1], (3, 4)),
    }
    inputs, labels = jax.random.normal(keys[2], (32, 5)), jnp.arange(32) % 4
    optimizer = optax.sgd(0.3, 0.9)

    def outcome(network):
        def losses(params, batch):
            inputs, labels = batch
            output, stats = network.features(params['backbone'], jnp.zeros(3), inputs, True)
            logits = network.logits(params['classifier'], output)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels), stats

        def meta_loss(params, batch):
            values, _ = losses(params, batch)
            return values.mean(), None

        weighted = meta_gradients.WeightedLosses(losses, lambda psi, b, _: jnp.exp(psi)[b[1]])
        step = meta_gradients.value_and_meta_grad(weighted, meta_loss, optimizer, mode=mode)
        batch = jax.device_put((inputs, labels), mesh.by_example(devices))
        meta_batch = jax.tree.map(lambda leaf: leaf[::-1], batch)
        placed = jax.device_put(params, mesh.replicated(devices))
        return jax.jit(step)(jnp.zeros(4), placed, optimizer.init(placed), batch, meta_batch)

    groups = devices.shape['data']
    ours = outcome(mesh.normalised_by_device(devices, normalising_network(1)))
    by_hand = outcome(normalising_network(groups))
    tolerance = {'rtol': 1e-4, 'atol': 1e-6} if mode != 'finite_difference' else {'rtol': 2e-2}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours.psi_grad, by_hand.psi_grad
    )
    for name in ('meta_loss', 'train_loss', 'params', 'opt_state', 'train_aux'):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            getattr(ours, name),
            getattr(by_hand, name),
        )
    globally = outcome(normalising_network(1))
    assert float(jnp.abs(ours.psi_grad - globally.psi_grad).max()) > 1e-4


def test_a_sorted_batch_is_dealt_out_to_the_devices():
    """A stratified meta batch has its classes one after another: a share of it would have one."""
    devices = mesh.data_mesh(8, class_shards=2)
    labels = jnp.repeat(jnp.arange(4), 4)
    pairs = jnp.stack([labels, labels], 1)
    dealt, of_pairs = jax.jit(mesh.dealt_out(devices))((labels, pairs))
    placed = jax.device_put(dealt, mesh.by_example(devices))
    for share in placed.addressable_shards:
        np.testing.assert_array_equal(share.data, np.arange(4))
    np.testing.assert_array_equal(of_pairs, np.stack([dealt, dealt], 1))
