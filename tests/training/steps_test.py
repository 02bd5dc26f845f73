"""One step is the paper's: a batch, its loss, the optimizer of the recipe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import priors
from balms_jax.data import resident
from balms_jax.training import draws, learners, recipe, state, step_parts, steps

pytestmark = pytest.mark.usefixtures('standard_promotion')

COUNTS = (8, 4, 2)


def linear_task():
    """A linear classifier on features sorted by class."""
    return step_parts.Task(
        logits=lambda params, stats, inputs, train: (inputs @ params['w'], stats),
        read=resident.read_features,
        class_counts=COUNTS,
        meta_counts=COUNTS,
    )


def take_steps(stage, count, seed=0, features=None, task=None):
    rebalancer = learners.make_rebalancer(stage.meta, COUNTS)
    current = state.create(
        jax.random.key(seed),
        {'w': jnp.zeros((2, 3))},
        {},
        {},
        learners.make_optimizer(stage.optimizer, stage.steps),
        rebalancer.psi if rebalancer else None,
        learners.make_psi_optimizer(stage.meta),
        averages=stage.averaging > 0,
    )
    if features is None:
        features = jax.random.normal(jax.random.key(1), (1, sum(COUNTS), 2))
    run = steps.compile_steps(steps.make_step(task or linear_task(), stage, rebalancer))
    after, metrics = run(current, features, features, steps=count)
    return after, jax.tree.map(lambda of_runs: of_runs[:, 0], metrics)


def stage_of(rebalancer='none', **changes):
    meta = recipe.Meta(rebalancer=rebalancer, batch_size=6)
    return dataclasses.replace(recipe.Stage(steps=20, batch_size=7, meta=meta), **changes)


@pytest.mark.parametrize('rebalancer', ['meta_sampler', 'meta_reweighter'])
def test_a_meta_learning_rate_of_zero_leaves_psi_and_the_plain_training(rebalancer):
    """With ψ held at 0 the reweighter's weights are all 1 and the sampler is instance-balanced."""
    meta = recipe.Meta(rebalancer=rebalancer, batch_size=6, learning_rate=0.0)
    after, metrics = take_steps(stage_of(meta=meta), 3)
    np.testing.assert_array_equal(after.psi, np.zeros(3))
    assert set(metrics) >= {'loss', 'meta_loss', 'learning_rate', 'sampling_rates'}
    assert metrics['sampling_rates'].shape == (3, 3)


def test_mixup_trains_on_mixed_targets():
    """λ < 1 mixes two labels, so the loss at zero logits stays the prior's expectation."""
    after, metrics = take_steps(stage_of(mixup=1.0, loss=recipe.Loss(tau=0.0)), 1)
    assert float(metrics['loss'][0]) == pytest.approx(np.log(3), rel=1e-6)
    assert np.all(np.isfinite(after.trained['w']))


def test_steps_depend_on_key_and_step_alone():
    """Two starts from one state take the same step; another key takes another."""
    (a, _), (b, _), (c, _) = (take_steps(stage_of('meta_sampler'), 4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.trained['w'], b.trained['w'])
    np.testing.assert_array_equal(a.psi, b.psi)
    assert np.any(a.trained['w'] != c.trained['w'])


@pytest.mark.parametrize('rebalancer', ['meta_reweighter', 'learning_to_reweight'])
def test_the_order_of_a_draw_is_no_matter(rebalancer):
    """Dealt out otherwise, each example keeps its label, its weight and its meta-gradient."""
    stage = stage_of(rebalancer)
    stage = dataclasses.replace(stage, meta=dataclasses.replace(stage.meta, mode='per_example'))
    first, _ = take_steps(stage, 3)
    backwards = dataclasses.replace(
        linear_task(), deal=lambda draw: jax.tree.map(lambda leaf: leaf[::-1], draw)
    )
    last, _ = take_steps(stage, 3, task=backwards)
    np.testing.assert_allclose(first.trained['w'], last.trained['w'], rtol=1e-4, atol=1e-6)


def flat_stage(rebalancer, **meta):
    """Without decay and momentum, so that a step is its gradient."""
    optimizer = recipe.Optimizer(momentum=0.0, nesterov=False, weight_decay=0.0)
    meta = recipe.Meta(rebalancer=rebalancer, batch_size=6, **meta)
    return stage_of(meta=meta, optimizer=optimizer, loss=recipe.Loss(tau=0.0))


def test_a_learned_adjustment_that_starts_at_the_prior_is_balanced_softmax():
    """ξ = n is the derived answer: with ψ held there, training is that of Balanced Softmax."""
    held = {'learning_rate': 0.0, 'initial_power': 1.0}
    learned, _ = take_steps(flat_stage('learned_adjustment', **held), 3)
    stage = dataclasses.replace(flat_stage('none'), draws='instance_balanced', loss=recipe.Loss())
    known, _ = take_steps(stage, 3)
    np.testing.assert_allclose(learned.trained['w'], known.trained['w'], rtol=1e-5, atol=1e-7)


def test_a_learned_adjustment_moves_towards_the_prior():
    """Of a constant input a network can learn the prior alone, unless log ξ takes it up."""
    stage = flat_stage('learned_adjustment', learning_rate=0.05)
    after, metrics = take_steps(stage, 20, features=jnp.ones((1, sum(COUNTS), 2)))
    assert float(after.psi[0]) > float(after.psi[1]) > float(after.psi[2])
    assert metrics['log_adjustment'].shape == (20, 3)


def test_the_correction_of_jamal_et_al_is_that_of_a_trial_step_along_the_sum():
    """Their algorithm written out: θ̂ = θ − lr ∇Σ(w + ε)ℓ, ε = −γ ∂L_meta/∂ε, then the mean's step.

    A trial along the mean would make the correction as many times smaller as the batch is large.
    """
    stage = flat_stage('class_balanced_domain_adaptation', mode='per_example')
    rebalancer = learners.make_rebalancer(stage.meta, COUNTS)
    features, key = jax.random.normal(jax.random.key(1), (1, sum(COUNTS), 2)), jax.random.key(0)
    draw = draws.of_training_set(stage, COUNTS, rebalancer, key, 0, ())
    meta_draw = draws.of_meta_set(stage.meta, COUNTS, key, 0)
    rate = learners.learning_rate(stage.optimizer, stage.steps)(0)
    w = priors.class_balanced_weights(COUNTS)[draw.classes]

    def losses(theta, of):
        logits = features[0][of.examples] @ theta
        return optax.softmax_cross_entropy_with_integer_labels(logits, of.classes)

    def meta_loss(epsilon):
        theta = jnp.zeros((2, 3))
        gradient = jax.grad(lambda theta: ((w + epsilon) * losses(theta, draw)).sum())(theta)
        return losses(theta - rate * gradient, meta_draw).mean()

    correction = -0.01 * jax.grad(meta_loss)(jnp.zeros_like(w))
    slope = jax.grad(lambda theta: (correction * losses(theta, draw)).mean())(jnp.zeros((2, 3)))
    after, _ = take_steps(stage, 1)
    plain = dataclasses.replace(
        flat_stage('none'),
        draws='instance_balanced',
        loss=recipe.Loss(tau=0.0, class_weights='class_balanced'),
    )
    before, _ = take_steps(plain, 1)
    moved = after.trained['w'] - before.trained['w']
    np.testing.assert_allclose(moved, -rate * slope, rtol=1e-3, atol=1e-9)
    assert np.abs(moved).max() > 1e-6


def test_learning_to_reweight_steps_along_the_meta_gradient():
    """Its weights are such that the step's gradient has a positive product with the meta loss's."""
    after, metrics = take_steps(flat_stage('learning_to_reweight', mode='per_example'), 20)
    assert float(metrics['meta_loss'][-1]) < float(metrics['meta_loss'][0])
    assert after.psi == ()


def test_the_weight_net_is_trained():
    """ψ moves with the meta-gradient, and the parameters with its weights."""
    after, metrics = take_steps(flat_stage('meta_weight_net', learning_rate=0.01), 5)
    first = learners.make_rebalancer(recipe.Meta(rebalancer='meta_weight_net'), COUNTS).psi
    for moved, start in zip(jax.tree.leaves(after.psi), jax.tree.leaves(first), strict=True):
        assert np.all(np.isfinite(moved))
        assert np.any(moved != start)
    assert np.all(np.isfinite(metrics['loss']))


def test_class_balanced_partners_move_the_targets_towards_balance():
    """λ of Beta(α, 1): at a large α the batch is almost the class-balanced one."""
    stage = stage_of(mixup=50.0, mixup_partners='class_balanced', loss=recipe.Loss(tau=0.0))
    of_class = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    inputs = jnp.asarray(np.repeat(of_class, COUNTS, 0)[None], jnp.float32)
    after, _ = take_steps(dataclasses.replace(stage, batch_size=14), 1, features=inputs)
    plain, _ = take_steps(stage_of(loss=recipe.Loss(tau=0.0), batch_size=14), 1, features=inputs)
    # At zero logits ∂ℓ/∂w of the tail's own feature and class is −2/3 of its share of the batch.
    assert float(after.trained['w'][1, 2]) > 1.3 * float(plain.trained['w'][1, 2])


def test_the_average_is_the_moving_one_and_leaves_training_as_it_is():
    """a ← d a + (1 − d) θ, d = min(decay, (1 + t) / (10 + t)), of what is trained besides."""
    stage = stage_of(averaging=0.3)
    plain, _ = take_steps(stage_of(), 3)
    after, _ = take_steps(stage, 3)
    np.testing.assert_array_equal(after.trained['w'], plain.trained['w'])
    wanted = np.zeros((2, 3))
    for t in range(3):
        decay = min(0.3, (1 + t) / (10 + t))
        trained = take_steps(stage_of(), t + 1)[0].trained['w']
        wanted = decay * wanted + (1 - decay) * np.asarray(trained)
    np.testing.assert_allclose(after.tested.trained['w'], wanted, rtol=1e-5, atol=1e-7)
    assert plain.tested is plain


def bilateral_task():
    """Two linear branches, which count what each has seen in their batch statistics."""

    def logits(params, stats, inputs, train):
        seen = {name: stats[name] + inputs.sum() for name in stats}
        return jnp.stack([inputs @ params['a'], inputs @ params['b']], 1), seen

    return dataclasses.replace(linear_task(), logits=logits)


def bilateral_step(step, steps_of_stage=20):
    optimizer = recipe.Optimizer(momentum=0.0, nesterov=False, weight_decay=0.0)
    stage = stage_of(
        draws='bilateral', optimizer=optimizer, loss=recipe.Loss(tau=0.0), steps=steps_of_stage
    )
    stats = {'uniform': jnp.zeros(()), 'reversed': jnp.zeros(()), 'trunk': jnp.zeros(())}
    params = {'a': jnp.zeros((2, 3)), 'b': jnp.zeros((2, 3))}
    no_psi = learners.make_psi_optimizer(stage.meta)
    current = state.create(
        jax.random.key(0),
        params,
        {},
        stats,
        learners.make_optimizer(stage.optimizer, stage.steps),
        None,
        no_psi,
    )
    current = dataclasses.replace(current, step=jnp.asarray(step, jnp.int32))
    features = jax.random.normal(jax.random.key(1), (1, sum(COUNTS), 2))
    return stage, steps.make_step(bilateral_task(), stage, None)(current, features, features)


def test_two_branches_begin_with_the_uniform_one():
    """α = 1 − (t / T)²: at first the reversed branch gets no gradient."""
    stage, (after, metrics) = bilateral_step(0)
    assert float(draws.uniform_share(stage, 0)) == 1
    assert float(draws.uniform_share(stage, 10)) == 0.75
    assert np.any(after.trained['a'] != 0)
    np.testing.assert_array_equal(after.trained['b'], 0)
    assert float(metrics['loss']) == pytest.approx(np.log(3), rel=1e-6)


def test_two_branches_share_the_loss_as_alpha_says():
    """At zero logits the gradient of W_a is α (α ∂ℓ(uniform labels) + (1 − α) ∂ℓ(reversed))."""
    _, (after, _) = bilateral_step(10)
    assert np.any(after.trained['a'] != 0)
    assert np.any(after.trained['b'] != 0)


def test_each_branchs_statistics_are_of_its_own_batch():
    """The trunk sees both batches, a branch only its own: their sums add up."""
    _, (after, _) = bilateral_step(10)
    stats = after.batch_stats
    assert float(stats['trunk']) == pytest.approx(
        float(stats['uniform']) + float(stats['reversed']), rel=1e-5
    )
    assert float(stats['uniform']) != float(stats['reversed'])
