"""What a run keeps of its first test images is what the page shows of them."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np

from balms_jax.detection import scenes
from balms_jax.detection.inference import Detections
from balms_jax.detection.pasting import paste
from balms_jax.detection_training.material import load_material
from balms_jax.detection_training.pictures import keep_pictures
from balms_jax.report.detector_runs import read_pictures

CONFIG = Path(__file__).parents[2] / 'configs' / 'shapes_lt.py'


def test_the_truth_that_is_kept_is_the_truth_that_was_drawn(tmp_path):
    # Through frames, cells and bytes: the page's masks lie on the scene's own.
    recipe = runpy.run_path(str(CONFIG))['tiny']()
    data = dataclasses.replace(recipe.data, height=96, width=128, shortest_at_test=80)
    material = load_material(dataclasses.replace(recipe, data=data))
    nothing = Detections(
        *map(np.asarray, (np.zeros((2, 4)), np.zeros(2), [0, 0], np.zeros((2, 28, 28)), [0, 0]))
    )
    keep_pictures(tmp_path / 'pictures.npz', material, [(0, nothing), (2, nothing)])
    kept = read_pictures(tmp_path / 'pictures.npz', len(scenes.CATEGORIES))
    drawn = list(scenes.scenes(2 * data.seed + 1, np.full(36, data.test_count), 96))
    for picture, place in zip(kept, (0, 2), strict=True):
        assert picture.place == place
        assert picture.pixels.shape == (80, 80, 3)
        assert picture.there is not None
        assert [true.category for true in picture.there] == drawn[place].categories.tolist()
        for true, pixels in zip(picture.there, drawn[place].masks, strict=True):
            pasted = paste(true.mask, true.frame, (96, 96), 80 / 96)
            assert (pasted & pixels).sum() / (pasted | pixels).sum() > 0.9
