"""torchvision's Mask R-CNN arrives where it belongs, and nothing that does not fit is taken."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import networks
from balms_jax.models.detector_weights import DetectorWeights, detector_name
from balms_jax.models.torchvision_detectors import DETECTORS, from_torchvision, to_torchvision
from balms_jax.models.weights import WeightsError, flatten

pytestmark = pytest.mark.usefixtures('standard_promotion')

TINY = networks.Architecture(5, depth=10, width=4, channels=8, box_features=16, background=True)


def random_weights(architecture=TINY):
    """Of no special values: a variance of 1 or a bias of 0 would hide a mistake."""
    random = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(networks.build(architecture).init, jax.random.key(0), images)
    params, stats = jax.tree.map(
        lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes
    )
    name = detector_name(architecture.depth)
    return DetectorWeights(name, architecture.background, params, stats)


def assert_same(found, wanted):
    assert found[:2] == wanted[:2]
    jax.tree.map(np.testing.assert_array_equal, found[2:], wanted[2:])


@pytest.mark.parametrize('depth', [10, 50])
def test_weights_survive_the_way_there_and_back(depth):
    # Of basic blocks and of bottlenecks. All that ours has is in theirs, and found there by the
    # names and shapes of the detector as it is built.
    wanted = random_weights(networks.Architecture(3, depth, 4, 8, 16, background=True))
    theirs = to_torchvision(wanted)
    assert len(theirs) == len(jax.tree.leaves(wanted[2:]))  # A name given twice loses an array.
    assert_same(from_torchvision(detector_name(depth), theirs), wanted)


def test_names_and_layouts_are_torchvisions():
    # Spelled out, as the state dict of maskrcnn_resnet50_fpn has them: 42 arrays of pyramid and
    # heads, 53 kernels of the backbone, and four arrays for each of its 53 norms.
    theirs = to_torchvision(random_weights(networks.Architecture(90, background=True)))
    shapes = {
        'backbone.body.conv1.weight': (64, 3, 7, 7),
        'backbone.body.layer4.2.bn3.running_var': (2048,),
        'backbone.body.layer1.0.downsample.0.weight': (256, 64, 1, 1),
        'backbone.fpn.inner_blocks.0.0.weight': (256, 256, 1, 1),
        'backbone.fpn.inner_blocks.3.0.weight': (256, 2048, 1, 1),
        'backbone.fpn.layer_blocks.3.0.bias': (256,),
        'rpn.head.conv.0.0.weight': (256, 256, 3, 3),
        'rpn.head.cls_logits.weight': (3, 256, 1, 1),
        'rpn.head.bbox_pred.bias': (12,),
        'roi_heads.box_head.fc6.weight': (1024, 12544),
        'roi_heads.box_head.fc7.weight': (1024, 1024),
        'roi_heads.box_predictor.cls_score.weight': (91, 1024),
        'roi_heads.box_predictor.bbox_pred.weight': (364, 1024),
        'roi_heads.mask_head.3.0.weight': (256, 256, 3, 3),
        'roi_heads.mask_predictor.conv5_mask.weight': (256, 256, 2, 2),
        'roi_heads.mask_predictor.mask_fcn_logits.weight': (91, 256, 1, 1),
    }
    assert {key: theirs[key].shape for key in shapes} == shapes
    heads = [key for key in theirs if not key.startswith('backbone.body.')]
    assert (len(heads), len(theirs)) == (42, 42 + 53 + 4 * 53)


def test_a_former_name_is_known():
    # torchvision's released weights are of 2019, and renamed when they are loaded.
    wanted = random_weights()
    theirs = {}
    for key, array in to_torchvision(wanted).items():
        key = re.sub(r'(blocks\.\d)\.0\.', r'\1.', key).replace(
            'rpn.head.conv.0.0', 'rpn.head.conv'
        )
        key = re.sub(r'mask_head\.(\d)\.0', lambda m: f'mask_head.mask_fcn{int(m[1]) + 1}', key)
        theirs[key] = array
    assert {
        'backbone.fpn.inner_blocks.0.bias',
        'rpn.head.conv.weight',
        'roi_heads.mask_head.mask_fcn4.weight',
    } <= theirs.keys()
    assert_same(from_torchvision('maskrcnn_resnet10_fpn', theirs), wanted)


def test_the_background_moves_from_first_to_last():
    # Otherwise every category would be taken for its neighbour.
    theirs = to_torchvision(random_weights())
    random = np.random.default_rng(1)
    for name in ('cls_score.bias', 'bbox_pred.bias'):
        key = f'roi_heads.box_predictor.{name}'
        theirs[key] = random.normal(size=theirs[key].shape).astype(np.float32)
    params = from_torchvision('maskrcnn_resnet10_fpn', theirs).params
    logits, deltas = params['classifier']['Dense_0']['bias'], params['boxes']['deltas']['bias']
    their_logits = theirs['roi_heads.box_predictor.cls_score.bias']
    np.testing.assert_array_equal(logits[-1], their_logits[0])
    for category in range(5):
        their_deltas = theirs['roi_heads.box_predictor.bbox_pred.bias'].reshape(6, 4)
        np.testing.assert_array_equal(logits[category], their_logits[category + 1])
        np.testing.assert_array_equal(deltas.reshape(5, 4)[category], their_deltas[category + 1])


def test_heads_compute_what_torch_defines():
    # torch flattens a region channels first; its transposed convolution of stride and size 2 puts
    # input · kernel[in, out] into each input's own 2 × 2 outputs.
    theirs = to_torchvision(random_weights())
    random = np.random.default_rng(2)
    for key in ('roi_heads.box_head.fc6.weight', 'roi_heads.mask_predictor.conv5_mask.weight'):
        theirs[key] = random.normal(size=theirs[key].shape).astype(np.float32)
    params = from_torchvision('maskrcnn_resnet10_fpn', theirs).params
    region = random.normal(size=(8, 7, 7)).astype(np.float32)
    wanted = theirs['roi_heads.box_head.fc6.weight'] @ region.ravel()
    found = region.transpose(1, 2, 0).ravel() @ params['boxes']['hidden_0']['kernel']
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    kernel = theirs['roi_heads.mask_predictor.conv5_mask.weight']
    wanted = np.einsum('irc,ioyx->orycx', region, kernel).reshape(8, 14, 14)
    inputs = jnp.asarray(region.transpose(1, 2, 0)[None])
    ours = jnp.asarray(params['masks']['double']['kernel'])
    found = jax.lax.conv_transpose(
        inputs, ours, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    np.testing.assert_allclose(found[0].transpose(2, 0, 1), wanted, atol=1e-4)


def test_norms_of_another_epsilon_give_the_same():
    # torchvision's loader sets 0 for its released weights, some of whose variances are below ours
    # of 1e-5: taken as they are, those channels would nearly vanish.
    theirs = to_torchvision(random_weights())
    norm = 'backbone.body.layer1.0.bn1'
    variance = np.array([1e-20, 1e-8, 1e-5, 1.0], np.float32)
    theirs[f'{norm}.running_var'] = variance
    found = from_torchvision('maskrcnn_resnet10_fpn', theirs, epsilon=0.0)
    ours = found.params['backbone']['BasicBlock_0']['BatchNorm_0']
    kept = found.batch_stats['BasicBlock_0']['BatchNorm_0']
    np.testing.assert_array_equal(kept['var'], variance)
    factor = ours['scale'].astype(np.float64) / np.sqrt(kept['var'].astype(np.float64) + 1e-5)
    wanted = theirs[f'{norm}.weight'] / np.sqrt(variance.astype(np.float64))
    np.testing.assert_allclose(factor, wanted, rtol=1e-6)
    theirs[f'{norm}.running_var'] = np.array([0, 1, 1, 1], np.float32)
    with pytest.raises(WeightsError, match=r'layer1\.0\.bn1\.running_var: its least variance is 0'):
        from_torchvision('maskrcnn_resnet10_fpn', theirs, epsilon=0.0)


def test_what_does_not_fit_is_named():
    # Keys as the file has them, so that one can look them up there. The second version of
    # torchvision's detector has other heads and is refused this way.
    theirs = to_torchvision(random_weights())
    fc7 = 'roi_heads.box_head.fc7.weight'
    theirs[fc7] = theirs[fc7][:, :3]
    theirs['roi_heads.box_head.5.weight'] = theirs.pop('backbone.body.layer4.0.bn2.running_mean')
    with pytest.raises(WeightsError) as error:
        from_torchvision('maskrcnn_resnet10_fpn', theirs)
    for part in (
        'missing: backbone.body.layer4.0.bn2.running_mean;',
        'not known: roi_heads.box_head.5.weight;',
        'of another shape: roi_heads.box_head.fc7.weight (16, 3), wanted (16, 16)',
    ):
        assert part in str(error.value)
    with pytest.raises(WeightsError, match=f"got 'resnet50', wanted one of {DETECTORS[0]}"):
        from_torchvision('resnet50', theirs)


@pytest.mark.parametrize('change', [{'background': False}, {'agnostic_boxes': True}])
def test_heads_that_torchvision_has_not_are_not_written(change):
    # It would load them as other categories, or not at all.
    fields = {'categories': 5, 'depth': 10, 'width': 4, 'channels': 8, 'box_features': 16}
    architecture = networks.Architecture(**{**fields, 'background': True, **change})
    with pytest.raises(WeightsError, match='wanted a softmax with the background'):
        to_torchvision(random_weights(architecture))


def test_arrays_are_float32_and_whole():
    # A view would keep the whole file in memory, and half precision would be trained on.
    state = {
        key: array.astype(np.float64) for key, array in to_torchvision(random_weights()).items()
    }
    found = from_torchvision('maskrcnn_resnet10_fpn', state)
    for path, array in flatten(found.params).items():
        assert array.dtype == np.float32, path
        assert array.flags.c_contiguous, path
