"""A file of a detector's weights holds what was saved, and a file without all of it is refused."""

import jax
import numpy as np
import pytest

from balms_jax.models import detector_weights, weights
from balms_jax.models.detector_weights import PARTS, DetectorWeights


def some(background=True):
    random = np.random.default_rng(0)
    params = {part: {'layer': {'bias': random.normal(size=3)}} for part in PARTS}
    return DetectorWeights('maskrcnn_resnet18_fpn', background, params, {'layer': {'var': 1.0}})


@pytest.mark.parametrize('background', [True, False])
def test_a_file_holds_what_was_saved(tmp_path, background):
    # The kind of head too: without it sigmoids of 91 categories pass for a softmax over 90.
    wanted, path = some(background), tmp_path / 'detector.npz'
    detector_weights.save(path, wanted)
    found = detector_weights.load(path)
    assert found[:2] == wanted[:2]
    jax.tree.map(np.testing.assert_array_equal, found[2:], wanted[2:])


def test_a_file_of_something_else_is_refused(tmp_path):
    # By its name and with what it lacks: the two kinds of files have one ending.
    path = tmp_path / 'classifier.npz'
    weights.save(path, weights.Weights('resnet10', {'bias': np.zeros(2)}, {}, {}))
    with pytest.raises(
        weights.WeightsError, match=r'classifier\.npz: resnet10 is no detector.*masks'
    ):
        detector_weights.load(path)
    with pytest.raises(weights.WeightsError, match=r'absent\.npz is no file of weights'):
        detector_weights.load(tmp_path / 'absent.npz')
