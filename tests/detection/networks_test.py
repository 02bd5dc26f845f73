"""The detector has the published number of parameters, its shapes, and freezes what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import models
from balms_jax.detection import anchors, networks
from balms_jax.models.imagenet_resnet import ImageNetResNet

pytestmark = pytest.mark.usefixtures('standard_promotion')

TINY = networks.Architecture(5, depth=10, width=4, channels=8, box_features=16)


def shapes_of(architecture, side=64):
    images = jnp.zeros((2, side, side, 3))
    return jax.eval_shape(networks.build(architecture).init, jax.random.key(0), images)


def test_parameters_are_as_many_as_torchvisions():
    # torchvision's maskrcnn_resnet50_fpn has 44,401,393 with 90 categories and the background. It
    # gives the background deltas and a mask as well, and counts no frozen norms.
    architecture = networks.Architecture(90, background=True)
    params, stats = shapes_of(architecture)
    norms = sum(leaf.size for leaf in jax.tree.leaves(stats))  # As many means as biases, and so on.
    background = 4 * (1024 + 1) + (256 + 1)
    assert models.count_parameters(params) - norms + background == 44_401_393


def test_agnostic_heads_have_one_output_for_all_categories():
    one = dataclasses.replace(TINY, agnostic_boxes=True, agnostic_masks=True)
    params, several = shapes_of(one)[0], shapes_of(TINY)[0]
    assert params['boxes']['deltas']['kernel'].shape == (16, 4)
    assert several['boxes']['deltas']['kernel'].shape == (16, 20)
    assert params['masks']['logits']['kernel'].shape == (1, 1, 8, 1)
    assert several['masks']['logits']['kernel'].shape == (1, 1, 8, 5)


def test_outputs_fit_the_anchors_of_any_image():
    # Odd sizes too: every level rounds up, in the features as in the anchors.
    detector = networks.build(TINY)
    for height, width in ((64, 96), (75, 101)):
        images = jnp.zeros((1, height, width, 3))
        params, stats = shapes_of(TINY)
        levels, _ = jax.eval_shape(lambda *a: detector.pyramid(*a, False), params, stats, images)
        assert tuple(f.shape[1:3] for f in levels) == anchors.grid_shapes((height, width))
        outputs = jax.eval_shape(detector.proposals, params, levels)
        counts = [len(level) for level in anchors.pyramid_anchors((height, width))]
        assert [logits.shape for logits, _ in outputs] == [(1, n) for n in counts]
        assert [deltas.shape for _, deltas in outputs] == [(1, n, 4) for n in counts]


def test_anchors_of_a_cell_are_told_by_its_features():
    # Flattened like the anchors, a change within one cell reaches the outputs about that cell.
    detector = networks.build(TINY)
    params, _ = jax.jit(detector.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    level = jnp.zeros((1, 6, 7, 8))
    changed = level.at[0, 2, 5].set(1.0)
    (before, _), (after, _) = detector.proposals(params, [level, changed])
    (of_anchors,) = anchors.pyramid_anchors((24, 28), (4,), (8.0,))
    centres = (of_anchors[:, :2] + of_anchors[:, 2:])[(before != after)[0]] / 2
    near = np.stack([range(16, 25, 4)] * 3), np.stack([range(4, 13, 4)] * 3).T  # 3 × 3 cells.
    wanted = {(x, y) for x, y in zip(near[0].ravel(), near[1].ravel(), strict=True)}
    assert {tuple(c) for c in centres.astype(int).tolist()} == wanted


def test_each_sigmoid_begins_at_the_prior():
    detector = networks.build(TINY)
    params, _ = jax.jit(detector.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    logits = detector.logits(params, jnp.zeros((3, 16)))
    np.testing.assert_allclose(jax.nn.sigmoid(logits), np.full((3, 5), 0.001), rtol=1e-5)
    softmax = networks.build(dataclasses.replace(TINY, background=True))
    params, _ = jax.jit(softmax.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    np.testing.assert_array_equal(softmax.logits(params, jnp.zeros((3, 16))), np.zeros((3, 6)))


def test_frozen_norms_keep_their_statistics():
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    for frozen in (True, False):
        detector = networks.build(dataclasses.replace(TINY, frozen_norm=frozen))
        params, stats = jax.jit(detector.init)(jax.random.key(0), images)
        _, updated = jax.jit(detector.pyramid, static_argnums=3)(params, stats, images, True)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), stats, updated)
        assert all(jax.tree.leaves(same)) == frozen


@pytest.mark.parametrize(('groups', 'blocks'), [(0, 0), (1, 0), (2, 3), (3, 7), (5, 16)])
def test_the_first_groups_are_frozen(groups, blocks):
    architecture = dataclasses.replace(
        TINY, depth=50, width=64, frozen_groups=groups, frozen_norm=False
    )
    trained = networks.trainable(shapes_of(architecture)[0], architecture)
    frozen = {name for name, part in trained['backbone'].items() if not any(jax.tree.leaves(part))}
    stem = {'Conv_0', 'BatchNorm_0'} if groups else set()
    assert frozen == stem | {f'Bottleneck_{k}' for k in range(blocks)}
    rest = {name: part for name, part in trained.items() if name != 'backbone'}
    assert all(jax.tree.leaves(rest))


def test_a_backbone_takes_the_classifiers_weights():
    # Pretrained weights are those of the classification network: the same names and shapes.
    params, stats = shapes_of(TINY)
    images = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(lambda: ImageNetResNet(10, 4).init(jax.random.key(0), images, False))
    assert (params['backbone'], stats) == (variables['params'], variables['batch_stats'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'categories': 0}, 'categories: got 0'),
        ({'depth': 20}, 'depth: got 20, wanted one of'),
        ({'dtype': 'float16'}, "dtype: got 'float16', wanted one of float32, bfloat16"),
        ({'prior': 1.0}, r'prior: got 1\.0'),
        ({'frozen_groups': 6}, 'frozen_groups: got 6'),
    ],
)
def test_invalid_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        networks.build(dataclasses.replace(TINY, **change))
