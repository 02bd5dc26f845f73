"""A config is met before any work: what cannot run is refused, and the message names the key."""

import pytest

from balms_jax.training import checks, methods, recipe
from configs import cifar_lt, digits_lt, imagenet_lt


@pytest.mark.parametrize('config', [digits_lt, cifar_lt])
@pytest.mark.parametrize('method', methods.METHODS)
def test_every_method_can_be_trained(config, method):
    """A method that its own checks refuse would be a row that nobody can run."""
    assert checks.from_config(config.get_config(f'method={method}')).method == method


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
        ('stage_1.stepss', 3, r'stage_1\.stepss: no such key; wanted one of accumulation, av'),
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
        (
            'stage_2.meta',
            {'rebalancer': 'meta_sampler', 'estimator': 'expectation', 'staleness': 1},
            r"staleness: got 1 for meta\.estimator = 'expectation', whose draws",
        ),
        ('stage_2.meta.learning_rate', -1.0, r'stage_2\.meta\.learning_rate: got -1\.0, wanted at'),
        ('stage_1.optimizer.drops', (9, 5), r'stage_1\.optimizer\.drops: got \(9, 5\), wanted asc'),
        ('stage_1.optimizer.drops', (10**6,), r'drops: got \(1000000,\), wanted ascending steps'),
        ('stage_2.meta.b2', 1.0, r'stage_2\.meta\.b2: got 1\.0, wanted 0 to less than 1'),
        # A stage that learns nothing: its name would else be that of the wrong stage, unnoticed.
        ('stage_1.meta.estimator', 'foo', r"stage_1\.meta\.estimator: got 'foo', wanted one of"),
        ('stage_2.meta.rebalancer', 'learning_to_reweight', r"stage_2\.meta\.mode: got 'forward_"),
        ('stage_2.meta.mode', 'exact', r"stage_2\.meta\.mode: got 'exact', wanted one of reverse"),
        ('stage_1.optimizer.warmup_steps', 300, r'warmup_steps: got 300, wanted 0 to less than'),
        ('stage_1.optimizer.learning_rate', -0.1, r'learning_rate: got -0\.1, wanted at least 0'),
        ('data.augmentation', 'cifar', r"data\.augmentation: got 'cifar' for digits"),
        ('evaluation.test_priors', ('train',), r"test_priors: wanted 'uniform' among them"),
        ('evaluation.test_priors', ('head',), r"test_priors: got 'head', wanted one of uniform"),
        ('records.keep', 0, r'records\.keep: got 0, wanted at least 1'),
        ('model.batch_norm', 'ghost', r"model\.batch_norm: got 'ghost', wanted one of global, de"),
        ('model.width', -1, r'model\.width: got -1, wanted at least 0'),
        ('seed', -1, r'seed: got -1, wanted at least 0'),
    ],
)
def test_what_cannot_run_is_refused_by_its_key(key, value, message):
    """Found an hour into a run, it would have cost the hour."""
    with pytest.raises(recipe.ConfigError, match=message):
        checks.from_config(change(key, value))


def test_losses_of_single_labels_are_refused_beside_mixed_ones():
    """Focal loss has no form for half a label."""
    values = change('stage_1.mixup', 0.2)
    values.stage_1.loss.name = 'focal'
    with pytest.raises(recipe.ConfigError, match=r"loss\.name: got 'focal' beside mixed"):
        checks.from_config(values)


def test_batches_are_checked_against_the_data():
    """A stratified meta batch needs one of each class; an epoch must hold a batch."""
    values = checks.from_config(change('stage_2.meta.batch_size', 8))
    with pytest.raises(recipe.ConfigError, match=r'stage_2\.meta\.batch_size: got 8, wanted at le'):
        checks.check_against_data(values, (9,) * 10)
    with pytest.raises(recipe.ConfigError, match=r'stage_1\.batch_size: got 64, wanted at most'):
        checks.check_against_data(values, (6,) * 10)


def test_an_equalization_loss_without_a_head_is_refused():
    """Of 400 equal classes each is below a share of 0.005: nine losses in ten would be 0."""
    values = checks.from_config(change('stage_1.loss', {'name': 'equalization'}))
    with pytest.raises(recipe.ConfigError, match=r'stage_1\.loss\.threshold: got 0\.005, which'):
        checks.check_against_data(values, (9,) * 400)
    assert 'most of whose losses' in checks.cautions(values, (40, *[1] * 399))[0]
    checks.check_against_data(values, (90, 9))
    assert checks.cautions(values, (90, 9)) == []


def test_cosine_logits_that_the_prior_swamps_are_cautioned_against():
    """log 100 = 4.6 between head and tail, and unscaled cosines differ by 2 at most."""
    counts = (100, 10, 1)
    small = checks.from_config(change('model', {'classifier': 'cosine', 'scale': 1.0}))
    assert 'the prior decides alone' in checks.cautions(small, counts)[0]
    fine = checks.from_config(change('model', {'classifier': 'cosine', 'scale': 16.0}))
    assert checks.cautions(fine, counts) == []


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('data.held_out', 1.0, r'data\.held_out: got 1\.0, wanted 0 to less than 1'),
        ('stage_2.meta.source', 'held_out', r"source: got 'held_out' and data\.held_out = 0"),
        ('evaluation.classifier', 'tau_normalized', r'whose τ is chosen on held-out images'),
        ('evaluation.classifier', 'nearest', r"classifier: got 'nearest', wanted one of trained"),
        ('model.scale', 0.0, r'model\.scale: got 0\.0, wanted a number above 0'),
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
        checks.from_config(change(key, value))


def test_other_classifiers_at_test_are_made_of_a_linear_one():
    values = change('evaluation.classifier', 'nearest_mean')
    values.model.classifier = 'cosine'
    with pytest.raises(recipe.ConfigError, match=r"'nearest_mean' of a 'cosine' classifier"):
        checks.from_config(values)


def test_a_mode_of_independent_examples_is_refused_beside_batch_norm_by_device():
    """Those of one device meet in its statistics; of a frozen backbone they do not."""
    values = change('model.batch_norm', 'device')
    values.stage_2.meta.mode = 'ghost_product'
    checks.from_config(values)
    values.stage_2.trains = 'all'
    with pytest.raises(recipe.ConfigError, match=r"stage_2\.meta\.mode: got 'ghost_product', whi"):
        checks.from_config(values)


def test_images_that_cannot_be_cut_into_patches_are_refused():
    """The network itself would say so when it is built, after the data were read."""
    with pytest.raises(recipe.ConfigError, match=r"got 'vit_s_16' for images of 8 × 8, wanted a m"):
        checks.from_config(change('model.name', 'vit_s_16'))
    files = imagenet_lt.get_config('network=vit_s_16')
    checks.from_config(files)
    files.data.files.size = 200
    with pytest.raises(recipe.ConfigError, match=r'images of 200 × 200, wanted a multiple of 16'):
        checks.from_config(files)


def test_devices_share_the_classes_evenly():
    values = checks.from_config(change('class_shards', 4))
    with pytest.raises(recipe.ConfigError, match='class_shards: got 4, wanted a divisor of the 10'):
        checks.check_against_data(values, (20,) * 10)
    with pytest.raises(recipe.ConfigError, match='class_shards: got 0, wanted at least 1'):
        checks.from_config(change('class_shards', 0))
