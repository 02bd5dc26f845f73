"""torchvision's weights arrive where they belong, and nothing that does not fit is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import models
from balms_jax.models import convert, weights
from balms_jax.models.torchvision_weights import CONVERTED, from_torchvision, to_torchvision

pytestmark = pytest.mark.usefixtures('standard_promotion')


def shapes_of(name, width=0, side=64):
    network = models.build(name, 7, width=width)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)


def random_weights(name, width, side=64):
    """Of no special values: a variance of 1 or a bias of 0 would hide a mistake."""
    random = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32),
        shapes_of(name, width, side),
    )
    return weights.Weights(name, params['backbone'], stats, params['classifier'])


NARROW = {'resnet10': 4, 'resnet50': 4, 'resnext50': 16, 'vit_s_16': 8}


@pytest.mark.parametrize('name', NARROW)
def test_weights_survive_the_way_there_and_back(name):
    wanted = random_weights(name, NARROW[name])
    theirs = to_torchvision(wanted)
    found = from_torchvision(name, theirs, shapes_of(name, NARROW[name]))
    assert found.network == name
    for mine, expected in zip(found[1:], wanted[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine, expected)


def test_names_and_layouts_are_torchvisions():
    """Spelled out for one of each kind, as torchvision's state dicts have them."""
    of_resnet = to_torchvision(random_weights('resnet50', 4))
    shapes = {
        'conv1.weight': (4, 3, 7, 7),
        'bn1.running_var': (4,),
        'layer1.0.conv2.weight': (4, 4, 3, 3),
        'layer1.0.downsample.0.weight': (16, 4, 1, 1),
        'layer1.0.downsample.1.running_mean': (16,),
        'layer3.5.bn3.bias': (64,),
        'fc.weight': (7, 128),
    }
    assert {key: of_resnet[key].shape for key in shapes} == shapes
    # Of torchvision's resnet50: 161 parameters and 53 means and variances.
    assert len(of_resnet) == 161 + 2 * 53
    assert to_torchvision(random_weights('resnext50', 16))['layer1.0.conv2.weight'].shape[1] == 1
    of_transformer = to_torchvision(random_weights('vit_s_16', 8))
    shapes = {
        'class_token': (1, 1, 8),
        'conv_proj.weight': (8, 3, 16, 16),
        'encoder.pos_embedding': (1, 17, 8),
        'encoder.layers.encoder_layer_11.ln_1.weight': (8,),
        'encoder.layers.encoder_layer_0.self_attention.in_proj_weight': (24, 8),
        'encoder.layers.encoder_layer_0.self_attention.out_proj.bias': (8,),
        'encoder.layers.encoder_layer_0.mlp.0.weight': (32, 8),
        'encoder.layers.encoder_layer_0.mlp.3.bias': (8,),
        'encoder.ln.weight': (8,),
        'heads.head.weight': (7, 8),
    }
    assert {key: of_transformer[key].shape for key in shapes} == shapes
    # Of a transformer of 12 blocks: 12 a block, and 8 besides.
    assert len(of_transformer) == 12 * 12 + 8


@pytest.mark.parametrize('name', CONVERTED)
def test_no_two_of_ours_are_one_of_theirs(name):
    """A name given twice would lose an array."""
    params, stats = jax.tree.map(lambda leaf: np.broadcast_to(0.0, leaf.shape), shapes_of(name))
    theirs = to_torchvision(weights.Weights(name, params['backbone'], stats, {}))
    assert len(theirs) == len(jax.tree.leaves((params['backbone'], stats)))


def test_what_does_not_fit_is_named():
    like, theirs = shapes_of('resnet10', 4), to_torchvision(random_weights('resnet10', 4))
    theirs['layer1.0.conv1.weight'] = theirs['layer1.0.conv1.weight'][:, :2]
    theirs['layer5.0.conv1.weight'] = theirs.pop('layer4.0.bn2.running_mean')
    with pytest.raises(weights.WeightsError) as error:
        from_torchvision('resnet10', theirs, like)
    for part in (
        'missing: layer4.0.bn2.running_mean;',
        'not known: layer5.0.conv1.weight;',
        'of another shape: layer1.0.conv1.weight (4, 2, 3, 3), wanted (4, 4, 3, 3)',
    ):
        assert part in str(error.value)
    with pytest.raises(weights.WeightsError, match="got 'resnet8', wanted one of resnet10"):
        from_torchvision('resnet8', theirs, like)


def test_a_file_holds_what_was_saved(tmp_path):
    wanted = random_weights('vit_s_16', 8)
    weights.save(tmp_path / 'vit.npz', wanted)
    found = weights.load(tmp_path / 'vit.npz')
    jax.tree.map(np.testing.assert_array_equal, found[1:], wanted[1:])
    assert weights.fingerprint(found) == weights.fingerprint(wanted)
    changed = wanted._replace(classifier=jax.tree.map(lambda leaf: leaf + 1, wanted.classifier))
    assert weights.fingerprint(changed) != weights.fingerprint(wanted)
    for bad in ('absent.npz', 'text.npz'):
        (tmp_path / 'text.npz').write_text('no weights')
        with pytest.raises(weights.WeightsError, match=f'{bad} is no file of weights'):
            weights.load(tmp_path / bad)


def test_a_classifier_of_other_classes_is_left_out():
    """The usual case: ImageNet's 1000 classes, and a data set of its own."""
    saved = random_weights('resnet10', 4)
    network = models.build('resnet10', 5, width=4)
    params, stats = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    fresh, fresh_stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), (params, stats))
    said = weights.check(saved, params, stats)
    assert 'left out' in said
    assert 'Dense_0/bias (7,), wanted (5,)' in said
    started, _ = weights.start(saved, fresh, fresh_stats)
    jax.tree.map(np.testing.assert_array_equal, started['backbone'], saved.backbone)
    jax.tree.map(np.testing.assert_array_equal, started['classifier'], fresh['classifier'])


def test_the_command_converts_safetensors(tmp_path, capsys):
    numpy_format = pytest.importorskip('safetensors.numpy')
    params, stats = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32), shapes_of('resnet10')
    )
    wanted = weights.Weights('resnet10', params['backbone'], stats, params['classifier'])
    theirs = str(tmp_path / 'theirs.safetensors')
    numpy_format.save_file(to_torchvision(wanted), theirs)
    ours = tmp_path / 'ours.npz'
    assert convert.main([theirs, str(ours), '--network', 'resnet10']) == 0
    assert 'with a classifier of 7 classes' in capsys.readouterr().out
    assert weights.fingerprint(weights.load(ours)) == weights.fingerprint(wanted)
    assert convert.main([theirs, str(ours), '--network', 'resnet18']) == 1
    assert 'missing: layer1.1.' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnext50', 'vit_s_16'])
def test_logits_are_torchvisions(name):
    """On random weights and statistics, so that a layer in the wrong place shows."""
    torch = pytest.importorskip('torch')
    vision = pytest.importorskip('torchvision.models')
    torch.manual_seed(0)
    transformer = {'image_size': 64, 'patch_size': 16, 'num_layers': 12, 'num_heads': 6}
    theirs = {
        'resnet18': vision.resnet18,
        'resnet50': vision.resnet50,
        'resnext50': vision.resnext50_32x4d,
        'vit_s_16': lambda: vision.VisionTransformer(**transformer, hidden_dim=384, mlp_dim=1536),
    }[name]()
    for key, value in theirs.state_dict().items():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if 'bias' not in key else value.normal_()
        if 'heads' in key:
            value.normal_(std=0.05)
    converted = from_torchvision(name, {k: v.numpy() for k, v in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.eval()(images).numpy()
    network = models.build(name, 1000)
    inputs = jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
    features, _ = network.features(converted.backbone, converted.batch_stats, inputs, False)
    logits = network.logits(converted.classifier, features)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
