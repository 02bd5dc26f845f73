"""A recipe's loss is the library's of that name, and its class weights multiply it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import bounds, losses, priors
from balms_jax.training import objectives, recipe

COUNTS = (60, 9, 1)
LOGITS = jnp.array([[1.0, 0.0, -2.0], [0.3, -0.4, 0.2], [2.0, 1.0, 0.5], [0.0, 0.0, 0.0]])
LABELS = jnp.array([0, 1, 2, 2])
LOG_COSTS = jnp.log(jnp.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.3], [0.9, 0.3, 1.0]]))
SPARED = jnp.array([True, False, True, False])

DIRECT = {
    'balanced_softmax': lambda: losses.balanced_softmax_cross_entropy_with_integer_labels(
        LOGITS, LABELS, priors.log_prior(COUNTS), tau=1.0
    ),
    'focal': lambda: losses.focal_cross_entropy_with_integer_labels(LOGITS, LABELS, gamma=0.2),
    'focal_sigmoid': lambda: losses.focal_sigmoid_binary_cross_entropy(
        LOGITS, jnp.eye(3)[LABELS], gamma=0.2
    ).sum(-1),
    'margin': lambda: losses.margin_cross_entropy_with_integer_labels(
        LOGITS, LABELS, bounds.label_distribution_margins(COUNTS, 2.0)
    ),
    'temperature': lambda: losses.temperature_cross_entropy_with_integer_labels(
        LOGITS, LABELS, priors.class_dependent_temperatures(COUNTS, 0.2)
    ),
    'cost_sensitive': lambda: losses.cost_sensitive_cross_entropy_with_integer_labels(
        LOGITS, LABELS, LOG_COSTS
    ),
    'equalization': lambda: losses.equalization_cross_entropy_with_integer_labels(
        LOGITS, LABELS, SPARED[:, None] & jnp.array([[False, False, True]])
    ),
}


def values(targets=LABELS, adjustment=None, **settings):
    given = recipe.Loss(**{'gamma': 0.2, 'margin': 2.0, 'threshold': 0.05, **settings})
    return objectives.make_example_losses(given, COUNTS)(LOGITS, targets, SPARED, adjustment)


def named(name, **settings):
    adjustment = LOG_COSTS if name == 'cost_sensitive' else None
    return values(LABELS, adjustment, name=name, **settings)


@pytest.mark.parametrize('name', recipe.LOSSES)
def test_a_name_is_that_of_the_loss(name):
    np.testing.assert_allclose(named(name), DIRECT[name](), rtol=1e-6)


@pytest.mark.parametrize('name', recipe.LOSSES)
@pytest.mark.parametrize('weights', ['inverse_frequency', 'class_balanced'])
def test_class_weights_multiply_any_loss(name, weights):
    of_class = {
        'inverse_frequency': priors.inverse_frequency_weights(COUNTS),
        'class_balanced': priors.class_balanced_weights(COUNTS, 0.99),
    }[weights]
    weighted = named(name, class_weights=weights, beta=0.99)
    np.testing.assert_allclose(weighted, of_class[LABELS] * named(name), rtol=1e-6)


def test_a_mixed_label_is_as_heavy_as_its_halves():
    """Σ_j y_j w_j CE_j: else mixing would give the frequent classes more than their weight."""
    mixed = jnp.array([[0.5, 0.0, 0.5]] * 4)
    of_class = priors.inverse_frequency_weights(COUNTS)
    weighted = values(mixed, tau=0.0, class_weights='inverse_frequency')
    first, last = (
        optax.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.full(4, label))
        for label in (0, 2)
    )
    wanted = 0.5 * of_class[0] * first + 0.5 * of_class[2] * last
    np.testing.assert_allclose(weighted, wanted, rtol=1e-5)


def test_smoothed_labels_are_those_of_optax_adjusted_by_their_own_prior():
    smoothed = optax.smooth_labels(jax.nn.one_hot(LABELS, 3), 0.1)
    log_prior = jnp.log(0.9 * jnp.array(COUNTS, jnp.float32) / 70 + 0.1 / 3)
    wanted = losses.balanced_softmax_cross_entropy(LOGITS, smoothed, log_prior)
    np.testing.assert_allclose(values(label_smoothing=0.1), wanted, rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_level_logits_are_right_where_images_tell_nothing(smoothing):
    """Theorem 1: then the gradient over the long tail is 0, and no class is favoured at test."""
    given = recipe.Loss(label_smoothing=smoothing)
    loss = objectives.make_example_losses(given, COUNTS)

    def over_the_long_tail(logits):
        each = loss(jnp.tile(logits, (3, 1)), jnp.arange(3), jnp.zeros(3, bool))
        return jnp.array(COUNTS, float) @ each / sum(COUNTS)

    np.testing.assert_allclose(jax.grad(over_the_long_tail)(jnp.zeros(3)), 0, atol=1e-6)


def test_smoothing_leaves_the_weights_of_classes():
    """A rare class's example is as heavy with smoothed labels as without."""
    plain = values(label_smoothing=0.1)
    weighted = values(label_smoothing=0.1, class_weights='inverse_frequency')
    of_class = priors.inverse_frequency_weights(COUNTS)
    np.testing.assert_allclose(weighted / plain, of_class[LABELS], rtol=1e-5)


def test_a_learned_adjustment_of_the_log_prior_is_balanced_softmax():
    """τ = 0 with ψ = log π, and τ = 1 with ψ = 0, are one loss."""
    learned = values(tau=0.0, adjustment=priors.log_prior(COUNTS))
    np.testing.assert_allclose(learned, values(tau=1.0), rtol=1e-6)
    np.testing.assert_allclose(values(adjustment=jnp.zeros(3)), values(tau=1.0), rtol=1e-6)


def test_experts_of_one_tau_are_one_classifier():
    """Without a spread their mean loss is that of each; with one, the mean over τ."""
    three = jnp.stack([LOGITS] * 3, 1)
    settings = recipe.Loss(expert_spread=0.0)
    alike = objectives.make_example_losses(settings, COUNTS)(three, LABELS, SPARED)
    np.testing.assert_allclose(alike, values(), rtol=1e-6)
    apart = objectives.make_example_losses(recipe.Loss(), COUNTS)(three, LABELS, SPARED)
    wanted = np.mean([values(tau=tau) for tau in (0.0, 1.0, 2.0)], 0)
    np.testing.assert_allclose(apart, wanted, rtol=1e-5)
    assert objectives.expert_taus(recipe.Loss(tau=1.0, expert_spread=0.5), 2) == (0.75, 1.25)
