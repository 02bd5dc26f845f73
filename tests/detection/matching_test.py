"""Matching is the plain loop over candidates; a sample has its numbers, and is a fair one."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from balms_jax.detection import boxes, matching

SETTINGS = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)


def some_boxes(number):
    """Of whole pixels in a small image: ties and equal boxes are frequent."""
    return arrays.arrays(np.float32, (number, 4), elements=st.integers(0, 6).map(float)).map(
        lambda a: np.concatenate([a[:, :2], a[:, :2] + a[:, 2:]], 1)
    )


def matched_one_by_one(candidates, objects, thresholds, where, crowd):
    """The definition, candidate by candidate and object by object, in float32 as there."""
    overlap = np.array(boxes.iou(candidates, objects))
    covered = np.array(boxes.coverage(candidates, objects))
    real = [j for j in range(len(objects)) if where[j] and not crowd[j]]
    crowds = [j for j in range(len(objects)) if where[j] and crowd[j]]
    labels, indices = [], []
    for i in range(len(candidates)):
        best = max((overlap[i, j] for j in real), default=0)
        index = next((j for j in real if overlap[i, j] == best and best > 0), 0)
        is_best = any(overlap[i, j] == overlap[:, j].max() > 0 for j in real)
        if best >= thresholds.foreground or (thresholds.best_of_object and is_best):
            labels.append(1)
        elif best < thresholds.background and all(covered[i, j] < 0.7 for j in crowds):
            labels.append(0)
        else:
            labels.append(-1)
        indices.append(index)
    return labels, indices


@SETTINGS
@hypothesis.given(
    some_boxes(8),
    some_boxes(4),
    arrays.arrays(bool, 4),
    arrays.arrays(bool, 4),
    st.sampled_from([matching.ANCHOR_THRESHOLDS, matching.REGION_THRESHOLDS]),
)
def test_matching_is_the_plain_loop(candidates, objects, where, crowd, thresholds):
    found = jax.jit(matching.match, static_argnums=2)(
        candidates, objects, thresholds, where=where, crowd=crowd
    )
    labels, indices = matched_one_by_one(candidates, objects, thresholds, where, crowd)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.objects, indices)


def test_every_object_keeps_an_anchor():
    # The reason for matches of low quality: an object of odd shape reaches 0.7 with no anchor.
    objects = jnp.array([[0.0, 0.0, 3.0, 90.0]])
    candidates = jnp.array(
        [[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 64.0], [0.0, 32.0, 32.0, 96.0]]
    )
    found = matching.match(candidates, objects, matching.ANCHOR_THRESHOLDS)
    np.testing.assert_array_equal(found.labels, [0, 1, 0])


def test_without_objects_all_is_background():
    candidates = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0]])
    for thresholds in (matching.ANCHOR_THRESHOLDS, matching.REGION_THRESHOLDS):
        found = matching.match(candidates, jnp.zeros((2, 4)), thresholds, where=jnp.zeros(2, bool))
        np.testing.assert_array_equal(found.labels, [0, 0])


@SETTINGS
@hypothesis.given(
    arrays.arrays(np.int32, 12, elements=st.integers(-1, 1)),
    st.integers(0, 2**31 - 1),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_a_sample_has_its_numbers(labels, seed, fraction):
    size = 8
    drawn = matching.sample(jax.random.key(seed), labels, size, fraction)
    foreground = min((labels == 1).sum(), int(size * fraction))
    background = min((labels == 0).sum(), size - foreground)
    padding = size - foreground - background
    expected = [1] * foreground + [0] * background + [-1] * padding
    np.testing.assert_array_equal(drawn.labels, expected)
    real = np.array(drawn.indices)[: foreground + background]
    np.testing.assert_array_equal(labels[real], expected[: len(real)])
    assert len(set(real.tolist())) == len(real)


def test_every_candidate_is_as_likely_as_another():
    # 3 of 6 foreground ones and 5 of 10 background ones: each is drawn every second time.
    labels = jnp.array([1] * 6 + [0] * 10 + [-1] * 4)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: matching.sample(key, labels, 8, 0.375))(keys)
    assert (drawn.labels != matching.IGNORED).all()
    frequency = np.bincount(drawn.indices.ravel(), minlength=20) / 4000
    # Four standard deviations of a fair coin's mean.
    np.testing.assert_allclose(frequency[:16], 0.5, atol=4 * 0.5 / np.sqrt(4000))
    np.testing.assert_array_equal(frequency[16:], 0)


BOX, KEY = jnp.zeros((2, 4)), jax.random.key(0)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: matching.match(BOX, BOX, matching.Thresholds(0.3, 0.5, False)),
            'thresholds: got .* wanted 0 ≤ background ≤ foreground',
        ),
        (
            lambda: matching.match(BOX, BOX, matching.REGION_THRESHOLDS, where=jnp.ones(3, bool)),
            r'where: got shape \(3,\), wanted \[objects\] \(2,\)',
        ),
        (
            lambda: matching.match(BOX, BOX, matching.REGION_THRESHOLDS, crowd=jnp.ones(3, bool)),
            r'crowd: got shape \(3,\)',
        ),
        (lambda: matching.sample(KEY, jnp.zeros(3, int), 4, 0.5), 'size: got 4'),
        (
            lambda: matching.sample(KEY, jnp.zeros(3, int), 2, 1.5),
            'fraction: got 1.5',
        ),
        (lambda: matching.foreground_slots(0, 0.5), 'size: got 0'),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
