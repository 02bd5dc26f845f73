"""Optimizers as the paper and its released code have them."""

import dataclasses

import jax.numpy as jnp
import pytest

from balms_jax.training import learners, recipe

pytestmark = pytest.mark.usefixtures('standard_promotion')


def test_learning_rate_warms_up_then_follows_a_cosine_to_zero():
    """The paper's schedule at its corners; held, it changes once an epoch only."""
    settings = recipe.Optimizer(learning_rate=0.1, warmup_from=0.05, warmup_steps=800)
    rate = learners.learning_rate(settings, 13_000)
    wanted = {0: 0.05, 400: 0.075, 800: 0.1, 6_900: 0.05, 13_000: 0.0}
    for step, value in wanted.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6)
    held = learners.learning_rate(dataclasses.replace(settings, hold=25), 13_000)
    assert float(held(1_024)) == float(held(1_000)) == float(rate(1_000))


def test_learning_rate_warms_up_then_drops():
    """The strong recipe's schedule: level between the steps at which it falls to a tenth."""
    settings = recipe.Optimizer(warmup_from=0.05, warmup_steps=100, drops=(300, 400))
    rate = learners.learning_rate(settings, 500)
    wanted = {0: 0.05, 50: 0.075, 100: 0.1, 299: 0.1, 300: 0.01, 399: 0.01, 400: 0.001, 499: 0.001}
    for step, value in wanted.items():
        assert float(rate(step)) == pytest.approx(value)


def test_weight_decay_is_added_to_the_gradient_before_the_momentum():
    """As in PyTorch's SGD: v ← μ v + (g + λ θ), θ ← θ − lr (g + λ θ + μ v) with Nesterov."""
    settings = recipe.Optimizer(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimizer = learners.make_optimizer(settings, 1_000_000_000)
    theta, velocity = 2.0, 0.0
    params = jnp.asarray(theta)
    opt_state = optimizer.init(params)
    for grad in (1.0, -0.5, 0.25):
        updates, opt_state = optimizer.update(jnp.asarray(grad), opt_state, params)
        params = params + updates
        decayed = grad + 0.01 * theta
        velocity = 0.9 * velocity + decayed
        theta -= 0.1 * (decayed + 0.9 * velocity)
        assert float(params) == pytest.approx(theta, rel=1e-6)
