"""Settings that cannot work are refused before any work, by their key."""

import dataclasses

import pytest

from balms_jax.detection_training import checks, methods
from balms_jax.detection_training.recipe import Recipe, with_loss
from balms_jax.training.recipe import ConfigError, to_config


@pytest.mark.parametrize('method', methods.METHODS)
def test_every_method_can_be_run(smallest, method):
    # A method whose settings contradict each other would fail for whoever picks it from --help.
    recipe = smallest(method)
    checks.check(recipe)
    two_stages = methods.METHODS[method].decoupled
    assert list(recipe.stages) == (['stage_1', 'stage_2'] if two_stages else ['stage_1'])


def test_an_unknown_method_is_refused(smallest):
    with pytest.raises(ConfigError, match=r"method: got 'best', wanted one of sigmoid"):
        methods.apply('best', smallest())


def test_a_config_is_read_back_as_the_recipe(smallest):
    # Lists come back as tuples, and numbers as floats, or a resumed run would be another.
    recipe = smallest()
    config = to_config(recipe)
    assert checks.is_detector(config)
    assert checks.from_config(config.to_dict()) == recipe


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('data.name', 'lvis', r'data\.train: got nothing'),
        ('data.height', 100, r'data\.height: got 100, wanted a multiple of 64'),
        ('data.shortest', (), r'data\.shortest: got no length'),
        ('data.mirrored', 2.0, r'data\.mirrored: got 2\.0'),
        ('data.missing', 'ignore', r"data\.missing: got 'ignore'"),
        ('data.imbalance_factor', 0.5, r'data\.imbalance_factor: got 0\.5'),
        ('detector.depth', 20, r'detector\.depth: got 20'),
        ('detector.dtype', 'float16', r"detector\.dtype: got 'float16'"),
        ('detector.prior', 0.0, r'detector\.prior: got 0\.0'),
        ('detector.frozen_groups', 6, r'detector\.frozen_groups: got 6'),
        ('detector.anchor_sizes', (8.0,), r'detector\.anchor_sizes: got \(8\.0,\)'),
        ('draws.regions', 0, r'draws\.regions: got 0'),
        ('draws.region_fraction', 1.5, r'draws\.region_fraction: got 1\.5'),
        ('stage_1.steps', 0, r'stage_1\.steps: got 0'),
        ('stage_1.trains', 'classifier', r"stage_1\.trains: got 'classifier'"),
        ('stage_1.loss.name', 'hinge', r"stage_1\.loss\.name: got 'hinge'"),
        ('stage_1.loss.name', 'softmax', r"stage_2\.loss\.name: got 'balanced_sigmoid' after"),
        ('stage_1.optimizer.name', 'lamb', r"stage_1\.optimizer\.name: got 'lamb'"),
        ('stage_2.optimizer.drops', (3, 2), r'stage_2\.optimizer\.drops: got \(3, 2\)'),
        ('stage_2.optimizer.schedule', 'cosine', r"drops: got \(2,\) beside 'cosine'"),
        ('stage_2.trains', 'all', r"meta\.rebalancer: got 'meta_reweighter' beside trains"),
        ('stage_2.regions', 'some', r"stage_2\.regions: got 'some'"),
        ('stage_2.meta.mode', 'guess', r"stage_2\.meta\.mode: got 'guess'"),
        ('stage_2.meta.loss', 'focal', r"stage_2\.meta\.loss: got 'focal'"),
        ('evaluation.score', 1.0, r'evaluation\.score: got 1\.0'),
        ('records.checkpoint_every', 0, r'records\.checkpoint_every: got 0'),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(smallest, key, value, message):
    recipe = _with(smallest(), key.split('.'), value)
    with pytest.raises(ConfigError, match=message):
        checks.check(recipe)


def test_a_softmax_has_no_plain_sigmoid_meta_loss(smallest):
    # Its last logit is the background's: a sigmoid loss would take it for a category.
    both = with_loss(with_loss(smallest(), 'stage_1', 'softmax'), 'stage_2', 'seesaw')
    with pytest.raises(ConfigError, match=r"stage_2\.meta\.loss: got 'sigmoid' for a softmax"):
        checks.check(both)
    checks.check(_with(both, ['stage_2', 'meta', 'loss'], 'same'))


def test_batches_must_divide_over_the_devices(smallest):
    recipe = smallest()
    checks.check_divisible(recipe, 4)
    with pytest.raises(
        ConfigError, match=r'stage_1\.batch_size: got 4, wanted a multiple of the 8'
    ):
        checks.check_divisible(recipe, 8)


def test_unknown_keys_and_wrong_types_are_refused():
    with pytest.raises(ConfigError, match=r'detector\.depht: no such key'):
        checks.from_config({'detector': {'depht': 50}})
    with pytest.raises(ConfigError, match=r"data\.shortest: got '640' of type str, wanted int"):
        checks.from_config({'data': {'shortest': ['640']}})
    with pytest.raises(ConfigError, match=r'data\.shortest: got 640, wanted numbers'):
        checks.from_config({'data': {'shortest': 640}})
    assert checks.from_config({'stage_1': {'steps': 1}}).detector == Recipe().detector


def _with(settings, path, value):
    """The settings with one of them changed, tables within tables."""
    first, *rest = path
    if rest:
        value = _with(getattr(settings, first), rest, value)
    return dataclasses.replace(settings, **{first: value})
