"""Counts, log priors, shot groups and class weights by hand, of any type and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import priors

COUNTS = np.array([500, 40, 7, 1])


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'int16', 'int32', 'uint32', 'int64', 'uint64'])
@pytest.mark.parametrize('wide', [False, True])
def test_class_counts_of_any_integer_type(dtype, wide):
    # 200 classes do not fit an int8, though these labels do.
    labels = np.array([0, 127, 3, 127, 0, 127], dtype)
    with jax.enable_x64(wide):
        counts = priors.class_counts(labels, 200)
        assert counts.dtype == jnp.int32
        np.testing.assert_array_equal(counts, np.bincount(labels.astype(int), minlength=200))
        traced = jax.jit(priors.class_counts, static_argnums=1)(labels, 200)
        np.testing.assert_array_equal(traced, counts)


@pytest.mark.parametrize('dtype', ['int8', 'int32'])
def test_traced_labels_out_of_range_are_left_out(dtype):
    # Padding is −1 by habit: it must not be taken for the first class, nor wrap around to the last.
    labels = np.array([-1, 0, 2, -1, 3, -128], dtype)
    counts = jax.jit(priors.class_counts, static_argnums=1)(labels, 3)
    np.testing.assert_array_equal(counts, [1, 0, 1])


def test_no_labels_are_no_examples():
    np.testing.assert_array_equal(priors.class_counts(np.zeros(0, int), 3), [0, 0, 0])


@pytest.mark.parametrize(
    ('labels', 'num_classes', 'message'),
    [
        ([0.0, 1.0], 2, 'labels: got float32, wanted integers'),
        ([0, 2], 2, 'labels: got values from 0 to 2, wanted 0 to 1'),
        ([-1, 1], 2, 'labels: got values from -1 to 1'),
        ([0], 0, 'num_classes: got 0'),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        priors.class_counts(jnp.array(labels), num_classes)


def test_log_prior_by_hand():
    np.testing.assert_allclose(
        priors.log_prior([6, 3, 0, 1]), [np.log(0.6), np.log(0.3), -np.inf, np.log(0.1)], rtol=1e-6
    )


@pytest.mark.parametrize(
    'dtype',
    ['int16', 'uint16', 'int32', 'int64', 'float16', 'bfloat16', 'float32', 'float64'],
)
def test_log_prior_of_any_type_is_of_the_default_float_type(dtype):
    expected = np.log(np.array([512, 40, 7, 1]) / 560)
    counts = np.array([512, 40, 7, 1]).astype(jnp.dtype(dtype))
    for given in (counts, jnp.asarray(counts)):
        log_prior = priors.log_prior(given)
        assert log_prior.dtype == jnp.float32
        np.testing.assert_allclose(log_prior, expected, rtol=1e-5)
    with jax.enable_x64(True):
        log_prior = priors.log_prior(counts)
        assert log_prior.dtype == jnp.float64
        np.testing.assert_allclose(log_prior, expected, rtol=1e-12)


@pytest.mark.parametrize('scale', [1, 1000, 1e-30, 1e35, 1 / 548])
def test_only_ratios_of_counts_matter(scale):
    # Their sum in float32 would overflow at the largest scale.
    scaled = (COUNTS * np.float64(scale)).astype(np.float32)
    np.testing.assert_allclose(priors.log_prior(scaled), np.log(COUNTS / 548), rtol=1e-5)


@pytest.mark.parametrize('counts', [[5_000_000_000, 5_000_000_000], [2**40, 2**40]])
def test_counts_beyond_int32_do_not_wrap_around(counts):
    np.testing.assert_allclose(priors.log_prior(np.array(counts)), [-np.log(2)] * 2, rtol=1e-6)


def test_sixteen_bit_counts_do_not_overflow_in_their_sum():
    counts = np.array([60_000, 60_000], np.float16)
    np.testing.assert_allclose(priors.log_prior(counts), [-np.log(2)] * 2, rtol=1e-6)


def test_a_log_prior_for_every_example():
    batch = np.stack([COUNTS, COUNTS[::-1]])
    log_priors = priors.log_prior(batch)
    np.testing.assert_allclose(log_priors[0], priors.log_prior(COUNTS), rtol=1e-5)
    np.testing.assert_allclose(log_priors[1], priors.log_prior(COUNTS)[::-1], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(priors.log_prior)(batch), log_priors, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_priors).sum(-1), 1, rtol=1e-6)


BAD_COUNTS = [
    ([5, -1], 'class_counts: got -1'),
    ([5.0, np.nan], 'class_counts: got nan'),
    ([5.0, np.inf], 'class_counts: got inf'),
    ([], r'class_counts: got shape \(0,\)'),
    (3, r'class_counts: got shape \(\)'),
    ([0, 0], 'class_counts: got only empty classes'),
    ([[1, 2], [0, 0]], 'class_counts: got only empty classes'),
]


@pytest.mark.parametrize(('counts', 'message'), BAD_COUNTS)
def test_counts_that_are_no_counts_are_refused(counts, message):
    for function in (
        priors.log_prior,
        priors.check_counts,
        priors.check_no_empty_class,
        priors.check_whole_counts,
    ):
        with pytest.raises(ValueError, match=message):
            function(np.array(counts))
    with pytest.raises(ValueError, match=r'^meta_counts: got'):
        priors.check_counts(np.array(counts), name='meta_counts')


def test_an_empty_class_is_named():
    priors.check_no_empty_class(np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match='class_counts: got 0 for class 1, wanted an example of'):
        priors.check_no_empty_class(np.array([5, 0, 2, 0]))
    with pytest.raises(ValueError, match=r'^meta_counts: got 0 for class 2'):
        priors.check_no_empty_class(np.array([[1, 1, 1], [3, 2, 0]]), name='meta_counts')
    # Counts that are traced are not known, and pass.
    jax.jit(priors.check_no_empty_class)(np.array([5, 0]))


def test_fractions_are_no_whole_counts():
    priors.check_whole_counts(np.array([2.0, 0.0]))
    with pytest.raises(ValueError, match=r'class_counts: got 0\.5, wanted whole'):
        priors.check_whole_counts(np.array([1.0, 0.5]))


def test_shot_groups_at_their_borders():
    groups = priors.shot_groups([101, 100, 20, 19, 0])
    np.testing.assert_array_equal(groups.many, [True, False, False, False, False])
    np.testing.assert_array_equal(groups.medium, [False, True, True, False, False])
    np.testing.assert_array_equal(groups.few, [False, False, False, True, True])


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'int32', 'int64', 'float32'])
@pytest.mark.parametrize(('many', 'few'), [(100, 20), (1000, 500), (50.5, 2.5), (3, 3)])
def test_every_class_is_in_one_shot_group(dtype, many, few):
    # A border of 1000 does not fit an int8.
    counts = np.array([0, 1, 3, 20, 100, 127], dtype)
    groups = priors.shot_groups(counts, many, few)
    np.testing.assert_array_equal(np.sum(groups, axis=0), 1)
    np.testing.assert_array_equal(groups.many, counts.astype(float) > many)
    np.testing.assert_array_equal(groups.few, counts.astype(float) < few)


def test_shot_groups_refuse_borders_in_the_wrong_order():
    with pytest.raises(ValueError, match='few: got 30, wanted at most many = 20'):
        priors.shot_groups([1, 2], many=20, few=30)
    with pytest.raises(ValueError, match='class_counts: got -1'):
        priors.shot_groups([-1, 2])


# Class weights


def test_inverse_frequency_weights_by_hand():
    # 1/n = (1/4, 1/2, 1), of sum 7/4, scaled to 3; the empty class does not count.
    weights = priors.inverse_frequency_weights([4, 2, 0, 1])
    np.testing.assert_allclose(weights, np.array([1 / 4, 1 / 2, 0, 1]) * 12 / 7, rtol=1e-6)


@pytest.mark.parametrize('scale', [1, 1e-30, 1e35])
def test_inverse_frequency_weights_need_only_ratios_of_counts(scale):
    scaled = (COUNTS * np.float64(scale)).astype(np.float32)
    expected = (1 / COUNTS) / (1 / COUNTS).sum() * 4
    np.testing.assert_allclose(priors.inverse_frequency_weights(scaled), expected, rtol=1e-5)


def test_inverse_frequency_weighs_every_class_alike_in_sum():
    weighed = priors.inverse_frequency_weights(COUNTS) * COUNTS.astype(np.float32)
    np.testing.assert_allclose(weighed, weighed[0], rtol=1e-5)


def test_class_balanced_weights_by_hand():
    # Effective numbers (1 − 1/2ⁿ) / (1 − 1/2): 7/4, 3/2 and 1.
    weights = priors.class_balanced_weights([3, 2, 0, 1], beta=0.5)
    expected = np.array([4 / 7, 2 / 3, 0, 1])
    np.testing.assert_allclose(weights, 3 * expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize('counts', [COUNTS, [5000, 4500, 50, 5], [10**7, 10**4, 1, 0]])
@pytest.mark.parametrize('beta', [0.9, 0.9999, 0.999999])
def test_class_balanced_weights_are_those_of_float64(counts, beta):
    counts = np.array(counts, np.float64)
    expected = np.where(counts > 0, (1 - beta) / (1 - beta ** np.maximum(counts, 1)), 0)
    expected *= np.sum(counts > 0) / expected.sum()
    np.testing.assert_allclose(priors.class_balanced_weights(counts, beta), expected, rtol=1e-5)


@pytest.mark.parametrize('beta', [0.0, 1e-30])
def test_beta_0_weighs_every_class_alike(beta):
    # Every example beyond the first of a class adds nothing to it.
    np.testing.assert_allclose(priors.class_balanced_weights(COUNTS, beta), 1, rtol=1e-6)
    np.testing.assert_allclose(priors.class_balanced_weights([5, 0, 1], beta), [1, 0, 1])


@pytest.mark.parametrize('beta', [1 - 1e-9, 1 - 1e-15, 1.0])
def test_beta_1_is_inverse_frequency(beta):
    # Every example counts. In float32, 1 − βⁿ would be 0 / 0.
    np.testing.assert_allclose(
        priors.class_balanced_weights(COUNTS, beta),
        priors.inverse_frequency_weights(COUNTS),
        rtol=1e-5,
    )


@pytest.mark.parametrize('weigh', [priors.inverse_frequency_weights, priors.class_balanced_weights])
def test_weights_of_the_classes_have_mean_1(weigh):
    batch = np.stack([COUNTS, COUNTS[::-1], np.array([1, 0, 0, 3])])
    weights = weigh(batch)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), [4, 4, 2], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(weigh)(batch), weights, rtol=1e-6)


def test_class_balanced_weights_refuse_proportions_and_other_betas():
    # n is an exponent: a proportion would pass for less than one example.
    with pytest.raises(ValueError, match=r'class_counts: got 0\.9, wanted whole'):
        priors.class_balanced_weights(np.array([0.9, 0.1]))
    for beta in (-0.1, 1.5, float('nan')):
        with pytest.raises(ValueError, match=f'beta: got {beta}, wanted a number in 0'):
            priors.class_balanced_weights(COUNTS, beta)


def test_equalized_classes_are_below_the_threshold():
    # The share of class 1 is just λ = 0.005, which is not below it.
    np.testing.assert_array_equal(
        priors.equalized_classes([990, 5, 4, 1, 0], 0.005), [False, False, True, True, True]
    )
    np.testing.assert_array_equal(priors.equalized_classes(COUNTS, 0.0), [False] * 4)
    traced = jax.jit(priors.equalized_classes)(COUNTS / 548, 0.05)
    np.testing.assert_array_equal(traced, [False, False, True, True])


@pytest.mark.parametrize('threshold', [-0.1, 1.1, float('nan')])
def test_equalized_classes_refuse_what_is_no_share(threshold):
    with pytest.raises(ValueError, match=f'threshold: got {threshold}, wanted a share'):
        priors.equalized_classes(COUNTS, threshold)


def test_class_dependent_temperatures_by_hand():
    # (n_max / n)^γ: 1, 100^½, 400^½.
    temperatures = priors.class_dependent_temperatures([400, 4, 1], 0.5)
    np.testing.assert_allclose(temperatures, [1, 10, 20], rtol=1e-5)
    np.testing.assert_array_equal(priors.class_dependent_temperatures(COUNTS, 0.0), 1)
    traced = jax.jit(priors.class_dependent_temperatures)(COUNTS / 548, 0.3)
    np.testing.assert_allclose(traced, (500 / COUNTS) ** 0.3, rtol=1e-5)


def test_an_empty_class_has_no_temperature():
    with pytest.raises(ValueError, match='class_counts: got 0 for class 2, wanted an example'):
        priors.class_dependent_temperatures([5, 1, 0], 0.3)


@pytest.mark.parametrize(('counts', 'message'), BAD_COUNTS)
def test_weights_of_what_is_no_count_are_refused(counts, message):
    counts = np.array(counts)
    for function in (
        priors.inverse_frequency_weights,
        priors.class_balanced_weights,
        lambda counts: priors.equalized_classes(counts, 0.1),
        lambda counts: priors.class_dependent_temperatures(counts, 0.1),
    ):
        with pytest.raises(ValueError, match=message):
            function(counts)
