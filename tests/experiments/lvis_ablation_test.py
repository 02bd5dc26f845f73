"""Methods are compared seed by seed, and a group without categories is never 0."""

import pytest

from experiments import lvis_ablation


def masks(**values):
    return {'masks': {'AP': 0.1, 'AP_r': None, 'AP_c': 0.1, 'AP_f': 0.1} | values}


def test_differences_are_paired_by_seed():
    # What a seed's first stage does to all methods alike must not count as noise between them.
    results = {
        'sigmoid_decoupled-0': masks(AP=0.10),
        'sigmoid_decoupled-1': masks(AP=0.30),
        'balanced_sigmoid_decoupled-0': masks(AP=0.12),
        'balanced_sigmoid_decoupled-1': masks(AP=0.32),
        'balanced_sigmoid_decoupled-2': masks(AP=0.90),  # Has nothing to stand beside.
    }
    (row,) = lvis_ablation.differences(results)
    assert (row['method'], row['seeds']) == ('balanced_sigmoid_decoupled', [0, 1])
    assert row['AP']['mean'] == pytest.approx(2.0)
    assert row['AP']['error'] == pytest.approx(0.0, abs=1e-9)
    assert row['AP_r'] == {'mean': None, 'error': None}


def test_the_table_shows_standard_errors_and_says_none():
    results = {
        f'{method}-{seed}': masks(AP=0.1 + gain * seed)
        for method, gain in {'sigmoid': 0.0, 'balms': 0.02}.items()
        for seed in (0, 1)
    }
    shown = lvis_ablation.table(lvis_ablation.differences(results))
    cells = {str(column.header): next(column.cells) for column in shown.columns}
    assert cells['AP'] == '+1.0 ± 1.0'
    assert cells['AP_r'] == 'none'
    assert cells['seeds'] == '2'


@pytest.mark.parametrize('method', lvis_ablation.METHODS)
def test_every_method_has_a_config_of_every_scale(method):
    from balms_jax.detection_training import checks

    for scale in ('smoke', 'cpu', 'paper'):
        recipe = checks.from_config(lvis_ablation.config(scale, method, '', ''))
        # LVIS has too many regions to keep; on scenes fresh ones are a row of their own.
        fresh = method == lvis_ablation.FRESH or scale == 'paper'
        assert (recipe.stage_2.regions == 'fresh') == fresh
