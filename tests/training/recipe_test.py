"""A config is met before any work: what cannot run is refused, and the message names the key."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe
from configs import cifar_lt, digits_lt, of_run

PAPER_STAGE_1_STEPS = 13_000


@pytest.mark.parametrize('method', methods.METHODS)
@pytest.mark.parametrize('config', [digits_lt, cifar_lt])
def test_a_config_survives_the_way_there_and_back(config, method):
    """Flags act on the config; the run must be what the recipe says."""
    values = config.get_config(f'method={method}')
    read = recipe.from_config(values)
    assert read.method == method
    assert recipe.to_config(read).to_dict() == values.to_dict()


def change(key, value):
    config = digits_lt.get_config('method=balms')
    with config.unlocked(), config.ignore_type():
        parent, _, last = key.rpartition('.')
        table = config
        for part in filter(None, parent.split('.')):
            table = table[part]
        table[last] = value
    return config


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('stage_1.stepss', 3, r'stage_1\.stepss: no such key; wanted one of averaging, batch_size'),
        ('stage_1.steps', 0, r'stage_1\.steps: got 0, wanted at least 1'),
        ('stage_1.steps', '3', r"stage_1\.steps: got '3' of type str, wanted int"),
        ('stage_1.steps', True, r'stage_1\.steps: got True of type bool, wanted int'),
        ('stage_1.loss.tau', float('nan'), r'stage_1\.loss\.tau: got nan, wanted a finite number'),
        ('stage_1', 3, r'stage_1: got 3, wanted a table'),
        ('stage_1.trains', 'classifier', r"stage_1\.trains: got 'classifier', wanted 'all'"),
        ('stage_2.draws', 'class_balanced', r'stage_2\.draws: got .* beside meta\.rebalancer'),
        ('stage_2.mixup', 0.2, r'stage_2\.mixup: got 0\.2 beside a rebalancer'),
        ('stage_2.meta.source', 'none', r"stage_2\.meta\.source: got 'none', wanted one of train"),
        ('stage_1.loss.name', 'hinge', r"stage_1\.loss\.name: got 'hinge', wanted one of balanced"),
        ('stage_1.loss.beta', 2.0, r'stage_1\.loss\.beta: got 2\.0, wanted 0 to 1'),
        ('stage_1.loss.gamma', -1.0, r'stage_1\.loss\.gamma: got -1\.0, wanted at least 0'),
        ('stage_1.loss.label_smoothing', 1.0, r'label_smoothing: got 1\.0, wanted 0 to less'),
        ('stage_1.loss.class_weights', 'all', r"class_weights: got 'all', wanted one of none"),
        ('stage_2.meta.estimator', 'gumbel', r"stage_2\.meta\.estimator: got 'gumbel', wanted one"),
        ('stage_2.meta.temperature', 0.0, r'stage_2\.meta\.temperature: got 0\.0, wanted a number'),
        ('stage_2.meta.rebalancer', 'learning_to_reweight', r"stage_2\.meta\.mode: got 'forward_"),
        ('stage_2.meta.mode', 'exact', r"stage_2\.meta\.mode: got 'exact', wanted one of reverse"),
        ('stage_1.optimizer.warmup_steps', 300, r'warmup_steps: got 300, wanted 0 to less than'),
        ('stage_1.optimizer.learning_rate', -0.1, r'learning_rate: got -0\.1, wanted at least 0'),
        ('data.augmentation', 'cifar', r"data\.augmentation: got 'cifar' for digits"),
        ('evaluation.test_priors', ('train',), r"test_priors: wanted 'uniform' among them"),
        ('evaluation.test_priors', ('head',), r"test_priors: got 'head', wanted one of uniform"),
        ('records.keep', 0, r'records\.keep: got 0, wanted at least 1'),
        ('model.width', -1, r'model\.width: got -1, wanted at least 0'),
        ('seed', -1, r'seed: got -1, wanted at least 0'),
    ],
)
def test_what_cannot_run_is_refused_by_its_key(key, value, message):
    """Found an hour into a run, it would have cost the hour."""
    with pytest.raises(recipe.ConfigError, match=message):
        recipe.from_config(change(key, value))


def test_losses_of_single_labels_are_refused_beside_mixed_ones():
    """Focal loss has no form for half a label."""
    values = change('stage_1.mixup', 0.2)
    values.stage_1.loss.name = 'focal'
    with pytest.raises(recipe.ConfigError, match=r"loss\.name: got 'focal' beside mixed"):
        recipe.from_config(values)


def test_a_width_of_0_is_the_networks_own():
    """The number itself is what a run is known and recorded by."""
    assert recipe.Model() == recipe.Model('digits_net', 16)
    read = recipe.from_config(change('model', {'name': 'resnet50'}))
    assert read.model.width == 64
    assert recipe.to_config(read).model.width == 64
    assert recipe.from_config(change('model', {'name': 'resnet50', 'width': 8})).model.width == 8


def test_a_whole_number_is_a_fine_float():
    """``--config.stage_1.loss.tau=1`` means 1.0."""
    assert recipe.from_config(change('stage_1.loss.tau', 1)).stage_1.loss.tau == 1.0


def test_batches_are_checked_against_the_data():
    """A stratified meta batch needs one of each class; an epoch must hold a batch."""
    values = recipe.from_config(change('stage_2.meta.batch_size', 8))
    with pytest.raises(recipe.ConfigError, match=r'stage_2\.meta\.batch_size: got 8, wanted at le'):
        recipe.check_against_data(values, (9,) * 10)
    with pytest.raises(recipe.ConfigError, match=r'stage_1\.batch_size: got 64, wanted at most'):
        recipe.check_against_data(values, (6,) * 10)


def test_cosine_logits_that_the_prior_swamps_are_cautioned_against():
    """log 100 = 4.6 between head and tail, and unscaled cosines differ by 2 at most."""
    counts = (100, 10, 1)
    small = recipe.from_config(change('model', {'classifier': 'cosine', 'scale': 1.0}))
    assert 'the prior decides alone' in recipe.cautions(small, counts)[0]
    fine = recipe.from_config(change('model', {'classifier': 'cosine', 'scale': 16.0}))
    assert recipe.cautions(fine, counts) == []


def test_a_decoupled_method_starts_as_softmax_does():
    """So that one softmax run gives the backbone of every decoupled row."""
    base = recipe.from_config(digits_lt.get_config('method=softmax'))
    for name, method in methods.METHODS.items():
        read = recipe.from_config(digits_lt.get_config(f'method={name}'))
        assert list(read.stages) == ['stage_1', 'stage_2'][: 1 + bool(method.second)]
        if method.second:
            assert read.stage_2.trains == method.second
        if method.second and (method.first, method.first_draws) == (methods.PLAIN, 'shuffled'):
            assert read.stage_1 == base.stage_1


def test_the_papers_recipe():
    """Section 4 and the supplementary material of the paper, as tested values."""
    read = recipe.from_config(cifar_lt.get_config('dataset=cifar100,method=balms'))
    assert read.model == recipe.Model('resnet32', 16, 'linear')
    assert read.data.augmentation == 'cifar'
    assert read.data.head_count == 500
    first, second = read.stage_1, read.stage_2
    assert (first.steps, first.batch_size) == (PAPER_STAGE_1_STEPS, 512)
    assert dataclasses.astuple(first.optimizer) == (0.1, 0.9, True, 5e-4, 800, 0.05, 1)
    assert (second.steps, second.batch_size, second.loss.tau) == (2_000, 512, 1.0)
    meta = second.meta
    assert (meta.rebalancer, meta.source, meta.batch_size) == ('meta_sampler', 'train', 512)
    assert (meta.learning_rate, meta.b1, meta.b2, meta.initial_power) == (0.01, 0.9, 0.99, 0.0)


def test_the_released_codes_recipe_differs_as_documented():
    """No Nesterov, the rate held for an epoch of 25 batches, the meta set redrawn."""
    read = recipe.from_config(cifar_lt.get_config('recipe=code,method=balms'))
    assert read.stage_1.steps == 12_411
    assert not read.stage_1.optimizer.nesterov
    assert read.stage_1.optimizer.hold == 25
    assert read.stage_2.meta.source == 'redraw'


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
    read = recipe.from_config(ConfigDict({'stage_1': {'steps': 5}}))
    assert read == recipe.Recipe(stage_1=recipe.Stage(steps=5))


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('data.held_out', 1.0, r'data\.held_out: got 1\.0, wanted 0 to less than 1'),
        ('stage_2.meta.source', 'held_out', r"source: got 'held_out' and data\.held_out = 0"),
        ('evaluation.classifier', 'tau_normalized', r'whose τ is chosen on held-out images'),
        ('evaluation.classifier', 'nearest', r"classifier: got 'nearest', wanted one of trained"),
        ('stage_1.averaging', 1.0, r'stage_1\.averaging: got 1\.0, wanted 0 to less than 1'),
        ('stage_1.mixup_partners', 'all', r"mixup_partners: got 'all', wanted one of batch"),
        ('model.classifier', 'experts', r"stage_2\.meta\.rebalancer: got 'meta_sampler' for 'exp"),
        ('model.classifier', 'bilateral', r"draws: got 'shuffled' and model\.classifier = 'bilat"),
        ('stage_1.loss.name', 'cost_sensitive', r'costs follow held-out images'),
        ('stage_2.loss.name', 'cost_sensitive', r"got 'cost_sensitive', whose costs follow the wh"),
        ('stage_1.draws', 'bilateral', r"wanted 'bilateral' of both or of neither"),
    ],
)
def test_parts_that_need_each_other_are_checked_together(key, value, message):
    with pytest.raises(recipe.ConfigError, match=message):
        recipe.from_config(change(key, value))


def test_other_classifiers_at_test_are_made_of_a_linear_one():
    values = change('evaluation.classifier', 'nearest_mean')
    values.model.classifier = 'cosine'
    with pytest.raises(recipe.ConfigError, match=r"'nearest_mean' of a 'cosine' classifier"):
        recipe.from_config(values)


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
