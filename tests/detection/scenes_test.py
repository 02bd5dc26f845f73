"""Scenes hold what was asked for, in sight, and look as their categories say."""

import numpy as np
import pytest

from balms_jax.detection import scenes


@pytest.fixture(scope='module')
def drawn():
    return list(scenes.scenes(3, scenes.long_tailed_counts(200)))


def test_objects_have_the_long_tail_that_was_asked_for(drawn):
    # All counts are exact, so that imbalance is a known quantity of an experiment.
    found = np.bincount(np.concatenate([scene.categories for scene in drawn]), minlength=36)
    np.testing.assert_array_equal(found, scenes.long_tailed_counts(200))
    assert len(scenes.CATEGORIES) >= 30
    assert found.max() / found.min() >= 200


def test_neither_shape_nor_pattern_tells_the_frequency():
    # Else a network could tell rare from frequent by colour alone: each sixth of the tail has all.
    assert sorted(scenes.FREQUENCY_ORDER) == list(range(36))
    for sixth in scenes.FREQUENCY_ORDER.reshape(6, 6):
        names = [scenes.CATEGORIES[category].split() for category in sixth]
        assert {pattern for pattern, _ in names} == set(scenes.PATTERNS)
        assert {shape for _, shape in names} == set(scenes.SHAPES)


def test_masks_are_disjoint_in_sight_and_within_their_boxes(drawn):
    least = []
    for scene in drawn:
        assert 1 <= len(scene.categories) <= 5
        assert scene.masks.sum(0).max() <= 1  # What is in front hides what is behind.
        for mask, (x0, y0, x1, y1) in zip(scene.masks, scene.boxes.astype(int), strict=True):
            assert mask.any()
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum()
            # The box is tight: each of its edges touches the mask.
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            least.append(mask.sum())
    assert np.percentile(least, 1) > 10


def test_objects_hide_parts_of_each_other(drawn):
    # Occlusion is what makes instances differ from boxes.
    overlapping = sum(
        bool(np.logical_and.reduce([a[:2] < b[2:], b[:2] < a[2:]]).all())
        for scene in drawn
        for k, a in enumerate(scene.boxes)
        for b in scene.boxes[k + 1 :]
    )
    assert overlapping > 0.1 * len(drawn)


def test_colours_are_those_of_the_pattern():
    # Where red is, red is the strongest channel: an image and its labels are of the same object.
    counts = np.zeros(36, int)
    strongest = {'red': 0, 'green': 1, 'blue': 2}
    for name in scenes.CATEGORIES:
        counts[scenes.CATEGORIES.index(name)] = name.split()[0] in strongest
    for scene in scenes.scenes(0, 3 * counts):
        for category, mask in zip(scene.categories, scene.masks, strict=True):
            pattern = scenes.CATEGORIES[category].split()[0]
            assert scene.image[mask].mean(0).argmax() == strongest[pattern]


def test_a_seed_gives_its_scenes_again():
    first, again = (next(scenes.scenes(5, np.ones(36, int))) for _ in range(2))
    other = next(scenes.scenes(6, np.ones(36, int)))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'counts': np.ones(3, int)}, r'counts: got \[1, 1, 1\], wanted 36 numbers'),
        ({'counts': -np.ones(36, int)}, 'counts: got'),
        ({'side': 8}, 'side: got 8'),
        ({'most_objects': 0}, 'most_objects: got 0'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {'seed': 0, 'counts': np.ones(36, int)}
    with pytest.raises(ValueError, match=message):
        next(scenes.scenes(**(valid | arguments)))
