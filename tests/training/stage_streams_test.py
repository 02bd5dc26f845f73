"""Training from files is training from memory: the same draws, pixels and states."""

import dataclasses
import json
import signal

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from balms_jax.training import checks, inputs, interruption, job, recipe, records
from balms_jax.training.material import load_material
from balms_jax.training.recipe import ConfigError

pytestmark = pytest.mark.usefixtures('standard_promotion')

COUNTS = (20, 8, 4)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Small PNGs, each class of its own brightness, and their lists."""
    root = tmp_path_factory.mktemp('files')
    rng = np.random.default_rng(0)
    for part, counts in (('train', COUNTS), ('test', (4, 4, 4))):
        lines = []
        for j, count in enumerate(counts):
            (root / part / str(j)).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(60 * j, 60 * j + 90, (10, 12, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / str(j) / f'{i}.png')
                lines.append(f'{part}/{j}/{i}.png {j}\n')
        (root / f'{part}.txt').write_text(''.join(lines))
    return root


def recipe_of(folder, *, streamed, rebalancer='none', steps=6, files=None, devices=1, **meta):
    wanted = {'crop': 'centre', 'workers': 0} | (files or {})
    data = recipe.Data(
        name='squares',
        data_dir=str(folder),
        profile='given',
        augmentation='crop_flip',
        files=recipe.Files(
            train='train.txt', test='test.txt', size=8, resize=8, streamed=streamed, **wanted
        ),
    )
    return recipe.Recipe(
        devices=devices,
        data=data,
        model=recipe.Model(name='digits_net', width=4),
        stage_1=recipe.Stage(
            steps=steps,
            batch_size=8,
            meta=recipe.Meta(rebalancer=rebalancer, batch_size=8, **meta),
        ),
        evaluation=recipe.Evaluation(every=3),
        records=recipe.Records(checkpoint_every=3, tensorboard=False),
    )


def trained(workdir, wanted):
    """The records of a run, and its metrics line by line."""
    result = job.train(wanted, workdir)
    return result['uniform'], (workdir / 'metrics.jsonl').read_text()


def agree(streamed, resident):
    """Two programs are compiled, which may round differently; else all numbers are the same."""
    (evaluation, lines), (wanted, wanted_lines) = streamed, resident
    told = [evaluation, *map(json.loads, lines.splitlines())]
    expected = [wanted, *map(json.loads, wanted_lines.splitlines())]
    chex.assert_trees_all_equal_structs(told, expected)
    for found, sought in zip(jax.tree.leaves(told), jax.tree.leaves(expected), strict=True):
        if isinstance(sought, str):
            assert found == sought
        else:
            np.testing.assert_allclose(found, sought, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('rebalancer', 'meta'),
    [
        ('none', {'devices': 8}),
        ('meta_reweighter', {}),
        ('meta_sampler', {}),
        ('meta_sampler', {'staleness': 2}),
        ('meta_sampler', {'staleness': 2, 'importance': True}),
    ],
)
def test_streamed_training_is_resident_training(folder, tmp_path, rebalancer, meta):
    """Without a random crop the two see the same pixels, so every loss must be the same."""
    runs = [
        trained(
            tmp_path / str(streamed),
            recipe_of(folder, streamed=streamed, rebalancer=rebalancer, learning_rate=0.5, **meta),
        )
        for streamed in (True, False)
    ]
    agree(*runs)


def test_streamed_training_in_shares_and_parts_is_resident_training(folder, tmp_path):
    """A stream deals sorted draws out to the devices as a step does, and is cut as its batch is."""
    runs = []
    for streamed in (True, False):
        wanted = recipe_of(folder, streamed=streamed, rebalancer='meta_reweighter', devices=2)
        wanted = dataclasses.replace(
            wanted,
            model=dataclasses.replace(wanted.model, batch_norm='device'),
            stage_1=dataclasses.replace(wanted.stage_1, accumulation=2),
        )
        runs.append(trained(tmp_path / str(streamed), wanted))
    agree(*runs)


def test_stale_draws_are_those_of_the_psi_of_earlier_steps(folder, tmp_path):
    """At the first steps nothing is stale yet; then the batch differs, and says how stale it is."""
    lines = {}
    for staleness in (0, 2):
        wanted = recipe_of(
            folder,
            streamed=False,
            rebalancer='meta_sampler',
            learning_rate=2.0,
            staleness=staleness,
            steps=12,
        )
        _, metrics = trained(tmp_path / str(staleness), wanted)
        steps = [json.loads(line) for line in metrics.splitlines()]
        lines[staleness] = [line for line in steps if line['kind'] == 'train']
    assert [line['staleness'] for line in lines[2]][:4] == [0, 1, 2, 2]
    losses = {s: [line['loss'] for line in lines[s]] for s in lines}
    assert losses[0][0] == losses[2][0]
    assert losses[0] != losses[2]


@pytest.mark.parametrize('staleness', [0, 2])
def test_a_stopped_stream_goes_on_with_the_same_batches(folder, tmp_path, staleness, monkeypatch):
    """The state is all there is to keep: batches that were drawn ahead are drawn again."""
    wanted = recipe_of(
        folder,
        streamed=True,
        rebalancer='meta_sampler',
        learning_rate=0.5,
        staleness=staleness,
        files={'crop': 'random_resized'},
    )
    whole = trained(tmp_path / 'whole', wanted)
    answers = iter([0] * 3 + [signal.SIGTERM])
    with monkeypatch.context() as patched:
        patched.setattr(interruption.Interruption, 'agreed', lambda self: next(answers))
        with pytest.raises(interruption.Interrupted):
            job.train(wanted, tmp_path / 'stopped')
    assert trained(tmp_path / 'stopped', wanted) == whole


def test_worker_processes_change_nothing_that_is_trained(folder, tmp_path):
    """They decode what they are told to."""
    runs = [
        trained(
            tmp_path / str(workers),
            recipe_of(folder, streamed=True, files={'workers': workers, 'crop': 'random_resized'}),
        )
        for workers in (0, 2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.filterwarnings('ignore:.*takes its place')
def test_replaced_images_are_counted_in_the_record(folder, tmp_path, monkeypatch):
    """A page's reader must learn what was not trained on, also of a run that was stopped."""
    (folder / 'train' / '0' / 'broken.png').write_text('no image')
    listed = (folder / 'train.txt').read_text() + 'train/0/broken.png 0\n'
    (folder / 'broken.txt').write_text(listed)
    with_broken = recipe_of(folder, streamed=True, files={'corrupt': 'skip'}, steps=16)
    files = dataclasses.replace(with_broken.data.files, train='broken.txt')
    data = dataclasses.replace(with_broken.data, files=files)
    wanted = dataclasses.replace(with_broken, data=data)

    def replaced(run):
        return json.loads((tmp_path / run / 'run.json').read_text())['replaced_images']

    job.train(wanted, tmp_path / 'whole')
    assert [path.endswith('broken.png') for path in replaced('whole')] == [True]
    answers = iter([0] * 7 + [signal.SIGTERM])
    with monkeypatch.context() as patched:
        patched.setattr(interruption.Interruption, 'agreed', lambda self: next(answers))
        with pytest.raises(interruption.Interrupted):
            job.train(wanted, tmp_path / 'stopped')
    assert 0 < sum(replaced('stopped').values()) < sum(replaced('whole').values())
    for _ in range(2):  # The second time nothing is left to train.
        job.train(wanted, tmp_path / 'stopped')
        assert replaced('stopped') == replaced('whole')


@pytest.mark.filterwarnings('ignore:.*not there')
@pytest.mark.parametrize('streamed', [True, False])
def test_missing_images_are_counted_in_the_record(folder, tmp_path, streamed):
    """By part: a test set that lacks images is another test set."""
    lists = {}
    for part, lacking in (('train', 2), ('test', 1)):
        lists[part] = f'{part}_lacking.txt'
        lines = [f'{part}/0/absent_{k}.png 0\n' for k in range(lacking)]
        (folder / lists[part]).write_text((folder / f'{part}.txt').read_text() + ''.join(lines))
    wanted = recipe_of(folder, streamed=streamed, files={'missing': 'skip'}, steps=1)
    files = dataclasses.replace(wanted.data.files, **lists)
    data = dataclasses.replace(wanted.data, files=files)
    job.train(dataclasses.replace(wanted, data=data), tmp_path)
    facts = json.loads((tmp_path / 'run.json').read_text())
    assert facts['missing_images'] == {'train': 2, 'test': 1}


def test_a_decoupled_run_decodes_for_its_second_stage_once(folder, tmp_path, monkeypatch):
    """A stage 2 that is taken up again reads the features that are kept, not the images."""
    first = recipe_of(folder, streamed=True, devices=2)
    stage_2 = dataclasses.replace(
        first.stage_1,
        trains='classifier',
        views=2,
        meta=dataclasses.replace(first.stage_1.meta, rebalancer='meta_sampler'),
    )
    wanted = dataclasses.replace(first, stage_2=stage_2)
    whole = trained(tmp_path / 'whole', wanted)
    answers = iter([0] * first.stage_1.steps + [0, signal.SIGTERM])
    with monkeypatch.context() as patched:
        patched.setattr(interruption.Interruption, 'agreed', lambda self: next(answers))
        with pytest.raises(interruption.Interrupted, match='step 2 of stage_2'):
            job.train(dataclasses.replace(wanted, steps_per_call=1), tmp_path / 'stopped')

    def extracted(*arguments):
        raise AssertionError('features were extracted again')

    with monkeypatch.context() as patched:
        patched.setattr(inputs, 'feature_extractor', extracted)
        assert trained(tmp_path / 'stopped', wanted) == whole
        # Nor by another method that begins with the same first stage.
        other = dataclasses.replace(wanted, stage_2=dataclasses.replace(stage_2, batch_size=16))
        job.train(other, tmp_path / 'other', stage_1_from=tmp_path / 'whole')


def test_features_of_another_meta_set_are_not_taken_over(folder, tmp_path):
    """A meta set apart has features of its own, which a run that has none does not keep."""
    first = recipe_of(folder, streamed=False)
    first = dataclasses.replace(first, data=dataclasses.replace(first.data, held_out=0.25))

    def with_meta_set(source):
        meta = dataclasses.replace(first.stage_1.meta, rebalancer='meta_sampler', source=source)
        stage_2 = dataclasses.replace(first.stage_1, trains='classifier', meta=meta)
        return dataclasses.replace(first, stage_2=stage_2)

    trained(tmp_path / 'alone', with_meta_set('held_out'))
    trained(tmp_path / 'train', with_meta_set('train'))
    job.train(with_meta_set('held_out'), tmp_path / 'over', stage_1_from=tmp_path / 'train')
    told = [(tmp_path / run / 'evaluation.json').read_text() for run in ('over', 'alone')]
    assert told[0] == told[1]


def test_a_set_of_files_is_read_as_it_is(folder):
    """Classes keep all their images, and the facts tell the imbalance that they have."""
    material = load_material(recipe_of(folder, streamed=True))
    assert material.class_counts == COUNTS
    assert material.train_images.shape == (32, 8, 8, 3)
    in_memory = load_material(recipe_of(folder, streamed=False))
    np.testing.assert_array_equal(material.train_images[:], in_memory.train_images)
    np.testing.assert_array_equal(material.source.test_images[:], in_memory.source.test_images)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train': ''}, "data.files.train: got ''"),
        ({'crop': 'random_resized'}, 'data.files.crop'),
        ({'corrupt': 'ignore'}, 'data.files.corrupt'),
        ({'size': 9}, 'data.files.resize'),
        ({'workers': -1}, 'data.files.workers'),
    ],
)
def test_settings_of_files_that_do_not_fit_are_refused(folder, changes, message):
    """By the key, before an image is read."""
    wanted = recipe_of(folder, streamed=False)
    files = dataclasses.replace(wanted.data.files, **changes)
    data = dataclasses.replace(wanted.data, files=files)
    with pytest.raises(ConfigError, match=message):
        checks.check(dataclasses.replace(wanted, data=data))


def test_files_may_move_between_two_runs():
    """A run is known by its data's fingerprint, not by where they lie."""
    assert {'data.data_dir', 'data.files.train', 'data.files.workers'} <= set(records.FREE_KEYS)
