"""Effective weights have the exponents of method and sampler; calibration is the plain sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import diagnostics
from balms_jax.losses import balanced_softmax_cross_entropy_with_integer_labels

COUNTS = np.array([1000, 200, 50, 5])
LOG_COUNTS = np.log(COUNTS).astype(np.float32)
LABELS = jnp.array([0, 1, 2, 3, 0, 0])


def exponent(logits, **options):
    log_prior = options.pop('log_prior', LOG_COUNTS)
    weights = diagnostics.effective_gradient_weights(logits, LABELS, log_prior, **options)
    return diagnostics.gradient_weight_exponent(weights, COUNTS)


EQUAL = jnp.zeros((6, 4))
ZERO_LOSS = 100 * jax.nn.one_hot(LABELS, 4)
CLASS_BALANCED = COUNTS.sum() / (4 * COUNTS)  # q/π


@pytest.mark.parametrize('constant', [0.0, 1000.0])
def test_the_exponents_of_over_balance(constant):
    # Between 1 and 1/n for Balanced Softmax, another 1/n by class-balanced sampling.
    log_prior = LOG_COUNTS + np.float32(constant)
    assert exponent(EQUAL, log_prior=log_prior) == pytest.approx(0, abs=1e-4)
    assert exponent(ZERO_LOSS, log_prior=log_prior) == pytest.approx(-1, abs=1e-4)
    both = exponent(ZERO_LOSS, log_prior=log_prior, class_weights=CLASS_BALANCED)
    assert both == pytest.approx(-2, abs=1e-4)
    assert -1 < exponent(ZERO_LOSS / 30, log_prior=log_prior) < 0


def test_plain_softmax_is_unbalanced_and_sampling_balances_it():
    for logits in (EQUAL, ZERO_LOSS):
        assert exponent(logits, tau=0) == pytest.approx(0, abs=1e-5)
        balanced = exponent(logits, tau=0, class_weights=CLASS_BALANCED)
        assert balanced == pytest.approx(-1, abs=1e-5)


def test_the_exponent_follows_tau():
    assert exponent(ZERO_LOSS, tau=0.25) == pytest.approx(-0.25, abs=1e-4)


def test_weights_by_hand():
    # n = 9 and 1, φ = (2/3, 1/3): ω = 5 / (9 · 2/3 + 1/3).
    weights = diagnostics.effective_gradient_weights(
        jnp.log(jnp.array([[2.0, 1.0]])), jnp.array([1]), jnp.log(jnp.array([9.0, 1.0]))
    )
    np.testing.assert_allclose(weights, [np.nan, 15 / 19], rtol=1e-5)


def test_weights_are_ratios_of_gradients():
    # ∂ℓ/∂η at a negative, Balanced Softmax' over plain softmax', is n_j ω / mean n.
    logits = jax.random.normal(jax.random.key(0), (1, 4))
    weights = diagnostics.effective_gradient_weights(logits, jnp.array([2]), LOG_COUNTS)

    def gradient(log_prior):
        def loss(logits):
            return balanced_softmax_cross_entropy_with_integer_labels(
                logits, jnp.array(2), log_prior
            )

        return jax.grad(loss)(logits[0])

    ratio = gradient(LOG_COUNTS) / gradient(np.zeros(4))
    expected = np.asarray(ratio) * COUNTS.mean() / COUNTS
    for negative in (0, 1, 3):
        assert weights[2] == pytest.approx(float(expected[negative]), rel=1e-4)


def test_weights_are_means_over_the_examples_of_a_class():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    weights = diagnostics.effective_gradient_weights(logits, LABELS, LOG_COUNTS)
    alone = [
        diagnostics.effective_gradient_weights(logits[i : i + 1], LABELS[i : i + 1], LOG_COUNTS)[0]
        for i in (0, 4, 5)
    ]
    assert weights[0] == pytest.approx(float(np.mean(alone)), rel=1e-5)


@pytest.mark.parametrize('tau', [0, 0.0, 1.0])
def test_an_empty_class_leaves_the_others_their_weights(tau):
    log_prior = jnp.log(jnp.array([9.0, 1.0, 0.0]))
    weights = diagnostics.effective_gradient_weights(
        jnp.zeros((2, 3)), jnp.array([0, 1]), log_prior, tau=tau
    )
    # ω = (10/3) / (9/3 + 1/3) at equal logits: 1, as without.
    np.testing.assert_allclose(weights, [1, 1, np.nan], rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_sixteen_bit_logits_and_any_float_weights(dtype):
    for class_weights in (np.arange(1, 5), np.arange(1.0, 5.0), jnp.arange(1.0, 5.0)):
        weights = diagnostics.effective_gradient_weights(
            EQUAL.astype(dtype), LABELS, LOG_COUNTS.astype(np.float64), class_weights=class_weights
        )
        np.testing.assert_allclose(weights, [1, 2, 3, 4], rtol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'logits': jnp.zeros((2, 3), int)}, 'logits: got int32, wanted a float type'),
        ({'logits': jnp.zeros(3)}, r'logits: got shape \(3,\), wanted \[examples, classes\]'),
        ({'labels': jnp.array([0, 3])}, 'labels: got values from 0 to 3, wanted 0 to 2'),
        ({'labels': jnp.array([-1, 0])}, 'labels: got values from -1 to 0'),
        ({'labels': jnp.array([0.0, 1.0])}, 'labels: got float32'),
        ({'labels': jnp.array([0])}, r'labels: got shape \(1,\), wanted \(2,\)'),
        ({'log_prior': jnp.array([9, 3, 1])}, 'log_prior: got int32, wanted logs; for counts'),
        ({'log_prior': jnp.zeros(4)}, r'log_prior: got shape \(4,\), wanted \[classes\]'),
        ({'log_prior': jnp.zeros((2, 3))}, r'log_prior: got shape \(2, 3\)'),
        ({'log_prior': jnp.full(3, jnp.nan)}, 'log_prior: got NaN'),
        ({'tau': jnp.zeros(3)}, r'tau: got shape \(3,\), wanted a scalar'),
        ({'class_weights': jnp.ones(2)}, r'class_weights: got shape \(2,\), wanted \[classes\]'),
    ],
)
def test_invalid_arguments_of_the_weights_are_named(arguments, message):
    valid = {
        'logits': jnp.zeros((2, 3)),
        'labels': jnp.array([0, 1]),
        'log_prior': jnp.zeros(3),
    }
    with pytest.raises(ValueError, match=message):
        diagnostics.effective_gradient_weights(**(valid | arguments))


def test_traced_labels_out_of_range_are_left_out():
    logits = jax.random.normal(jax.random.key(0), (4, 4))
    weights = jax.jit(diagnostics.effective_gradient_weights)
    labels = jnp.array([0, -1, 4, 3])
    np.testing.assert_allclose(
        weights(logits, labels, LOG_COUNTS),
        weights(logits[::3], labels[::3], LOG_COUNTS),
        rtol=1e-6,
    )


def test_exponent_by_hand():
    # The least-squares slope of log weights (0, 2, 1) on log counts (0, 1, 2) is 1/2.
    slope = diagnostics.gradient_weight_exponent(np.exp([0, 2, 1]), np.exp([0, 1, 2]))
    assert slope == pytest.approx(0.5, rel=1e-12)


def test_the_exponent_leaves_out_what_has_no_logarithm():
    weights = [np.nan, 1.0, 10.0, 0.0, np.inf, 5.0]
    counts = [7, 100, 10, 3, 2, 0]
    assert diagnostics.gradient_weight_exponent(weights, counts) == pytest.approx(-1, rel=1e-12)


@pytest.mark.parametrize(
    ('weights', 'counts'), [([1, 2], [5, 5]), ([1, np.nan], [5, 6]), ([np.nan], [5]), ([], [])]
)
def test_no_slope_without_two_different_counts(weights, counts):
    assert np.isnan(diagnostics.gradient_weight_exponent(weights, counts))


def predictions(examples=200, classes=4):
    keys = jax.random.split(jax.random.key(0), 3)
    probabilities = jax.nn.softmax(2 * jax.random.normal(keys[0], (examples, classes)))
    labels = jax.random.randint(keys[1], (examples,), 0, classes)
    return probabilities, labels, jax.random.uniform(keys[2], (examples,))


@pytest.mark.parametrize('bins', [1, 10, 15])
@pytest.mark.parametrize('weighted', [False, True])
def test_calibration_error_is_that_of_a_slow_loop(bins, weighted):
    probabilities, labels, weights = predictions()
    weights = weights if weighted else jnp.ones_like(weights)
    confidence, accuracy, weight = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for p, y, w in zip(
        np.asarray(probabilities), np.asarray(labels), np.asarray(weights), strict=True
    ):
        place = min(int(p.max() * np.float32(bins)), bins - 1)
        weight[place] += w
        confidence[place] += w * p.max()
        accuracy[place] += w * (p.argmax() == y)
    sums = diagnostics.reliability(probabilities, labels, weights, bins)
    for ours, theirs in zip(sums, (weight, confidence, accuracy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    filled = weight > 0
    gaps = np.abs(accuracy[filled] / weight[filled] - confidence[filled] / weight[filled])
    expected = np.sum(weight[filled] / weight.sum() * gaps)
    error = diagnostics.expected_calibration_error(sums)
    assert error == pytest.approx(expected, rel=1e-4)


def test_sums_add_over_batches_and_ignore_what_weighs_nothing():
    probabilities, labels, weights = predictions()
    weights = weights.at[150:].set(0)
    whole = diagnostics.reliability(probabilities, labels, weights)
    parts = [
        diagnostics.reliability(probabilities[a:b], labels[a:b], weights[a:b])
        for a, b in ((0, 60), (60, 150))
    ]
    for total, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(total, first + second, rtol=1e-4, atol=1e-6)


def test_certainty_is_in_the_last_interval():
    sums = diagnostics.reliability(jnp.array([[1.0, 0.0]]), jnp.array([1]), jnp.ones(1), bins=5)
    np.testing.assert_array_equal(sums.weight, [0, 0, 0, 0, 1])
    assert diagnostics.expected_calibration_error(sums) == 1


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_reliability_of_any_types(dtype):
    probabilities = jnp.array([[0.75, 0.25], [0.25, 0.75]], dtype)
    for weights in (np.array([1, 1]), np.array([True, True]), jnp.ones(2, dtype)):
        sums = diagnostics.reliability(probabilities, np.array([0, 0]), weights, bins=2)
        np.testing.assert_array_equal(sums, [[0, 2], [0, 1.5], [0, 1]])
        assert diagnostics.expected_calibration_error(sums) == 0.25


def test_no_examples_have_no_calibration_error():
    sums = diagnostics.reliability(jnp.zeros((1, 2)), jnp.array([0]), jnp.zeros(1))
    assert np.isnan(diagnostics.expected_calibration_error(sums))


def test_what_weighs_nothing_may_hold_nothing():
    # Padding: neither its NaN nor its label, which is no class, may reach a sum.
    probabilities = jnp.array([[0.75, 0.25], [jnp.nan, jnp.nan]])
    sums = diagnostics.reliability(probabilities, jnp.array([0, -1]), jnp.array([1, 0]), bins=2)
    np.testing.assert_array_equal(sums, [[0, 1], [0, 0.75], [0, 1]])


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'uint16', 'int64'])
@pytest.mark.parametrize('wide', [False, True])
def test_calibration_takes_any_integer_type_of_labels(dtype, wide):
    # 300 classes do not fit eight bits, though these labels do.
    labels = np.array([0, 3], dtype)
    logits = 4 * np.eye(300, dtype=np.float32)[[0, 0]]
    with jax.enable_x64(wide):
        sums = diagnostics.reliability(np.eye(300)[[0, 0]], labels, np.ones(2), bins=1)
        np.testing.assert_array_equal(sums, [[2], [2], [1]])
        assert diagnostics.calibration_temperature(logits, labels, np.ones(2), [1, 2]) == 1


def overconfident(temperature=3.0, examples=4000):
    """Logits that are ``temperature`` times too sure of labels drawn from the rest."""
    keys = jax.random.split(jax.random.key(0))
    logits = 2 * jax.random.normal(keys[0], (examples, 5))
    return temperature * logits, jax.random.categorical(keys[1], logits)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_temperature_is_found_in_any_type_and_is_a_candidate(dtype):
    # In bfloat16 itself 3.03 is no number, and a sum of 4000 losses has two digits.
    logits, labels = overconfident()
    candidates = np.linspace(2, 4, 67)
    found = diagnostics.calibration_temperature(
        logits.astype(dtype), labels, jnp.ones(len(labels)), candidates
    )
    assert found in candidates
    assert found == pytest.approx(3, abs=0.16)


def test_examples_without_weight_do_not_turn_the_temperature():
    logits, labels = overconfident(examples=200)
    candidates = np.linspace(1, 6, 51)
    alone = diagnostics.calibration_temperature(logits, labels, jnp.ones(200), candidates)
    padded = diagnostics.calibration_temperature(
        jnp.concatenate([logits, jnp.full((3, 5), jnp.nan)]),
        jnp.concatenate([labels, jnp.array([-1, 0, 9])]),
        jnp.concatenate([jnp.ones(200), jnp.zeros(3)]),
        candidates,
    )
    assert padded == alone != candidates[0]


@pytest.mark.parametrize(
    ('temperatures', 'message'),
    [
        ([1.0, 0.0], r'temperatures: got 0\.0, wanted numbers above 0'),
        ([-1.0, 1.0], r'temperatures: got -1\.0'),
        ([np.nan], 'temperatures: got nan'),
        ([], r'temperatures: got shape \(0,\)'),
        (1.0, r'temperatures: got shape \(\)'),
    ],
)
def test_temperatures_that_divide_nothing_are_refused(temperatures, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.calibration_temperature(
            jnp.zeros((1, 2)), jnp.array([0]), jnp.ones(1), temperatures
        )
