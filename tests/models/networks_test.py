"""Networks are the published ones, and are pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import models

pytestmark = pytest.mark.usefixtures('standard_promotion')


@pytest.fixture(scope='module')
def resnet32():
    network = models.build('resnet32', 10)
    params, stats = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return network, params, stats


def test_resnet32_has_the_published_number_of_parameters(resnet32):
    """463,504 before the head; with Linear(64, 10) and its bias 650 more."""
    _, params, _ = resnet32
    assert models.count_parameters(params['backbone']) == 463_504
    assert models.count_parameters(params['classifier']) == 64 * 10 + 10


def test_convolutions_start_kaiming_normal_over_the_fan_in(resnet32):
    """Standard deviation √(2 / fan in), as the recipe says; a wrong fan trains worse, silently."""
    kernels = [
        leaf
        for leaf in jax.tree.leaves(resnet32[1]['backbone'])
        if leaf.ndim == 4 and leaf.size > 9000
    ]
    assert kernels
    for kernel in kernels:
        wanted = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert np.std(kernel) == pytest.approx(wanted, rel=0.05)


def test_shortcuts_are_strided_slices_padded_with_zeros(resnet32):
    """With all convolutions zero a network is its shortcuts: slices of the first features."""
    network, params, stats = resnet32
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))

    def without_blocks(path, leaf):
        names = [entry.key for entry in path]
        return jnp.zeros_like(leaf) if names[0].startswith('Block') and leaf.ndim == 4 else leaf

    bare = jax.tree.map_with_path(without_blocks, params['backbone'])
    features, _ = network.features(bare, stats, images, False)
    first = jax.lax.conv_general_dilated(
        images,
        params['backbone']['Conv_0']['kernel'],
        (1, 1),
        [(1, 1), (1, 1)],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    kept = jax.nn.relu(first / np.sqrt(1 + 1e-5))[:, ::4, ::4].mean((1, 2))
    # 16 planes amid 64: 8 zeros before and after at 32, then 16 at 64.
    np.testing.assert_allclose(features[:, 24:40], kept, rtol=1e-4)
    np.testing.assert_array_equal(features[:, :24], 0)
    np.testing.assert_array_equal(features[:, 40:], 0)


def test_batch_statistics_move_in_training_alone(resnet32):
    """Evaluation must not depend on what is evaluated beside it."""
    network, params, stats = resnet32
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    one, same = network.features(params['backbone'], stats, images[:1], False)
    four, _ = network.features(params['backbone'], stats, images, False)
    np.testing.assert_allclose(one[0], four[0], rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    _, moved = network.features(params['backbone'], stats, images, True)
    mean = moved['BatchNorm_0']['mean']
    assert np.any(mean != stats['BatchNorm_0']['mean'])


def test_cosine_logits_are_scaled_cosines():
    """In −s..s, blind to the features' length, and finite where a feature vector is zero."""
    network = models.build('digits_net', 5, width=2, classifier='cosine', scale=16.0)
    features = jax.random.normal(jax.random.key(0), (7, 8))
    params = network.init_classifier(jax.random.key(1), features)
    logits = network.logits(params, features)
    kernel = np.asarray(params['kernel'])
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)[None, :]
    np.testing.assert_allclose(logits, 16 * (features @ kernel) / lengths, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.logits(params, 100 * features), logits, rtol=1e-4, atol=1e-5)
    grad = jax.grad(lambda f: network.logits(params, f).sum())(jnp.zeros((1, 8)))
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize('name', models.NETWORKS)
def test_features_have_four_times_the_width(name):
    """The classifier and the cache of features count on it."""
    side, channels = (8, 1) if name == 'digits_net' else (32, 3)
    network = models.build(name, 10, width=4)
    images = jnp.zeros((2, side, side, channels))

    def logits(key, images):
        params, stats = network.init(key, images)
        features, _ = network.features(params['backbone'], stats, images, False)
        return features, network.logits(params['classifier'], features)

    features, out = jax.eval_shape(logits, jax.random.key(0), images)
    assert (features.shape, out.shape) == ((2, 16), (2, 10))


def test_unknown_names_are_refused():
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"model\.name: got 'resnet31', wanted one of digits_net"):
        models.build('resnet31', 10)
    with pytest.raises(ValueError, match=r"model\.classifier: got 'mlp', wanted one of linear"):
        models.build('resnet32', 10, classifier='mlp')
