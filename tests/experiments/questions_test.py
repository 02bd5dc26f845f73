"""Every question that whole runs answer ends in a page on embedded data, and its words are true."""

import json
import re
import shlex
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import (
    ablation,
    convergence_rate,
    feature_sources,
    feature_space,
    instance_or_class,
    kept,
    learned_adjustment,
    learned_rates,
    marginal_likelihood,
    meta_set,
    numbers,
    over_balance,
    whole_runs,
    with_and_without,
)

pytestmark = pytest.mark.usefixtures('standard_promotion')
QUESTIONS = {
    module.__name__.split('.')[-1]: module
    for module in (
        over_balance,
        marginal_likelihood,
        learned_rates,
        with_and_without,
        feature_sources,
        instance_or_class,
        learned_adjustment,
        meta_set,
        feature_space,
        convergence_rate,
    )
}


@pytest.fixture(scope='module')
def shared_runs(tmp_path_factory):
    """Runs that one question has trained serve the next."""
    return tmp_path_factory.mktemp('runs')


@pytest.mark.parametrize('name', list(QUESTIONS))
def test_the_smoke_scale_ends_in_a_page(name, shared_runs, tmp_path, monkeypatch):
    command = [name, '--scale', 'smoke', '--folder', str(shared_runs), '--output', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', command)
    QUESTIONS[name].main()
    page = (tmp_path / 'page.html').read_text()
    assert page.count('<figure') >= 1
    assert 'imbalance factor 40' in page
    answers = re.findall(r'class="finding">(.*?)</p>', page, re.DOTALL)
    assert answers
    for answer in answers:
        assert 'nan' not in answer
        assert re.search(r'\d', answer)


@pytest.mark.parametrize(
    ('name', 'flags', 'message'),
    [
        ('over_balance', ['--methods', 'balms'], '--methods: got none of balanced_softmax_decoup'),
        ('with_and_without', ['--methods', 'focal'], 'invalid choice'),
        ('with_and_without', ['--seeds', '0', '1', '0'], '--seeds: got 0 more than once'),
        ('with_and_without', ['--scale', 'smoke', '--datasets', 'cifar10'], 'at scale smoke'),
        ('with_and_without', ['--imbalance_factors', '10', '100'], 'wanted one data set and one'),
        ('learned_adjustment', ['--page_only'], 'holds no finished run of learned_adjustment'),
    ],
)
def test_what_has_no_answer_is_refused_before_any_work(
    name, flags, message, tmp_path, monkeypatch, capsys
):
    """A page of nothing, or of two long tails in one table, would take the place of a good one."""
    page = tmp_path / 'page.html'
    page.write_text('the page before')
    folders = ['--folder', str(tmp_path / 'runs'), '--output', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', [name, *folders, *flags])
    with pytest.raises(SystemExit) as ended:
        QUESTIONS[name].main()
    assert ended.value.code in (1, 2)
    assert message in capsys.readouterr().err
    assert page.read_text() == 'the page before'


# Others were made of runs whose records are not kept.
MADE_OF_RECORDS = [
    path.parent.name
    for path in sorted(kept.RESULTS.glob('*/rows.json'))
    if '--records' in path.read_text()
]


@pytest.mark.parametrize('name', MADE_OF_RECORDS)
def test_the_kept_page_is_made_again_from_the_kept_records(name, tmp_path, monkeypatch):
    """Whoever changes how a number is computed must make the page again, and can: without data."""
    kept_rows = json.loads((kept.RESULTS / name / 'rows.json').read_text())
    words = shlex.split(kept_rows['command'])
    asked = words[words.index('--page_only') + 1 :]  # Seeds and methods, if not all.
    records = ['--records', str(kept.RESULTS / 'runs'), '--folder', str(tmp_path / 'runs')]
    monkeypatch.setattr(
        sys, 'argv', [name, *asked, '--page_only', *records, '--output', str(tmp_path)]
    )
    (ablation if name == 'ablation' else QUESTIONS[name]).main()
    rows = json.loads((tmp_path / 'rows.json').read_text())['rows']
    assert len(rows) == len(kept_rows['rows'])
    for row, wanted in zip(rows, kept_rows['rows'], strict=True):
        for key, value in wanted.items():
            assert (
                row[key] == pytest.approx(value) if isinstance(value, float) else row[key] == value
            )


def test_a_record_without_a_measure_says_so(tmp_path, capsys):
    """It holds no network that could be measured now."""
    with pytest.raises(SystemExit):
        whole_runs.measured(SimpleNamespace(path=tmp_path), 'costs', list)
    assert 'a record holds no network' in capsys.readouterr().err


def test_over_balance_is_told_from_balance():
    """Distances are from −1, whatever the side, and paired by seed: first stages are shared."""

    def told(fixed, learned):
        both = zip((over_balance.BOTH, over_balance.LEARNED), (fixed, learned), strict=True)
        balances = {
            name: {seed: over_balance.Balance(k, 0.9) for seed, k in enumerate(values)}
            for name, values in both
        }
        return over_balance.answer(balances)

    nearer = told((-1.4, -1.3, -1.5), (-0.95, -0.98, -0.9))
    assert 'the learned sampler is 0.34 ± 0.03 nearer than class-balanced sampling' in nearer
    assert 'not told apart' not in nearer
    farther = told((-1.1, -1.3), (-0.7, -0.8))
    assert 'the learned sampler is 0.05 ± 0.15 farther' in farther
    assert 'not told apart' in farther
    assert 'one seed' in told((-1.1,), (-0.7,))


def test_the_sampler_is_also_held_against_the_loss_alone():
    """Nearer to balance than the worst choice may still be farther than with no sampler at all."""
    by_role = {over_balance.BOTH: -1.9, over_balance.LEARNED: -0.8, over_balance.LOSS: -0.95}
    answer = over_balance.answer(
        {
            name: {seed: over_balance.Balance(k + 0.01 * seed, 0.9) for seed in range(3)}
            for name, k in by_role.items()
        }
    )
    assert 'farther than the loss alone' in answer


def test_runs_that_are_not_there_are_named(tmp_path):
    """A mean of two seeds must not pass for one of the three that were asked for."""
    (tmp_path / 'cpu' / 'cifar10_100' / 'balms-0').mkdir(parents=True)
    (tmp_path / 'cpu' / 'cifar10_100' / 'balms-0' / 'evaluation.json').touch()
    options = SimpleNamespace(
        scale='cpu', datasets=['cifar10'], imbalance_factors=[100.0], methods=['balms'],
        seeds=[0, 1], folder=tmp_path, records=None,
    )  # fmt: skip
    told = whole_runs.missing(options)
    assert told == 'Asked for and not there: balms (seed 1, cifar10, imbalance factor 100).'
    options.seeds = [0]
    assert whole_runs.missing(options) == ''


def test_numbers_show_their_spread_where_there_is_one():
    assert numbers.number(0.5, 0.01, scale=100, digits=1) == '50.0 ± 1.0'
    assert numbers.number(0.5, np.nan, sign=True) == '+0.50'
    assert numbers.number(-0.001, np.nan, sign=True) == '0.00'  # Neither above nor below.
    assert numbers.number(np.nan, np.nan) == '–'


def test_a_gain_is_paired_by_seed():
    """Seeds move both methods alike: the error is that of the differences."""

    def group(*by_seed):
        runs = [SimpleNamespace(facts={'seed': s}, final={'top1': a}) for s, a in by_seed]
        return SimpleNamespace(runs=runs)

    base = group((1, 0.6), (0, 0.42), (2, 0.1))
    assert numbers.gain(group((0, 0.5), (1, 0.7), (2, 0.19)), base) == '+9.0 ± 0.6'
    # Nine standard errors of two seeds: by Student's t it takes 12.7.
    assert numbers.gain(group((0, 0.5), (1, 0.7)), base) == '+9.0 ± 1.0 (not told from 0)'
    assert numbers.gain(group((0, 0.5)), base) == '+8.0 (one seed)'
    assert numbers.gain(group((7, 0.5)), base) == '– (no seed in common)'


def test_the_rate_is_found_within_classes():
    """Gaps that go as a_j n^−1.5: harder classes are rarer here, which must not pass for a rate."""
    classes, counts = np.repeat(np.arange(4), 3), np.array([9, 90, 900, 5, 50, 500] * 2)
    level = np.array([1.0, 10.0, 100.0, 1000.0])[classes]
    gaps = convergence_rate.Gaps(classes, counts, level * counts**-1.5)
    rate = convergence_rate.rate_of(gaps)
    assert rate.value == pytest.approx(1.5)
    assert rate.low == pytest.approx(1.5)
    assert rate.high == pytest.approx(1.5)
    one_size = convergence_rate.Gaps(np.arange(4), np.full(4, 9), np.ones(4))
    assert np.isnan(convergence_rate.rate_of(one_size).value)


def test_the_best_tau_names_those_that_seeds_do_not_tell_from_it():
    """A maximum over a sweep has a name even where it is noise."""

    def runs(*top1):
        return [SimpleNamespace(facts={'seed': s}, final={'top1': a}) for s, a in enumerate(top1)]

    by_tau = {0.5: runs(0.3, 0.4, 0.2), 1.0: runs(0.6, 0.7, 0.5), 1.25: runs(0.6, 0.68, 0.51)}
    assert convergence_rate.best_tau(by_tau) == 1.0
    assert convergence_rate.not_told_from(1.0, by_tau) == [1.25]


def test_a_gap_near_zero_does_not_decide_the_rate():
    """Sampling noise can put a small gap a thousand times lower, or below 0; its log would tell."""
    classes, counts = np.repeat(np.arange(6), 3), np.tile([10, 100, 1000], 6)
    gaps = counts**-0.5
    gaps[[2, 5]] = 1e-5, -0.01
    rate = convergence_rate.rate_of(convergence_rate.Gaps(classes, counts, gaps))
    assert rate.value == pytest.approx(0.5, abs=0.05)


def test_the_interval_of_a_rate_holds_it():
    """Noise of a tenth in log gap over 20 classes: the interval is narrow, and not of width 0."""
    rng = np.random.default_rng(0)
    classes, counts = np.repeat(np.arange(20), 3), np.tile([10, 100, 1000], 20)
    gaps = np.exp(0.1 * rng.normal(size=60)) * counts**-0.5
    rate = convergence_rate.rate_of(convergence_rate.Gaps(classes, counts, gaps))
    assert rate.low < rate.value < rate.high
    assert rate.low == pytest.approx(0.5, abs=0.03)
    assert rate.high == pytest.approx(0.5, abs=0.03)


def test_neighbours_and_fishers_ratio_tell_classes_apart():
    """Two tight clusters: all neighbours are of the class; one cloud: half of them."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    noise = rng.normal(size=(100, 4))
    apart = feature_space.Space(noise * 0.01 + np.eye(4)[labels], labels)
    together = feature_space.Space(noise, labels)
    np.testing.assert_allclose(feature_space.neighbour_purity(apart), 1)
    np.testing.assert_allclose(feature_space.neighbour_purity(together), 0.5, atol=0.12)
    # Centres 1/√2 from the middle, scatter 4 · 10⁻⁴.
    np.testing.assert_allclose(feature_space.fisher_ratio(apart), 0.5 / 4e-4, rtol=0.3)
    assert feature_space.fisher_ratio(together).max() < 0.1
