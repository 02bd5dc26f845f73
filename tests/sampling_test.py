"""Draws have the probabilities, and their gradients the closed form, that the method states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from balms_jax import sampling

COUNTS = np.array([60, 25, 10, 5])
PSI = np.array([-1.0, 0.5, 2.0, 0.0])
LABELS = np.repeat(np.arange(4), COUNTS)
# The chance of a false alarm of a right sampler, at fixed keys: once seen to pass, none.
ALARM = 1e-3


def assert_drawn_by(probabilities, drawn):
    probabilities = np.asarray(probabilities, np.float64)
    seen = np.bincount(np.asarray(drawn), minlength=probabilities.size)
    assert not seen[probabilities == 0].any()
    possible = probabilities > 0
    expected = probabilities[possible] / probabilities.sum() * len(drawn)
    assert scipy.stats.chisquare(seen[possible], expected).pvalue > ALARM


# Rates and probabilities


def test_rates_by_hand():
    np.testing.assert_allclose(sampling.rates(jnp.array([0.0, np.log(3.0)])), [0.5, 0.75])


@pytest.mark.parametrize('power', [0.0, 0.1, 0.3, 0.5, 1.0, 2.0, -0.5])
def test_initial_psi_is_its_formula(power):
    proportions = COUNTS / COUNTS.sum()
    weights = proportions**-power
    rates = weights / (weights.min() + weights.max())
    for counts in (COUNTS, proportions, COUNTS.astype(np.int8)):
        psi = sampling.initial_psi(counts, power)
        np.testing.assert_allclose(sampling.rates(psi), rates, rtol=1e-5)
    extremes = jnp.array([psi.min(), psi.max()])
    assert extremes.sum() == pytest.approx(0, abs=1e-5)


def test_initial_power_0_is_instance_balanced_and_1_class_balanced():
    for power, expected in ((0.0, COUNTS / 100), (1.0, [0.25] * 4)):
        psi = sampling.initial_psi(COUNTS, power)
        probabilities = sampling.rated_class_probabilities(psi, COUNTS)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


@pytest.mark.parametrize('power', [1.0, 5.0, 100.0, -100.0])
@pytest.mark.parametrize('counts', [[10**9, 1], [1e30, 1e-30, 1.0], [1, 1]])
def test_initial_psi_of_huge_powers_and_counts_is_finite(power, counts):
    # Its ends are ± what spans the log weights, exact where 1 − s would be rounded to 0.
    psi = sampling.initial_psi(np.array(counts), power)
    assert jnp.all(jnp.isfinite(psi))
    log_counts = np.log(np.array(counts, np.float64))
    span = abs(power) * (log_counts.max() - log_counts.min())
    np.testing.assert_allclose([psi.min(), psi.max()], [-span, span], rtol=1e-5)


def test_initial_psi_needs_an_example_of_every_class_only_for_a_power():
    np.testing.assert_array_equal(sampling.initial_psi([3, 0]), [0, 0])
    with pytest.raises(ValueError, match='class_counts: got 0 for class 1'):
        sampling.initial_psi([3, 0], power=0.5)


@pytest.mark.parametrize(
    ('power', 'expected'),
    [(1.0, [0.64, 0.36, 0.0]), (0.5, [8 / 14, 6 / 14, 0.0]), (0.0, [0.5, 0.5, 0.0])],
)
def test_class_probabilities_by_hand(power, expected):
    counts = np.array([64, 36, 0])
    np.testing.assert_allclose(sampling.class_probabilities(counts, power), expected, rtol=1e-6)
    traced = jax.jit(sampling.class_probabilities)(counts, power)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)


def test_class_probabilities_of_huge_powers_are_finite():
    probabilities = sampling.class_probabilities(np.array([5_000_000_000, 3, 0]), 50.0)
    np.testing.assert_array_equal(probabilities, [1, 0, 0])


def test_progressive_draws_go_from_instances_to_classes():
    counts = np.array([60, 40, 0])
    progressive = sampling.progressive_class_probabilities
    np.testing.assert_allclose(progressive(counts, 0.0), [0.6, 0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(progressive(counts, 1), [0.5, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(progressive)(counts, 0.25), [0.575, 0.425, 0], rtol=1e-6)


def test_rated_class_probabilities_by_hand():
    # n s = 3 · 1/2 and 1 · 3/4.
    probabilities = sampling.rated_class_probabilities(jnp.array([0.0, np.log(3.0)]), [3, 1])
    np.testing.assert_allclose(probabilities, [2 / 3, 1 / 3], rtol=1e-6)
    probabilities = sampling.rated_class_probabilities(
        jnp.array([-1000.0, -1000.0, 9.0]), [3, 1, 0]
    )
    np.testing.assert_allclose(probabilities, [0.75, 0.25, 0], rtol=1e-4)


# Draws


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_draws_have_their_probabilities(power):
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


@pytest.mark.parametrize('temperature', [0.1, 1.0, 10.0])
def test_both_estimators_draw_the_classes_by_their_rates(temperature):
    # The temperature softens the gradient's sample, never the draw.
    probabilities = sampling.rated_class_probabilities(PSI.astype(np.float32), COUNTS)
    gumbel = jax.random.gumbel(jax.random.key(1), (10_000, 4))
    classes, _ = sampling.straight_through_over_classes(
        PSI.astype(np.float32), COUNTS, gumbel, temperature
    )
    assert_drawn_by(probabilities, classes)
    gumbel = jax.random.gumbel(jax.random.key(2), (10_000, 100))
    examples, _ = sampling.straight_through_over_examples(
        PSI.astype(np.float32), LABELS, gumbel, temperature
    )
    assert_drawn_by(probabilities, LABELS[examples])
    # And the examples of a class by chance.
    assert_drawn_by((np.asarray(probabilities) / COUNTS)[LABELS], examples)


def estimator(name):
    if name == 'classes':
        return functools.partial(sampling.straight_through_over_classes, class_counts=COUNTS)
    return functools.partial(sampling.straight_through_over_examples, example_labels=LABELS)


@pytest.mark.parametrize('name', ['classes', 'examples'])
@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_the_gradient_of_a_draw_is_the_closed_form(name, temperature):
    # ∂z_b/∂ψ_j = (1 − s_j) p_b (1[y_b = j] − P_bj) / T.
    outcomes = 4 if name == 'classes' else 100
    classes_of = np.arange(4) if name == 'classes' else LABELS
    with jax.enable_x64(True):
        gumbel = jax.random.gumbel(jax.random.key(3), (16, outcomes), jnp.float64)
        rates = 1 / (1 + np.exp(-PSI))
        weights = COUNTS * rates if name == 'classes' else rates[LABELS]
        scores = np.log(weights)[None] + np.asarray(gumbel)
        soft = np.exp((scores - scores.max(1, keepdims=True)) / temperature)
        soft /= soft.sum(1, keepdims=True)
        mass = np.stack([soft[:, classes_of == j].sum(1) for j in range(4)], 1)
        drawn = scores.argmax(1)
        p = soft[np.arange(16), drawn]
        is_class = classes_of[drawn][:, None] == np.arange(4)[None]
        expected = (1 - rates)[None] * p[:, None] * (is_class - mass) / temperature

        draw = estimator(name)
        ours, _ = draw(psi=PSI, gumbel=gumbel, temperature=temperature)
        np.testing.assert_array_equal(ours, drawn)
        jacobian = jax.jacobian(
            lambda psi: draw(psi=psi, gumbel=gumbel, temperature=temperature)[1]
        )(jnp.asarray(PSI))
        np.testing.assert_allclose(jacobian, expected, rtol=1e-12, atol=1e-12)
        assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize('name', ['classes', 'examples'])
def test_a_stale_draw_keeps_its_outcomes(name):
    """Drawn at one ψ and learned from at another: the soft sample is read at what was drawn."""
    outcomes = 4 if name == 'classes' else 100
    draw = estimator(name)
    with jax.enable_x64(True):
        gumbel = jax.random.gumbel(jax.random.key(3), (64, outcomes), jnp.float64)
        old, new = jnp.asarray(PSI), jnp.asarray(-PSI)
        drawn, _ = draw(psi=old, gumbel=gumbel)
        kept, z = draw(psi=new, gumbel=gumbel, drawn=drawn)
        np.testing.assert_array_equal(kept, drawn)
        np.testing.assert_array_equal(z, np.ones(64))
        redrawn, _ = draw(psi=new, gumbel=gumbel)
        assert np.any(redrawn != drawn)

        weights = COUNTS * rates_of(new) if name == 'classes' else rates_of(new)[LABELS]
        soft = jax.nn.softmax(np.log(weights)[None] + gumbel)
        p = soft[np.arange(64), drawn]
        labels = np.arange(4) if name == 'classes' else LABELS
        is_class = np.eye(4)[labels]
        mass = soft @ is_class
        expected = (1 - rates_of(new))[None] * p[:, None] * (is_class[drawn] - mass)
        jacobian = jax.jacobian(lambda psi: draw(psi=psi, gumbel=gumbel, drawn=drawn)[1])(new)
        np.testing.assert_allclose(jacobian, expected, rtol=1e-12, atol=1e-12)


def rates_of(psi):
    return 1 / (1 + np.exp(-np.asarray(psi)))


@pytest.mark.parametrize('name', ['classes', 'examples'])
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_value_of_a_draw_is_exactly_one(name, dtype):
    # 1 + p − p, from left to right, is not: the real step would be weighted by rounding.
    psi = jnp.asarray(PSI, dtype)
    gumbel = jax.random.gumbel(jax.random.key(4), (512, 4 if name == 'classes' else 100), dtype)
    draw = jax.jit(lambda psi: estimator(name)(psi=psi, gumbel=gumbel, temperature=0.7))
    drawn, z = draw(psi)
    assert z.dtype == dtype
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(z, jnp.ones_like(z))
    assert jnp.any(jax.grad(lambda psi: draw(psi)[1][0])(psi) != 0)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize('counts', [[10**9, 10**9, 0], [5_000_000_000, 5_000_000_000, 0]])
def test_huge_counts_and_empty_classes_are_drawn_with_finite_gradients(dtype, counts):
    # float16 ends at 65504, an int32 at 2³¹.
    gumbel = jax.random.gumbel(jax.random.key(5), (256, 3), dtype)

    def draw(psi):
        return sampling.straight_through_over_classes(psi, np.array(counts), gumbel)

    psi = jnp.zeros(3, dtype)
    drawn, z = draw(psi)
    np.testing.assert_array_equal(z, jnp.ones_like(z))
    assert_drawn_by([0.5, 0.5, 0], drawn)
    gradient = jax.jacobian(lambda psi: draw(psi)[1])(psi)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:, 2], 0)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_log_probabilities_are_those_of_the_probabilities_and_go_further(dtype):
    psi = jnp.array([0.0, -3.0, 1.0], dtype)
    counts = np.array([30, 0, 5])
    logs = sampling.rated_log_class_probabilities(psi, counts)
    assert logs.dtype == dtype
    np.testing.assert_allclose(
        jnp.exp(logs).astype(float),
        sampling.rated_class_probabilities(psi, counts).astype(float),
        rtol=float(4 * jnp.finfo(dtype).eps),
    )
    # Where the probability itself is rounded to 0.
    tiny = sampling.rated_log_class_probabilities(jnp.array([0.0, -500.0], dtype), [1, 1])
    assert tiny[1] == pytest.approx(-500, abs=3)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_ones_are_exact_and_differentiated_as_what_they_stand_for(dtype):
    x = jnp.array([1e-3, -200.0, 0.3], dtype)
    np.testing.assert_array_equal(sampling.one_with_gradient_of(x), jnp.ones(3, dtype))
    jacobian = jax.jacobian(lambda x: sampling.one_with_gradient_of(3 * x))(x)
    np.testing.assert_array_equal(jacobian, 3 * jnp.eye(3, dtype=dtype))


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


def test_examples_are_uniform_within_their_class():
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


# Systematic draws

PROBABILITIES = np.array([0.0, 0.43, 0.0, 0.31, 0.16, 0.07, 0.03, 0.0])


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


def test_systematic_examples_are_spread_and_as_likely_as_each_other():
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


# Batches


@pytest.mark.parametrize(('num_classes', 'batch_size'), [(5, 5), (5, 12), (5, 10), (1, 3), (7, 13)])
def test_stratified_counts_differ_by_at_most_one(num_classes, batch_size):
    batch = sampling.stratified_classes(jax.random.key(0), num_classes, batch_size)
    counts = np.bincount(batch, minlength=num_classes)
    assert counts.sum() == batch_size
    assert counts.size == num_classes
    assert counts.max() - counts.min() <= 1


def test_the_remainder_of_a_stratified_batch_goes_to_every_class_by_chance():
    keys = jax.random.split(jax.random.key(0), 2000)
    batches = jax.vmap(lambda key: sampling.stratified_classes(key, 5, 7))(keys)
    first_of_remainder = batches[:, 5]
    assert_drawn_by(np.full(5, 0.2), first_of_remainder)


def test_a_stratified_batch_holds_every_class():
    with pytest.raises(ValueError, match='batch_size: got 4, wanted one of each of 5 classes'):
        sampling.stratified_classes(jax.random.key(0), 5, 4)


# Bad input


@pytest.mark.parametrize(
    ('function', 'arguments', 'message'),
    [
        (
            'classes',
            {'gumbel': np.zeros((2, 3))},
            r'gumbel: got shape \(2, 3\), wanted \[batch, 4\]',
        ),
        ('classes', {'gumbel': np.zeros(4)}, r'gumbel: got shape \(4,\)'),
        ('classes', {'class_counts': [1, 2]}, 'class_counts: got shape'),
        ('classes', {'class_counts': [1, 2, 3, -1]}, 'class_counts: got -1'),
        ('classes', {'class_counts': [0, 0, 0, 0]}, 'class_counts: got only empty'),
        ('classes', {'temperature': 0.0}, 'temperature: got 0'),
        ('classes', {'temperature': float('nan')}, 'temperature: got nan'),
        ('classes', {'drawn': np.zeros(3, int)}, r'drawn: got int32\[3\], wanted integers, \[2\]'),
        ('examples', {'drawn': np.zeros(2)}, r'drawn: got float32\[2\]'),
        ('examples', {'gumbel': np.zeros((2, 99))}, r'gumbel: got shape \(2, 99\)'),
        ('examples', {'example_labels': LABELS.astype(float)}, 'example_labels: got float32'),
        ('examples', {'example_labels': LABELS + 1}, 'example_labels: got values from 1 to 4'),
        ('examples', {'example_labels': LABELS - 1}, 'example_labels: got values from -1 to 2'),
        ('examples', {'temperature': -1.0}, 'temperature: got -1'),
    ],
)
def test_invalid_arguments_are_named(function, arguments, message):
    outcomes = 4 if function == 'classes' else 100
    valid = {'psi': np.zeros(4, np.float32), 'gumbel': np.zeros((2, outcomes), np.float32)}
    with pytest.raises(ValueError, match=message):
        estimator(function)(**(valid | arguments))


@pytest.mark.parametrize('bad', [[-1, 2], [np.nan, 2.0], []])
def test_counts_that_are_no_counts_are_refused(bad):
    for function in (
        sampling.initial_psi,
        functools.partial(sampling.initial_psi, power=1.0),
        sampling.class_probabilities,
        functools.partial(sampling.progressive_class_probabilities, progress=0.5),
        functools.partial(sampling.rated_class_probabilities, np.zeros(2, np.float32)),
        functools.partial(sampling.rated_log_class_probabilities, np.zeros(2, np.float32)),
        functools.partial(sampling.examples_by_class, jax.random.key(0), np.array([0])),
        functools.partial(sampling.systematic_examples_by_class, jax.random.key(0), np.array([0])),
    ):
        with pytest.raises(ValueError, match='class_counts: got'):
            function(class_counts=np.array(bad))
