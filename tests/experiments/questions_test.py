"""Every question that whole runs answer ends in a page on embedded data, and its words are true."""

import re
import sys

import numpy as np
import pytest

from experiments import (
    feature_sources,
    instance_or_class,
    learned_adjustment,
    learned_rates,
    marginal_likelihood,
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
    (answer,) = re.findall(r'class="finding">(.*?)</p>', page, re.DOTALL)
    assert 'nan' not in answer
    assert re.search(r'\d', answer)


def test_over_balance_is_told_from_balance():
    """Both distances are from −1; which is nearer must not depend on the side."""
    told = over_balance.answer(
        {'balanced_softmax_decoupled_cbs': (-1.4, 0.02), 'balms': (-0.9, 0.03)}
    )
    assert 'is nearer with the learned sampler' in told
    assert 'more than two standard deviations' in told
    other = over_balance.answer(
        {'balanced_softmax_decoupled_cbs': (-1.1, 0.2), 'balms': (-0.7, 0.3)}
    )
    assert 'is farther with the learned sampler' in other
    assert 'do not tell the two distances apart' in other


def test_numbers_show_their_spread_where_there_is_one():
    assert whole_runs.number(0.5, 0.01, scale=100, digits=1) == '50.0 ± 1.0'
    assert whole_runs.number(0.5, np.nan, sign=True) == '+0.50'
    assert whole_runs.number(np.nan, np.nan) == '–'
