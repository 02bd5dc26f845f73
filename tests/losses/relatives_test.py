"""Each relative is its formula, in a limit plain cross-entropy or Balanced Softmax, and finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from balms_jax import losses
from balms_jax.losses import (
    balanced_softmax_cross_entropy_with_integer_labels,
    cost_sensitive_cross_entropy_with_integer_labels,
    equalization_cross_entropy_with_integer_labels,
    equalization_sigmoid_binary_cross_entropy,
    focal_cross_entropy_with_integer_labels,
    focal_sigmoid_binary_cross_entropy,
    margin_cross_entropy_with_integer_labels,
    temperature_cross_entropy_with_integer_labels,
)

COUNTS = np.array([900, 90, 9, 1, 300])
MARGINS = np.array([0.1, 0.2, 0.3, 0.5, 0.15], np.float32)
TEMPERATURES = np.array([1.0, 1.5, 2.5, 4.0, 1.2], np.float32)
TAIL = np.array([False, False, True, True, False])
LOG_COSTS = np.log(np.random.default_rng(0).uniform(0.1, 2, (5, 5))).astype(np.float32)

# Every loss, with arguments that change it.
SOFTMAX_LOSSES = {
    'focal': focal_cross_entropy_with_integer_labels,
    'margin': functools.partial(
        margin_cross_entropy_with_integer_labels, margins=MARGINS, scale=3.0
    ),
    'temperature': functools.partial(
        temperature_cross_entropy_with_integer_labels, temperatures=TEMPERATURES
    ),
    'equalization': functools.partial(equalization_cross_entropy_with_integer_labels, ignored=TAIL),
    'cost_sensitive': functools.partial(
        cost_sensitive_cross_entropy_with_integer_labels, log_costs=LOG_COSTS
    ),
}
SIGMOID_LOSSES = {
    'focal': focal_sigmoid_binary_cross_entropy,
    'equalization': functools.partial(equalization_sigmoid_binary_cross_entropy, ignored=TAIL),
}
# Compiled, for speed alone; the tests of bad input call the functions themselves, which then see
# values.
softmax_losses = {name: jax.jit(loss) for name, loss in SOFTMAX_LOSSES.items()}
sigmoid_losses = {name: jax.jit(loss) for name, loss in SIGMOID_LOSSES.items()}
equalization_loss = jax.jit(equalization_cross_entropy_with_integer_labels)
focal_loss = jax.jit(focal_cross_entropy_with_integer_labels)
cost_sensitive_loss = jax.jit(cost_sensitive_cross_entropy_with_integer_labels)
every_softmax_loss = pytest.mark.parametrize('name', SOFTMAX_LOSSES)
every_sigmoid_loss = pytest.mark.parametrize('name', SIGMOID_LOSSES)


def example(batch=6, classes=5):
    keys = jax.random.split(jax.random.key(0))
    logits = 3 * jax.random.normal(keys[0], (batch, classes))
    return logits, jax.random.randint(keys[1], (batch,), 0, classes)


def plain(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


# By hand


def test_focal_by_hand():
    # φ = (0.9, 0.1): (1 − φ_y)² · −log φ_y.
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
    loss = focal_cross_entropy_with_integer_labels(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(loss, [-0.01 * np.log(0.9), -0.81 * np.log(0.1)], rtol=1e-5)


def test_focal_sigmoid_by_hand():
    # σ(log 3) = 3/4; a half label is p = 1/2 either way.
    loss = focal_sigmoid_binary_cross_entropy(
        jnp.full(3, np.log(3)), jnp.array([1.0, 0.0, 0.5]), gamma=1.0
    )
    expected = [-np.log(0.75) / 4, -np.log(0.25) * 3 / 4, -np.log(0.75 * 0.25) / 2 / 2]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_margin_by_hand():
    # s (η − Δ) of the label 1: 2 (1 − 1/2) = 1 against 2 · 0.
    loss = margin_cross_entropy_with_integer_labels(
        jnp.array([0.0, 1.0]), 1, jnp.array([0.25, 0.5]), scale=2.0
    )
    assert loss == pytest.approx(np.log1p(np.exp(-1)), rel=1e-5)


def test_temperature_by_hand():
    # η / a = (1, 2) of the logits (2, 2).
    loss = temperature_cross_entropy_with_integer_labels(
        jnp.array([2.0, 2.0]), 0, jnp.array([2.0, 1.0])
    )
    assert loss == pytest.approx(np.log1p(np.e), rel=1e-5)


def test_equalization_by_hand():
    # Class 1 is ignored but where it is the label, class 2 weighs a half.
    logits, ignored = jnp.log(jnp.array([2.0, 3.0, 4.0])), jnp.array([0.0, 1.0, 0.5])
    loss = equalization_cross_entropy_with_integer_labels(
        jnp.stack([logits] * 3), jnp.arange(3), ignored
    )
    np.testing.assert_allclose(
        loss, -np.log([2 / (2 + 2), 3 / (2 + 3 + 2), 4 / (2 + 4)]), rtol=1e-5
    )


def test_equalization_sigmoid_by_hand():
    # A negative of a tail class counts in the background alone; a half label counts by half.
    labels = jnp.array([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]])
    loss = equalization_sigmoid_binary_cross_entropy(
        jnp.zeros((2, 3)), labels, jnp.array([1, 1, 1]), foreground=jnp.array([True, False])
    )
    np.testing.assert_allclose(loss, np.log(2) * np.array([[0, 1, 0.5], [1, 1, 1]]), rtol=1e-6)


def test_cost_sensitive_by_hand():
    # The row of the label 1 is (2, 3).
    loss = cost_sensitive_cross_entropy_with_integer_labels(
        jnp.log(jnp.array([5.0, 7.0])), 1, jnp.log(jnp.array([[1.0, 9.0], [2.0, 3.0]]))
    )
    assert loss == pytest.approx(-np.log(3 * 7 / (2 * 5 + 3 * 7)), rel=1e-5)


# Limits


@pytest.mark.parametrize(
    'loss',
    [
        functools.partial(focal_cross_entropy_with_integer_labels, gamma=0.0),
        functools.partial(margin_cross_entropy_with_integer_labels, margins=np.zeros(5)),
        functools.partial(margin_cross_entropy_with_integer_labels, margins=np.zeros(5), scale=1),
        functools.partial(temperature_cross_entropy_with_integer_labels, temperatures=np.ones(5)),
        functools.partial(equalization_cross_entropy_with_integer_labels, ignored=np.zeros(5)),
        functools.partial(
            cost_sensitive_cross_entropy_with_integer_labels, log_costs=np.full((5, 5), 4.0)
        ),
    ],
    ids=['focal', 'margin', 'scale', 'temperature', 'equalization', 'cost_sensitive'],
)
def test_the_neutral_setting_is_plain_cross_entropy(loss):
    logits, labels = example()
    expected = jax.value_and_grad(lambda x: plain(x, labels).sum())(logits)
    both = jax.jit(jax.value_and_grad(lambda x: loss(x, labels).sum()))(logits)
    np.testing.assert_allclose(both[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(both[1], expected[1], rtol=1e-4, atol=1e-6)


def test_focal_of_gamma_0_is_the_plain_sigmoid():
    logits, labels = example()[0], jax.nn.sigmoid(example()[0][::-1])
    np.testing.assert_allclose(
        focal_sigmoid_binary_cross_entropy(logits, labels, gamma=0),
        optax.sigmoid_binary_cross_entropy(logits, labels),
        rtol=1e-6,
    )


def test_two_classes_of_the_softmax_are_one_sigmoid():
    # φ_0 = σ(η_0 − η_1), so the two focal losses are one.
    logits, labels = example(classes=2)
    difference = (logits[:, 0] - logits[:, 1])[:, None]
    for gamma in (0.0, 0.5, 2.0):
        softmax = focal_loss(logits, labels, gamma=gamma)
        sigmoid = focal_sigmoid_binary_cross_entropy(difference, labels[:, None] == 0, gamma=gamma)
        np.testing.assert_allclose(softmax, sigmoid[:, 0], rtol=1e-5)


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0, 5.0])
def test_focal_is_cross_entropy_times_the_power_of_what_is_missing(gamma):
    logits, labels = example()
    missing = 1 - jnp.exp(-plain(logits, labels))
    np.testing.assert_allclose(
        focal_loss(logits, labels, gamma=gamma),
        missing**gamma * plain(logits, labels),
        rtol=1e-4,
        atol=1e-7,
    )


def test_equal_margins_of_the_log_odds_shift_them():
    # The margin is taken from the label's log odds s (η_y − η_j) = s (η_y − Δ − η_j) + sΔ.
    logits, labels = example()
    shifted = logits.at[jnp.arange(6), labels].add(-0.4)
    np.testing.assert_allclose(
        margin_cross_entropy_with_integer_labels(logits, labels, np.full(5, 0.4), scale=30.0),
        plain(30 * shifted, labels),
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_temperature_is_a_scale():
    logits, labels = example()
    np.testing.assert_allclose(
        temperature_cross_entropy_with_integer_labels(logits, labels, np.full(5, 2.0)),
        margin_cross_entropy_with_integer_labels(logits, labels, np.zeros(5), scale=0.5),
        rtol=1e-5,
    )


def test_ignoring_every_class_leaves_nothing_to_learn():
    # Only the label's own exponential is left, over itself.
    logits, labels = example()
    loss, gradient = jax.value_and_grad(
        lambda x: equalization_loss(x, labels, np.ones(5, bool)).sum()
    )(logits)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_an_ignored_class_has_no_gradient_but_from_its_own_examples():
    logits, _ = example()
    labels = jnp.array([0, 1, 4, 0, 2, 3])
    gradient = jax.grad(lambda x: softmax_losses['equalization'](x, labels).sum())(logits)
    np.testing.assert_array_equal(gradient[:4][:, TAIL], 0)
    assert gradient[4, 2] < 0
    assert gradient[5, 3] < 0
    np.testing.assert_array_equal([gradient[4, 3], gradient[5, 2]], 0)


def test_ignored_classes_may_be_drawn_for_every_example():
    logits, labels = example()
    drawn = jax.random.bernoulli(jax.random.key(3), 0.5, logits.shape)
    one_by_one = [equalization_loss(logits[b], labels[b], drawn[b]) for b in range(6)]
    for given in (drawn, drawn.astype(jnp.float32), drawn.astype(jnp.int32)):
        np.testing.assert_allclose(equalization_loss(logits, labels, given), one_by_one, rtol=1e-6)


@pytest.mark.parametrize('ignored', [np.zeros(5), TAIL])
def test_equalization_spares_only_negatives_of_the_foreground(ignored):
    logits, labels = example()
    labels = jax.nn.one_hot(labels, 5)
    plain_loss = optax.sigmoid_binary_cross_entropy(logits, labels)
    loss = equalization_sigmoid_binary_cross_entropy(logits, labels, ignored)
    spared = (ignored[None] != 0) & (labels == 0)
    np.testing.assert_allclose(loss, jnp.where(spared, 0, plain_loss), rtol=1e-6)
    background = equalization_sigmoid_binary_cross_entropy(
        logits, labels, ignored, foreground=np.zeros(6, bool)
    )
    np.testing.assert_allclose(background, plain_loss, rtol=1e-6)


def test_costs_of_the_class_counts_are_balanced_softmax():
    # ξ_{y,j} = n_j whatever y is: to the last bit, for the numbers that are added are the same.
    logits, labels = example()
    log_counts = np.log(COUNTS).astype(np.float32)
    np.testing.assert_array_equal(
        cost_sensitive_loss(logits, labels, np.stack([log_counts] * 5)),
        jax.jit(balanced_softmax_cross_entropy_with_integer_labels)(logits, labels, log_counts),
    )


def test_only_ratios_within_a_row_of_costs_matter():
    logits, labels = example()
    scaled = LOG_COSTS + np.array([[5.0], [-3.0], [0.0], [100.0], [1.0]], np.float32)
    np.testing.assert_allclose(
        cost_sensitive_loss(logits, labels, scaled),
        cost_sensitive_loss(logits, labels, LOG_COSTS),
        rtol=1e-4,
    )


def test_a_cost_of_zero_removes_the_class():
    logits, labels = example()
    labels = jnp.minimum(labels, 3)
    log_costs = np.where(np.arange(5) == 4, -np.inf, np.zeros((5, 5))).astype(np.float32)
    np.testing.assert_allclose(
        cost_sensitive_loss(logits, labels, log_costs),
        plain(logits[:, :4], labels),
        rtol=1e-5,
    )


# Extremes


def derivatives(loss, *arguments):
    """The gradient and its derivative along ones, by every argument."""
    gradient = jax.grad(loss, tuple(range(len(arguments))))
    return jax.jit(lambda *a: jax.jvp(gradient, a, jax.tree.map(jnp.ones_like, a)))(*arguments)


@every_softmax_loss
def test_first_and_second_derivatives_are_finite(name):
    # The label is certain in some examples, all but impossible in others.
    logits = jnp.concatenate([example()[0], jnp.eye(5), -jnp.eye(5)])
    labels = jnp.array([0, 1, 2, 3, 4, 0, *range(5), *range(5)])
    scaled = jnp.array([30.0, 300.0, 1e10, 1e30])[:, None, None] * logits[None]
    loss = jax.vmap(softmax_losses[name], (0, None))
    assert jnp.all(jnp.isfinite(jax.jit(loss)(scaled, labels)))
    for leaf in jax.tree.leaves(derivatives(lambda x: loss(x, labels).sum(), scaled)):
        assert jnp.all(jnp.isfinite(leaf))


@every_sigmoid_loss
def test_derivatives_of_the_sigmoids_are_finite(name):
    logits = jnp.array([30.0, -30.0, 1e30, -1e30])[:, None, None] * jnp.ones((1, 2, 5))
    labels = jnp.broadcast_to(jnp.eye(2)[None, :, :1], logits.shape)
    loss = sigmoid_losses[name]
    assert jnp.all(jnp.isfinite(loss(logits, labels)))
    for leaf in jax.tree.leaves(derivatives(lambda x: loss(x, labels).sum(), logits)):
        assert jnp.all(jnp.isfinite(leaf))


def test_focal_is_smooth_where_the_label_is_certain():
    # (1 − φ)^γ itself has no second derivative there for γ < 2, no first for γ < 1.
    leads, gammas = jnp.meshgrid(
        jnp.array([0.0, 10.0, 20.0, 90.0, 1e30]), jnp.array([0.0, 0.1, 0.5, 1.0, 1.5, 2.0])
    )

    def losses_of(leads, gammas):
        def loss(lead, gamma):
            logits = jnp.stack([lead, jnp.zeros_like(lead), jnp.zeros_like(lead)])
            return focal_loss(logits, jnp.array(0), gamma=gamma)

        return jax.vmap(jax.vmap(loss))(leads, gammas)

    for leaf in jax.tree.leaves(derivatives(lambda *a: losses_of(*a).sum(), leads, gammas)):
        assert jnp.all(jnp.isfinite(leaf))
    # Missing is m = 2 e^{−lead}, and the loss m^{1 + γ}, long after 1 − m has become 1.
    certain = slice(1, 3)
    np.testing.assert_allclose(
        losses_of(leads, gammas)[:, certain],
        (2 * jnp.exp(-leads[:, certain])) ** (1 + gammas[:, certain]),
        rtol=1e-3,
    )


@pytest.mark.parametrize('gamma', [0.0, 2.0])
def test_focal_of_certain_and_of_impossible_labels(gamma):
    logits = jnp.array([[-jnp.inf, 0.0, 1.0], [0.0, -jnp.inf, -jnp.inf], [0.0, -jnp.inf, 0.0]])
    loss, vjp = jax.vjp(
        lambda x: focal_cross_entropy_with_integer_labels(x, jnp.zeros(3, int), gamma=gamma), logits
    )
    np.testing.assert_allclose(loss, [np.inf, 0, np.log(2) * 0.5**gamma], rtol=1e-5)
    assert jnp.all(jnp.isfinite(vjp(jnp.ones(3))[0]))
    # A single class is always right.
    alone = focal_cross_entropy_with_integer_labels(jnp.ones((2, 1)), jnp.zeros(2, int))
    np.testing.assert_array_equal(alone, 0)


@pytest.mark.parametrize('scale', [1e5, 1e30])
def test_large_equal_logits_keep_the_adjustment(scale):
    # Added to the logits first, it would be lost to rounding.
    logits, labels = jnp.full((5, 5), scale), jnp.arange(5)
    nothing = jnp.zeros((5, 5))
    for name in ('focal', 'equalization', 'cost_sensitive'):
        loss = softmax_losses[name]
        np.testing.assert_allclose(loss(logits, labels), loss(nothing, labels), rtol=1e-5)
    loss = functools.partial(margin_cross_entropy_with_integer_labels, margins=MARGINS)
    np.testing.assert_allclose(loss(logits, labels), loss(nothing, labels), rtol=1e-5)


@every_softmax_loss
def test_nan_logits_give_a_nan_loss(name):
    # A run must be able to see that it has diverged, wherever the NaN is.
    logits, labels = example()
    for place in range(5):
        loss = softmax_losses[name](logits.at[0, place].set(jnp.nan), labels)
        np.testing.assert_array_equal(jnp.isnan(loss), [True] + [False] * 5)


# Derivatives


def test_derivatives_by_the_logits_and_by_what_may_be_learned():
    with jax.enable_x64(True):
        labels = jnp.array([0, 2, 4])
        arguments = {
            'logits': jax.random.normal(jax.random.key(0), (3, 5)),
            'gamma': 0.7,
            'margins': MARGINS,
            'scale': 3.0,
            'temperatures': TEMPERATURES,
            'ignored': np.array([0.0, 0.3, 0.9, 0.5, 0.2]),
            'log_costs': LOG_COSTS,
        }

        def losses_of(given):
            logits = given['logits']
            return jnp.stack(
                [
                    focal_cross_entropy_with_integer_labels(logits, labels, gamma=given['gamma']),
                    margin_cross_entropy_with_integer_labels(
                        logits, labels, given['margins'], scale=given['scale']
                    ),
                    temperature_cross_entropy_with_integer_labels(
                        logits, labels, given['temperatures']
                    ),
                    equalization_cross_entropy_with_integer_labels(
                        logits, labels, given['ignored']
                    ),
                    cost_sensitive_cross_entropy_with_integer_labels(
                        logits, labels, given['log_costs']
                    ),
                ]
            )

        arguments = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), arguments)
        check_grads(jax.jit(losses_of), (arguments,), order=2, modes=['rev'])


def test_a_whole_share_meets_no_infinite_gradient():
    # d log(1 − r) = −dr / (1 − r).
    logits, labels = example()
    gradient = jax.grad(lambda r: equalization_loss(logits, labels, r).sum())(
        jnp.array([0.0, 1.0, 0.5, 1.0, 0.0])
    )
    assert jnp.all(jnp.isfinite(gradient))


# Types and transformations


@every_softmax_loss
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_float_types(name, dtype):
    # Sixteen bits come in and go out; between them the sum is of float32.
    def with_sum(logits):
        loss = softmax_losses[name](logits, labels)
        return loss.sum(), loss

    with jax.enable_x64(dtype == jnp.float64):
        logits, labels = example()
        logits = logits.astype(dtype)
        (_, loss), gradient = jax.jit(jax.value_and_grad(with_sum, has_aux=True))(logits)
        assert loss.dtype == gradient.dtype == dtype
        exact = softmax_losses[name](logits.astype(jnp.float32), labels)
        np.testing.assert_allclose(
            loss.astype(jnp.float32), exact, rtol=max(float(jnp.finfo(dtype).eps), 1e-5), atol=1e-7
        )


@every_sigmoid_loss
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize('label_dtype', [jnp.bool_, jnp.int32, jnp.float32])
def test_types_of_the_sigmoids(name, dtype, label_dtype):
    logits, labels = example()[0].astype(dtype), jnp.eye(6, 5).astype(label_dtype)
    loss = sigmoid_losses[name](logits, labels)
    assert loss.dtype == dtype
    exact = sigmoid_losses[name](logits.astype(jnp.float32), labels)
    np.testing.assert_allclose(
        loss.astype(jnp.float32), exact, rtol=max(float(jnp.finfo(dtype).eps), 1e-6), atol=1e-7
    )


@every_softmax_loss
def test_jit_vmap_and_leading_axes_change_nothing(name):
    logits, labels = example()
    expected = SOFTMAX_LOSSES[name](logits, labels)
    loss = softmax_losses[name]
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(logits, labels), expected, rtol=1e-5, atol=1e-6)
    deep = loss(logits.reshape(2, 3, 5), labels.reshape(2, 3))
    np.testing.assert_allclose(deep.ravel(), expected, rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(loss, logits[:0], labels[:0]).shape == (0,)


@every_sigmoid_loss
def test_jit_and_vmap_change_nothing_of_the_sigmoids(name):
    logits, labels = example()[0], jnp.eye(6, 5)
    expected = SIGMOID_LOSSES[name](logits, labels)
    loss = sigmoid_losses[name]
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(loss)(logits, labels), expected, rtol=1e-5)


def test_arguments_may_be_traced():
    logits, labels = example()
    arguments = {
        focal_cross_entropy_with_integer_labels: {'gamma': 0.5},
        margin_cross_entropy_with_integer_labels: {'margins': MARGINS, 'scale': 30.0},
        temperature_cross_entropy_with_integer_labels: {'temperatures': TEMPERATURES},
        equalization_cross_entropy_with_integer_labels: {'ignored': TAIL},
        cost_sensitive_cross_entropy_with_integer_labels: {'log_costs': LOG_COSTS},
    }
    for loss, given in arguments.items():
        constant = jax.jit(functools.partial(loss, **given))(logits, labels)
        np.testing.assert_allclose(
            jax.jit(loss)(logits, labels, **given), constant, rtol=1e-5, atol=1e-6
        )


@every_softmax_loss
@pytest.mark.parametrize('label', [-1, 5, 127, -128])
def test_traced_labels_out_of_range_give_nan(name, label):
    # Unseen, a gather would take the last class, or another's loss.
    logits, labels = example(batch=3)[0], jnp.array([0, label, 4], jnp.int8)
    loss = softmax_losses[name](logits, labels)
    np.testing.assert_array_equal(jnp.isnan(loss), [False, True, False])


# Bad input


@every_softmax_loss
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'logits': jnp.zeros((2, 5), jnp.int32)}, 'logits: got int32'),
        ({'logits': jnp.zeros(())}, 'logits: got a scalar'),
        ({'labels': jnp.array([0.0, 1.0])}, 'labels: got float32, wanted integers'),
        ({'labels': jnp.array([0, 5])}, 'labels: got values from 0 to 5, wanted 0 to 4'),
        ({'labels': jnp.array([0])}, r'labels: got shape \(1,\), wanted \(2,\)'),
    ],
)
def test_invalid_logits_and_labels_are_named(name, arguments, message):
    valid = {'logits': jnp.zeros((2, 5)), 'labels': jnp.array([0, 1])}
    with pytest.raises(ValueError, match=message):
        SOFTMAX_LOSSES[name](**(valid | arguments))


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('focal', {'gamma': -1.0}, r'gamma: got -1\.0, wanted a number of at least 0'),
        ('focal', {'gamma': jnp.ones(5)}, r'gamma: got shape \(5,\), wanted a scalar'),
        ('margin', {'margins': jnp.zeros(4)}, r'margins: got shape \(4,\), wanted \[classes\]'),
        ('margin', {'margins': jnp.full(5, jnp.nan)}, 'margins: got nan'),
        ('margin', {'scale': float('nan')}, 'scale: got nan, wanted a finite number'),
        ('margin', {'scale': jnp.inf}, 'scale: got inf'),
        ('margin', {'scale': jnp.ones(2)}, r'scale: got shape \(2,\), wanted a scalar'),
        ('temperature', {'temperatures': jnp.ones((2, 5))}, 'temperatures: got shape'),
        ('temperature', {'temperatures': jnp.arange(5)}, r'temperatures: got 0\.0 to 4\.0, wanted'),
        ('temperature', {'temperatures': jnp.full(5, jnp.inf)}, 'temperatures: got inf'),
        ('equalization', {'ignored': jnp.zeros(2)}, r'ignored: got shape \(2,\), wanted'),
        ('equalization', {'ignored': jnp.full(5, 1.5)}, 'ignored: got 1.5 to 1.5, wanted'),
        ('equalization', {'ignored': jnp.full(5, jnp.nan)}, 'ignored: got nan'),
        ('cost_sensitive', {'log_costs': jnp.zeros(5)}, 'log_costs: got shape'),
        ('cost_sensitive', {'log_costs': jnp.zeros((5, 5), int)}, 'log_costs: got int32, wanted'),
        ('cost_sensitive', {'log_costs': jnp.full((5, 5), jnp.nan)}, 'log_costs: got NaN or'),
        ('cost_sensitive', {'log_costs': jnp.full((5, 5), -jnp.inf)}, 'log_costs: got -inf for a'),
    ],
)
def test_invalid_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        SOFTMAX_LOSSES[name](jnp.zeros((2, 5)), jnp.array([0, 1]), **arguments)


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('focal', {'labels': jnp.zeros(5)}, "labels: got shape .*, wanted the logits'"),
        ('focal', {'gamma': -0.5}, r'gamma: got -0\.5'),
        ('focal', {'logits': jnp.zeros((2, 5), int)}, 'logits: got int32'),
        ('equalization', {'labels': jnp.zeros(5)}, 'labels: got shape'),
        ('equalization', {'ignored': jnp.zeros(4)}, 'ignored: got shape'),
        ('equalization', {'ignored': -jnp.ones(5)}, 'ignored: got -1'),
        ('equalization', {'foreground': jnp.ones(5, bool)}, 'foreground: got shape'),
    ],
)
def test_invalid_arguments_of_the_sigmoids_are_named(name, arguments, message):
    valid = {'logits': jnp.zeros((2, 5)), 'labels': jnp.zeros((2, 5))}
    with pytest.raises(ValueError, match=message):
        SIGMOID_LOSSES[name](**(valid | arguments))


def test_every_loss_is_exported():
    assert sorted(losses.__all__) == losses.__all__
    assert all(hasattr(losses, name) for name in losses.__all__)
