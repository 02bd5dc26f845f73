"""Draws have the probabilities that they are given, and systematic ones hardly any spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import sampling

COUNTS = np.array([60, 25, 10, 5])
PROBABILITIES = np.array([0.0, 0.43, 0.0, 0.31, 0.16, 0.07, 0.03, 0.0])


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_draws_have_their_probabilities(power, assert_drawn_by):
    probabilities = sampling.class_probabilities(np.append(COUNTS, 0), power)
    drawn = sampling.draw_classes(jax.random.key(0), probabilities, 20_000)
    assert drawn.dtype == jnp.int32
    assert_drawn_by(probabilities, drawn)


def test_draws_of_numpy_probabilities_and_under_x64_are_int32():
    with jax.enable_x64(True):
        drawn = sampling.draw_classes(jax.random.key(0), np.array([0.0, 1.0]), 3)
        assert drawn.dtype == jnp.int32
        examples = sampling.examples_by_class(jax.random.key(0), drawn, np.array([3, 2]))
        assert examples.dtype == jnp.int32
        assert sampling.stratified_classes(jax.random.key(0), 2, 4).dtype == jnp.int32
        psi = jnp.zeros(2)
        assert psi.dtype == jnp.float64
        drawn, z = sampling.straight_through_over_classes(psi, [3, 2], jnp.zeros((1, 2)))
        assert drawn.dtype == jnp.int32
        drawn = sampling.systematic_classes(jax.random.key(0), np.array([0.5, 0.5]), 3)
        assert drawn.dtype == jnp.int32
        examples = sampling.systematic_examples_by_class(jax.random.key(0), drawn, [3, 2])
        assert examples.dtype == jnp.int32
        assert z.dtype == jnp.float64


def draw_by_counts(counts, key):
    class_key, noise_key, example_key = jax.random.split(key, 3)
    probabilities = sampling.class_probabilities(counts, 0.5)
    drawn = sampling.draw_classes(class_key, probabilities, 64)
    gumbel = jax.random.gumbel(noise_key, (64, counts.size))
    classes, z = sampling.straight_through_over_classes(jnp.zeros(counts.size), counts, gumbel)
    return drawn, classes, z, sampling.examples_by_class(example_key, classes, counts)


def test_draws_of_a_billion_examples_cost_what_a_hundred_do():
    # Nothing the size of the data set is made: the compiled program is the same, but for numbers.
    few = np.array([60, 0, 25, 15], np.int32)
    many = few * 10_000_000
    assert many.sum() == 10**9
    memory = []
    for counts in (few, many):
        compiled = jax.jit(draw_by_counts).lower(counts, jax.random.key(0)).compile()
        analysis = compiled.memory_analysis()
        memory.append((analysis.temp_size_in_bytes, analysis.output_size_in_bytes))
        drawn, classes, _, examples = compiled(counts, jax.random.key(0))
        assert 1 not in drawn
        assert 1 not in classes
        np.testing.assert_array_equal(np.searchsorted(counts.cumsum(), examples, 'right'), classes)
        assert float(examples.max()) > 0.8 * counts.sum()
    assert memory[0] == memory[1]
    assert memory[0][0] < 2**16


def test_the_classes_drawn_do_not_depend_on_the_size_of_the_data_set():
    few, many = (draw_by_counts(COUNTS * n, jax.random.key(0)) for n in (1, 10_000_000))
    np.testing.assert_array_equal(few[0], many[0])
    np.testing.assert_array_equal(few[1], many[1])


def test_examples_are_uniform_within_their_class(assert_drawn_by):
    classes = np.repeat([2, 0, 3], 4000)
    counts = np.array([5, 2, 8, 1])
    examples = sampling.examples_by_class(jax.random.key(0), classes, counts)
    assert_drawn_by(np.repeat([4000 / 5, 0, 4000 / 8, 4000], counts), examples)
    np.testing.assert_array_equal(np.repeat(np.arange(4), counts)[examples], classes)


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'int32', 'int64'])
def test_examples_of_any_integer_type_of_classes(dtype):
    # 130 classes of 3: an int8 counts neither them nor their examples.
    classes = np.array([0, 100, 127], dtype)
    examples = sampling.examples_by_class(jax.random.key(0), classes, np.full(130, 3, dtype))
    np.testing.assert_array_equal(examples // 3, classes)


@pytest.mark.parametrize(
    ('classes', 'counts', 'message'),
    [
        ([0], [1.5, 2], r'class_counts: got 1\.5, wanted whole'),
        ([0], [2_000_000_000, 2_000_000_000], 'class_counts: got 4000000000 examples'),
        ([0, 1], [3, 0], 'classes: got a class without examples'),
        ([0, 2], [3, 1], 'classes: got values from 0 to 2, wanted 0 to 1'),
        ([-1, 0], [3, 1], 'classes: got values from -1 to 0'),
        ([0.0], [3, 1], 'classes: got float32, wanted integers'),
    ],
)
def test_examples_that_do_not_exist_are_refused(classes, counts, message):
    with pytest.raises(ValueError, match=message):
        sampling.examples_by_class(jax.random.key(0), np.array(classes), np.array(counts))


def systematic_counts(probabilities, batch_size, draws):
    """How often each class is in each of many batches, ``[draws, classes]``."""
    keys = jax.random.split(jax.random.key(0), draws)
    classes = jax.jit(
        jax.vmap(lambda key: sampling.systematic_classes(key, probabilities, batch_size))
    )(keys)
    assert np.all(np.diff(classes) >= 0)
    return np.asarray(jax.nn.one_hot(classes, len(probabilities), dtype=jnp.int32).sum(1))


@pytest.mark.parametrize('batch_size', [1, 7, 64])
def test_systematic_counts_are_the_probabilities_up_to_rounding_and_on_average(batch_size):
    expected = batch_size * PROBABILITIES
    counts = systematic_counts(jnp.asarray(PROBABILITIES, jnp.float32), batch_size, 4000)
    assert np.all(counts >= np.floor(expected))
    assert np.all(counts <= np.ceil(expected))
    # A count is its floor or one more: its variance is that of one coin.
    rest = expected % 1
    error = np.sqrt(rest * (1 - rest) / 4000)
    assert np.all(np.abs(counts.mean(0) - expected) <= 4 * error)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_systematic_draws_never_draw_what_has_no_probability(dtype):
    """Sums of many small numbers are rounded, and the last point of a large batch is too."""
    probabilities = np.zeros(3000)
    possible = np.random.default_rng(0).permutation(3000)[:1000]
    probabilities[possible] = 1 / 1000
    counts = systematic_counts(jnp.asarray(probabilities, dtype), 4096, 50)
    assert not counts[:, probabilities == 0].any()
    np.testing.assert_array_equal(counts.sum(1), 4096)
    assert counts[:, possible].min() >= 4
    assert counts[:, possible].max() <= 5


def test_systematic_draws_take_any_scale():
    """Like the independent ones: only ratios matter."""
    key = jax.random.key(1)
    draws = [sampling.systematic_classes(key, scale * PROBABILITIES, 64) for scale in (1.0, 7.0)]
    np.testing.assert_array_equal(*draws)


def test_systematic_examples_are_spread_and_as_likely_as_each_other(assert_drawn_by):
    counts = np.array([7, 3, 0, 40, 1])
    classes = np.repeat([0, 1, 3, 4], [5, 8, 12, 2])
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = jax.vmap(lambda key: sampling.systematic_examples_by_class(key, classes, counts))
    examples = np.asarray(jax.jit(draw)(keys))
    np.testing.assert_array_equal(
        np.repeat(np.arange(5), counts)[examples], np.tile(classes, (3000, 1))
    )
    seen = np.stack([(examples == i).sum(1) for i in range(counts.sum())], 1)
    # As often as each other, up to rounding: 5 of 7 once, 8 of 3 two or three times, …
    expected = np.repeat(np.array([5, 8, 0, 12, 2]) / np.maximum(counts, 1), counts)
    assert np.all(seen >= np.floor(expected))
    assert np.all(seen <= np.ceil(expected))
    # Each place of the batch by itself is uniform over its class.
    for b in (0, 4, 6, 20):
        drawn = examples[:, b]
        assert_drawn_by(np.where(np.repeat(np.arange(5), counts) == classes[b], 1.0, 0.0), drawn)


def test_systematic_examples_of_a_billion_are_in_their_class_and_far_apart():
    """Neither k n nor r + k n / m fits an int32."""
    counts = np.array([1_500_000_000, 600_000_000])
    classes = np.repeat([0, 1], 1000)
    for seed in range(20):
        draw = sampling.systematic_examples_by_class(jax.random.key(seed), classes, counts)
        draw = np.asarray(draw, np.int64)
        np.testing.assert_array_equal(draw >= counts[0], classes == 1)
        for part, count in zip(np.split(np.sort(draw), 2), counts, strict=True):
            gaps = np.diff(part, append=part[0] + count)
            assert gaps.max() - gaps.min() <= 1


def test_systematic_examples_need_their_classes_in_order():
    draw = functools.partial(sampling.systematic_examples_by_class, jax.random.key(0))
    with pytest.raises(ValueError, match='classes: got them in another order than ascending'):
        draw(np.array([1, 0]), [2, 2])
    with pytest.raises(ValueError, match='classes: got a class without examples'):
        draw(np.array([0, 1]), [2, 0])
    with pytest.raises(ValueError, match='classes: got values from 0 to 2'):
        draw(np.array([0, 2]), [2, 1])
    with pytest.raises(ValueError, match='classes: got 50000, wanted at most 46340'):
        draw(np.zeros(50_000, int), [2, 1])


@pytest.mark.parametrize(('num_classes', 'batch_size'), [(5, 5), (5, 12), (5, 10), (1, 3), (7, 13)])
def test_stratified_counts_differ_by_at_most_one(num_classes, batch_size):
    batch = sampling.stratified_classes(jax.random.key(0), num_classes, batch_size)
    counts = np.bincount(batch, minlength=num_classes)
    assert counts.sum() == batch_size
    assert counts.size == num_classes
    assert counts.max() - counts.min() <= 1


def test_the_remainder_of_a_stratified_batch_goes_to_every_class_by_chance(assert_drawn_by):
    keys = jax.random.split(jax.random.key(0), 2000)
    batches = jax.vmap(lambda key: sampling.stratified_classes(key, 5, 7))(keys)
    first_of_remainder = batches[:, 5]
    assert_drawn_by(np.full(5, 0.2), first_of_remainder)


def test_a_stratified_batch_holds_every_class():
    with pytest.raises(ValueError, match='batch_size: got 4, wanted one of each of 5 classes'):
        sampling.stratified_classes(jax.random.key(0), 5, 4)
