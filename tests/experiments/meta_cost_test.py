"""Every step that is measured can be built, rows are kept, and the page says what they say."""

import dataclasses
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax.meta_gradients import MODES, CoupledExamplesError, value_and_meta_grad
from experiments import meta_cost
from experiments.costs import figures, goals, measure, page, steps
from experiments.costs.steps import (
    CACHED,
    CACHED_META,
    DECOUPLED,
    END_TO_END,
    FORWARD_DIFFERENCE,
    FROZEN_STATISTICS,
    PLAIN,
    WRITTEN_OUT,
    Drawing,
    Setting,
)

TINY = Setting(PLAIN, network='digits_net', width=2, classes=3, batch_size=4, meta_batch_size=2)
# What a made-up step takes, beside a plain step: FLOPs, memory, time.
COSTS = {
    PLAIN: (1.0, 1.0, 1.0),
    'lean': (2.99, 1.04, 2.4),
    'ghost_product': (2.33, 2.3, 2.15),
    WRITTEN_OUT: (3.66, 1.8, 3.0),
    'examples': (100.0, 500.0, 90.0),
}
USUAL = (2.66, 1.7, 2.2)
FROZEN_COSTS = {
    DECOUPLED: (2.0, 1.0, 1.9),
    CACHED_META: (1.01, 1.0, 1.02),
    CACHED: (0.001, 0.01, 0.0015),
}


def made_up_rows(plan):
    """A row for every measurement of a plan."""
    machine = {'device': 'cpu', 'platform': 'cpu', 'cores': 2, 'jax': '0.0', 'scale': 'smoke'}
    rows = [{'key': {'measure': 'machine', 'commit': 'abc'}, **machine}]
    for group in plan:
        for setting in group.settings:
            coupled = setting.step == 'ghost_product' and setting.place == END_TO_END
            key = group.key('compiled', setting)
            if coupled:
                rows.append({'key': key, 'refused': 'examples are coupled by reduce_sum'})
                continue
            flops, memory, time = COSTS.get(setting.step, USUAL)
            if isinstance(setting, Setting) and setting.step != PLAIN:
                flops, memory, time = FROZEN_COSTS.get(setting.place, (flops, memory, time))
                flops, time = flops * setting.inner_steps, time * setting.inner_steps
            size = getattr(setting, 'examples', 0) + 10 * setting.batch_size * setting.classes
            extra = 900 * (getattr(setting, 'inner_steps', 1) - 1) * (group.section == 'steps')
            compiled = {
                'flops': 1e6 * size * flops,
                'temp_bytes': 1000 * size * memory + extra,
                'parameters': 100 * (getattr(setting, 'width', 0) or 16),
                'state_bytes': 800,
                'compile_seconds': 8.0 * flops,
                'flops_ratio': flops,
                'memory_ratio': memory,
            }
            rows.append({'key': key, **compiled})
            if group.rounds:
                timed = {'time': time, 'time_quartiles': [0.95 * time, 1.1 * time]}
                timed |= {'seconds': 1e-5 * size * time, 'rounds': group.rounds}
                rows.append({'key': group.key('time', setting), **timed})
        if group.torch:
            for step, time in (('torch_plain', 1.0), ('torch_higher', 5.8)):
                key = group.key('time', dataclasses.replace(group.settings[0], step=step))
                rows.append({'key': key, 'time': time, 'seconds': 0.4 * time, 'rounds': 5})
    return rows


# Steps


@pytest.mark.parametrize('place', [END_TO_END, FROZEN_STATISTICS, DECOUPLED, CACHED_META, CACHED])
def test_every_step_can_be_built_in_every_place(place, standard_promotion):
    """Only the ghost product is refused, and only where batch norm couples the examples."""
    names = (PLAIN, *MODES, FORWARD_DIFFERENCE, WRITTEN_OUT)
    refused = []
    # To trace them takes long, and the places of a frozen backbone differ in its inputs alone.
    for step in names if place in (END_TO_END, FROZEN_STATISTICS) else (PLAIN, 'ghost_product'):
        built = steps.build(dataclasses.replace(TINY, step=step, place=place))
        try:
            after = built.lowered().out_info
        except CoupledExamplesError:
            refused.append(step)
            continue
        state, _ = built.shapes()
        shapes = jax.tree.map(lambda leaf: leaf.shape, (state.trained, after[0]))
        assert shapes[0] == shapes[1]
        assert ('backbone' in after[0]) == (place in (END_TO_END, FROZEN_STATISTICS))
    assert refused == (['ghost_product'] if place == END_TO_END else [])


@pytest.mark.parametrize('segment', [None, 0])
def test_inner_steps_can_be_built(segment, standard_promotion):
    """They are handed K batches, and leave one state."""
    setting = dataclasses.replace(TINY, step='lean', inner_steps=2, segment=segment)
    built = steps.build(setting)
    assert built.shapes()[1].inputs.shape == (2, 4, 32, 32, 3)
    trained, _, batch_stats, *_ = built.lowered().out_info
    state, _ = built.shapes()
    for before, after in ((state.trained, trained), (state.batch_stats, batch_stats)):
        shapes = jax.tree.map(lambda leaf: leaf.shape, (before, after))
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize('estimator', ['classes', 'examples'])
def test_draws_can_be_built(estimator):
    built = steps.build(Drawing(estimator, 50, classes=3, batch_size=4))
    examples, classes, psi_grad = built.lowered().out_info
    assert examples.shape == classes.shape == (4,)
    assert psi_grad.shape == (3,)


def test_the_official_order_gives_the_same_step(standard_promotion):
    """It differs in what it computes twice, and in nothing else."""

    def train_loss(w, psi, x):
        return jnp.mean(jax.nn.sigmoid(psi) * jnp.cos(w * x)), x.sum()

    def meta_loss(w, x):
        return jnp.mean((w - x) ** 2), None

    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3, 0.9))
    with jax.enable_x64(True):
        w, psi, x = jnp.array([0.3, -0.4]), jnp.array([0.1, 0.2]), jnp.array([1.0, 2.0])
        arguments = psi, w, optimizer.init(w), x, 2 * x
        ours = value_and_meta_grad(train_loss, meta_loss, optimizer)(*arguments)
        official = steps.written_out(train_loss, meta_loss, optimizer)(*arguments)
        assert np.abs(ours.psi_grad).min() > 1e-3
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours[:-1], official[:-1]
        )


def test_counts_have_the_sum_asked_for_and_an_imbalance_of_100():
    assert steps.long_tailed_counts(100)[[0, -1]].tolist() == [500, 5]
    counts = steps.long_tailed_counts(100, 1_000_000)
    assert counts.sum() == 1_000_000
    assert counts[0] / counts[-1] == pytest.approx(100, rel=0.02)
    assert steps.long_tailed_counts(100, 1000).min() == 1


# What is measured, and how it is kept


@pytest.mark.parametrize('plan', [meta_cost.full_plan, meta_cost.smoke_plan])
def test_plans_hold_every_mode_and_every_section(plan):
    groups = plan()
    assert {group.section for group in groups} >= page.SECTIONS.keys() - {'imagenet'}
    for group in groups:
        assert isinstance(group.settings[0], Drawing) or group.settings[0].step == PLAIN
        assert len(set(group.settings)) == len(group.settings)
    names = {setting.step for setting in groups[0].settings}
    assert names == {PLAIN, *MODES, FORWARD_DIFFERENCE, WRITTEN_OUT}


@pytest.fixture
def compiled(monkeypatch):
    """The names of what was compiled, by a compiler that does nothing."""
    names = []

    def compile_step(setting, quick=False):
        names.append(setting.step)
        if setting.step == 'ghost_product':
            raise CoupledExamplesError('losses: examples may be coupled by a sum (x.py); freeze it')
        size = 2**40 if setting.step == 'reverse' else 1000
        counts = {'flops': 5.0 * len(setting.step), 'temp_bytes': size}
        return lambda: jnp.zeros(()), counts

    monkeypatch.setattr(measure, 'compile_step', compile_step)
    monkeypatch.setattr(measure, 'arguments_of', lambda setting: ())
    return names


def test_a_second_call_measures_nothing_again(compiled, tmp_path):
    """Neither what is there, nor what was refused, nor what is too large to run."""
    names = (PLAIN, 'lean', 'ghost_product', 'reverse')
    group = measure.Group('end_to_end', meta_cost.each(TINY, names), rounds=3)
    for _ in range(2):
        measure.measure(group, measure.Ledger(tmp_path / 'rows.jsonl'))
    assert compiled == list(names)
    plain, lean, ghost, reverse = goals.records_of(measure.Ledger(tmp_path / 'rows.jsonl').rows)
    assert plain['time'] == plain['flops_ratio'] == 1
    assert lean['flops_ratio'] == 4 / 5
    assert lean['rounds'] == 3
    assert ghost['refused'] == 'examples are coupled by a sum (x.py)'
    assert 'time' not in reverse


def test_what_was_cut_off_is_measured_again(compiled, tmp_path):
    """The counts that are there stay; times are only of steps that ran beside each other."""
    group = measure.Group('end_to_end', meta_cost.each(TINY, (PLAIN, 'lean')), rounds=2)
    file = tmp_path / 'rows.jsonl'
    measure.measure(group, measure.Ledger(file))
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    file.write_text(''.join(lines[:3]) + lines[3][:20])
    measure.measure(group, measure.Ledger(file))
    assert compiled == [PLAIN, 'lean', PLAIN, 'lean']
    keys = [row['key'] for row in measure.Ledger(file).rows]
    assert keys == [json.loads(line)['key'] for line in lines]


def test_rounds_go_both_ways():
    order = []

    def run(name):
        return lambda: float(order.append(name) or len(order))

    runs = {name: run(name) for name in 'abc'}
    assert measure.interleaved(runs, 2) == {'a': [1, 6], 'b': [2, 5], 'c': [3, 4]}
    assert ''.join(order) == 'abccba'


# The page


@pytest.fixture(scope='module')
def rows():
    return made_up_rows(meta_cost.full_plan())


def test_goals_judge_the_worst_row(rows):
    judged = goals.goals_of(goals.records_of(rows))
    by_what = {(goal.what, goal.column): goal for goal in judged}
    fast = by_what['Fast modes, end to end', 'FLOPs']
    assert (fast.verdict, len(fast.measured)) == ('met', 6)  # three modes, two batch sizes
    assert by_what['K = 16 inner steps, against K = 1', 'memory'].verdict == 'met'
    growth = by_what['One inner step more, against θ and its state', 'memory']
    assert growth.worst[1] == pytest.approx(900 / 800)
    # No time was taken at 224.
    assert by_what['Lean mode, ResNet-50 at 224', 'FLOPs'].verdict == 'met'
    for row in rows:
        if row['key'].get('step') == 'reverse' and row['key'].get('batch_size') == 512:
            missed = {**row, 'flops_ratio': 2.7}
    (goal, *_) = goals.goals_of(goals.records_of([*rows, missed]))
    assert (goal.verdict, goal.worst) == ('missed', ('reverse, batch 512', 2.7))


def test_goals_without_rows_are_not_measured(rows):
    judged = goals.goals_of(goals.records_of(rows[:1]))
    assert {goal.verdict for goal in judged} == {'not measured'}


def test_a_rarer_meta_step_is_computed_and_says_so(rows):
    records = goals.records_of(rows)
    (record, *_) = goals.select(records, 'end_to_end', goals.EVERY_FOURTH)
    assert record['computed']
    assert record['flops_ratio'] == pytest.approx((3 + 2.66) / 4)
    assert record['time'] == pytest.approx((3 + 2.2) / 4)


def test_page_says_what_the_rows_say(rows, tmp_path):
    page.write(rows, tmp_path)
    written = (tmp_path / 'page.html').read_text()
    for text in ('2.66 times the FLOPs', '2.2 times the time', '✓ met', 'computed'):
        assert text in written
    assert 'refused: examples are coupled by reduce_sum' in written
    assert written.count('<img') == len(figures.FIGURES)
    assert 'nan' not in re.sub(r'base64,[^"]*', '', written).lower()
    kept = json.loads((tmp_path / 'figures.json').read_text())
    assert kept['facts']['commits'] == ['abc']
    verdicts = {goal['verdict'] for goal in kept['goals']}
    assert verdicts == {'met'}
    # Every figure names what it shows, and all tables are there.
    assert written.count('<summary>') == len(page.SECTIONS)


def test_page_of_what_is_there_so_far(rows, tmp_path):
    """Cut off anywhere, the rows make a page."""
    for count in (2, 3, 40):
        page.write(list(itertools.islice(rows, count)), tmp_path)
        assert 'How it was measured' in (tmp_path / 'page.html').read_text()
