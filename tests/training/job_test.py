"""A whole run: what it leaves behind; that neither cuts nor devices change what it trains."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.training import (
    checkpoints,
    inputs,
    interruption,
    job,
    measures,
    post_hoc,
    records,
    stage_states,
    stages,
    steps,
)
from balms_jax.training.material import load_material
from balms_jax.training.recipe import ConfigError

pytestmark = pytest.mark.usefixtures('standard_promotion')


def final_arrays(workdir, stage):
    """All arrays of the last checkpoint of a stage, read without this package."""
    import orbax.checkpoint as ocp

    folder = max((workdir / 'checkpoints' / stage).iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / 'state')


def metrics(workdir):
    return (workdir / 'metrics.jsonl').read_text()


def by_kind(workdir, kind):
    lines = [json.loads(line) for line in metrics(workdir).splitlines()]
    return [line for line in lines if line['kind'] == kind]


def assert_same_arrays(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        if tolerance:
            np.testing.assert_allclose(a[name], b[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# One of each mechanism: losses alone are those of objectives_test.
MECHANISMS = [
    'softmax',
    'balanced_softmax_decoupled_cbs',
    'balms',
    'balms_end_to_end',
    'meta_reweighter',
    'equalization',
    'cost_sensitive',
    'ldam_drw',
    'learnable_scales',
    'learned_adjustment',
    'learning_to_reweight',
    'meta_weight_net',
    'class_balanced_domain_adaptation',
    'balanced_softmax_mixup',
    'balanced_mixup',
    'tau_normalized',
    'nearest_class_mean',
    'bilateral_branch',
    'balanced_softmax_experts',
    'balanced_softmax_averaged',
]
OTHER_GRADIENTS = [
    'equalization',
    'cost_sensitive',
    'ldam_drw',
    'learning_to_reweight',
    'meta_weight_net',
    'class_balanced_domain_adaptation',
    'balanced_softmax_experts',
    'bilateral_branch',
]


@pytest.mark.parametrize('method', MECHANISMS)
def test_every_mechanism_trains_and_records(method, small_recipe, tmp_path):
    """A method is a row of a table: each must run to its end and say what it was."""
    recipe = small_recipe(method)
    result = job.train(recipe, tmp_path / 'run')
    calibrated = {'calibrated'} if recipe.data.held_out else set()
    assert set(result) == {'uniform', 'train'} | calibrated
    assert result == json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert facts['method'] == method
    assert facts['selection_rule'] == 'last epoch'
    learned = any(s.meta.rebalancer != 'none' for s in recipe.stages.values())
    assert (facts['meta_set'] is not None) == learned
    assert len(by_kind(tmp_path / 'run', 'train')) == 12 * len(recipe.stages)
    shown = method not in ('learning_to_reweight', 'meta_weight_net')  # Their ψ is of no class.
    assert bool(by_kind(tmp_path / 'run', 'rates')) == (learned and shown)
    assert np.isfinite(result['uniform']['negative_log_likelihood'])
    last = by_kind(tmp_path / 'run', 'evaluation')[-1]
    for name in ('gradient_weights', 'gradient_weight_exponent'):
        # The formula is of softmax and weights by class: for others it gives 0, whatever they do.
        assert (last[name] is None) == (method in OTHER_GRADIENTS), name


def test_the_frozen_backbone_does_not_move(small_recipe, tmp_path):
    """Stage 2 trains the classifier alone; batch norm's statistics belong to the backbone."""
    for features in ('cached', 'recomputed'):
        recipe = small_recipe('balanced_softmax_decoupled')
        stage_2 = dataclasses.replace(recipe.stage_2, features=features)
        job.train(dataclasses.replace(recipe, stage_2=stage_2), tmp_path / features)
        first, second = (final_arrays(tmp_path / features, s) for s in ('stage_1', 'stage_2'))
        for name, value in second.items():
            if name.startswith('frozen.'):
                earlier = first[name.replace('frozen.', 'trained.')]
                np.testing.assert_array_equal(value, earlier, err_msg=name)
            if name.startswith('batch_stats.'):
                np.testing.assert_array_equal(value, first[name], err_msg=name)
        classifier = 'trained.classifier.Dense_0.kernel'
        assert np.any(first[classifier] != second[classifier])


def test_cached_features_are_those_of_the_recomputed_ones(small_recipe, tmp_path):
    """Without augmentation a frozen backbone gives the same features at every step."""
    finals = []
    for features in ('cached', 'recomputed'):
        recipe = small_recipe('balms')
        stage_2 = dataclasses.replace(recipe.stage_2, features=features)
        job.train(dataclasses.replace(recipe, stage_2=stage_2), tmp_path / features)
        finals.append(final_arrays(tmp_path / features, 'stage_2'))
    assert_same_arrays(*finals, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('method', ['balms_end_to_end', 'balms'])
@pytest.mark.parametrize('cut', [1, 5, 7])
def test_an_interrupted_run_ends_bit_identical(method, cut, small_recipe, tmp_path, monkeypatch):
    """A resumed run must take the same steps on the same batches, or nothing is reproducible."""
    recipe = small_recipe(method)
    job.train(recipe, tmp_path / 'whole')
    told = {'steps': 0}
    noted = stages._write_metrics

    def write_then_signal(records, last, values, every):
        noted(records, last, values, every)
        told['steps'] += 1
        if told['steps'] == cut:
            interruption.signal.raise_signal(interruption.signal.SIGTERM)

    monkeypatch.setattr(stages, '_write_metrics', write_then_signal)
    with pytest.raises(interruption.Interrupted) as stopped:
        job.train(recipe, tmp_path / 'cut')
    assert stopped.value.exit_code == 143
    monkeypatch.setattr(stages, '_write_metrics', noted)
    result = job.train(recipe, tmp_path / 'cut')
    last = list(recipe.stages)[-1]
    assert_same_arrays(*(final_arrays(tmp_path / name, last) for name in ('whole', 'cut')))
    assert metrics(tmp_path / 'whole') == metrics(tmp_path / 'cut')
    assert result == json.loads((tmp_path / 'whole' / 'evaluation.json').read_text())


def test_eight_devices_train_as_one(small_recipe, tmp_path):
    """The mesh divides the work, not the randomness: the same draws, the same ψ to rounding."""
    for devices in (1, 8):
        job.train(small_recipe('balms_end_to_end', devices=devices), tmp_path / str(devices))
    one, eight = (final_arrays(tmp_path / name, 'stage_1') for name in ('1', '8'))
    assert_same_arrays(one, eight, rtol=2e-3, atol=2e-4)
    first = [by_kind(tmp_path / name, 'train')[0] for name in ('1', '8')]
    np.testing.assert_allclose(first[0]['loss'], first[1]['loss'], rtol=1e-5)


@pytest.mark.parametrize('method', ['balms_end_to_end', 'balms'])
def test_devices_that_share_the_classes_train_as_one(method, small_recipe, tmp_path):
    """Cutting logits by class is a way to hold them, for the loss and its meta-gradient alike."""
    recipe = small_recipe(method, devices=8, class_shards=2)
    job.train(small_recipe(method), tmp_path / '1')
    job.train(recipe, tmp_path / '8')
    last = list(recipe.stages)[-1]
    one, eight = (final_arrays(tmp_path / name, last) for name in ('1', '8'))
    assert_same_arrays(one, eight, rtol=2e-3, atol=3e-4)
    (kernel,) = (v for k, v in eight.items() if k.startswith('trained.classifier.') and v.ndim == 2)
    assert kernel.sharding.shard_shape(kernel.shape)[1] == 5, 'half of the ten classes'
    with pytest.raises(ConfigError, match='class_shards: got 4, wanted a divisor of the 10'):
        job.train(dataclasses.replace(recipe, class_shards=4), tmp_path / 'refused')


@pytest.mark.parametrize('method', ['balms_end_to_end', 'balms'])
def test_shares_normalised_apart_are_those_of_the_batch_and_not_of_the_classes(
    method, small_recipe, tmp_path
):
    """Eight devices of which two share the classes hold four shares, as four devices do."""
    model = dataclasses.replace(small_recipe().model, batch_norm='device')
    four = small_recipe(method, devices=4, model=model)
    job.train(four, tmp_path / '4')
    job.train(dataclasses.replace(four, devices=8, class_shards=2), tmp_path / '8')
    job.train(small_recipe(method, devices=4), tmp_path / 'global')
    last = list(four.stages)[-1]
    shares, shared, whole = (final_arrays(tmp_path / name, last) for name in ('4', '8', 'global'))
    assert_same_arrays(shares, shared, rtol=2e-3, atol=3e-4)
    assert any(np.abs(shares[name] - whole[name]).max() > 1e-2 for name in whole if 'var' in name)


def test_many_steps_in_one_call_are_the_same_steps(small_recipe, tmp_path):
    """On accelerators steps are scanned; what is trained must not depend on it."""
    for count in (1, 4):
        recipe = dataclasses.replace(small_recipe('balms_end_to_end'), steps_per_call=count)
        job.train(recipe, tmp_path / str(count))
    one, four = (final_arrays(tmp_path / name, 'stage_1') for name in ('1', '4'))
    assert_same_arrays(one, four, rtol=2e-3, atol=2e-4)
    assert len(by_kind(tmp_path / '4', 'train')) == 12


@pytest.mark.parametrize('method', ['balms', 'balms_end_to_end', 'cost_sensitive'])
def test_seeds_trained_together_end_as_each_alone(method, small_recipe, tmp_path):
    """vmap is a way to fill a device, not another training: but for rounding nothing may change."""
    recipes = [small_recipe(method, seed=seed) for seed in (0, 1)]
    together = [job.RunSpec(r, tmp_path / f'together-{r.seed}') for r in recipes]
    results = job.train_together(together)
    last = list(recipes[0].stages)[-1]
    for recipe, result in zip(recipes, results, strict=True):
        alone, ours = (tmp_path / f'{name}-{recipe.seed}' for name in ('alone', 'together'))
        job.train(recipe, alone)
        assert_same_arrays(
            final_arrays(alone, last), final_arrays(ours, last), rtol=2e-3, atol=3e-4
        )
        assert result == json.loads((ours / 'evaluation.json').read_text())
        for kind in ('train', 'rates', 'evaluation'):
            steps_taken = [
                [(line['stage'], line['step']) for line in by_kind(run, kind)]
                for run in (alone, ours)
            ]
            assert steps_taken[0] == steps_taken[1]
    assert metrics(tmp_path / 'together-0') != metrics(tmp_path / 'together-1')


def test_runs_trained_together_go_on_from_wherever_each_stands(small_recipe, tmp_path, monkeypatch):
    """One is finished, one was cut, one not begun: each ends as it would alone."""
    recipes = [small_recipe('balms', seed=seed) for seed in range(4)]
    specs = [job.RunSpec(r, tmp_path / str(r.seed)) for r in recipes]
    finished = job.train(recipes[0], specs[0].workdir)
    before = metrics(specs[0].workdir)
    noted, calls = stages._write_metrics, []

    def write_then_signal(of_runs, last, values, every):
        noted(of_runs, last, values, every)
        calls.append(len(of_runs))
        if len(calls) == 7:
            interruption.signal.raise_signal(interruption.signal.SIGTERM)

    monkeypatch.setattr(stages, '_write_metrics', write_then_signal)
    with pytest.raises(interruption.Interrupted):
        job.train_together(specs[1:3])
    assert set(calls) == {2}
    monkeypatch.setattr(stages, '_write_metrics', noted)
    results = job.train_together(specs)
    assert results[0] == finished
    assert metrics(specs[0].workdir) == before
    for spec in specs:
        taken = [(line['stage'], line['step']) for line in by_kind(spec.workdir, 'train')]
        assert taken == [(name, step) for name in ('stage_1', 'stage_2') for step in range(1, 13)]


def test_runs_that_differ_in_more_than_the_seed_are_not_trained_together(small_recipe, tmp_path):
    """One compiled step has one loss; a quiet choice of one of them would be the worst answer."""
    specs = [job.RunSpec(small_recipe(m), tmp_path / m) for m in ('softmax', 'balanced_softmax')]
    with pytest.raises(ConfigError, match=r'balanced_softmax .*stage_1\.loss\.tau'):
        job.train_together(specs)
    with pytest.raises(ConfigError, match='twice'):
        job.train_together([specs[0], specs[0]])
    assert not any(spec.workdir.exists() for spec in specs)


def test_the_first_stage_can_be_taken_over(small_recipe, tmp_path):
    """Stage 1 of a decoupled method is the softmax run; training it again would give the same."""
    job.train(small_recipe('softmax'), tmp_path / 'softmax')
    job.train(small_recipe('balms'), tmp_path / 'alone')
    job.train(small_recipe('balms'), tmp_path / 'taken', stage_1_from=tmp_path / 'softmax')
    assert_same_arrays(*(final_arrays(tmp_path / n, 'stage_2') for n in ('alone', 'taken')))
    assert metrics(tmp_path / 'alone') == metrics(tmp_path / 'taken')


def test_another_first_stage_is_not_taken_over(small_recipe, tmp_path):
    """The message names what differs; the other run stays as it was."""
    job.train(small_recipe('balanced_softmax'), tmp_path / 'other')
    before = metrics(tmp_path / 'other')
    with pytest.raises(
        records.WorkdirError, match=r'stage_1_from: .*stage_1\.loss\.tau is 1\.0 there'
    ):
        job.train(small_recipe('balms'), tmp_path / 'run', stage_1_from=tmp_path / 'other')
    with pytest.raises(records.WorkdirError, match=r'stage_1_from: .* no first stage'):
        job.train(small_recipe('balms'), tmp_path / 'run', stage_1_from=tmp_path / 'absent')
    assert not (tmp_path / 'run').exists(), 'a refused command must not claim the folder'
    assert metrics(tmp_path / 'other') == before


def test_a_work_directory_of_another_run_is_refused(small_recipe, tmp_path):
    """Two runs in one folder would overwrite each other's checkpoints."""
    job.train(small_recipe('softmax'), tmp_path)
    before = metrics(tmp_path)
    with pytest.raises(records.WorkdirError, match=r'seed is 0 there and 1 here'):
        job.train(small_recipe('softmax', seed=1), tmp_path)
    assert metrics(tmp_path) == before


def test_a_loss_that_is_not_finite_stops_the_run(small_recipe, tmp_path):
    """Going on would overwrite the last good checkpoint with NaN."""
    recipe = small_recipe('softmax', steps=40)
    optimizer = dataclasses.replace(recipe.stage_1.optimizer, learning_rate=1e20, warmup_steps=8)
    stage_1 = dataclasses.replace(recipe.stage_1, optimizer=optimizer)
    recipe = dataclasses.replace(recipe, stage_1=stage_1)
    recipe = dataclasses.replace(
        recipe, records=dataclasses.replace(recipe.records, checkpoint_every=1)
    )
    with pytest.raises(stages.NonFiniteLossError, match=r'loss is (nan|inf) at step \d+'):
        job.train(recipe, tmp_path)
    for name, value in final_arrays(tmp_path, 'stage_1').items():
        if name.startswith('trained'):
            assert np.all(np.isfinite(value)), name


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'remove'])
def test_a_damaged_checkpoint_is_refused_and_left_alone(damage, small_recipe, tmp_path):
    """Starting anew would hide the damage; overwriting would destroy what can be rescued."""
    recipe = small_recipe('softmax')
    job.train(recipe, tmp_path)
    folder = tmp_path / 'checkpoints' / 'stage_1' / '12' / 'state'
    file = max((f for f in folder.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)
    content = file.read_bytes()
    if damage == 'truncate':
        file.write_bytes(content[: len(content) // 2])
    elif damage == 'flip':
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        file.unlink()
    damaged = {f: f.read_bytes() for f in folder.rglob('*') if f.is_file()}
    with pytest.raises(checkpoints.CheckpointError, match=r'12: the checkpoint is damaged'):
        job.train(recipe, tmp_path)
    assert {f: f.read_bytes() for f in folder.rglob('*') if f.is_file()} == damaged


def test_an_unknown_network_is_refused_before_the_folder_is_claimed(small_recipe, tmp_path):
    """The corrected command must find the folder as it was."""
    recipe = small_recipe('softmax')
    model = dataclasses.replace(recipe.model, name='resnet33')
    with pytest.raises(ValueError, match=r"model\.name: got 'resnet33'"):
        job.train(dataclasses.replace(recipe, model=model), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_batch_that_devices_cannot_share_is_refused(small_recipe, tmp_path):
    """The message names the key, before any data is read."""
    with pytest.raises(ConfigError, match=r'stage_1\.batch_size: got 16, wanted a multiple of'):
        job.train(small_recipe('softmax', devices=3), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_an_unwritable_work_directory_is_named(small_recipe, tmp_path):
    """A file where the folder should be: the system's own error says which."""
    (tmp_path / 'run').write_text('not a folder')
    with pytest.raises(OSError, match='run'):
        job.train(small_recipe('softmax'), tmp_path / 'run')


def test_training_learns(small_recipe, tmp_path):
    """Far above chance (10 %) after a hundred steps, or the loop does not train at all."""
    result = job.train(small_recipe('balanced_softmax', steps=100), tmp_path)
    assert result['uniform']['top1'] > 0.5
    exponents = [line['gradient_weight_exponent'] for line in by_kind(tmp_path, 'evaluation')]
    assert abs(exponents[0]) < 0.2, 'untrained logits are nearly equal: no class weighs more'
    assert exponents[-1] < exponents[0], 'towards −1 as the loss falls'


def test_metrics_are_fetched_after_the_next_step_was_dispatched(
    small_recipe, tmp_path, monkeypatch
):
    """Fetched at once, they would make the host wait for the device at every step."""
    events = []
    compile_steps, write = steps.compile_steps, stages._write_metrics

    def compile_and_tell(*arguments, **options):
        run = compile_steps(*arguments, **options)

        def dispatch(*arguments, **options):
            events.append('dispatch')
            return run(*arguments, **options)

        return dispatch

    def write_and_tell(records, last, metrics, every):
        events.append(last)
        write(records, last, metrics, every)

    monkeypatch.setattr(steps, 'compile_steps', compile_and_tell)
    monkeypatch.setattr(stages, '_write_metrics', write_and_tell)
    job.train(small_recipe('balms_end_to_end', steps=7), tmp_path)
    # At step 5 there is a checkpoint, at 7 the end: there all is settled first.
    wanted = (
        'dispatch, dispatch, 1, dispatch, 2, dispatch, 3, dispatch, 4, 5, dispatch, dispatch, 6, 7'
    )
    assert ', '.join(map(str, events)) == wanted


def test_the_held_out_images_are_not_trained_on(small_recipe):
    """A validation image that was trained on would choose τ and T as if nothing were unseen."""
    recipe = small_recipe('tau_normalized')
    whole = load_material(small_recipe('softmax'))
    parted = load_material(recipe)
    assert sum(parted.held_out_counts) > 0
    both = np.concatenate([parted.train_images, parted.held_out_images])
    assert len(both) == len(whole.train_images)
    rows = {image.tobytes() for image in parted.train_images}
    assert not any(image.tobytes() in rows for image in parted.held_out_images)
    counts = np.add(parted.class_counts, parted.held_out_counts)
    np.testing.assert_array_equal(counts, whole.class_counts)
    assert parted.fingerprint != whole.fingerprint


def test_a_redrawn_meta_set_has_none_of_the_held_out_images(small_recipe):
    """τ and T are chosen on them, as unseen."""
    recipe = small_recipe('balms')
    meta = dataclasses.replace(recipe.stage_2.meta, source='redraw')
    material = load_material(
        dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, held_out=0.2),
            stage_2=dataclasses.replace(recipe.stage_2, meta=meta),
        )
    )
    apart = {image.tobytes() for image in material.held_out_images}
    assert len(material.meta_images) == sum(material.meta_counts)
    assert not any(image.tobytes() in apart for image in material.meta_images)


@pytest.mark.parametrize('source', ['train', 'redraw', 'held_out'])
def test_the_meta_set_is_the_one_that_was_asked_for(source, small_recipe):
    recipe = small_recipe('balms')
    meta = dataclasses.replace(recipe.stage_2.meta, source=source)
    material = load_material(
        dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, held_out=0.2 if source == 'held_out' else 0.0),
            stage_2=dataclasses.replace(recipe.stage_2, meta=meta),
        )
    )
    assert len(material.meta_images) == sum(material.meta_counts)
    if source == 'train':
        assert material.meta_images is material.train_images
    elif source == 'redraw':
        assert material.meta_counts == material.class_counts
        assert np.any(material.meta_images != material.train_images)
    else:
        assert material.meta_images is material.held_out_images


def test_another_classifier_at_test_is_recorded_with_what_was_chosen(small_recipe, tmp_path):
    """τ is one of the grid; a calibrated prediction has no larger loss where T was chosen."""
    result = job.train(small_recipe('tau_normalized'), tmp_path / 'run')
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert any(np.isclose(facts['tau_of_normalization'], post_hoc.TAUS))
    assert 0 <= facts['held_out_accuracy'] <= 1
    assert facts['held_out_examples'] > 0
    calibrated = result['calibrated']
    assert any(np.isclose(calibrated['temperature'], post_hoc.TEMPERATURES))
    assert calibrated['top1'] == result['uniform']['top1']


def test_a_trained_network_is_read_back(small_recipe, tmp_path):
    """What was evaluated at the end is what comes out of the checkpoint, averages included."""
    for method in ('balms', 'balanced_softmax_averaged'):
        result = job.train(small_recipe(method), tmp_path / method)
        recipe, material, network, current = stage_states.load_trained(tmp_path / method)
        again = measures.final_evaluation(recipe, material, network, current, None)
        assert again == result
    first = stage_states.load_trained(tmp_path / 'balms', stage='stage_1')
    assert int(first.state.step) == first.recipe.stage_1.steps
    with pytest.raises(records.WorkdirError, match=r"stage: got 'stage_2', wanted one of those"):
        stage_states.load_trained(tmp_path / 'balanced_softmax_averaged', stage='stage_2')
    with pytest.raises(records.WorkdirError, match='holds no run'):
        stage_states.load_trained(tmp_path)


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(small_recipe, tmp_path):
    """A setting that was added since had its default then; another value is another run."""
    recipe = small_recipe('softmax')
    job.train(recipe, tmp_path)
    before, config = metrics(tmp_path), json.loads((tmp_path / 'config.json').read_text())
    del config['data']['held_out'], config['stage_1']['averaging']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    job.train(recipe, tmp_path)
    assert metrics(tmp_path) == before
    (tmp_path / 'config.json').write_text(json.dumps(config))
    stage_1 = dataclasses.replace(recipe.stage_1, averaging=0.9)
    with pytest.raises(records.WorkdirError, match=r'averaging is 0\.0 there and 0\.9 here'):
        job.train(dataclasses.replace(recipe, stage_1=stage_1), tmp_path)


def test_costs_move_at_the_end_of_an_epoch_and_survive_a_cut(small_recipe, tmp_path):
    """ξ is 1 until the first epoch ends, then follows the data; a resumed run has the same."""
    recipe = small_recipe('cost_sensitive', steps=70)
    epoch = -(-sum(load_material(recipe).class_counts) // 16)
    assert epoch < 60
    recipe = dataclasses.replace(
        recipe, records=dataclasses.replace(recipe.records, checkpoint_every=epoch - 1, keep=9)
    )
    job.train(recipe, tmp_path / 'whole')
    first = tmp_path / 'whole' / 'checkpoints' / 'stage_1' / str(epoch - 1)
    arrays = final_arrays(tmp_path / 'whole', 'stage_1')
    assert np.any(arrays['psi.costs'] != 1)
    assert np.all(arrays['psi.costs'] > 0)
    assert 0 <= float(arrays['psi.error']) <= 1
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    for later in (tmp_path / 'cut' / 'checkpoints' / 'stage_1').iterdir():
        if later.name != first.name:
            shutil.rmtree(later)
    np.testing.assert_array_equal(final_arrays(tmp_path / 'cut', 'stage_1')['psi.costs'], 1)
    job.train(recipe, tmp_path / 'cut')
    assert_same_arrays(final_arrays(tmp_path / 'cut', 'stage_1'), arrays)
    assert metrics(tmp_path / 'cut') == metrics(tmp_path / 'whole')


def test_scales_are_of_the_classifier_that_they_were_learned_for(small_recipe, tmp_path):
    """Nearest means beside LWS are nearest means: the scales would bias them to some classes."""
    recipe = small_recipe('learnable_scales')
    job.train(recipe, tmp_path / 'run')
    trained = stage_states.load_trained(tmp_path / 'run')
    assert 'scales' in trained.state.params
    other = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, classifier='nearest_mean')
    )
    state, _ = post_hoc.with_test_classifier(
        other, trained.material, trained.network, trained.state
    )
    assert 'scales' not in state.params
    assert 'classifier' in state.params


def test_the_power_of_normalisation_is_chosen_as_it_is_tested(small_recipe, tmp_path):
    """With a post-hoc adjustment at test, τ is the best one beside that adjustment."""
    recipe = small_recipe('tau_normalized')
    evaluation = dataclasses.replace(recipe.evaluation, post_hoc_tau=1.0)
    recipe = dataclasses.replace(recipe, evaluation=evaluation)
    job.train(recipe, tmp_path / 'run')
    trained = stage_states.load_trained(tmp_path / 'run')
    material, network = trained.material, trained.network
    state, chosen = post_hoc.with_test_classifier(recipe, material, network, trained.state)
    extract = inputs.feature_extractor(network, state, recipe, material.source)
    features = jnp.asarray(extract(material.held_out_images))
    counts = np.asarray(material.held_out_counts)
    labels = np.repeat(np.arange(counts.size), counts)
    prior = np.log(np.asarray(material.class_counts))
    logits = np.asarray(measures.classified(network, state.params, features))
    hits = np.argmax(logits - prior, axis=-1) == labels
    accuracy = np.mean([hits[labels == j].mean() for j in range(counts.size)])
    assert chosen['held_out_accuracy'] == pytest.approx(accuracy, abs=1e-6)
