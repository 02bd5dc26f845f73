"""With torchvision's weights the detector finds what torchvision's does. Skipped without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import inference, networks, proposals, regions
from balms_jax.detection.anchors import Layout
from balms_jax.detection.suppression import suppress
from balms_jax.models.torchvision_weights import from_torchvision

torch = pytest.importorskip('torch')
vision = pytest.importorskip('torchvision')

pytestmark = pytest.mark.usefixtures('standard_promotion')
CATEGORIES, SIDES = 7, (96, 128)


def random_boxes(number, seed=0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 100, (number, 2))
    size = random.uniform(1, 150, (number, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def test_roi_align_over_levels_and_its_gradient():
    random = np.random.default_rng(0)
    strides, some = (4, 8, 16, 32), random_boxes(40)
    pyramid = [random.normal(size=(256 // s, 320 // s, 3)).astype(np.float32) for s in strides]
    theirs = {
        str(k): torch.tensor(f.transpose(2, 0, 1)[None], requires_grad=True)
        for k, f in enumerate(pyramid)
    }
    pool = vision.ops.MultiScaleRoIAlign(list(theirs), 7, sampling_ratio=2)
    wanted = pool(theirs, [torch.tensor(some)], [(256, 320)])
    cotangent = random.normal(size=wanted.shape).astype(np.float32)
    wanted.backward(torch.tensor(cotangent))
    found, pull = jax.vjp(lambda p: regions.region_features(p, some, strides, 7), pyramid)
    (gradient,) = pull(jnp.asarray(cotangent.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), wanted.detach(), atol=1e-4)
    for mine, features in zip(gradient, theirs.values(), strict=True):
        np.testing.assert_allclose(mine, features.grad[0].permute(1, 2, 0), atol=1e-4)


def test_the_same_boxes_are_suppressed():
    some = random_boxes(300)
    random = np.random.default_rng(1)
    scores, groups = random.uniform(size=300).astype(np.float32), random.integers(0, 4, 300)
    wanted = vision.ops.batched_nms(
        torch.tensor(some), torch.tensor(scores), torch.tensor(groups), 0.5
    )
    kept = suppress(some, scores, 0.5, 300, groups=groups)
    np.testing.assert_array_equal(kept.indices[kept.where], wanted)


def their_detector():
    """Of random weights and statistics, with heads that tell regions apart."""
    torch.manual_seed(0)
    detection = vision.models.detection
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name='resnet18', weights=None, trainable_layers=5
    )
    model = detection.MaskRCNN(
        backbone,
        CATEGORIES + 1,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        box_score_thresh=0.0,
        box_detections_per_img=20,
    ).eval()
    for key, value in model.state_dict().items():
        if key.startswith('backbone.body') and value.ndim == 1:
            value.uniform_(0.8, 1.2) if 'var' in key else value.uniform_(0.1, 0.5)
        if 'cls_score.weight' in key:
            value.mul_(30)
    return model


def converted(state):
    """Parameters and statistics of ours. Background comes first there; it has deltas and a mask."""
    state = {key: value.numpy() for key, value in state.items()}
    body = {k.removeprefix('backbone.body.'): v for k, v in state.items() if 'backbone.body' in k}
    body |= {'fc.weight': np.zeros((1, 512), np.float32), 'fc.bias': np.zeros(1, np.float32)}
    backbone = from_torchvision('resnet18', body)

    def conv(name):
        kernel = state[f'{name}.weight'].transpose(2, 3, 1, 0)
        return {'kernel': kernel, 'bias': state[f'{name}.bias']}

    def dense(name):
        return {'kernel': state[f'{name}.weight'].T, 'bias': state[f'{name}.bias']}

    heads = 'roi_heads.'
    hidden = dense(f'{heads}box_head.fc6')
    by_channel = hidden['kernel'].reshape(256, 7, 7, -1)
    hidden['kernel'] = by_channel.transpose(1, 2, 0, 3).reshape(hidden['kernel'].shape)
    deltas = jax.tree.map(lambda array: array[..., 4:], dense(f'{heads}box_predictor.bbox_pred'))
    logits = jax.tree.map(
        lambda array: np.roll(array, -1, -1), dense(f'{heads}box_predictor.cls_score')
    )
    double = f'{heads}mask_predictor.conv5_mask'
    # A transposed convolution there is the gradient of one, which turns its kernel around.
    kernel = state[f'{double}.weight'].transpose(2, 3, 0, 1)[::-1, ::-1]
    masks = conv(f'{heads}mask_predictor.mask_fcn_logits')
    fpn = {'lateral': 'inner', 'smooth': 'layer'}
    params = {
        'backbone': backbone.backbone,
        'pyramid': {
            f'{ours}_{k}': conv(f'backbone.fpn.{theirs}_blocks.{k}.0')
            for ours, theirs in fpn.items()
            for k in range(4)
        },
        'proposals': {
            'hidden': conv('rpn.head.conv.0.0'),
            'objectness': conv('rpn.head.cls_logits'),
            'deltas': conv('rpn.head.bbox_pred'),
        },
        'boxes': {'hidden_0': hidden, 'hidden_1': dense(f'{heads}box_head.fc7'), 'deltas': deltas},
        'classifier': {'Dense_0': logits},
        'masks': {
            **{f'hidden_{k}': conv(f'{heads}mask_head.{k}.0') for k in range(4)},
            'double': {'kernel': kernel, 'bias': state[f'{double}.bias']},
            'logits': jax.tree.map(lambda array: array[..., 1:], masks),
        },
    }
    return params, backbone.batch_stats


def test_the_same_objects_are_found():
    # Backbone, pyramid, anchors, proposals, both heads, decoding and suppression, all at once.
    model = their_detector()
    images = torch.randn(1, 3, *SIDES)
    with torch.no_grad():
        features = model.backbone(images)
        batch = vision.models.detection.image_list.ImageList(images, [SIDES])
        proposed, _ = model.rpn(batch, features)
        (wanted,), _ = model.roi_heads(features, proposed, [SIDES])
    architecture = networks.Architecture(CATEGORIES, depth=18, background=True)
    infer = inference.make_inference(
        architecture,
        Layout(SIDES),
        limits=inference.Limits(20, 0.0, 100 * CATEGORIES),
        selection=proposals.Selection(200, 100),
    )
    params, batch_stats = converted(model.state_dict())
    inputs = jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
    found = jax.jit(infer)(params, batch_stats, inputs, jnp.array([SIDES], jnp.float32))
    assert found.where.all()
    np.testing.assert_allclose(found.scores[0], wanted['scores'], rtol=1e-4)
    np.testing.assert_array_equal(found.categories[0] + 1, wanted['labels'])
    np.testing.assert_allclose(found.boxes[0], wanted['boxes'], atol=1e-2)
    np.testing.assert_allclose(found.masks[0], wanted['masks'][:, 0], atol=1e-4)
