"""The sampler changes what is drawn and weighs nothing; the reweighter the other way round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from balms_jax import estimators, priors, rebalancers, sampling

COUNTS = np.array([60, 25, 0, 10, 5])
LABELS = np.repeat(np.arange(5), COUNTS)
PSI = jnp.array([-1.0, 0.5, 3.0, 2.0, 0.0])
DRAWS = 10_000
NO_LOSSES = jnp.zeros(DRAWS)

ALL = {
    'classes': rebalancers.meta_sampler(COUNTS),
    'examples': rebalancers.meta_sampler(COUNTS, estimator='examples'),
    'score': rebalancers.meta_sampler(COUNTS, estimator='score'),
    'reweighter': rebalancers.meta_reweighter(COUNTS),
}
SAMPLERS = ['classes', 'examples', 'score']


def p_value(classes, probabilities):
    seen = np.bincount(classes, minlength=5)
    assert seen[2] == 0  # No example.
    present = COUNTS > 0
    expected = np.asarray(probabilities, np.float64)[present]
    return scipy.stats.chisquare(seen[present], expected / expected.sum() * seen.sum()).pvalue


@pytest.mark.parametrize('name', list(ALL))
def test_drawn_examples_are_of_their_classes(name):
    # The data set is sorted by class.
    draw = ALL[name].draw(jax.random.key(0), PSI, 2000)
    assert draw.examples.dtype == draw.classes.dtype == jnp.int32
    np.testing.assert_array_equal(LABELS[draw.examples], draw.classes)
    assert len(set(draw.examples.tolist())) > 80  # Not always the same of a class.


@pytest.mark.parametrize('name', SAMPLERS)
def test_a_sampler_at_psi_0_is_instance_balanced(name):
    rebalancer = ALL[name]
    np.testing.assert_array_equal(rebalancer.psi, np.zeros(5))
    draw = rebalancer.draw(jax.random.key(0), rebalancer.psi, DRAWS)
    assert p_value(draw.classes, COUNTS) > 1e-3


@pytest.mark.parametrize('name', SAMPLERS)
def test_a_sampler_draws_what_its_summary_says(name):
    rebalancer = ALL[name]
    summary = rebalancer.summary(PSI)
    draw = rebalancer.draw(jax.random.key(1), PSI, DRAWS)
    assert p_value(draw.classes, summary['class_probabilities']) > 1e-3
    assert p_value(draw.classes, COUNTS) < 1e-6  # The test would tell.
    np.testing.assert_allclose(summary['sampling_rates'], jax.nn.sigmoid(PSI), rtol=1e-6)


def test_the_reweighter_draws_instance_balanced_whatever_psi():
    draw = ALL['reweighter'].draw(jax.random.key(0), PSI, DRAWS)
    assert p_value(draw.classes, COUNTS) > 1e-3
    at_zero = ALL['reweighter'].draw(jax.random.key(0), jnp.zeros(5), DRAWS)
    np.testing.assert_array_equal(draw.examples, at_zero.examples)


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_the_weights_of_a_sampler_have_value_1_and_a_gradient(name, dtype):
    psi = PSI.astype(dtype)
    draw = ALL[name].draw(jax.random.key(0), psi, 64)
    losses = jnp.arange(64, dtype=dtype)
    weights = ALL[name].weights(psi, draw, losses)
    np.testing.assert_array_equal(weights, jnp.ones(64, dtype))
    gradient = jax.grad(lambda psi: (ALL[name].weights(psi, draw, losses) * losses).mean())(psi)
    assert jnp.any(gradient != 0)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize('name', list(estimators.ESTIMATORS))
def test_a_sampler_draws_and_weighs_as_its_estimator(name):
    """The losses do not enter; the temperature is handed on."""
    rebalancer = rebalancers.meta_sampler(COUNTS, estimator=name, temperature=0.5)
    estimator = estimators.ESTIMATORS[name](COUNTS, temperature=0.5)
    draw = rebalancer.draw(jax.random.key(0), PSI, 32)
    np.testing.assert_array_equal(
        draw.examples, estimator.draw(jax.random.key(0), PSI, 32).examples
    )
    ours = jax.jacobian(lambda psi: rebalancer.weights(psi, draw, NO_LOSSES[:32]))(PSI)
    np.testing.assert_array_equal(ours, jax.jacobian(estimator.weights)(PSI, draw))


def test_the_default_estimator_is_over_classes():
    draw = ALL['classes'].draw(jax.random.key(0), PSI, 32)
    assert draw.noise.shape == (32, 5)
    ours = jax.jacobian(lambda psi: ALL['classes'].weights(psi, draw, NO_LOSSES[:32]))(PSI)

    def direct(psi):
        return sampling.straight_through_over_classes(psi, COUNTS, draw.noise)[1]

    np.testing.assert_array_equal(ours, jax.jacobian(direct)(PSI))


def test_the_weights_of_the_reweighter_by_hand():
    # Rates 1/2 and 3/4 of classes (0, 0, 1): mean 7/12.
    psi = jnp.array([0.0, np.log(3.0), 0.0, 0.0, 0.0])
    draw = rebalancers.Draw(jnp.array([0, 1, 60]), jnp.array([0, 0, 1]))
    weights = ALL['reweighter'].weights(psi, draw, jnp.zeros(3))
    np.testing.assert_allclose(weights, [6 / 7, 6 / 7, 9 / 7], rtol=1e-6)


@pytest.mark.parametrize('scale', [1.0, 100.0, -200.0, -1e4])
def test_the_weights_of_the_reweighter_have_mean_1(scale):
    # Rates that all vanish still have a mean, and ψ a gradient that is a number.
    psi = scale + PSI
    draw = ALL['reweighter'].draw(jax.random.key(0), psi, 64)
    losses = jnp.arange(64.0)
    weights = ALL['reweighter'].weights(psi, draw, losses)
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert weights.min() >= 0
    gradient = jax.grad(lambda psi: (ALL['reweighter'].weights(psi, draw, losses) * losses).mean())(
        psi
    )
    assert jnp.all(jnp.isfinite(gradient))


def test_the_summary_of_the_reweighter_is_its_expected_weights():
    summary = ALL['reweighter'].summary(PSI)
    draw = ALL['reweighter'].draw(jax.random.key(2), PSI, DRAWS)
    weights = ALL['reweighter'].weights(PSI, draw, NO_LOSSES)
    for j in (0, 1, 3, 4):
        mean = np.asarray(weights)[np.asarray(draw.classes) == j].mean()
        assert mean == pytest.approx(float(summary['loss_weights'][j]), rel=0.03)
    assert np.sum(COUNTS / 100 * summary['loss_weights']) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize('name', ['meta_sampler', 'meta_reweighter'])
def test_rates_start_at_their_power(name):
    counts = np.array([40, 9, 1])
    rebalancer = rebalancers.REBALANCERS[name](counts, initial_power=0.3)
    np.testing.assert_array_equal(rebalancer.psi, sampling.initial_psi(counts, 0.3))


@pytest.mark.parametrize('name', list(rebalancers.REBALANCERS))
def test_every_rebalancer_draws_by_its_key(name):
    rebalancer = rebalancers.REBALANCERS[name](np.array([40, 9, 1]))
    draw = jax.jit(rebalancer.draw, static_argnums=2)
    first, again = (draw(jax.random.key(0), rebalancer.psi, 50) for _ in range(2))
    other = draw(jax.random.key(1), rebalancer.psi, 50)
    np.testing.assert_array_equal(first.examples, again.examples)
    assert np.any(first.examples != other.examples)


@pytest.mark.parametrize('name', list(rebalancers.REBALANCERS))
def test_a_billion_examples_are_only_counts(name):
    rebalancer = rebalancers.REBALANCERS[name](np.array([600_000_000, 400_000_000]))
    compiled = (
        jax.jit(rebalancer.draw, static_argnums=2)
        .lower(jax.random.key(0), rebalancer.psi, 64)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 2**16
    draw = compiled(jax.random.key(0), rebalancer.psi)
    np.testing.assert_array_equal(draw.examples >= 600_000_000, draw.classes == 1)


@pytest.mark.parametrize('name', list(rebalancers.REBALANCERS))
def test_bad_counts_are_refused(name):
    for counts, message in (
        ([1.5, 2.0], r'class_counts: got 1\.5, wanted whole'),
        ([3, -1], 'class_counts: got -1'),
        ([0, 0], 'class_counts: got only empty'),
    ):
        with pytest.raises(ValueError, match=message):
            rebalancers.REBALANCERS[name](np.array(counts))


@pytest.mark.parametrize('name', ['meta_sampler', 'meta_reweighter', 'learned_adjustment'])
def test_a_power_of_an_empty_class_is_refused(name):
    with pytest.raises(ValueError, match='class_counts: got 0 for class 1'):
        rebalancers.REBALANCERS[name](np.array([3, 0]), initial_power=0.5)


def test_unknown_estimators_are_refused():
    with pytest.raises(
        ValueError, match="estimator: got 'gumbel', wanted one of examples, classes"
    ):
        rebalancers.meta_sampler(COUNTS, estimator='gumbel')


def test_learning_to_reweight_keeps_the_helpful_examples():
    """Weights of mean 1 over the batch; an example that would raise the meta loss gets none."""
    rebalancer = rebalancers.learning_to_reweight(COUNTS)
    draw = rebalancer.draw(jax.random.key(0), (), 4)
    gradients = jnp.array([-3.0, 0.5, -1.0, 0.0])
    weights = rebalancer.real_weights((), gradients, draw, jnp.zeros(4))
    np.testing.assert_allclose(weights, [3, 0, 1, 0])
    # Nobody helps: nothing to go by, and no division by 0.
    nobody = rebalancer.real_weights((), jnp.ones(4), draw, jnp.zeros(4))
    np.testing.assert_array_equal(nobody, np.zeros(4))


@pytest.mark.parametrize('name', rebalancers.ONE_BY_ONE)
def test_weights_one_by_one_need_the_gradients(name):
    rebalancer = rebalancers.REBALANCERS[name](COUNTS)
    draw = rebalancer.draw(jax.random.key(0), (), 4)
    with pytest.raises(ValueError, match='gradients: got None'):
        rebalancer.real_weights((), None, draw, jnp.zeros(4))


def test_the_weight_net_weighs_by_the_loss_alone():
    """Equal losses get equal weights, in 0..1; ψ has a gradient, the losses have none."""
    rebalancer = rebalancers.meta_weight_net(COUNTS, width=7)
    draw = rebalancer.draw(jax.random.key(0), rebalancer.psi, 4)
    losses = jnp.array([0.1, 2.0, 0.1, 5.0])
    weights = rebalancer.weights(rebalancer.psi, draw, losses)
    assert weights[0] == weights[2] != weights[1]
    assert jnp.all((weights > 0) & (weights < 1))
    total, argument = rebalancer.weights, (rebalancer.psi, draw, losses)
    np.testing.assert_array_equal(jax.grad(lambda x: total(*argument[:2], x).sum())(losses), 0)
    gradient = jax.grad(lambda psi: total(psi, draw, losses).sum())(rebalancer.psi)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    (kernel, bias), (last, offset) = (
        (np.asarray(layer['kernel']), np.asarray(layer['bias']))
        for layer in (rebalancer.psi['hidden'], rebalancer.psi['output'])
    )
    outputs = np.maximum(np.asarray(losses)[:, None] * kernel + bias, 0) @ last + offset
    by_hand = 1 / (1 + np.exp(-outputs[:, 0]))
    np.testing.assert_allclose(weights, by_hand, rtol=1e-6)


def test_domain_adaptation_without_a_rate_is_class_balanced():
    """The limit in which the correction of single examples is nothing."""
    rebalancer = rebalancers.class_balanced_domain_adaptation(COUNTS, rate=0.0)
    draw = rebalancer.draw(jax.random.key(0), (), 16)
    weights = rebalancer.real_weights((), jnp.ones(16), draw, jnp.zeros(16))
    np.testing.assert_allclose(weights, priors.class_balanced_weights(COUNTS)[draw.classes])
