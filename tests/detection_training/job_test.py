"""A detector's run: both stages, resumed, on other devices, taken over, on damaged images."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from balms_jax.data.decoding import CorruptImageError
from balms_jax.detection_training import job, pictures
from balms_jax.detection_training.material import load_material
from balms_jax.models import weights
from balms_jax.training import stages
from balms_jax.training.recipe import ConfigError
from balms_jax.training.records import WorkdirError

pytestmark = pytest.mark.usefixtures('standard_promotion')


@pytest.fixture(scope='module')
def undisturbed(smallest, tmp_path_factory):
    """A run of BALMS from its beginning to its end."""
    workdir = tmp_path_factory.mktemp('undisturbed')
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        return workdir, job.train(smallest(), workdir)


def read(workdir, name):
    return json.loads((workdir / f'{name}.json').read_text())


def metrics(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def last_arrays(workdir, stage='stage_2'):
    """The digest of the arrays of the last checkpoint."""
    record = workdir / 'checkpoints' / stage / '4' / 'identity' / 'metadata'
    return json.loads(record.read_text())['digest']


def test_a_run_leaves_what_the_page_needs(undisturbed):
    workdir, result = undisturbed
    assert read(workdir, 'evaluation') == result
    facts = read(workdir, 'run')
    assert facts['kind'] == 'detector'
    assert len(facts['category_names']) == len(result['gradient_weights']) == 36
    assert result['masks'].keys() == {'AP', 'AP50', 'AP75', 'AP_r', 'AP_c', 'AP_f'}
    # With four objects a category at most, all are rare, and no group's AP is made up.
    assert set(facts['frequencies']) == {'r'}
    assert result['masks']['AP_f'] is None
    with np.load(workdir / pictures.PICTURES) as kept:
        assert len(kept['images']) == len(kept['boxes']) == 4
    kinds = [(line['kind'], line['stage'], line['step']) for line in metrics(workdir)]
    for stage in ('stage_1', 'stage_2'):
        assert [step for kind, of, step in kinds if (kind, of) == ('train', stage)] == [1, 2, 3, 4]
    assert ('rates', 'stage_2', 4) in kinds


def test_a_finished_run_is_not_trained_again(undisturbed, smallest):
    workdir, result = undisturbed
    before = metrics(workdir)
    assert job.train(smallest(), workdir) == result
    assert metrics(workdir) == before


@pytest.mark.parametrize('stage', ['stage_1', 'stage_2'])
def test_a_run_that_broke_off_ends_as_if_it_had_not(
    undisturbed, smallest, tmp_path, monkeypatch, stage
):
    # Draws are of the seed and the step alone, and the state is whole in its checkpoint.
    write = stages.Records.write

    def failing(records, kind, step, **values):
        write(records, kind, step, **values)
        if (records._stage, step) == (stage, 4):
            raise OSError('the disk is full')

    with monkeypatch.context() as broken:
        broken.setattr(stages.Records, 'write', failing)
        with pytest.raises(OSError, match='the disk is full'):
            job.train(smallest(), tmp_path)
    assert not (tmp_path / 'evaluation.json').exists()
    workdir, result = undisturbed
    assert job.train(smallest(), tmp_path) == result
    assert last_arrays(tmp_path) == last_arrays(workdir)
    assert metrics(tmp_path) == metrics(workdir)


def test_a_finished_first_stage_is_taken_over(undisturbed, smallest, tmp_path):
    # Every method's second stage starts from one first stage, which is trained once.
    workdir, _ = undisturbed
    recipe = smallest('balanced_sigmoid_decoupled')
    job.train(recipe, tmp_path, stage_1_from=workdir)
    assert last_arrays(tmp_path, 'stage_1') == last_arrays(workdir, 'stage_1')
    assert read(tmp_path, 'evaluation')['weights'] is None
    other = dataclasses.replace(recipe, seed=1)
    with pytest.raises(WorkdirError, match=r'stage_1_from: .*seed is 0 there and 1 here'):
        job.train(other, tmp_path / 'other', stage_1_from=workdir)


def test_devices_share_a_batch_as_one_would_have_it(undisturbed, smallest, tmp_path):
    # Fresh regions: both streams are cut over the devices too.
    def losses_on(devices):
        recipe = smallest(devices=devices)
        stage_2 = dataclasses.replace(recipe.stage_2, regions='fresh')
        recipe = dataclasses.replace(recipe, stage_2=stage_2)
        workdir = tmp_path / str(devices)
        job.train(recipe, workdir, stage_1_from=undisturbed[0] if devices == 1 else None)
        return [line['loss'] for line in metrics(workdir) if line['kind'] == 'train']

    np.testing.assert_allclose(losses_on(2), losses_on(1), rtol=2e-3)


def test_a_detector_starts_from_a_classifiers_backbone(smallest, tmp_path):
    # As from ImageNet: the backbone is the file's, and everything else is fresh.
    recipe = smallest('sigmoid')
    material = load_material(recipe)
    key = jax.random.key(recipe.seed)
    fresh, batch_stats = job.first_weights(recipe, material, key)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, fresh['backbone'])
    file = tmp_path / 'resnet10.npz'
    weights.save(file, weights.Weights('resnet10', doubled, batch_stats, {}))
    told = dataclasses.replace(recipe.detector, weights=str(file))
    started = dataclasses.replace(recipe, detector=told)
    assert 'all but the detector' in job.check_weights(started, material)
    params, _ = job.first_weights(started, material, key)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params['backbone'], doubled))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params['masks'], fresh['masks']))
    assert load_material(started).weights_fingerprint
    absent = dataclasses.replace(told, weights=str(tmp_path / 'absent.npz'))
    with pytest.raises(weights.WeightsError, match=r'detector\.weights: .*absent\.npz'):
        load_material(dataclasses.replace(recipe, detector=absent))


def test_batches_that_do_not_divide_are_refused_before_any_work(smallest, tmp_path):
    with pytest.raises(ConfigError, match='wanted a multiple of the 8 devices'):
        job.train(smallest(devices=8), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_loss_that_is_not_finite_ends_the_run(smallest, tmp_path):
    recipe = smallest('sigmoid')
    optimizer = dataclasses.replace(
        recipe.stage_1.optimizer, name='sgd', learning_rate=1e30, warmup_steps=0, clip=0.0
    )
    stage_1 = dataclasses.replace(recipe.stage_1, optimizer=optimizer)
    with pytest.raises(stages.NonFiniteLossError, match='at step'):
        job.train(dataclasses.replace(recipe, stage_1=stage_1), tmp_path)
    assert not (tmp_path / 'evaluation.json').exists()


@pytest.mark.parametrize('policy', ['error', 'skip'])
def test_a_corrupt_image_is_fatal_or_named(smallest, tmp_path, policy, recwarn):
    from balms_jax.detection import annotations, scenes

    recipe = smallest('sigmoid')
    drawn = list(scenes.scenes(0, np.ones(36, int)))
    (tmp_path / 'images').mkdir()
    for k, scene in enumerate(drawn):
        Image.fromarray(scene.image).save(tmp_path / 'images' / f'{k}.png')
    content = annotations.as_lvis(drawn, scenes.CATEGORIES)
    (tmp_path / 'test.json').write_text(json.dumps(content))
    (tmp_path / 'images' / 'train').mkdir()
    for k, scene in enumerate(drawn):
        Image.fromarray(scene.image).save(tmp_path / 'images' / 'train' / f'{k}.png')
    for k in range(3):
        (tmp_path / 'images' / 'train' / f'{k}.png').write_bytes(b'no image')
    data = dataclasses.replace(
        recipe.data,
        name='shapes',
        data_dir=str(tmp_path),
        train='test.json',
        test='test.json',
        train_images='images/train',
        test_images='images',
        corrupt=policy,
    )
    recipe = dataclasses.replace(recipe, data=data)
    workdir = tmp_path / 'run'
    if policy == 'error':
        with pytest.raises(CorruptImageError, match=r'\d\.png: UnidentifiedImageError'):
            job.train(recipe, workdir)
        return
    job.train(recipe, workdir)
    replaced = read(workdir, 'run')['replaced_images']
    assert set(replaced) <= {'0.png', '1.png', '2.png'}
    assert replaced
    job.train(recipe, workdir)
    assert read(workdir, 'run')['replaced_images'] == replaced, 'nothing was left to train'
    assert any('another image takes its place' in str(warning.message) for warning in recwarn)
