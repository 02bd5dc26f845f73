"""Draws have the rates of ψ, their gradients the closed form, their weights exactly 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import sampling

COUNTS = np.array([60, 25, 10, 5])
PSI = np.array([-1.0, 0.5, 2.0, 0.0])
LABELS = np.repeat(np.arange(4), COUNTS)


@pytest.mark.parametrize('temperature', [0.1, 1.0, 10.0])
def test_both_estimators_draw_the_classes_by_their_rates(temperature, assert_drawn_by):
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
def test_huge_counts_and_empty_classes_are_drawn_with_finite_gradients(
    dtype, counts, assert_drawn_by
):
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
def test_ones_are_exact_and_differentiated_as_what_they_stand_for(dtype):
    x = jnp.array([1e-3, -200.0, 0.3], dtype)
    np.testing.assert_array_equal(sampling.one_with_gradient_of(x), jnp.ones(3, dtype))
    jacobian = jax.jacobian(lambda x: sampling.one_with_gradient_of(3 * x))(x)
    np.testing.assert_array_equal(jacobian, 3 * jnp.eye(3, dtype=dtype))


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'int64'])
def test_labels_of_any_integer_type_and_many_classes(dtype):
    # 300 classes do not fit eight bits, though these labels do.
    labels, psi = np.array([0, 7, 100]), jnp.linspace(-1, 1, 300)
    gumbel = jax.random.gumbel(jax.random.key(0), (5, 3))
    for ours, wanted in zip(
        sampling.straight_through_over_examples(psi, labels.astype(dtype), gumbel),
        sampling.straight_through_over_examples(psi, labels, gumbel),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, wanted)


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
