"""With torchvision's weights the detector finds what torchvision's does. Skipped without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import inference, networks, proposals, regions
from balms_jax.detection.anchors import Layout
from balms_jax.detection.suppression import suppress
from balms_jax.models.torchvision_detectors import from_torchvision, to_torchvision

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


def their_detector(epsilon):
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
    # Small variances, beside which our ε is as large.
    detection._utils.overwrite_eps(model, epsilon)
    unit = 1 if epsilon else 1e-5
    for key, value in model.state_dict().items():
        if key.startswith('backbone.body') and value.ndim == 1:
            value.uniform_(0.8, 1.2) if 'var' in key else value.uniform_(0.1, 0.5)
            value.mul_(unit if 'var' in key else unit**0.5 if 'weight' in key else 1)
        if 'cls_score.weight' in key:
            value.mul_(30)
    return model


@pytest.mark.parametrize('epsilon', [1e-5, 0.0])
def test_the_same_objects_are_found(epsilon):
    # Backbone, pyramid, anchors, proposals, both heads, decoding and suppression, all at once; also
    # with the ε that their loader gives the norms of released weights.
    model = their_detector(epsilon)
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
    state_dict = {key: value.numpy() for key, value in model.state_dict().items()}
    made = from_torchvision('maskrcnn_resnet18_fpn', state_dict, epsilon)
    inputs = jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
    found = jax.jit(infer)(made.params, made.batch_stats, inputs, jnp.array([SIDES], jnp.float32))
    assert found.where.all()
    np.testing.assert_allclose(found.scores[0], wanted['scores'], rtol=1e-4)
    np.testing.assert_array_equal(found.categories[0] + 1, wanted['labels'])
    np.testing.assert_allclose(found.boxes[0], wanted['boxes'], atol=1e-2)
    np.testing.assert_allclose(found.masks[0], wanted['masks'][:, 0], atol=1e-4)


def test_their_detector_takes_ours_back():
    # With every key and shape checked by torch, so that names and layouts are really torchvision's.
    model = their_detector(1e-5)
    state_dict = {key: value.numpy() for key, value in model.state_dict().items()}
    made = to_torchvision(from_torchvision('maskrcnn_resnet18_fpn', state_dict))
    found = {key: torch.tensor(value) for key, value in made.items()}
    model.load_state_dict(found)
    for key in ('backbone.fpn.inner_blocks.0.0.bias', 'roi_heads.mask_head.3.0.weight'):
        np.testing.assert_array_equal(made[key], state_dict[key])
