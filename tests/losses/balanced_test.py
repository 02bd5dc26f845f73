"""The balanced losses agree with optax where they must, and are exact where it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from balms_jax import priors
from balms_jax.losses import (
    balanced_softmax_cross_entropy,
    balanced_softmax_cross_entropy_with_integer_labels,
    change_prior,
    prior_adjusted_log_softmax,
)

# Compiled, for speed alone; the tests of bad input call the functions themselves, which then see
# values.
integer_loss = jax.jit(balanced_softmax_cross_entropy_with_integer_labels, static_argnames='axis')
soft_loss = jax.jit(balanced_softmax_cross_entropy, static_argnames='axis')
log_posterior_of = jax.jit(prior_adjusted_log_softmax, static_argnames='axis')

COUNTS = np.array([900, 90, 9, 1, 300])
LOG_PRIOR = np.log(COUNTS / COUNTS.sum()).astype(np.float32)
WITH_EMPTY = np.where(COUNTS == 9, -np.inf, LOG_PRIOR)  # Class 2 has no example.


def example(batch=6, classes=5, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    logits = 3 * jax.random.normal(keys[0], (batch, classes))
    return logits, jax.random.randint(keys[1], (batch,), 0, classes)


def soft_labels(logits, seed=7):
    return jax.nn.softmax(jax.random.normal(jax.random.key(seed), logits.shape, logits.dtype))


# Agreement


@pytest.mark.parametrize('constant', [0.0, 5.0, -1000.0])
def test_uniform_prior_is_plain_cross_entropy(constant):
    logits, labels = example()
    np.testing.assert_allclose(
        integer_loss(logits, labels, jnp.full(5, constant)),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        rtol=1e-5,
    )


@pytest.mark.parametrize('axis', [0, -2, (0, 1), (3, 1), (3, 1, 2)])
def test_axes_are_those_of_optax(axis):
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    axes = (axis,) if isinstance(axis, int) else axis
    shape = tuple(n for a, n in enumerate(logits.shape) if a not in {a % 4 for a in axes})
    classes = logits.size // int(np.prod(shape))
    labels = jax.random.randint(jax.random.key(1), shape, 0, classes)
    # The prior broadcast by hand, for optax to add: class axes in the order in which they are
    # given, then moved to their places.
    log_prior = jax.random.normal(jax.random.key(2), [logits.shape[a] for a in axes])
    broadcast = jnp.moveaxis(
        jnp.broadcast_to(log_prior, shape + log_prior.shape), range(-len(axes), 0), axes
    )
    expected = optax.softmax_cross_entropy_with_integer_labels(logits + broadcast, labels, axis)
    for given in (log_prior, log_prior.ravel(), broadcast):
        np.testing.assert_allclose(
            integer_loss(logits, labels, given, axis=axis), expected, rtol=2e-5, atol=1e-6
        )
    soft = jax.nn.softmax(jax.random.normal(jax.random.key(3), logits.shape), axis)
    np.testing.assert_allclose(
        soft_loss(logits, soft, log_prior, axis=axis),
        optax.softmax_cross_entropy(logits + broadcast, soft, axis),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        log_posterior_of(logits, log_prior, axis=axis),
        jax.nn.log_softmax(logits + broadcast, axis),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize('rank', [0, 1, 2, 3, 4])
def test_any_leading_axes(rank):
    shape = (2, 3, 1, 2)[:rank]
    logits = jax.random.normal(jax.random.key(0), (*shape, 5))
    labels = jax.random.randint(jax.random.key(1), shape, 0, 5)
    adjusted = logits + jnp.broadcast_to(jnp.asarray(LOG_PRIOR), logits.shape)
    expected = optax.softmax_cross_entropy_with_integer_labels(adjusted, labels)
    loss = integer_loss(logits, labels, LOG_PRIOR)
    assert loss.shape == shape
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        soft_loss(logits, jax.nn.one_hot(labels, 5), LOG_PRIOR), expected, rtol=1e-5
    )


def test_no_examples_have_no_losses():
    empty = jnp.zeros((0, 5))
    assert integer_loss(empty, jnp.zeros(0, jnp.int32), LOG_PRIOR).shape == (0,)
    assert soft_loss(empty, empty, LOG_PRIOR).shape == (0,)


@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
def test_tau_zero_is_softmax_even_with_an_empty_class(log_prior):
    # n⁰ = 1 for every class, the empty one too.
    logits, labels = example()
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(integer_loss(logits, labels, log_prior, tau=0), expected, rtol=1e-5)
    traced = jax.jit(lambda tau: integer_loss(logits, labels, log_prior, tau=tau))
    np.testing.assert_allclose(traced(0.0), expected, rtol=1e-5)


@pytest.mark.parametrize('tau', [-0.5, 0.25, 1.0, 3.0])
def test_tau_is_the_strength_of_the_prior(tau):
    logits, labels = example()
    expected = optax.softmax_cross_entropy_with_integer_labels(
        logits + tau * LOG_PRIOR[None], labels
    )
    for given in (tau, np.float64(tau), jnp.float32(tau)):
        loss = integer_loss(logits, labels, LOG_PRIOR, tau=given)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('constant', [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize('tau', [0.25, 1.0])
def test_only_ratios_of_counts_matter(constant, tau):
    # Counts, proportions and shifted log-counts differ by a constant, which the softmax ignores.
    logits, labels = example()
    loss = functools.partial(integer_loss, logits, labels, tau=tau)
    expected = loss(priors.log_prior(COUNTS))
    np.testing.assert_allclose(loss(priors.log_prior(COUNTS / COUNTS.sum())), expected, rtol=1e-5)
    log_counts = jnp.log(COUNTS.astype(np.float32))
    np.testing.assert_allclose(loss(log_counts + constant), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
def test_one_hot_labels_are_integer_labels(log_prior):
    logits, labels = example(batch=20)  # Every class, the empty one too, is a label.
    assert set(labels.tolist()) == set(range(5))
    np.testing.assert_allclose(
        soft_loss(logits, jax.nn.one_hot(labels, 5), log_prior),
        integer_loss(logits, labels, log_prior),
        rtol=1e-5,
    )


def test_the_loss_is_linear_in_soft_labels():
    logits, labels = example()
    mixed = 0.3 * jax.nn.one_hot(labels, 5) + 0.7 * jax.nn.one_hot(labels[::-1], 5)
    by_parts = 0.3 * integer_loss(logits, labels, LOG_PRIOR) + 0.7 * integer_loss(
        logits, labels[::-1], LOG_PRIOR
    )
    np.testing.assert_allclose(soft_loss(logits, mixed, LOG_PRIOR), by_parts, rtol=1e-5)


def test_smoothed_labels_agree_with_optax():
    logits, labels = example()
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, 5), 0.1)
    np.testing.assert_allclose(
        soft_loss(logits, smooth, LOG_PRIOR),
        optax.softmax_cross_entropy(logits + LOG_PRIOR[None], smooth),
        rtol=1e-5,
    )


def test_the_log_posterior_is_minus_the_loss():
    logits, labels = example(batch=20)
    log_posterior = log_posterior_of(logits, WITH_EMPTY)
    at_label = jnp.take_along_axis(log_posterior, labels[:, None], -1)[:, 0]
    np.testing.assert_allclose(-at_label, integer_loss(logits, labels, WITH_EMPTY), rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_posterior).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(log_posterior[:, 2], -np.inf)


def test_a_batch_may_mix_priors():
    logits, labels = example(batch=4)
    mixed = jnp.stack([LOG_PRIOR, WITH_EMPTY, jnp.zeros(5), LOG_PRIOR[::-1]])
    one_by_one = [integer_loss(logits[b], labels[b], mixed[b]) for b in range(4)]
    np.testing.assert_allclose(integer_loss(logits, labels, mixed), one_by_one, rtol=1e-5)
    soft = soft_labels(logits)
    one_by_one = [soft_loss(logits[b], soft[b], mixed[b]) for b in range(4)]
    np.testing.assert_allclose(soft_loss(logits, soft, mixed), one_by_one, rtol=1e-5)


def test_a_prior_may_broadcast_over_some_axes():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels = jax.random.randint(jax.random.key(1), (2, 3), 0, 5)
    by_example = jax.random.normal(jax.random.key(2), (2, 1, 5))
    whole = jnp.broadcast_to(by_example, logits.shape)
    np.testing.assert_allclose(
        integer_loss(logits, labels, by_example), integer_loss(logits, labels, whole), rtol=1e-6
    )
    # Per pixel: classes at axis 1.
    per_pixel = jnp.moveaxis(by_example, -1, 1)
    np.testing.assert_allclose(
        integer_loss(jnp.moveaxis(logits, -1, 1), labels, per_pixel, axis=1),
        integer_loss(logits, labels, by_example),
        rtol=1e-6,
    )


# Masks


def masks():
    whole = np.array(jax.random.bernoulli(jax.random.key(5), 0.6, (6, 5)))
    whole[2] = False  # Nothing left of this example.
    rows = np.array([True, False, True, True, False, False])
    return {'elements': whole, 'examples': rows, 'column': rows[:, None], 'classes': whole[:1]}


@pytest.mark.parametrize('kind', ['elements', 'examples', 'column', 'classes'])
@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
def test_where_is_that_of_optax(kind, log_prior):
    logits, labels = example()
    labels = jnp.where(labels == 2, 1, labels)
    where = masks()[kind]
    # The empty class as a very small one, for optax's sake.
    adjusted = logits + np.maximum(log_prior, -1e4)[None].astype(np.float32)
    if (
        kind == 'elements'
    ):  # optax' soft labels are NaN at excluded ones only if these have a share.
        labels = jnp.where(labels == 0, 1, labels)
    expected = optax.softmax_cross_entropy_with_integer_labels(adjusted, labels, where=where)
    np.testing.assert_allclose(
        integer_loss(logits, labels, log_prior, where=where), expected, rtol=1e-5, atol=1e-5
    )
    soft = soft_labels(logits).at[:, 2].set(0)
    np.testing.assert_allclose(
        soft_loss(logits, soft, log_prior, where=where),
        optax.softmax_cross_entropy(adjusted, soft, where=where),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
def test_an_example_without_elements_has_no_loss_and_no_gradient(log_prior):
    logits, labels = example()
    where = masks()['elements']
    loss, gradient = jax.value_and_grad(
        lambda logits: integer_loss(logits, labels, log_prior, where=where)[2]
    )(logits)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    loss, gradient = jax.value_and_grad(
        lambda logits: soft_loss(logits, soft_labels(logits), log_prior, where=where)[2]
    )(logits)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('jit', [False, True])
def test_padding_that_is_excluded_may_have_any_label(jit):
    # As optax has it: known labels are no more refused than traced ones.
    logits, labels = example()
    rows = masks()['examples']
    padded = jnp.where(rows, labels, -1)

    def loss(logits):
        return integer_loss(logits, padded, LOG_PRIOR, where=rows)

    expected = integer_loss(logits, labels, LOG_PRIOR, where=rows)
    np.testing.assert_array_equal((jax.jit(loss) if jit else loss)(logits), expected)
    gradient = jax.grad(lambda logits: loss(logits).sum())(logits)
    np.testing.assert_array_equal(gradient[~rows], 0)


def test_excluded_classes_do_not_exist():
    # The loss over the rest, whatever the excluded logit is.
    logits, labels = example()
    labels = jnp.minimum(labels, 3)
    where = jnp.broadcast_to(jnp.arange(5) != 4, logits.shape)
    expected = integer_loss(logits[:, :4], labels, LOG_PRIOR[:4])
    for excluded in (0.0, 1e30, jnp.inf, jnp.nan):
        changed = logits.at[:, 4].set(excluded)
        loss = integer_loss(changed, labels, LOG_PRIOR, where=where)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    log_posterior = log_posterior_of(logits, LOG_PRIOR, where=where)
    np.testing.assert_array_equal(log_posterior[:, 4], -np.inf)
    np.testing.assert_allclose(jnp.exp(log_posterior).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('excluded', [120.0, 1000.0, jnp.inf, jnp.nan])
@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
@pytest.mark.parametrize('level', [0.0, -1000.0])
def test_nor_do_they_in_a_gradient(log_prior, excluded, dtype, level):
    """A padded class has gradient 0, the others theirs, and a row of nothing none.

    In a sum over the rest the padded exponential is infinite, and the gradient 0 times it. So is
    that of any constant beside logits that are all far below it.
    """
    logits = jnp.round(example()[0]) + level  # Exact in bfloat16, but for what is common to all.
    labels, soft = jnp.arange(6) % 2, soft_labels(logits)
    where = jnp.broadcast_to(jnp.arange(5) != 4, logits.shape).at[2].set(False)
    logits, log_prior = logits.astype(dtype), jnp.asarray(log_prior, jnp.float32)
    padded = jnp.where(where, logits, jnp.asarray(excluded, dtype))

    def total(logits, log_prior, tau, soft, labels, where=None):
        log_posterior = log_posterior_of(logits, log_prior, tau=tau, where=where)
        kept = jnp.where(jnp.isfinite(log_posterior), log_posterior, 0)
        terms = (
            integer_loss(logits, labels, log_prior, tau=tau, where=where),
            soft_loss(logits, soft.astype(dtype), log_prior, tau=tau, where=where),
            kept.sum(-1),
        )
        return sum(term.astype(jnp.float32).sum() for term in terms)

    soft = soft.at[:, 2].set(0)  # The class that may be empty.
    differentiate = jax.value_and_grad(total, argnums=(0, 1, 2, 3))
    value, grads = differentiate(padded, log_prior, 1.0, soft, labels, where)
    rows = np.array([0, 1, 3, 4, 5])
    alone, wanted = differentiate(
        logits[rows, :4], log_prior[:4], 1.0, soft[rows, :4], labels[rows]
    )
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    np.testing.assert_array_equal(grads[0][2], 0)
    np.testing.assert_array_equal(grads[0][:, 4], 0)
    np.testing.assert_allclose(
        grads[0][rows, :4].astype(jnp.float32), wanted[0].astype(jnp.float32), atol=1e-5
    )
    np.testing.assert_allclose(grads[1][:4], wanted[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(grads[1][4], 0)
    np.testing.assert_allclose(grads[2], wanted[2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads[3][rows, :4], wanted[3], rtol=1e-4, atol=1e-4)


# By hand


def test_theorem_1_by_hand():
    # 900 e⁰ / (900 e⁰ + 90 e¹ + 10 e²)
    logits, log_prior = jnp.array([0.0, 1.0, 2.0]), jnp.log(jnp.array([900.0, 90.0, 10.0]))
    total = 900 + 90 * np.e + 10 * np.e**2
    losses = [integer_loss(logits, jnp.array(label), log_prior) for label in range(3)]
    expected = -np.log(np.array([900, 90 * np.e, 10 * np.e**2]) / total)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_corollary_2_1_by_hand():
    # τ = 1/4 weighs 10,000 and 16 examples as 10 and 2.
    loss = integer_loss(jnp.zeros(2), jnp.array(1), jnp.log(jnp.array([1e4, 16.0])), tau=0.25)
    assert loss == pytest.approx(np.log(12 / 2), rel=1e-5)


def test_gradient_by_hand():
    # φ̂ − 1[j = y], at φ̂ = (0.9, 0.1).
    gradient = jax.grad(integer_loss)(jnp.zeros(2), jnp.array(1), jnp.log(jnp.array([9.0, 1.0])))
    np.testing.assert_allclose(gradient, [0.9, -0.9], rtol=1e-5)


def test_hundred_percent_certainty_is_told_from_ninety_nine():
    # A loss near 0 keeps its digits: ln(1 + e⁻⁹).
    loss = integer_loss(jnp.array([9.0, 0.0]), jnp.array(0), jnp.zeros(2))
    assert loss == pytest.approx(np.log1p(np.exp(-9)), rel=1e-3)


# Derivatives


@pytest.mark.parametrize('axis', [-1, 0])
def test_derivatives_of_the_losses(axis):
    with jax.enable_x64(True):
        logits = jax.random.normal(jax.random.key(0), (3, 3), jnp.float64)
        log_prior = jax.random.normal(jax.random.key(1), (3,), jnp.float64)
        labels = jnp.array([0, 2, 1])
        soft = soft_labels(logits)
        where = jnp.array([[True, True, False], [True, True, True], [False, True, True]])
        tau = jnp.float64(0.7)

        def integer(logits, log_prior, tau):
            return integer_loss(logits, labels, log_prior, tau=tau, axis=axis, where=where)

        def soft_(logits, log_prior, tau, soft):
            return soft_loss(logits, soft, log_prior, tau=tau, axis=axis, where=where)

        def log_posterior(logits, log_prior, tau):
            return log_posterior_of(logits, log_prior, tau=tau, axis=axis)

        check_grads(jax.jit(integer), (logits, log_prior, tau), order=2)
        check_grads(jax.jit(soft_), (logits, log_prior, tau, soft), order=2)
        check_grads(jax.jit(log_posterior), (logits, log_prior, tau), order=2)


def test_derivatives_beside_an_empty_class():
    with jax.enable_x64(True):
        logits = jax.random.normal(jax.random.key(0), (4, 5), jnp.float64)
        labels = jnp.array([0, 1, 3, 4])
        check_grads(
            jax.jit(lambda logits, tau: integer_loss(logits, labels, WITH_EMPTY, tau=tau)),
            (logits, jnp.float64(0.7)),
            order=2,
        )


def test_derivatives_beside_a_nearly_empty_class():
    with jax.enable_x64(True):
        logits = jax.random.normal(jax.random.key(0), (4, 3), jnp.float64).at[0, 1].set(120.0)
        log_prior = jnp.array([0.0, -100.0, -1.0])
        labels = jnp.array([0, 1, 2, 0])
        check_grads(
            jax.jit(
                lambda logits, log_prior, tau: integer_loss(logits, labels, log_prior, tau=tau)
            ),
            (logits, log_prior, jnp.float64(1.0)),
            order=2,
        )


@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
@pytest.mark.parametrize('tau', [0.0, 1.0])
@pytest.mark.parametrize('scale', [1.0, 300.0, 1e30])
def test_first_and_second_derivatives_are_finite(log_prior, tau, scale):
    logits = scale * example()[0]
    labels = jnp.arange(6, dtype=jnp.int32) % 5  # The empty class is a label too.
    log_prior = jnp.asarray(log_prior, jnp.float32)
    soft = soft_labels(logits).at[0].set(jnp.eye(5)[2])

    def losses(logits, log_prior, tau):
        integer = integer_loss(logits, labels, log_prior, tau=tau)
        return jnp.sum(integer) + jnp.sum(soft_loss(logits, soft, log_prior, tau=tau))

    gradient = jax.jit(jax.grad(losses, (0, 1, 2)))
    arguments = (logits, log_prior, jnp.float32(tau))
    for leaf in jax.tree.leaves(gradient(*arguments)):
        assert jnp.all(jnp.isfinite(leaf))
    tangents = jax.tree.map(jnp.ones_like, arguments)
    for leaf in jax.tree.leaves(jax.jvp(gradient, arguments, tangents)[1]):
        assert jnp.all(jnp.isfinite(leaf))


# Extremes


@pytest.mark.parametrize('scale', [1e5, -1e5, 1e30, -1e30, 3e38])
@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
def test_equal_logits_give_the_prior_however_large(scale, log_prior):
    # Added first, log π would be lost to rounding.
    logits, labels = jnp.full((5, 5), scale), jnp.arange(5)
    expected = -log_prior + np.log(np.exp(log_prior).sum())
    np.testing.assert_allclose(integer_loss(logits, labels, log_prior), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_loss(logits, jnp.eye(5), log_prior), expected, rtol=1e-5)
    np.testing.assert_allclose(log_posterior_of(logits[0], log_prior), -expected, rtol=1e-5)


@pytest.mark.parametrize('lead', [0.0, 80.0, 300.0, 1e30])
def test_an_empty_class_weighs_nothing_as_a_negative(lead):
    logits, _ = example()
    others = jnp.array([0, 1, 3, 4])
    labels = jnp.array([0, 1, 3, 4, 0, 1])
    place = jnp.array([0, 1, 2, 3, 0, 1])
    logits = logits.at[:, 2].set(logits.max(-1) + lead)
    loss, gradient = jax.value_and_grad(
        lambda logits: integer_loss(logits, labels, WITH_EMPTY).sum()
    )(logits)
    expected = integer_loss(logits[:, others], place, WITH_EMPTY[[0, 1, 3, 4]]).sum()
    assert jnp.isfinite(loss)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_array_equal(gradient[:, 2], 0)


def test_an_empty_class_as_label_is_impossible_but_has_a_gradient():
    logits, _ = example()
    labels = jnp.full(6, 2)
    posterior = jnp.exp(log_posterior_of(logits, WITH_EMPTY))
    gradient = jax.vmap(jax.grad(lambda x, y: integer_loss(x, y, WITH_EMPTY)))(logits, labels)
    np.testing.assert_array_equal(integer_loss(logits, labels, WITH_EMPTY), np.inf)
    np.testing.assert_allclose(gradient, posterior - jnp.eye(5)[None, 2], rtol=1e-5)
    np.testing.assert_array_equal(posterior[:, 2], 0)
    one_hot = jax.nn.one_hot(labels, 5)
    loss = soft_loss(logits, one_hot, WITH_EMPTY)
    np.testing.assert_array_equal(loss, np.inf)
    soft_gradient = jax.grad(lambda x: soft_loss(x, one_hot, WITH_EMPTY).sum())(logits)
    np.testing.assert_allclose(soft_gradient, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('gap', [50.0, 61.0, 200.0, 1e4])
def test_a_nearly_empty_class_is_weighed_exactly(gap):
    # exp(log π) vanishes in float32, yet the logits make up for it: the exponents are 0 and 0.
    logits, log_prior = jnp.array([0.0, gap]), jnp.array([0.0, -gap])
    losses = [integer_loss(logits, jnp.array(label), log_prior) for label in (0, 1)]
    np.testing.assert_allclose(losses, [np.log(2)] * 2, rtol=1e-5)
    # And where they do not, it is as improbable as its prior says.
    losses = [integer_loss(jnp.zeros(2), jnp.array(label), log_prior) for label in (0, 1)]
    np.testing.assert_allclose(losses, [0, gap], rtol=1e-5)


def test_large_tau_is_a_nearly_empty_class():
    logits, labels = example()
    log_prior = LOG_PRIOR.astype(np.float64)
    adjusted = np.asarray(logits, np.float64) + 50 * log_prior
    shifted = adjusted - adjusted.max(-1, keepdims=True)
    expected = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(6), np.asarray(labels)]
    np.testing.assert_allclose(
        integer_loss(logits, labels, LOG_PRIOR, tau=50.0), expected, rtol=1e-5, atol=1e-5
    )


def test_minus_infinite_logits_are_impossible_classes():
    logits, _ = example()
    logits, labels = logits.at[:, 1].set(-jnp.inf), jnp.array([0, 1, 2, 3, 4, 1])
    loss, gradient = jax.value_and_grad(
        lambda logits: jnp.where(labels == 1, 0, integer_loss(logits, labels, LOG_PRIOR)).sum()
    )(logits)
    rest = jnp.array([0, 2, 3, 4])
    expected = integer_loss(
        logits[:5][jnp.array([0, 2, 3, 4])][:, rest], jnp.arange(4), LOG_PRIOR[[0, 2, 3, 4]]
    )
    assert loss == pytest.approx(float(expected.sum()), rel=1e-5)
    assert jnp.all(jnp.isfinite(gradient))
    all_losses = integer_loss(logits, labels, LOG_PRIOR)
    np.testing.assert_array_equal(all_losses == jnp.inf, labels == 1)
    # A soft label without a share of it: 0 log 0 = 0.
    soft = soft_labels(logits).at[:, 1].set(0)
    loss, gradient = jax.value_and_grad(lambda x: soft_loss(x, soft, LOG_PRIOR).sum())(logits)
    assert jnp.isfinite(loss)
    assert jnp.all(jnp.isfinite(gradient))


def test_nan_logits_give_a_nan_loss():
    # A run must be able to see that it has diverged, wherever the NaN is.
    logits, labels = example()
    for log_prior in (LOG_PRIOR, WITH_EMPTY):
        for place in range(5):
            broken = logits.at[0, place].set(jnp.nan)
            nan = jnp.isnan(integer_loss(broken, labels, log_prior))
            np.testing.assert_array_equal(nan, [True] + [False] * 5)
            assert jnp.isnan(soft_loss(broken, soft_labels(logits), log_prior)[0])


# Types and transformations


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_float_types(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        logits, labels = example(classes=5)
        logits = logits.astype(dtype)
        exact = integer_loss(logits.astype(jnp.float32), labels, LOG_PRIOR)
        rtol = max(float(jnp.finfo(dtype).eps), 1e-6)
        for log_prior in (LOG_PRIOR, jnp.asarray(LOG_PRIOR), LOG_PRIOR.astype(np.float64)):
            loss = integer_loss(logits, labels, log_prior)
            assert loss.dtype == dtype
            np.testing.assert_allclose(loss.astype(jnp.float32), exact, rtol=rtol)
        loss = soft_loss(logits, jax.nn.one_hot(labels, 5, dtype=jnp.float32), LOG_PRIOR)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss.astype(jnp.float32), exact, rtol=rtol)
        assert log_posterior_of(logits, LOG_PRIOR).dtype == dtype
        assert change_prior(logits, trained_log_prior=LOG_PRIOR).dtype == dtype
        gradient = jax.grad(lambda x: integer_loss(x, labels, LOG_PRIOR).sum())(logits)
        assert gradient.dtype == dtype


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_widened(dtype):
    # A sum of 5000 ones, or of a prior of 1e-7, would be lost in sixteen bits.
    logits, labels = jnp.zeros((1, 5000), dtype), jnp.zeros(1, jnp.int32)
    loss = integer_loss(logits, labels, np.zeros(5000))
    assert float(loss[0]) == pytest.approx(np.log(5000), rel=float(jnp.finfo(dtype).eps))


def test_float64_keeps_its_digits():
    with jax.enable_x64(True):
        logits = jnp.array([1.0, 2.0], jnp.float64)
        loss = integer_loss(logits, jnp.array(0), np.log([0.3, 0.7]))
        expected = -np.log(0.3 * np.e / (0.3 * np.e + 0.7 * np.e**2))
        assert float(loss) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    'dtype', ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'int4']
)
def test_integer_types_of_labels(dtype):
    # More classes than an int8 can count: an index must not be compared or computed in its type.
    logits = jax.random.normal(jax.random.key(0), (4, 200))
    log_prior = jax.random.normal(jax.random.key(1), (200,))
    numbers = [0, 3, 5, 7] if dtype == 'int4' else [0, 100, 127, 3]
    expected = integer_loss(logits, jnp.array(numbers), log_prior)
    with jax.enable_x64(dtype in ('int64', 'uint64')):
        labels = jnp.array(numbers).astype(dtype)
        assert labels.dtype == dtype
        eager = balanced_softmax_cross_entropy_with_integer_labels(logits, labels, log_prior)
        np.testing.assert_allclose(eager, expected, rtol=1e-6)
        np.testing.assert_allclose(integer_loss(logits, labels, log_prior), expected, rtol=1e-6)


@pytest.mark.parametrize('log_prior', [LOG_PRIOR, WITH_EMPTY])
def test_jit_and_vmap_change_nothing(log_prior):
    logits, labels = example()
    log_prior = jnp.asarray(log_prior, jnp.float32)
    loss = balanced_softmax_cross_entropy_with_integer_labels(logits, labels, log_prior)
    np.testing.assert_allclose(integer_loss(logits, labels, log_prior), loss, rtol=1e-6)
    mapped = jax.vmap(integer_loss, (0, 0, None))(logits, labels, log_prior)
    np.testing.assert_allclose(mapped, loss, rtol=1e-6)
    # Each with its own prior: some empty, some not.
    many = jnp.where(jnp.arange(6)[:, None] % 2 == 0, log_prior[None], 0)
    mapped = jax.vmap(integer_loss)(logits, labels, many)
    np.testing.assert_allclose(mapped, integer_loss(logits, labels, many), rtol=1e-6)


def test_tau_may_be_traced_and_mapped():
    logits, labels = example()
    taus = jnp.array([0.0, 0.25, 1.0])
    mapped = jax.jit(jax.vmap(lambda tau: integer_loss(logits, labels, WITH_EMPTY, tau=tau)))(taus)
    one_by_one = [integer_loss(logits, labels, WITH_EMPTY, tau=float(tau)) for tau in taus]
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'logits': jnp.zeros((2, 3), jnp.int32)}, 'logits: got int32'),
        ({'logits': jnp.zeros(())}, 'logits: got a scalar'),
        ({'labels': jnp.array([0.0, 1.0])}, 'labels: got float32, wanted integers'),
        ({'labels': jnp.array([True, False])}, 'labels: got bool'),
        ({'labels': jnp.array([0, 3])}, 'labels: got values from 0 to 3, wanted 0 to 2'),
        ({'labels': jnp.array([-1, 1])}, 'labels: got values from -1 to 1'),
        ({'labels': jnp.array([0])}, r'labels: got shape \(1,\), wanted \(2,\)'),
        ({'log_prior': jnp.zeros(4)}, r'log_prior: got shape \(4,\)'),
        ({'log_prior': jnp.zeros((2, 1))}, r'log_prior: got shape \(2, 1\)'),
        ({'log_prior': jnp.zeros((3, 3))}, r'log_prior: got shape \(3, 3\)'),
        ({'log_prior': jnp.array([0.0, jnp.nan, 0.0])}, 'log_prior: got NaN'),
        ({'log_prior': jnp.array([0.0, jnp.inf, 0.0])}, r'log_prior: got NaN or \+inf'),
        ({'log_prior': jnp.full(3, -jnp.inf)}, 'log_prior: got -inf for every class'),
        ({'log_prior': jnp.array([[0.0] * 3, [-jnp.inf] * 3])}, 'log_prior: got -inf for every'),
        ({'tau': jnp.zeros(3)}, r'tau: got shape \(3,\), wanted a scalar'),
        ({'where': jnp.ones((2, 4), bool)}, r'where: got shape \(2, 4\), wanted the logits'),
        ({'where': jnp.ones(3, bool)}, r'where: got shape \(3,\)'),
        ({'axis': 2}, 'axis: got 2'),
        ({'axis': ()}, r'axis: got \(\)'),
        ({'axis': (1, -1)}, r'axis: got \(1, -1\)'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {
        'logits': jnp.zeros((2, 3)),
        'labels': jnp.array([0, 1]),
        'log_prior': jnp.zeros(3),
    }
    with pytest.raises(ValueError, match=message):
        balanced_softmax_cross_entropy_with_integer_labels(**(valid | arguments))
    if 'labels' not in arguments:
        with pytest.raises(ValueError, match=message):
            balanced_softmax_cross_entropy(**(valid | {'labels': jnp.zeros((2, 3))} | arguments))
        given = valid | arguments
        del given['labels']
        with pytest.raises(ValueError, match=message):
            prior_adjusted_log_softmax(**given)


def test_an_invalid_constant_is_seen_under_jit():
    with pytest.raises(ValueError, match='log_prior: got NaN'):
        jax.jit(lambda x: prior_adjusted_log_softmax(x, np.array([0.0, np.nan])))(jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match='log_prior: got -inf for every'):
        jax.jit(lambda x: prior_adjusted_log_softmax(x, np.full(2, -np.inf)))(jnp.zeros((3, 2)))


@pytest.mark.parametrize('labels', [jnp.array([0, 1]), jnp.zeros((2, 4)), jnp.zeros(3)])
def test_soft_labels_have_the_form_of_the_logits(labels):
    with pytest.raises(ValueError, match='labels: got'):
        balanced_softmax_cross_entropy(jnp.zeros((2, 3)), labels, jnp.zeros(3))


@pytest.mark.parametrize('label', [-1, 5, 127, -128])
def test_traced_labels_out_of_range_give_nan(label):
    # Unseen, a gather would take the last class, or another's loss.
    logits, _ = example(batch=3)
    labels = jnp.array([0, label, 4], jnp.int8)
    for log_prior in (LOG_PRIOR, WITH_EMPTY):
        loss = integer_loss(logits, labels, jnp.asarray(log_prior, jnp.float32))
        np.testing.assert_array_equal(jnp.isnan(loss), [False, True, False])


# Change of prior


def test_what_training_added_is_taken_away():
    logits, _ = example()
    learned = logits + LOG_PRIOR[None]
    np.testing.assert_allclose(
        change_prior(learned, trained_log_prior=LOG_PRIOR), logits, rtol=1e-5, atol=1e-6
    )
    learned = logits + 0.25 * LOG_PRIOR[None]
    np.testing.assert_allclose(
        change_prior(learned, trained_log_prior=LOG_PRIOR, tau=0.25), logits, rtol=1e-5, atol=1e-6
    )


def test_no_prior_changes_nothing():
    logits, _ = example()
    np.testing.assert_array_equal(change_prior(logits), logits)
    np.testing.assert_array_equal(change_prior(logits, test_log_prior=jnp.zeros(5)), logits)


def test_the_training_set_as_test_set_gives_the_training_posterior():
    logits, _ = example()
    np.testing.assert_allclose(
        jax.nn.log_softmax(change_prior(logits, test_log_prior=LOG_PRIOR)),
        log_posterior_of(logits, LOG_PRIOR),
        rtol=1e-5,
        atol=1e-6,
    )


def test_changes_of_prior_compose():
    # From A to B, then from B to C, is from A to C; and back is nothing.
    logits, _ = example()
    other = jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (5,)))
    third = jax.nn.log_softmax(jax.random.normal(jax.random.key(4), (5,)))
    there = change_prior(logits, trained_log_prior=LOG_PRIOR, test_log_prior=other)
    on = change_prior(there, trained_log_prior=other, test_log_prior=third)
    at_once = change_prior(logits, trained_log_prior=LOG_PRIOR, test_log_prior=third)
    np.testing.assert_allclose(on, at_once, rtol=1e-5, atol=1e-5)
    back = change_prior(there, trained_log_prior=other, test_log_prior=LOG_PRIOR)
    np.testing.assert_allclose(back, logits, rtol=1e-5, atol=1e-5)


def test_change_of_prior_is_bayes_rule_by_hand():
    # Posterior (0.5, 0.5) learned under (0.9, 0.1), tested under (0.2, 0.8): odds ·1/9 ·1/4.
    changed = change_prior(
        jnp.zeros(2),
        trained_log_prior=jnp.log(jnp.array([0.9, 0.1])),
        test_log_prior=jnp.log(jnp.array([0.2, 0.8])),
    )
    np.testing.assert_allclose(jax.nn.softmax(changed), [1 / 37, 36 / 37], rtol=1e-5)


def test_classes_without_examples_in_training_or_test():
    logits, _ = example()
    changed = change_prior(logits, trained_log_prior=WITH_EMPTY)
    np.testing.assert_array_equal(changed[:, 2], logits[:, 2])
    changed = change_prior(logits, test_log_prior=WITH_EMPTY)
    np.testing.assert_array_equal(changed[:, 2], -np.inf)


@pytest.mark.parametrize('name', ['trained_log_prior', 'test_log_prior'])
def test_invalid_priors_to_change_are_refused(name):
    for bad in (jnp.zeros(4), jnp.array([0.0, jnp.nan, 0.0]), jnp.full(3, -jnp.inf)):
        with pytest.raises(ValueError, match=f'{name}: got'):
            change_prior(jnp.zeros((2, 3)), **{name: bad})
