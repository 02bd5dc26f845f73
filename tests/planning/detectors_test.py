"""A detector's steps are planned like a classifier's: cut over devices, with no data of LVIS."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from balms_jax.detection_training import checks
from balms_jax.planning import plan, targets
from balms_jax.training.recipe import ConfigError

CONFIGS = Path(__file__).parents[2] / 'configs'
pytestmark = pytest.mark.usefixtures('standard_promotion')


def recipe(name, argument, **stage_1):
    config = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config'](argument)
    read = checks.from_config(config)
    return dataclasses.replace(read, stage_1=dataclasses.replace(read.stage_1, **stage_1))


def test_devices_reduce_one_gradient_and_share_no_images():
    # Each device finds the proposals of its own images: nothing is gathered. What is reduced beside
    # the gradient are the statistics of batch norm.
    given = recipe('shapes_lt', 'method=balms,recipe=tiny', batch_size=8)
    made = plan.make(given, [targets.find('cpu')], plan.Wanted('stage_1', ('plain',)))
    step = made['targets'][0]['steps']['plain']
    assert 1 <= step['all_reduced'] / made['gradient_bytes'] < 1.2
    assert set(step['collectives']) == {'all-reduce'}


def test_the_meta_step_of_the_class_layer_adds_two_of_its_gradients():
    given = recipe('shapes_lt', 'method=balms,recipe=tiny')
    made = plan.make(given, [targets.find('cpu')], plan.Wanted('stage_2', ('plain', 'meta')))
    added = made['targets'][0]['meta_over_plain']
    assert 0 < added['reductions'] < 2.5
    # Regions of training images and of the meta set: two passes of the backbone for one.
    assert 1.5 < added['flops'] < 3


def test_lvis_is_planned_without_its_files():
    run = plan.run_of(recipe('lvis', 'method=balms,version=v1,recipe=code'))
    facts = run.facts()
    assert (facts['classes'], facts['examples'], facts['image']) == (1203, 100_170, [1344, 1344, 3])
    assert run.first_state('stage_2').trained['classifier']['Dense_0']['kernel'].shape == (
        1024,
        1203,
    )


def test_a_batch_that_cannot_be_cut_is_refused():
    given = recipe('lvis', 'method=balms')  # Batches of 8
    plan.run_of(given).check_cut('stage_1', 8)
    with pytest.raises(
        ConfigError, match=r'stage_1\.batch_size: got 8, wanted a multiple of the 16'
    ):
        plan.run_of(given).check_cut('stage_1', 16)
