"""Every image is read once, and the table is of the seeds' means."""

import numpy as np

from experiments import lvis_ablation


def test_whole_batches_hold_every_image_once():
    # A smaller last batch would compile anew: it is filled up, and the filling told apart.
    size = lvis_ablation.BATCH
    places, is_first = lvis_ablation.whole_batches(2 * size + 1)
    assert len(places) == 3 * size
    np.testing.assert_array_equal(places[is_first], np.arange(2 * size + 1))
    assert places.max() == 2 * size


def test_the_table_has_means_over_seeds_and_no_zero_for_an_empty_group():
    values = {'AP': 10.0, 'AP_r': None, 'AP_c': 1.0, 'AP_f': 1.0, 'AP_b': 1.0}
    rows = [
        {'method': method, 'seed': seed, **values, 'AP': 10.0 + 2 * seed}
        for method in lvis_ablation.METHODS
        for seed in (0, 1)
    ]
    shown = lvis_ablation.table(rows)
    cells = {str(column.header): next(column.cells) for column in shown.columns}
    assert cells['AP'] == '11.0 ± 1.4'
    assert cells['AP_r'] == 'none'
    assert cells['seeds'] == '2'
