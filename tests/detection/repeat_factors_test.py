"""Images with rare categories are drawn more often, by the published factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balms_jax.detection import repeat_factors

# Categories of a fifth, 1 in 4,000 and 1 in 1,000 of the images.
FRACTIONS = [0.2, 0.00025, 0.001]
IMAGES = [[0], [0, 1, 1], [2], [2, 1], []]


def test_factors_by_hand():
    # √(0.001 / 0.00025) = 2; at the threshold and above it nothing is repeated.
    factors = repeat_factors.repeat_factors(IMAGES, FRACTIONS)
    np.testing.assert_allclose(factors, [1, 2, 1, 2, 1])
    # Of a threshold above all fractions the square root shows in each.
    factors = repeat_factors.repeat_factors(IMAGES, FRACTIONS, threshold=0.8)
    np.testing.assert_allclose(factors, np.sqrt([4, 3200, 800, 3200, 1]))


def test_meta_factors_by_hand():
    factors = repeat_factors.meta_repeat_factors(IMAGES, FRACTIONS)
    np.testing.assert_allclose(factors, [5, 4000, 1000, 4000, 1])


def test_an_epoch_repeats_by_the_factor_in_expectation():
    # Whole parts are kept in every epoch; the rest comes as often as it says, in 2,000 epochs
    # within four standard errors of √(0.25 · 0.75 / 2,000).
    random, factors = np.random.default_rng(0), np.array([1.0, 2.25, 0.0])
    times = np.array(
        [np.bincount(repeat_factors.repeated(random, factors), minlength=3) for _ in range(2_000)]
    )
    assert set(times[:, 0]) == {1}
    assert set(times[:, 1]) == {2, 3}
    assert set(times[:, 2]) == {0}
    assert times[:, 1].mean() == pytest.approx(2.25, abs=4 * 0.0097)


def test_an_epoch_is_shuffled():
    order = repeat_factors.repeated(np.random.default_rng(0), np.ones(50))
    assert order.tolist() != sorted(order.tolist())
    assert sorted(order.tolist()) == list(range(50))


def test_draws_are_as_often_as_repeated():
    # 1 : 3 : 0 of 4,000, within four standard errors of √(0.25 · 0.75 / 4,000).
    drawn = repeat_factors.draw_images(jax.random.key(0), jnp.array([1.0, 3.0, 0.0]), 4_000)
    shares = np.bincount(drawn, minlength=3) / 4_000
    np.testing.assert_allclose(shares, [0.25, 0.75, 0], atol=4 * 0.0069)
    assert shares[2] == 0


@pytest.mark.parametrize(
    ('call', 'named'),
    [
        (lambda: repeat_factors.repeat_factors(IMAGES, FRACTIONS, 0.0), 'threshold: got 0.0'),
        (lambda: repeat_factors.repeat_factors([[3]], FRACTIONS), r'got \[3\] of image 0'),
        (lambda: repeat_factors.repeat_factors([[0], [-1]], FRACTIONS), r'got \[-1\] of image 1'),
        # A fraction of 0 beside an image that holds the category: of another data set.
        (lambda: repeat_factors.meta_repeat_factors([[0]], [0.0]), 'image fractions above 0'),
        (lambda: repeat_factors.meta_repeat_factors([[0]], [7.0]), 'image_fractions: got 7.0'),
        (
            lambda: repeat_factors.repeated(np.random.default_rng(0), np.array([-1.0])),
            'factors: got -1.0',
        ),
    ],
)
def test_refusals_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@given(seed=st.integers(0, 99), size=st.integers(1, 7), first=st.integers(0, 30))
def test_steps_are_the_same_whichever_is_asked_for_first(seed, size, first):
    # A resumed run asks for its own step first, and must get what the undisturbed one got.
    factors = np.array([1.0, 2.5, 1.0])
    in_order = repeat_factors.epochs_of_repeats(seed, factors, size)
    every = [in_order(step) for step in range(first + 1)]
    anew = repeat_factors.epochs_of_repeats(seed, factors, size)
    np.testing.assert_array_equal(anew(first), every[first])


def test_every_epoch_repeats_images_as_its_factors_say():
    # Whole factors leave nothing to chance: every epoch has image 1 three times.
    draws = repeat_factors.epochs_of_repeats(0, np.array([1.0, 3.0]), 3)
    every = np.concatenate([draws(step) for step in range(8)])
    for epoch in every.reshape(-1, 4):
        assert sorted(epoch.tolist()) == [0, 1, 1, 1]


def test_independent_draws_have_the_shares_of_the_factors():
    # χ² of 20,000 draws against r / Σ r, with two degrees of freedom.
    factors = np.array([1.0, 2.0, 7.0])
    draws = repeat_factors.independent_draws(0, factors, 2_000)
    counts = np.bincount(np.concatenate([draws(step) for step in range(10)]), minlength=3)
    expected = 20_000 * factors / factors.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # p = 0.001


def test_factors_that_draw_nothing_are_refused():
    with pytest.raises(ValueError, match='factors: got a largest one of 0'):
        repeat_factors.epochs_of_repeats(0, np.zeros(3), 2)
