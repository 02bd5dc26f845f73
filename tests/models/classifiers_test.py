"""Classifiers do to features what their equations say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax import models
from balms_jax.models import classifiers

pytestmark = pytest.mark.usefixtures('standard_promotion')

PARAMS = {'Dense_0': {'kernel': jnp.array([[3.0, 0.0], [4.0, 2.0]]), 'bias': jnp.array([1.0, -1])}}


def test_tau_normalised_weights_by_hand():
    """‖w_0‖ = 5, ‖w_1‖ = 2: τ = 0 leaves the weights, 1 brings both to length 1."""
    for tau, lengths in {0.0: (5, 2), 0.5: (np.sqrt(5), np.sqrt(2)), 1.0: (1, 1)}.items():
        made = classifiers.tau_normalized(PARAMS, tau)['Dense_0']
        np.testing.assert_allclose(np.linalg.norm(made['kernel'], axis=0), lengths, rtol=1e-6)
        np.testing.assert_array_equal(made['bias'], 0)
    whole = classifiers.tau_normalized(PARAMS, 0.0)['Dense_0']['kernel']
    np.testing.assert_allclose(whole, PARAMS['Dense_0']['kernel'], rtol=1e-6)


def test_the_nearest_mean_by_hand():
    """Directions are averaged, so that a long feature counts no more than a short one."""
    features = jnp.array([[10.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    made = classifiers.nearest_mean(PARAMS, features, jnp.array([0, 0, 1]))['Dense_0']
    half = np.sqrt(0.5)
    np.testing.assert_allclose(made['kernel'], [[half, 0], [half, 1]], atol=1e-6)
    logits = jnp.array([[1.0, 0.9], [0.1, 5.0]]) @ made['kernel'] + made['bias']
    np.testing.assert_array_equal(logits.argmax(-1), [0, 1])


def test_a_class_without_examples_is_not_the_nearest():
    made = classifiers.nearest_mean(PARAMS, jnp.ones((2, 2)), jnp.array([0, 0]))['Dense_0']
    np.testing.assert_array_equal(made['kernel'][:, 1], 0)
    assert np.all(np.isfinite(made['kernel']))


def test_experts_are_linear_classifiers_side_by_side():
    network = models.build('digits_net', 3, width=2, classifier='experts', experts=2)
    params, stats = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    features, _ = network.features(params['backbone'], stats, jnp.ones((4, 8, 8, 1)), False)
    logits = network.logits(params['classifier'], features)
    assert logits.shape == (4, 2, 3)
    dense = params['classifier']['linear']['Dense_0']
    second = features @ dense['kernel'][:, 3:] + dense['bias'][3:]
    np.testing.assert_allclose(logits[:, 1], second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['digits_net', 'resnet8'])
def test_a_bilateral_network_branches_at_its_end(name):
    """A trunk for both; each branch's logits depend on its own half of the features alone."""
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1 if name == 'digits_net' else 3))
    network = models.build(name, 3, width=2, classifier='bilateral')
    params, stats = network.init(jax.random.key(0), images)
    assert {'uniform', 'reversed'} <= params['backbone'].keys()
    plain = models.build(name, 3, width=2).init(jax.random.key(0), images)[0]['backbone']
    branch = params['backbone']['uniform']
    more = models.count_parameters(params['backbone']) - models.count_parameters(plain)
    assert more == models.count_parameters(branch)

    def logits(params):
        features, _ = network.features(params['backbone'], stats, images, False)
        return network.logits(params['classifier'], features)

    assert logits(params).shape == (2, 2, 3)
    without = {**params['backbone'], 'reversed': jax.tree.map(jnp.zeros_like, branch)}
    changed = logits({**params, 'backbone': without})
    np.testing.assert_array_equal(changed[:, 0], logits(params)[:, 0])
    assert np.any(changed[:, 1] != logits(params)[:, 1])
    with pytest.raises(ValueError, match=r"model.name: got 'resnet18', which has no branches"):
        models.build('resnet18', 3, classifier='bilateral')
