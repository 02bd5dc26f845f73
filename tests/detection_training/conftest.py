"""The smallest recipe that has everything: both stages, the Meta Reweighter, cached regions."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from balms_jax.detection_training import methods

CONFIG = Path(__file__).parents[2] / 'configs' / 'shapes_lt.py'


@pytest.fixture(scope='session')
def smallest():
    """Makes the recipe of a method: four steps a stage, a detector of four channels."""

    def make(method='balms', **changes):
        base = runpy.run_path(str(CONFIG))['tiny']()
        data = dataclasses.replace(base.data, head_count=4, imbalance_factor=2.0, test_count=1)
        detector = dataclasses.replace(base.detector, width=4, channels=8, box_features=16)
        stage_1 = dataclasses.replace(base.stage_1, steps=4)
        optimizer = dataclasses.replace(base.stage_2.optimizer, drops=(2,))
        meta = dataclasses.replace(base.stage_2.meta, batch_size=4)
        stage_2 = dataclasses.replace(
            base.stage_2, steps=4, batch_size=4, optimizer=optimizer, meta=meta
        )
        recipe = dataclasses.replace(
            base,
            devices=1,
            data=data,
            detector=detector,
            stage_1=stage_1,
            stage_2=stage_2,
            evaluation=dataclasses.replace(base.evaluation, batch_size=8, gradient_images=8),
            records=dataclasses.replace(
                base.records, checkpoint_every=2, rates_every=1, keep=3, tensorboard=False
            ),
        )
        return dataclasses.replace(methods.apply(method, recipe), **changes)

    return make
