"""Detections are what the textbook's loops leave."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import (
    anchors,
    boxes,
    inference,
    networks,
    proposals,
)

TINY = networks.Architecture(5, depth=10, width=4, channels=8, box_features=16)
LIMITS = inference.Limits(20, 0.3)


def stage_outputs(agnostic, number=12, categories=4):
    keys = jax.random.split(jax.random.key(0), 3)
    scores = jax.random.uniform(keys[0], (number, categories))
    deltas = 2 * jax.random.normal(keys[1], (number, 1 if agnostic else categories, 4))
    corner = 20 * jax.random.uniform(keys[2], (number, 2))
    return scores, deltas, jnp.concatenate([corner, corner + 15], 1)


@pytest.mark.parametrize('agnostic', [True, False])
def test_detections_are_those_of_loops(agnostic):
    scores, deltas, proposed = stage_outputs(agnostic)
    expected = []
    for category in range(4):
        moves = deltas[:, 0 if agnostic else category]
        moved = boxes.decode(moves, proposed, boxes.REGION_WEIGHTS)
        moved = np.array(boxes.clip(moved, (30, 30)))
        kept = []
        for i in np.argsort(-np.array(scores[:, category])):
            overlap = [float(boxes.iou(moved[[i]], b[None])[0, 0]) for _, b in kept]
            if scores[i, category] > 0.3 and all(o <= 0.5 for o in overlap):
                kept.append((float(scores[i, category]), moved[i]))
        expected += [(score, box, category) for score, box in kept]
    expected.sort(key=lambda found: -found[0])
    found, best, category, where = jax.jit(inference.select, static_argnums=(3, 4))(
        scores, deltas, proposed, (30, 30), LIMITS
    )
    number = min(len(expected), 20)
    np.testing.assert_array_equal(where, np.arange(20) < number)
    np.testing.assert_allclose(best[:number], [score for score, _, _ in expected[:number]])
    np.testing.assert_array_equal(category[:number], [c for _, _, c in expected[:number]])
    np.testing.assert_allclose(found[:number], [box for _, box, _ in expected[:number]], atol=1e-4)


def test_nothing_above_the_score_is_all_padding():
    scores, deltas, proposed = stage_outputs(agnostic=True)
    found, best, _, where = inference.select(0.1 * scores, deltas, proposed, (30, 30), LIMITS)
    assert not where.any()
    np.testing.assert_array_equal(found, np.zeros((20, 4)))
    np.testing.assert_array_equal(best, np.zeros(20))
    with pytest.raises(ValueError, match=r'scores: got shape \(12, 4\) for regions \(11, 4\)'):
        inference.select(scores, deltas, proposed[:-1], (30, 30), LIMITS)


@pytest.mark.parametrize('background', [False, True])
@pytest.mark.usefixtures('standard_promotion')
def test_an_images_padding_and_its_neighbours_do_not_matter(background):
    # Detections lie within the image, are probabilities, and those of an image do not depend on
    # the others of the batch.
    architecture = dataclasses.replace(TINY, background=background)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    sizes = jnp.array([[64.0, 64.0], [40.0, 48.0]])
    params, stats = jax.jit(networks.build(architecture).init)(jax.random.key(1), images)
    infer = jax.jit(
        inference.make_inference(
            architecture,
            anchors.Layout((64, 64)),
            limits=inference.Limits(10, 0.0),
            selection=proposals.Selection(50, 30),
        )
    )
    both = infer(params, stats, images, sizes)
    assert both.where.all()
    assert (both.scores > 0).all()
    assert (both.scores < 1).all()
    assert (both.categories < 5).all()
    assert (both.boxes <= sizes[:, None, [1, 0, 1, 0]] + 1e-4).all()
    assert (both.masks > 0).all()
    swapped = infer(params, stats, images[::-1], sizes[::-1])
    for one, other in zip(both, swapped, strict=True):
        np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-4)
