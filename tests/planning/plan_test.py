"""A plan by the real TPU compiler, and what can be told without it."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from balms_jax.planning import page, plan, shapes, tables, targets
from balms_jax.training import methods, recipe
from balms_jax.training.recipe import ConfigError, read
from configs import cifar_lt, digits_lt, imagenet_lt

ROOT = Path(__file__).parents[2]
WANTED = plan.Wanted()


def planned(folder, *flags):
    """A plan of a tiny network for 16 chips; a process of its own has no strict JAX."""
    if importlib.util.find_spec('libtpu') is None:
        pytest.skip("needs the TPU compiler: pip install 'balms_jax[plan]'")
    command = [sys.executable, '-m', 'balms_jax.pod_plan']
    command += ['--config', 'configs/digits_lt.py:method=balms_end_to_end']
    command += ['--config.model.width=4', '--nolargest_batch', *flags]
    command += ['--topology', 'v5e:4x4', f'--output={folder}']
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': path, 'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.returncode, done.stderr
    return json.loads((folder / 'plan.json').read_text()), folder, done.stdout


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The plain and the meta step."""
    return planned(tmp_path_factory.mktemp('plan'), '--steps=plain,meta')


def test_the_compiler_reduces_one_gradient_over_all_chips(made):
    # Were the batch not cut, or the state not replicated, there would be less or more.
    values, _, _ = made
    (target,) = values['targets']
    assert (target['chips'], target['devices']) == (16, 16)
    plain = target['steps']['plain']
    assert values['gradient_bytes'] == 4 * values['parameters']
    assert 1 <= plain['all_reduced'] / values['gradient_bytes'] < 1.2
    assert plain['flops'] > 0
    assert plain['fits']


def test_the_meta_step_keeps_to_the_goals(made):
    # The claim that a pod is worth renting for it: at most two gradients more over the links.
    (target,) = made[0]['targets']
    added = target['meta_over_plain']
    assert 0 < added['reductions'] <= plan.REDUCTIONS_GOAL
    assert 1 <= added['memory'] <= plan.MEMORY_GOAL
    assert added['flops'] > 1
    assert added['within_goals']


def test_memory_adds_up_and_the_state_is_donated(made):
    for step in made[0]['targets'][0]['steps'].values():
        memory = step['memory']
        parts = memory['arguments'] + memory['outputs'] - memory['aliased']
        assert memory['peak'] == parts + memory['temporaries'] + memory['code']
        # Without donation the state would be held twice.
        assert memory['aliased'] > 0.9 * memory['outputs']


def test_bfloat16_and_shared_classes_are_compiled_as_they_are_trained(made, tmp_path):
    # Half the classifier's gradient is a device's own, and what the backbone computes in bfloat16
    # is moved as such. The peak is bfloat16's in either case: so a TPU multiplies by default.
    flags = ('--config.model.dtype=bfloat16', '--config.class_shards=2', '--steps=plain')
    values, _, _ = planned(tmp_path, *flags)
    assert values['network'] == 'digits_net, width 4, linear classifier, bfloat16'
    whole, classifier = made[0]['gradient_bytes'], 4 * (16 * 10 + 10)
    assert values['gradient_bytes'] == whole - classifier / 2
    (target,) = values['targets']
    ours, theirs = target['steps']['plain'], made[0]['targets'][0]['steps']['plain']
    assert 0.5 * whole < ours['all_reduced'] < 0.9 * theirs['all_reduced']
    for step in (ours, theirs):
        assert step['estimate']['compute'] == pytest.approx(step['flops'] / 197e12)


def test_the_command_prints_and_writes_what_it_found(made):
    values, folder, printed = made
    assert 'v5e:4x4: 16 chips' in printed
    assert 'meta over plain' in printed
    text = (folder / 'page.html').read_text()
    assert tables.headline(values) in text
    assert '--topology v5e:4x4' in text


def test_a_program_that_goes_partly_to_a_sparse_core_is_read(tmp_path):
    # libtpu gives the evaluation's scatters to v6e's, which jaxlib 0.10 cannot read as text.
    values, _, _ = planned(tmp_path, '--topology=v6e:2x2', '--steps=evaluation')
    sparse, other = (target['steps']['evaluation'] for target in values['targets'])
    assert [target['device']['name'] for target in values['targets']] == ['v6e', 'v5e']
    assert min(other['flops'], sparse['flops']) > 0
    assert other['collectives'].keys() == sparse['collectives'].keys()


def test_local_devices_are_planned_without_figures(standard_promotion):
    # Of a CPU nothing is known but what its compiler says: no estimate, no share of HBM.
    config = read(digits_lt.get_config('method=balms'))
    values = plan.make(
        config, [targets.find('cpu')], plan.Wanted('stage_2', ('plain', 'meta', 'evaluation'))
    )
    (target,) = values['targets']
    assert target['devices'] == len(jax.devices())
    for step in target['steps'].values():
        assert step['memory']['arguments'] > 0
        assert 'estimate' not in step
    # Features are cached, so the classifier alone is reduced.
    assert target['steps']['plain']['all_reduced'] >= values['gradient_bytes']
    assert 'Plan of a pod' in page.render(values, 'command')


def test_devices_that_share_the_classes_hold_and_reduce_a_share_of_the_classifier(
    standard_promotion,
):
    # 8142 classes: the classifier is nearly all that stage 2 holds and reduces. Were the logits not
    # cut by class, it would be gathered.
    config = read(imagenet_lt.get_config('method=balms,batch_size=64'))
    stage = dataclasses.replace(
        config.stage_2, meta=dataclasses.replace(config.stage_2.meta, batch_size=64)
    )
    config = dataclasses.replace(
        config,
        stage_2=stage,
        data=dataclasses.replace(config.data, name='inaturalist18'),
        model=dataclasses.replace(config.model, width=8),
    )
    wanted = plan.Wanted('stage_2', ('plain', 'meta'))
    cpus = [targets.find('cpu')]
    whole = plan.make(config, cpus, wanted)
    cut = plan.make(dataclasses.replace(config, class_shards=2), cpus, wanted)
    assert (whole['class_shards'], cut['class_shards']) == (1, 2)
    assert cut['gradient_bytes'] == whole['gradient_bytes'] / 2
    for kind in wanted.kinds:
        alone, shared = (each['targets'][0]['steps'][kind] for each in (whole, cut))
        assert shared['memory']['arguments'] < 0.6 * alone['memory']['arguments']
        assert shared['all_reduced'] < 0.6 * alone['all_reduced']
    assert '2 of which share the classes' in page.render(cut, 'command')


def test_the_evaluation_is_cut_as_in_training(standard_promotion):
    # By example: beside parameters, labels and weights a device holds an eighth of the images.
    config = read(digits_lt.get_config('method=softmax'))
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, batch_size=8000)
    )
    made = plan.make(config, [targets.find('cpu')], plan.Wanted(kinds=('evaluation',)))
    held = made['targets'][0]['steps']['evaluation']['memory']['arguments']
    assert 8000 / 8 * 8 * 8 < held < 8000 * 8 * 8


def test_the_classes_are_shared_evenly_or_not_at_all(standard_promotion):
    config = read(digits_lt.get_config('method=softmax'))
    cpus = [targets.find('cpu')]
    for shards, message in (
        (3, 'class_shards: got 3, wanted a divisor of the 8 devices of cpu'),
        (4, 'class_shards: got 4, wanted a divisor of the 10 classes'),
        (0, 'class_shards: got 0, wanted at least 1'),
    ):
        with pytest.raises(ValueError, match=message):
            plan.make(dataclasses.replace(config, class_shards=shards), cpus, WANTED)
    # 12 examples cannot be cut over 8 devices, but over 4 pairs of them.
    stage = dataclasses.replace(config.stage_1, batch_size=12)
    config = dataclasses.replace(config, stage_1=stage, class_shards=2)
    plan.make(config, cpus, plan.Wanted(kinds=('plain',)))


def test_a_step_that_does_not_fit_is_told():
    step = {'does_not_fit': 'Ran out of memory <on> HBM'}
    memory = dict.fromkeys((*tables.MEMORY_KINDS, 'peak'), 2**20)
    other = {'memory': memory, 'flops': 1.0, 'bytes_accessed': 1.0, 'collectives': {}}
    values = {
        'method': 'balms',
        'dataset': 'imagenet_lt',
        'network': 'resnet50',
        'image': [224, 224, 3],
        'classes': 1000,
        'class_shards': 1,
        'stage': 'stage_1',
        'trains': 'all',
        'batch_size': 64,
        'meta_batch_size': 64,
        'meta_mode': 'lean',
        'parameters': 10,
        'gradient_bytes': 40,
        'versions': {'jax': '1', 'libtpu': None},
        'targets': [
            {
                'topology': 'v4:2x2x1',
                'slices': 2,
                'chips': 8,
                'devices': 16,
                'device': None,
                'steps': {'plain': other, 'meta': step},
                'meta_over_plain': plan.meta_over_plain({'plain': other, 'meta': step}, 40),
            }
        ],
    }
    assert values['targets'][0]['meta_over_plain'] is None
    assert 'the meta step does not fit 2 × v4:2x2x1' in tables.headline(values)
    assert 'Ran out of memory &lt;on&gt; HBM' in page.render(values, 'command')


@pytest.mark.parametrize(
    ('topology', 'slices', 'message'),
    [
        ('v9:4x4', 1, "topology: got 'v9:4x4', wanted one of v4, v5e, v5p, v6e"),
        ('v5e', 1, "topology: got 'v5e', wanted one of"),
        ('cpu', 2, "slices: got 2 for 'cpu', wanted 1"),
        ('v5e:4x4', 0, 'slices: got 0, wanted at least 1'),
    ],
)
def test_unknown_devices_are_refused(topology, slices, message):
    with pytest.raises(ValueError, match=message):
        targets.find(topology, slices)


def test_what_cannot_be_planned_is_refused(standard_promotion):
    config = read(digits_lt.get_config('method=softmax'))
    cpus = targets.find('cpu')
    with pytest.raises(ConfigError, match="stage: got 'stage_2', wanted one of stage_1"):
        plan.make(config, [cpus], plan.Wanted('stage_2'))
    with pytest.raises(ConfigError, match="steps: got 'both', wanted one of plain, meta"):
        plan.make(config, [cpus], plan.Wanted(kinds=('both',)))
    stage = dataclasses.replace(config.stage_1, batch_size=12)
    with pytest.raises(ConfigError, match=r'stage_1.batch_size: got 12, .* 8 devices of cpu'):
        plan.make(dataclasses.replace(config, stage_1=stage), [cpus], WANTED)
    with pytest.raises(ConfigError, match=r"data\.name: got 'lvis', wanted one of"):
        shapes.empty_material(recipe.Data('lvis'), 'train')


def test_shapes_are_those_of_the_data():
    # A plan of a data set that can be loaded must count its classes as training does.
    from balms_jax.training.material import load_material

    config = read(digits_lt.get_config(''))
    held = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=0.1))
    for each in (config, held):
        loaded, empty = load_material(each), shapes.empty_material(each.data, 'train')
        assert empty.class_counts == loaded.class_counts
        assert empty.held_out_counts == loaded.held_out_counts
        assert empty.train_images.shape[1:] == loaded.train_images.shape[1:]
    cifar = read(cifar_lt.get_config('dataset=cifar100'))
    assert len(shapes.empty_material(cifar.data, 'train').class_counts) == 100


@pytest.mark.parametrize('method', ['softmax', 'balms_end_to_end', 'balms'])
def test_imagenet_is_of_the_published_size(method):
    config = read(imagenet_lt.get_config(f'method={method}'))
    plan.check(config, WANTED)
    counts = shapes.empty_material(config.data, 'train').class_counts
    assert (counts[0], counts[-1]) == (1280, 5)
    assert sum(counts) == pytest.approx(imagenet_lt.EXAMPLES, rel=0.05)
    assert method in methods.METHODS
