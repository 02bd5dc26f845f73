"""The profiles reproduce published data sets; the subset holds what it is asked for, no more."""

import numpy as np
import pytest

from balms_jax.data import long_tail

LABELS = np.random.default_rng(3).integers(5, size=400)


@pytest.mark.parametrize(
    ('head_count', 'num_classes', 'imbalance_factor', 'total'),
    [
        (5000, 10, 10, 20_431),
        (5000, 10, 100, 12_406),
        (5000, 10, 200, 11_203),
        (500, 100, 10, 19_573),
        (500, 100, 100, 10_847),
        (500, 100, 200, 9_502),
    ],
)
def test_exponential_profile_has_the_sizes_of_cifar_lt(
    head_count, num_classes, imbalance_factor, total
):
    counts = long_tail.exponential_profile(head_count, num_classes, imbalance_factor)
    assert counts.sum() == total


@pytest.mark.parametrize('ratio', [2, 3, 5, 7, 10])
@pytest.mark.parametrize('num_classes', [2, 4, 7, 8])
def test_exponential_profile_is_exact_where_the_counts_are_whole(ratio, num_classes):
    # Rounding down what floats put at 49.999999 would lose an example: 5^-(2/3) and the like.
    whole = 3 * ratio ** np.arange(num_classes - 1, -1, -1, dtype=np.int64)
    counts = long_tail.exponential_profile(int(whole[0]), num_classes, ratio ** (num_classes - 1))
    np.testing.assert_array_equal(counts, whole)


@pytest.mark.parametrize('name', long_tail.PROFILES)
@pytest.mark.parametrize('imbalance_factor', [1, 1.5, 10, 49, 640])
def test_every_profile_falls_from_head_count_by_the_imbalance_factor(name, imbalance_factor):
    counts = long_tail.profile(name, 640, 20, imbalance_factor)
    assert counts.dtype == np.int64
    assert counts.shape == (20,)
    assert counts[0] == 640
    assert counts[-1] == int(640 / imbalance_factor)
    assert np.all(np.diff(counts) <= 0)


@pytest.mark.parametrize('name', long_tail.PROFILES)
def test_imbalance_factor_of_one_is_balanced(name):
    np.testing.assert_array_equal(long_tail.profile(name, 7, 4, 1), [7, 7, 7, 7])


def test_a_single_class_is_all_head():
    np.testing.assert_array_equal(long_tail.exponential_profile(8, 1, 4), [8])


@pytest.mark.parametrize('tail_fraction', [0.1, 0.29, 0.5, 0.57])
def test_step_profile_has_that_fraction_of_tail_classes(tail_fraction):
    # 0.29 * 100 is 28.999999999999996.
    counts = long_tail.step_profile(90, 100, 9, tail_fraction)
    assert np.sum(counts == 10) == round(100 * tail_fraction)
    assert np.sum(counts == 90) == 100 - round(100 * tail_fraction)


def test_pareto_profile_resembles_imagenet_lt():
    # Drawn from the Pareto law of power 6, ImageNet-LT has 115,846 images, and 385 many-, 479
    # medium- and 136 few-shot classes; the law's quantiles must come within a draw's scatter.
    counts = long_tail.pareto_profile(1280, 1000, 256)
    many, few = np.sum(counts > 100), np.sum(counts < 20)
    np.testing.assert_allclose(counts.sum(), 115_846, rtol=0.1)
    np.testing.assert_allclose([many, 1000 - many - few, few], [385, 479, 136], atol=40)


def test_pareto_profile_obeys_the_pareto_law():
    # With n_max / n_min = C^(1/α) nothing is stretched, and the fraction of classes of at least
    # x n_min examples is x^-α.
    classes, power, tail_count = 10_000, 2.0, 1000
    counts = long_tail.pareto_profile(tail_count * 100, classes, classes ** (1 / power), power)
    for x in (1.5, 2.0, 5.0, 20.0):
        assert np.mean(counts >= x * tail_count) == pytest.approx(x**-power, rel=0.03)


@pytest.mark.parametrize('name', long_tail.PROFILES)
@pytest.mark.parametrize('imbalance_factor', [0.5, -1, 0, 100.5, float('nan'), float('inf')])
def test_impossible_imbalance_factor_is_refused(name, imbalance_factor):
    message = rf'imbalance_factor: got {imbalance_factor}, wanted 1 to head_count = 100'
    with pytest.raises(ValueError, match=message):
        long_tail.profile(name, 100, 10, imbalance_factor)


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('exponential', (0, 10, 1), 'head_count: got 0'),
        ('exponential', (10, 0, 1), 'num_classes: got 0'),
        ('step', (10, 4, 2, 0.0), 'tail_fraction: got 0.0'),
        ('step', (10, 4, 2, 0.05), 'tail_fraction: got 0.05'),
        ('step', (10, 4, 2, float('nan')), 'tail_fraction: got nan'),
        ('pareto', (10, 1, 2), 'num_classes: got 1'),
        ('pareto', (10, 4, 2, 0.0), 'power: got 0.0'),
        ('pareto', (10, 4, 2, float('nan')), 'power: got nan'),
    ],
)
def test_malformed_arguments_are_refused_by_name(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tail.PROFILES[name](*arguments)


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(ValueError, match="'linear', wanted one of exponential, step, pareto"):
        long_tail.profile('linear', 10, 2, 1)


def test_subset_holds_the_counts_without_repetition():
    counts = np.array([50, 0, 20, 3, 1])
    subset = long_tail.long_tailed_subset(LABELS, counts, seed=0)
    assert subset.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(LABELS[subset], minlength=5), counts)
    assert np.unique(subset).size == subset.size


def test_subset_is_sorted_by_class_then_by_position():
    subset = long_tail.long_tailed_subset(LABELS, [40, 30, 20, 10, 5], seed=1)
    np.testing.assert_array_equal(subset, subset[np.lexsort((subset, LABELS[subset]))])


def test_seed_decides_the_subset():
    counts = [20, 15, 10, 5, 2]
    first, again, other = (long_tail.long_tailed_subset(LABELS, counts, s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_smaller_profile_lies_inside_a_larger_one():
    # Imbalance factors can then be compared on nested data: less of it, never other data.
    larger = long_tail.long_tailed_subset(LABELS, [60, 50, 40, 30, 20], seed=2)
    smaller = long_tail.long_tailed_subset(LABELS, [60, 25, 0, 5, 1], seed=2)
    assert np.isin(smaller, larger).all()


def test_every_example_is_as_likely():
    labels = np.array([0, 1, 0, 0, 1, 0])
    drawn = [long_tail.long_tailed_subset(labels, [1, 0], seed)[0] for seed in range(2000)]
    # A fair draw has 500 ± 19 of each; five deviations allow a false alarm in a million.
    np.testing.assert_allclose(np.bincount(drawn)[[0, 2, 3, 5]], 500, atol=97)


def test_too_small_a_class_is_named():
    labels = np.repeat([0, 1, 2, 3], 20)
    message = (
        r"^class 3 \('cat'\) holds 20 examples, the profile asks for 50: "
        'lower head_count or raise imbalance_factor$'
    )
    with pytest.raises(ValueError, match=message):
        long_tail.long_tailed_subset(labels, [20, 20, 20, 50], 0, ['ant', 'bee', 'bat', 'cat'])
    with pytest.raises(ValueError, match=r'^class 2 holds 20 examples, .* 21:'):
        long_tail.long_tailed_subset(labels, [20, 20, 21, 1], 0)


@pytest.mark.parametrize(
    ('labels', 'counts', 'message'),
    [
        ([0, 1, 2], [1, 1], 'labels: got 0 to 2, wanted 0 to 1'),
        ([-1, 0, 1], [1, 1], 'labels: got -1 to 1, wanted 0 to 1'),
        ([0.0, 1.0], [1, 1], 'labels: got float64'),
        ([[0], [1]], [1, 1], r'labels: got int64 \(2, 1\)'),
        ([0, 1], [1, -1], 'class_counts: got'),
        ([0, 1], [0.5, 1], 'class_counts: got'),
    ],
)
def test_malformed_labels_and_counts_are_refused(labels, counts, message):
    with pytest.raises(ValueError, match=message):
        long_tail.long_tailed_subset(labels, counts, seed=0)


def test_no_seed_is_refused():
    # numpy would take None and draw another subset in every run.
    with pytest.raises(TypeError):
        long_tail.long_tailed_subset([0, 0], [1], seed=None)


@pytest.mark.parametrize('share', [0.1, 0.3])
def test_what_is_held_out_is_a_share_of_every_class(share):
    """A validation set must know the tail: at least one of each class, and never all."""
    counts = np.array([50, 11, 2])
    mask = long_tail.held_out(counts, share, seed=3)
    apart = [part.sum() for part in np.split(mask, np.cumsum(counts)[:-1])]
    assert apart == [round(50 * share), max(1, round(11 * share)), 1]
    np.testing.assert_array_equal(mask, long_tail.held_out(counts, share, seed=3))
    assert np.any(mask != long_tail.held_out(counts, share, seed=4))


@pytest.mark.parametrize(
    ('counts', 'share', 'message'),
    [
        ([5, 1], 0.1, 'class 1 holds 1 examples, of which 1 would be held out'),
        ([5, 5], 0.0, 'held_out: got 0.0, wanted a share above 0 and below 1'),
        ([5, 5], np.nan, 'held_out: got nan'),
    ],
)
def test_a_class_is_never_held_out_whole(counts, share, message):
    with pytest.raises(ValueError, match=message):
        long_tail.held_out(counts, share, seed=0)
