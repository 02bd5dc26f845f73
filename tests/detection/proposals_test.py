"""Proposals are what the textbook's list operations leave, of fixed number and without gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.detection import anchors, boxes, proposals

SIZE = (40, 56)  # Of the image; it is padded to 64 × 64.
SELECTION = proposals.Selection(per_level=30, outputs=25)


def outputs_of_a_network(seed=0):
    levels = anchors.pyramid_anchors((64, 64), (8, 16), (16.0, 32.0))
    keys = jax.random.split(jax.random.key(seed), 2 * len(levels))
    logits = [jax.random.normal(k, (len(a),)) for k, a in zip(keys[::2], levels, strict=True)]
    deltas = [jax.random.normal(k, a.shape) / 2 for k, a in zip(keys[1::2], levels, strict=True)]
    return logits, deltas, levels


def one_by_one(objectness, deltas, levels):
    """The same with lists that grow and shrink."""
    found = []
    for logits, moves, around in zip(objectness, deltas, levels, strict=True):
        moved = np.array(boxes.decode(moves, around, boxes.PROPOSAL_WEIGHTS))
        moved[:, 0::2] = moved[:, 0::2].clip(0, SIZE[1])
        moved[:, 1::2] = moved[:, 1::2].clip(0, SIZE[0])
        kept = []
        for i in np.argsort(-np.array(logits))[: SELECTION.per_level]:
            width, height = moved[i, 2:] - moved[i, :2]
            if min(width, height) >= SELECTION.smallest:
                overlaps = [float(boxes.iou(moved[[i]], b[None])[0, 0]) for _, b in kept]
                if all(overlap <= SELECTION.threshold for overlap in overlaps):
                    kept.append((float(logits[i]), moved[i]))
        found += kept
    return sorted(found, key=lambda pair: -pair[0])[: SELECTION.outputs]


def test_proposals_are_those_of_lists():
    objectness, deltas, levels = outputs_of_a_network()
    found = jax.jit(lambda o, d: proposals.propose(o, d, levels, SIZE, SELECTION))(
        objectness, deltas
    )
    expected = one_by_one(objectness, deltas, levels)
    number = len(expected)
    assert 10 < number <= SELECTION.outputs
    np.testing.assert_array_equal(found.where, np.arange(len(found.where)) < number)
    np.testing.assert_allclose(found.scores[:number], [score for score, _ in expected])
    np.testing.assert_allclose(
        found.boxes[:number], np.stack([box for _, box in expected]), rtol=1e-5, atol=1e-5
    )


def test_padding_is_zeros_and_slivers_are_none():
    # Everything is moved out of the image: nothing is left, and nothing is NaN.
    objectness, deltas, levels = outputs_of_a_network()
    away = [d.at[:, 0].set(100.0) for d in deltas]
    found = proposals.propose(objectness, away, levels, SIZE, SELECTION)
    assert not found.where.any()
    np.testing.assert_array_equal(found.boxes, np.zeros((25, 4)))
    np.testing.assert_array_equal(found.scores, np.full(25, -np.inf))


def test_there_is_no_gradient_through_proposals():
    # The second stage takes them as given (Faster R-CNN's approximate joint training).
    objectness, deltas, levels = outputs_of_a_network()

    def total(objectness, deltas):
        found = proposals.propose(objectness, deltas, levels, SIZE, SELECTION)
        return (found.boxes.sum() + jnp.where(found.where, found.scores, 0).sum()).sum()

    gradients = jax.grad(total, argnums=(0, 1))(objectness, deltas)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_levels_that_do_not_fit_are_named():
    objectness, deltas, levels = outputs_of_a_network()
    with pytest.raises(ValueError, match='anchors: got 1 levels, wanted as many as objectness'):
        proposals.propose(objectness, deltas, levels[:1], SIZE)
    with pytest.raises(ValueError, match=r'anchors: got shape \(48, 4\) for objectness \(192,\)'):
        proposals.propose(objectness, deltas, levels[::-1], SIZE)
