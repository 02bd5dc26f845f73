"""Suppression keeps what the greedy loop keeps, in its order, whatever ties and chains."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from balms_jax.detection import boxes
from balms_jax.detection.suppression import suppress

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
NUMBER = 12

# Few positions and few scores: overlaps, ties and suppression chains are frequent.
BOXES = arrays.arrays(np.float32, (NUMBER, 4), elements=st.integers(0, 5).map(float)).map(
    lambda a: np.concatenate([a[:, :2], a[:, :2] + a[:, 2:] + 1], 1)
)
SCORES = arrays.arrays(np.float32, NUMBER, elements=st.sampled_from([0.1, 0.5, 0.9]))


def greedy(candidates, scores, threshold, groups, where):
    """The textbook's loop: take the best that is left, drop what it overlaps."""
    overlap = np.array(boxes.iou(candidates, candidates))
    left = [i for i in np.argsort(-scores, kind='stable') if where[i]]
    kept = []
    while left:
        best, *rest = left
        kept.append(best)
        left = [i for i in rest if overlap[best, i] <= threshold or groups[best] != groups[i]]
    return kept


@SETTINGS
@hypothesis.given(
    BOXES,
    SCORES,
    arrays.arrays(np.int32, NUMBER, elements=st.integers(0, 1)),
    arrays.arrays(bool, NUMBER),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([1, 4, NUMBER]),
)
def test_the_greedy_loops_boxes_in_its_order(candidates, scores, groups, where, threshold, outputs):
    kept = jax.jit(suppress, static_argnums=(2, 3))(
        candidates, scores, threshold, outputs, groups=groups, where=where
    )
    expected = greedy(candidates, scores, threshold, groups, where)[:outputs]
    np.testing.assert_array_equal(kept.where, np.arange(outputs) < len(expected))
    np.testing.assert_array_equal(kept.indices[: len(expected)], expected)


def test_a_long_chain_keeps_every_second_box():
    # Each suppresses the next alone, so that one round after another is needed: the worst case.
    start = np.arange(40, dtype=np.float32)
    chain = np.stack([2 * start, 0 * start, 2 * start + 3, 0 * start + 1], 1)
    kept = suppress(chain, -start, 0.1, outputs=40)
    np.testing.assert_array_equal(kept.indices[kept.where], np.arange(0, 40, 2))


def test_images_are_suppressed_one_by_one():
    # Under vmap the rounds go on until the slowest image is done; the others must not change.
    key = jax.random.key(0)
    corner = 30 * jax.random.uniform(key, (3, 50, 2))
    candidates = jnp.concatenate([corner, corner + 10], -1)
    scores = jax.random.uniform(jax.random.fold_in(key, 1), (3, 50))

    def of_image(candidates, scores):
        return suppress(candidates, scores, 0.3, 50)

    together = jax.jit(jax.vmap(of_image))(candidates, scores)
    for image in range(3):
        alone = jax.jit(of_image)(candidates[image], scores[image])
        np.testing.assert_array_equal(together.where[image], alone.where)
        np.testing.assert_array_equal(together.indices[image], alone.indices)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'scores': jnp.zeros(2)}, r'scores: got shape \(2,\) for boxes \(3, 4\)'),
        ({'threshold': 1.5}, r'threshold: got 1\.5'),
        ({'outputs': 4}, 'outputs: got 4, wanted 1 to the number of boxes, 3'),
        ({'groups': jnp.zeros(2, int)}, r'groups: got shape \(2,\)'),
        ({'where': jnp.zeros(2, bool)}, r'where: got shape \(2,\)'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {
        'candidates': jnp.zeros((3, 4)),
        'scores': jnp.zeros(3),
        'threshold': 0.5,
        'outputs': 2,
    }
    with pytest.raises(ValueError, match=message):
        suppress(**(valid | arguments))
