"""Networks are the published ones, and are pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import models
from balms_jax.models.imagenet_resnet import Bottleneck

pytestmark = pytest.mark.usefixtures('standard_promotion')


def first_key():
    """Of a kind that compiles five times faster than threefry, for so many kernels."""
    return jax.random.key(0, impl='rbg')


@pytest.fixture(scope='module')
def resnet32():
    network = models.build('resnet32', 10)
    params, stats = jax.jit(network.init)(first_key(), jnp.zeros((1, 32, 32, 3)))
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


IMAGENET = ('resnet10', 'resnet18', 'resnet50', 'resnet101', 'resnet152', 'resnext50')


def features_and_logits(name, side, num_classes, width=0):
    """Their shapes and those of the parameters, without computing any."""
    network = models.build(name, num_classes, width=width)

    def everything(key, images):
        params, stats = network.init(key, images)
        features, _ = network.features(params['backbone'], stats, images, False)
        return features, network.logits(params['classifier'], features), params

    images = jax.ShapeDtypeStruct((2, side, side, 1 if name == 'digits_net' else 3), jnp.float32)
    return jax.eval_shape(everything, jax.random.key(0), images)


@pytest.mark.parametrize('name', models.NETWORKS)
def test_features_are_a_multiple_of_the_width(name):
    """Four times it, but for ImageNet: 8 times, and 32 after bottlenecks; a token has just it."""
    multiple = {'resnet10': 8, 'resnet18': 8, 'vit_s_16': 1} | dict.fromkeys(IMAGENET[2:], 32)
    side = {'digits_net': 8} | dict.fromkeys(IMAGENET, 224)
    usual = models.NETWORKS[name].width
    assert usual == {'vit_s_16': 384}.get(name, 64 if name in IMAGENET else 16)
    least = 16 if name == 'resnext50' else 4  # A group of ResNeXt needs a channel.
    for given, width in ((0, usual), (least, least)):
        features, out, _ = features_and_logits(name, side.get(name, 32), 10, given)
        assert features.shape == (2, multiple.get(name, 4) * width)
        assert out.shape == (2, 10)


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        # torchvision's resnet18 without the second block of each group: two 3 × 3 convolutions
        # and two batch norms, of 64, 128, 256 and 512 planes.
        ('resnet10', 11_689_512 - sum(2 * 9 * n * n + 2 * 2 * n for n in (64, 128, 256, 512))),
        ('resnet18', 11_689_512),
        ('resnet50', 25_557_032),
        ('resnet101', 44_549_160),
        ('resnet152', 60_192_808),
        ('resnext50', 25_028_904),
        # That of DeiT-S, whose parameters are the same.
        ('vit_s_16', 22_050_664),
    ],
)
def test_imagenet_networks_have_the_published_number_of_parameters(name, count):
    """torchvision's where it has the network, with the classifier of 1000 classes."""
    assert models.count_parameters(features_and_logits(name, 224, 1000)[2]) == count


@pytest.fixture(scope='module')
def resnet10():
    """A narrow one, compiled for images of 64 × 64, and two of these."""
    network = models.build('resnet10', 7, width=8)
    network = network._replace(features=jax.jit(network.features, static_argnums=3))
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    params, stats = jax.jit(network.init)(first_key(), images)
    return network, params, stats, images


def test_an_imagenet_resnet_computes_and_moves_its_statistics_in_training(resnet10):
    """Every batch norm sees the batch, those of the projections too."""
    network, params, stats, images = resnet10
    kept, same = network.features(params['backbone'], stats, images, False)
    assert network.logits(params['classifier'], kept).shape == (2, 7)
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    output, moved = network.features(params['backbone'], stats, images, True)
    assert output.shape == (2, 64)
    assert np.all(np.isfinite(output))
    assert len(jax.tree.leaves(stats)) == 2 * (1 + 4 * 2 + 3)
    differ = jax.tree.map(lambda old, new: np.any(old != new), stats, moved)
    assert all(jax.tree.leaves(differ))


def test_imagenet_convolutions_start_kaiming_normal_over_the_fan_out(resnet10):
    """As torchvision's do."""
    kernels = [leaf for leaf in jax.tree.leaves(resnet10[1]['backbone']) if leaf.size > 4000]
    assert len(kernels) == 4
    for kernel in kernels:
        wanted = np.sqrt(2 / np.prod([*kernel.shape[:2], kernel.shape[3]]))
        assert np.std(kernel) == pytest.approx(wanted, rel=0.05)


def test_stem_and_projections_lie_on_torchvisions_grid(resnet10):
    """Without its blocks a network is its stem, of which each projection takes every other pixel.

    Padded at its end only, as 'SAME' has it, all would be shifted by a pixel.
    """
    network, params, stats, images = resnet10

    def without_blocks(path, leaf):
        if not path[0].key.startswith('BasicBlock') or leaf.ndim != 4:
            return leaf
        if leaf.shape[:2] == (3, 3):
            return jnp.zeros_like(leaf)
        return jnp.eye(*leaf.shape[2:])[None, None]

    bare = jax.tree.map_with_path(without_blocks, params['backbone'])
    features, _ = network.features(bare, stats, images, False)
    stem = jax.lax.conv_general_dilated(
        images,
        bare['Conv_0']['kernel'],
        (2, 2),
        [(3, 3), (3, 3)],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    stem = np.pad(np.maximum(stem, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))  # Nothing is below 0.
    shifted = [stem[:, i : i + 32 : 2, j : j + 32 : 2] for i in range(3) for j in range(3)]
    pooled = np.max(shifted, axis=0)
    # The stem's batch norm and those of three projections divide by √(1 + ε).
    kept = pooled[:, ::8, ::8].mean((1, 2)) / (1 + 1e-5) ** 2
    np.testing.assert_allclose(features[:, :8], kept, rtol=1e-4)
    np.testing.assert_array_equal(features[:, 8:], 0)


def test_a_bottleneck_strides_at_its_3_by_3():
    """At its first 1 × 1, as the paper has it, three of four pixels would count for nothing."""
    block = Bottleneck(planes=1, stride=2)
    images = jax.random.uniform(jax.random.key(0), (1, 8, 8, 4), minval=1.0)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(1), images, False))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    gradient_of = jax.jit(jax.grad(lambda images: block.apply(variables, images, False).sum()))
    gradient = gradient_of(images)
    assert np.all(np.asarray(gradient) > 0)


def test_unknown_names_are_refused():
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"model\.name: got 'resnet31', wanted one of digits_net"):
        models.build('resnet31', 10)
    with pytest.raises(ValueError, match=r"model\.classifier: got 'mlp', wanted one of linear"):
        models.build('resnet32', 10, classifier='mlp')
    with pytest.raises(ValueError, match=r"model\.dtype: got 'float16', wanted one of float32"):
        models.build('resnet32', 10, dtype='float16')


def test_settings_that_a_network_does_not_know_are_refused():
    """A width that leaves a group or a head without a whole number of channels, or no blocks."""
    for name, width, multiple in (('resnext50', 24, 16), ('vit_s_16', 200, 64)):
        message = rf'model\.width: got {width} of .{name}., wanted a multiple of {multiple}'
        with pytest.raises(ValueError, match=message):
            models.build(name, 10, width=width)
    with pytest.raises(ValueError, match=r"model\.remat: got True for 'digits_net'"):
        models.build('digits_net', 10, remat=True)
    network = models.build('vit_s_16', 10, width=8)
    with pytest.raises(ValueError, match=r'images: got 8 × 8, wanted multiples of 16'):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
