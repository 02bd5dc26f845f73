"""How much each category's foreground weighs: by hand, and in the limits of the losses."""

import jax.numpy as jnp
import numpy as np

from balms_jax import diagnostics
from balms_jax.detection.gradient_weights import foreground_gradients, relative_gradients
from balms_jax.detection.losses import balanced_sigmoid_loss, sigmoid_loss

# Two regions of category 0, one of category 1, one of the background.
CATEGORIES = jnp.array([0, 0, 1, -1])


def test_pulls_by_hand():
    # The sigmoid's slope at its own logit is p − 1: at η = 0 a half; at η = log 3 a quarter.
    logits = jnp.array([[0.0, 5.0], [jnp.log(3.0), 5.0], [5.0, 0.0], [5.0, 5.0]])
    found = foreground_gradients(logits, CATEGORIES, sigmoid_loss)
    np.testing.assert_allclose(found, [0.75, 0.5], rtol=1e-6)


def test_weights_multiply_their_categories():
    logits = jnp.zeros((4, 2))
    found = foreground_gradients(logits, CATEGORIES, sigmoid_loss, jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(found, [1.0, 2.0], rtol=1e-6)


def test_the_background_pulls_no_category():
    found = foreground_gradients(jnp.zeros((4, 2)), jnp.full(4, -1), sigmoid_loss)
    np.testing.assert_array_equal(found, 0)


def test_beside_itself_every_weight_is_one():
    sums = relative_gradients(2, sigmoid_loss, sigmoid_loss)
    trained, plain = sums(jnp.array([[1.0, -2.0]] * 4), CATEGORIES, None)
    np.testing.assert_allclose(trained / plain, 1.0, rtol=1e-6)


def test_of_well_told_regions_the_balanced_sigmoid_weighs_by_the_inverse_odds():
    # At zero loss 1 − σ(η + logit f) → e^{−η} (1 − f) / f: the exponent against the odds is −1.
    fractions = np.array([0.5, 0.05, 0.005], np.float32)
    categories = jnp.arange(3)
    logits = jnp.full((3, 3), -20.0) + 45.0 * jnp.eye(3)

    def balanced(logits, categories):
        return balanced_sigmoid_loss(logits, categories, fractions)

    sums = relative_gradients(3, balanced, sigmoid_loss)
    trained, plain = np.asarray(sums(logits / 3, categories, None))
    weights = trained / plain
    exponent = diagnostics.gradient_weight_exponent(weights, fractions / (1 - fractions))
    np.testing.assert_allclose(exponent, -1.0, atol=0.02)
