"""The toy's ideal rule is ideal, and its page opens."""

import json
import sys

import numpy as np
import pytest

from experiments import toy_boundaries

pytestmark = pytest.mark.usefixtures('standard_promotion')


def test_the_ideal_rule_is_the_nearest_centre():
    """Equal spheres around each centre, drawn alike: no other rule is right more often."""
    points, labels = toy_boundaries.balanced_test(0)
    rule = toy_boundaries.ideal(points)
    assert np.all(toy_boundaries.ideal(toy_boundaries.CENTRES) == np.arange(3))
    accuracy = (rule == labels).mean()
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = points + rng.normal(scale=0.5, size=2)
        assert (toy_boundaries.ideal(moved) == labels).mean() < accuracy + 0.01


def test_training_points_are_sorted_by_class():
    """Draws find an example by its class's place."""
    points = toy_boundaries.clouds(0)
    ends = np.cumsum(toy_boundaries.COUNTS)
    assert len(points) == ends[-1]
    for centre, start, end in zip(toy_boundaries.CENTRES, [0, *ends[:-1]], ends, strict=True):
        gap = np.linalg.norm(points[start:end].mean(0) - centre)
        assert gap < 5 / np.sqrt(end - start)


def test_the_smoke_scale_ends_in_a_page(tmp_path, monkeypatch):
    """Surfaces, curves, an animation; every number a share."""
    monkeypatch.setattr(toy_boundaries, 'FRAMES', 3)
    monkeypatch.setattr(
        sys, 'argv', ['toy', '--scale', 'smoke', '--output', str(tmp_path), '--seeds', '0', '1']
    )
    toy_boundaries.main()
    numbers = json.loads((tmp_path / 'numbers.json').read_text())
    assert numbers['steps'] == [100, 200, 300]
    for name in toy_boundaries.VARIANTS:
        assert np.shape(numbers['accuracies'][name]) == (2, 3, 3)
        assert 0.2 < numbers['agreement'][name][1][-1] <= 1
    assert numbers['accuracies']['softmax'][0] != numbers['accuracies']['softmax'][1]
    assert (tmp_path / 'boundaries.gif').read_bytes().startswith(b'GIF8')
    assert (tmp_path / 'page.html').read_text().count('<figure') == 2
