"""A config becomes a recipe and a recipe a config; the recipes are those that are documented."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from balms_jax.training import arguments, checks, methods, recipe
from configs import cifar_lt, digits_lt, of_run

PAPER_STAGE_1_STEPS = 13_000


@pytest.mark.parametrize('method', methods.METHODS)
@pytest.mark.parametrize('config', [digits_lt, cifar_lt])
def test_a_config_survives_the_way_there_and_back(config, method):
    """Flags act on the config; the run must be what the recipe says."""
    values = config.get_config(f'method={method}')
    read = recipe.read(values)
    assert read.method == method
    assert recipe.to_config(read).to_dict() == values.to_dict()


def test_a_width_of_0_is_the_networks_own():
    """The number itself is what a run is known and recorded by."""
    assert recipe.Model() == recipe.Model('digits_net', 16)
    read = recipe.read({'model': {'name': 'resnet50'}})
    assert read.model.width == 64
    assert recipe.to_config(read).model.width == 64
    assert recipe.read({'model': {'name': 'resnet50', 'width': 8}}).model.width == 8


def test_a_whole_number_is_a_fine_float():
    """``--config.stage_1.loss.tau=1`` means 1.0."""
    assert recipe.read({'stage_1': {'loss': {'tau': 1}}}).stage_1.loss.tau == 1.0


def test_a_decoupled_method_starts_as_softmax_does():
    """So that one softmax run gives the backbone of every decoupled row."""
    base = recipe.read(digits_lt.get_config('method=softmax'))
    for name, method in methods.METHODS.items():
        read = recipe.read(digits_lt.get_config(f'method={name}'))
        assert list(read.stages) == ['stage_1', 'stage_2'][: 1 + bool(method.second)]
        if method.second:
            assert read.stage_2.trains == method.second
        if method.second and (method.first, method.first_draws) == (methods.PLAIN, 'shuffled'):
            assert read.stage_1 == base.stage_1


def test_the_papers_recipe():
    """Section 4 and the supplementary material of the paper, as tested values."""
    read = recipe.read(cifar_lt.get_config('dataset=cifar100,method=balms'))
    assert read.model == recipe.Model('resnet32', 16, 'linear')
    assert read.data.augmentation == 'cifar'
    assert read.data.head_count == 500
    first, second = read.stage_1, read.stage_2
    assert (first.steps, first.batch_size) == (PAPER_STAGE_1_STEPS, 512)
    assert dataclasses.astuple(first.optimizer) == (0.1, 0.9, True, 5e-4, 800, 0.05, (), 1)
    assert (second.steps, second.batch_size, second.loss.tau) == (2_000, 512, 1.0)
    meta = second.meta
    assert (meta.rebalancer, meta.source, meta.batch_size) == ('meta_sampler', 'train', 512)
    assert (meta.learning_rate, meta.b1, meta.b2, meta.initial_power) == (0.01, 0.9, 0.99, 0.0)


def test_the_released_codes_recipe_differs_as_documented():
    """No Nesterov, the rate held for an epoch of 25 batches, the meta set redrawn."""
    read = recipe.read(cifar_lt.get_config('recipe=code,method=balms'))
    assert read.stage_1.steps == 12_411
    assert not read.stage_1.optimizer.nesterov
    assert read.stage_1.optimizer.hold == 25
    assert read.stage_2.meta.source == 'redraw'


def test_the_strong_recipe_mixes_beside_any_method_that_can():
    """400 epochs of 85 batches; a decoupled method's first stage mixes too, its second does not."""
    plain = recipe.read(cifar_lt.get_config('dataset=cifar100,recipe=strong'))
    assert (plain.method, plain.model.classifier) == ('balanced_softmax', 'cosine')
    assert (plain.stage_1.steps, plain.stage_1.optimizer.drops) == (34_000, (27_200, 30_600))
    assert (plain.stage_1.mixup, plain.stage_1.loss.tau) == (0.4, 1.0)
    parted = recipe.read(cifar_lt.get_config('dataset=cifar100,recipe=strong,method=balms'))
    assert (parted.stage_1.mixup, parted.stage_2.mixup) == (0.4, 0.0)
    checks.check(plain)
    checks.check(parted)


def test_arguments_are_named_in_errors():
    """A typo after the colon would otherwise train the default."""
    with pytest.raises(recipe.ConfigError, match=r"got 'imbalance=10', wanted name=value"):
        digits_lt.get_config('imbalance=10')
    with pytest.raises(recipe.ConfigError, match=r"imbalance_factor: got 'ten', wanted float"):
        digits_lt.get_config('imbalance_factor=ten')
    with pytest.raises(recipe.ConfigError, match=r"method: got 'blams', wanted one of softmax"):
        cifar_lt.get_config('method=blams')
    with pytest.raises(recipe.ConfigError, match=r"dataset: got 'mnist'"):
        cifar_lt.get_config('dataset=mnist')
    assert arguments.parse('', method='balms') == {'method': 'balms'}


def test_missing_keys_take_their_defaults():
    """A config need only say what it changes."""
    read = recipe.read(ConfigDict({'stage_1': {'steps': 5}}))
    assert read == recipe.Recipe(stage_1=recipe.Stage(steps=5))


def test_the_config_of_a_run_is_its_own(tmp_path):
    """What is trained again must be what was trained; a setting added since has its default."""
    values = digits_lt.get_config('method=balms')
    values.seed = 7
    written = values.to_dict()
    del written['stage_1']['averaging']
    (tmp_path / 'config.json').write_text(json.dumps(written))
    read = of_run.get_config(f'run={tmp_path}')
    assert read.to_dict() == values.to_dict()
    with pytest.raises(recipe.ConfigError, match=r'run: .*/config\.json is no config of a run'):
        of_run.get_config(f'run={tmp_path}/absent')
