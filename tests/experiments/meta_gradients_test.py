"""The pure parts of the laboratory: exact references, ring buffer, measures, agreement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import meta_gradients
from balms_jax.estimators import ESTIMATORS
from experiments.laboratory import agreement, head, horizon, networks, sampling_gradients
from experiments.laboratory import statistics as measures
from experiments.laboratory.features import Tail
from experiments.laboratory.head import Settings
from experiments.laboratory.ledger import Ledger

pytestmark = pytest.mark.usefixtures('standard_promotion')


def small_tail(counts=(9, 4, 2), width=5):
    """Clouds of points, a class each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = rng.normal(size=(labels.size, width))
    return Tail((centres[labels] + noise).astype(np.float32), np.array(counts))


TASK = head.make_task(small_tail())


@functools.cache
def trained_point():
    """A head, its momentum and ψ within training, and a meta batch."""
    settings = Settings('expectation', meta_batch=6, steps=400, batch_size=6)
    point = jax.jit(lambda key: head.train(TASK, settings, key, rounds=20)[0])(jax.random.key(0))
    return point, TASK.meta_batch(jax.random.key(1), 6)


# Exact references


def test_the_exact_gradient_is_a_difference_of_the_meta_loss_after_the_expected_step():
    """Written out: q-weighted class means of gradients, then one step of the optimizer."""
    point, meta_batch = trained_point()
    exact = sampling_gradients.exact_gradient(TASK, point, meta_batch, 400)
    labels, counts = TASK.tail.labels, TASK.tail.counts
    with jax.enable_x64(True):
        features, log_prior, params, meta_batch, opt_state = networks.cast(
            (TASK.features, TASK.log_prior, point.params, meta_batch, point.opt_state), jnp.float64
        )
        task = TASK._replace(features=features, log_prior=log_prior)

        @jax.jit
        def after(psi):
            weights = counts / (1 + jnp.exp(-psi))

            def expected(params):
                values = task.example_losses(params, features, labels)
                means = [values[labels == j].mean() for j in range(counts.size)]
                return jnp.stack(means) @ weights / weights.sum()

            grads = jax.grad(expected)(params)
            updates, _ = head.head_optimizer(400).update(grads, opt_state, params)
            moved = jax.tree.map(lambda p, u: p + u, params, updates)
            return head.meta_loss(moved, meta_batch)[0]

        psi = np.asarray(point.psi, np.float64)
        differences = [(after(psi + h) - after(psi - h)) / 2e-4 for h in 1e-4 * np.eye(counts.size)]
    np.testing.assert_allclose(exact, differences, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('name', ['score_leave_one_out', 'systematic_examples', 'expectation'])
def test_unbiased_estimators_have_the_exact_gradient_as_their_mean(name):
    """To first order in the step: as if training ended after the next one, it is tiny."""
    point, meta_batch = trained_point()
    exact = sampling_gradients.exact_gradient(TASK, point, meta_batch, 21)
    case = sampling_gradients.Case(name, batch_size=8)
    samples = sampling_gradients.psi_gradients(TASK, point, meta_batch, case, 8192, 21)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(0) - exact) < 4 * error)
    assert np.all(error < 0.05 * np.linalg.norm(exact))


def test_one_expected_step_of_the_horizon_is_the_exact_gradient():
    """Two ways to the same number: the engine with K = 1, and jax.grad."""
    point, meta_batch = trained_point()
    exact = sampling_gradients.exact_gradient(TASK, point, meta_batch, 400)
    looked = horizon.expected_gradient(TASK, point, meta_batch, 1, 400)
    np.testing.assert_allclose(looked, exact, rtol=1e-10)


# Training


def test_the_ring_buffer_gives_the_psi_of_lag_steps_ago():
    history = jnp.zeros((head.HISTORY, 1))
    for step in range(3 * head.HISTORY):
        psi = jnp.array([10.0 + step])
        for lag in (0, 1, head.HISTORY - 1):
            kept, stale = head.remember(history, psi, jnp.int32(step), jnp.int32(lag))
            assert stale[0] == 10 + max(step - lag, 0)
        history = kept


def test_a_training_without_lag_is_the_plain_loop_and_with_one_is_not():
    settings = Settings('classes', meta_batch=6, steps=30, batch_size=6)
    training = jax.jit(lambda lag: head.train(TASK, settings, jax.random.key(3), lag, records=3))
    found, psis = training(0)
    assert not np.allclose(training(20)[1], psis, rtol=1e-6)
    start_key, key = jax.random.split(jax.random.key(3))
    point = head.start(TASK, start_key, settings)
    estimator = ESTIMATORS['classes'](TASK.tail.counts, temperature=1.0)
    optimizer = head.head_optimizer(30)
    psi_optimizer = head.psi_optimizer(settings)
    meta_step = meta_gradients.value_and_meta_grad(
        TASK.weighted(estimator), head.meta_loss, optimizer, mode='forward_over_reverse'
    )

    @jax.jit
    def one_step(point, key):
        draw_key, meta_key, _ = jax.random.split(key, 3)
        batch = TASK.draw(draw_key, point.psi, estimator, 6)
        out = meta_step(
            point.psi, point.params, point.opt_state, batch, TASK.meta_batch(meta_key, 6)
        )
        updates, state = psi_optimizer.update(out.psi_grad, point.psi_opt_state, point.psi)
        return head.Point(out.params, out.opt_state, point.psi + updates, state)

    for step in range(30):
        point = one_step(point, jax.random.fold_in(key, step))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, point)
    np.testing.assert_allclose(psis[-1], point.psi, rtol=1e-4, atol=1e-6)


# Measures


def test_measures_of_samples_are_those_of_their_moments():
    rng = np.random.default_rng(0)
    mean, exact = np.array([1.0, -0.5, 0.2]), np.array([2.0, -1.0, 0.5])
    factor = rng.normal(size=(3, 3))
    samples = mean + rng.normal(size=(100_000, 3)) @ factor.T
    known = measures.of_moments(mean, factor @ factor.T, exact)
    found = measures.of_samples(samples, exact)
    for name, value in known.items():
        assert found[name] == pytest.approx(value, abs=max(5 * found[f'{name}_error'], 1e-3)), name


def test_the_noise_of_few_draws_is_no_bias():
    """An unbiased estimate of ten times the gradient's length has a mean squared error of n⁻¹."""
    rng = np.random.default_rng(1)
    exact = np.array([1.0, 2.0])
    biases = [
        measures.of_samples(exact + 10 * rng.normal(size=(50, 2)), exact)['bias'] ** 2
        for _ in range(400)
    ]
    raw = 200 / 50 / 5  # what E‖mean − g‖² / ‖g‖² is
    assert np.mean(biases) < 0.65 * raw  # Half of them are cut off at 0.


def test_an_estimate_that_is_twice_the_gradient():
    found = measures.of_moments(np.array([2.0, 0.0]), np.eye(2), np.array([1.0, 0.0]))
    assert found['bias'] == pytest.approx(1)
    assert found['scale'] == pytest.approx(2)
    assert found['direction'] == pytest.approx(0)
    assert found['noise'] == pytest.approx(np.sqrt(2) / 2)


# Agreement


def test_exact_modes_agree_on_the_linear_head(tmp_path):
    ledger = Ledger(tmp_path / 'agreement.json', {})
    with jax.enable_x64(True):
        subject = networks.linear_head(small_tail((60, 20, 6), 8), batch_size=8, batches=2)
        programs = agreement.Programs(subject)
        agreement.measure_agreement(ledger, programs, warm_steps=2, precisions=('float64',))
    for name, row in ledger.rows.items():
        exact = not name.endswith('finite_difference')
        for cell in row.values():
            assert cell['error'] < (1e-10 if exact else 1e-6), name


def test_a_ledger_measures_once_and_refuses_other_settings(tmp_path):
    path = tmp_path / 'part.json'
    Ledger(path, {'scale': 1}).row('a', lambda: {'value': 1})
    again = Ledger(path, {'scale': 1})
    assert again.row('a', lambda: pytest.fail('measured twice')) == {'value': 1}
    with pytest.raises(ValueError, match='scale'):
        Ledger(path, {'scale': 2})
