"""Rows beside the published ones: what is compared, what is an ordering, and a page that opens."""

import json
import math
import sys
from pathlib import Path

import pytest

from balms_jax.training.methods import METHODS
from configs import digits_lt
from experiments import ablation, ablation_page, published
from experiments.ablation_page import Row

pytestmark = pytest.mark.usefixtures('standard_promotion')


def row(method, *by_seed):
    n, mean = len(by_seed), sum(by_seed) / len(by_seed)
    variance = sum((value - mean) ** 2 for value in by_seed) / (n - 1) if n > 1 else math.nan
    return Row(
        'cifar10',
        100,
        method,
        tuple(range(n)),
        mean,
        math.sqrt(variance),
        by_seed,
        published.of(method, 'cifar10', 100),
        {'recipe': 'short', 'network': 'resnet8', 'parameter_count': 78_000, 'meta_set': None},
    )


def test_every_published_row_is_a_method():
    """A renamed method would lose its published figure in silence."""
    assert set(published.METHODS) <= set(METHODS)
    for method in published.METHODS:
        for dataset in published.DATASETS:
            for factor in published.IMBALANCE_FACTORS:
                assert 30 < published.of(method, dataset, factor).top1 < 95
    assert published.of('softmax', 'digits', 100) is None
    assert published.of('softmax', 'cifar10', 40) is None
    assert published.of('balms_end_to_end', 'cifar10', 100) is None


def test_an_orderings_verdict_goes_by_paired_differences():
    """Seeds that move both methods alike must not hide a difference; noise must not make one."""
    high, low = row('balanced_softmax', 60.0, 70.0, 80.0), row('softmax', 50.0, 60.1, 69.9)
    (ordering,) = ablation_page.orderings_of([high, low])
    assert (ordering.above, ordering.below) == ('balanced_softmax', 'softmax')
    assert ordering.here == pytest.approx(10.0)
    assert ordering.differences == pytest.approx((10.0, 9.9, 10.1))
    assert ordering.verdict == 'holds'
    turned = row('balanced_softmax', 40.0, 50.0, 60.0), low
    assert ablation_page.orderings_of(turned)[0].verdict == 'reversed'
    noisy = row('balanced_softmax', 40.0, 70.0, 80.0), low
    assert ablation_page.orderings_of(noisy)[0].verdict == 'not told apart'
    one_seed = row('balanced_softmax', 60.0), row('softmax', 50.0)
    assert ablation_page.orderings_of(one_seed)[0].verdict == 'as published by one seed'


def test_a_row_is_first_only_where_seeds_say_so():
    """The highest of close means has a name, and is not the winner."""
    rows = [row('balms', 60.0, 71.0, 80.2), row('softmax', 50.0, 60.1, 69.9)]
    close = row('meta_reweighter', 60.1, 70.7, 80.1)
    assert 'do not tell' not in ablation_page.page(rows)
    assert 'tell it from Balanced Softmax + Meta Reweighter.' in ablation_page.page([*rows, close])


def test_an_ordering_is_judged_by_the_seeds_that_both_have():
    """A seed that one row lacks must not take the ordering out of the count."""
    high, low = row('balanced_softmax', 60.0, 70.0, 80.0), row('softmax', 50.0, 60.1)
    (ordering,) = ablation_page.orderings_of([high, low])
    assert ordering.differences == pytest.approx((10.0, 9.9))


def test_the_difference_from_the_published_mean_has_both_spreads():
    """√(s² / n + s'² / 3), with the 0.4 of the table's row."""
    ours = row('balanced_softmax', 82.0, 83.0, 84.0)
    assert ours.error == pytest.approx(math.sqrt(1 / 3 + 0.4**2 / 3))
    assert math.isnan(row('focal', 77.0, 78.0).error)  # Its table gives no spread.


def test_the_page_tells_rows_and_verdicts():
    """It is what a person opens: it must name the winner and what was not reproduced."""
    rows = [row('balanced_softmax', 60.0, 61.0), row('softmax', 70.0, 71.0), row('focal', 55.0)]
    page = ablation_page.page(rows)
    assert 'Seeds do not tell it' not in page
    assert 'Softmax is first here, with 70.5 %' in page
    assert 'Balanced Softmax is −10.0 points from softmax' in page
    assert 'reversed: 1' in page
    assert page.count('<figure') == 1


def test_the_page_says_why_an_ordering_is_not_the_papers():
    """Only where the network is seen not to fit: otherwise there is nothing that explains it."""
    rows = [row('balanced_softmax', 60.0, 61.0), row('softmax', 70.0, 71.0)]
    for loss, told in ((0.7, True), (0.01, False), (math.nan, False)):
        of_loss = [each._replace(train_loss=loss) for each in rows]
        assert ('does not fit its training set' in ablation_page.page(of_loss)) == told
    as_published = [row('balanced_softmax', 70.0, 71.0), row('softmax', 60.0, 61.0)]
    assert 'Why not all' not in ablation_page.page(
        [r._replace(train_loss=0.7) for r in as_published]
    )


def test_the_smoke_scale_ends_in_a_page(tmp_path, monkeypatch):
    """The whole way on embedded data; neither a second call nor one elsewhere trains again."""

    def call(place, *flags):
        command = ['ablation', '--scale', 'smoke', '--methods', 'softmax', 'balms']
        folders = ['--folder', str(tmp_path / place), '--records', str(tmp_path / 'records')]
        monkeypatch.setattr(sys, 'argv', [*command, *folders, '--output', str(tmp_path / 'out')])
        ablation.main()
        return (tmp_path / 'out' / 'rows.json').read_text()

    first = json.loads(call('runs'))
    assert [row['method'] for row in first['rows']] == ['softmax', 'balms']
    assert all(row['top1'] > 20 for row in first['rows'])
    place = Path('smoke', 'digits_40', 'balms-0')
    finished = tmp_path / 'runs' / place / 'evaluation.json'
    before = finished.stat().st_mtime_ns
    call('runs')
    assert finished.stat().st_mtime_ns == before
    # Another machine has the records alone: the same rows, and nothing to train from.
    assert json.loads(call('elsewhere')) == first
    assert not (tmp_path / 'elsewhere').exists()
    assert not (tmp_path / 'records' / place / 'checkpoints').exists()


def test_a_record_of_another_recipe_is_refused(tmp_path, monkeypatch, capsys):
    """Rows of other settings under the same name would pass for those that were asked for."""
    record = tmp_path / 'records' / 'smoke' / 'digits_40' / 'softmax-0'
    record.mkdir(parents=True)
    config = digits_lt.get_config('method=softmax,imbalance_factor=40')
    config.stage_1.steps = 7
    (record / 'config.json').write_text(json.dumps(config.to_dict()))
    command = ['ablation', '--scale', 'smoke', '--methods', 'softmax']
    folders = ['--folder', str(tmp_path / 'runs'), '--records', str(tmp_path / 'records')]
    monkeypatch.setattr(sys, 'argv', [*command, *folders])
    with pytest.raises(SystemExit):
        ablation.main()
    assert 'steps' in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()
