"""The layers that the residual networks share."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from balms_jax.models import layers


@pytest.mark.parametrize('use_bias', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_a_convolution_is_that_of_flax(size, stride, use_bias):
    """Checkpoints and converted weights hold the parameters of Flax's, by its names."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    settings = {'padding': size // 2, 'use_bias': use_bias}
    ours = layers.Conv(4, (size, size), (stride, stride), **settings)
    flax = nn.Conv(4, (size, size), (stride, stride), **settings)
    params = flax.init(jax.random.key(1), x)
    chex.assert_trees_all_equal(ours.init(jax.random.key(1), x), params)

    def loss(network, params, x):
        y = network.apply(params, x)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    grads = jax.value_and_grad(loss, (1, 2), has_aux=True)
    chex.assert_trees_all_close(
        grads(ours, params, x), grads(flax, params, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(('strides', 'padding'), [(2, 'SAME'), (1, 1), (2, 'VALID')])
def test_a_pointwise_convolution_is_that_of_flax_however_it_is_told(strides, padding):
    """A stride is one number or two, and padding widens even what one pixel is computed from."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    ours, flax = (conv(4, (1, 1), strides, padding=padding) for conv in (layers.Conv, nn.Conv))
    params = flax.init(jax.random.key(1), x)
    chex.assert_trees_all_close(ours.apply(params, x), flax.apply(params, x), rtol=1e-5)


def test_a_grouped_convolution_of_one_pixel_keeps_its_groups():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    ours, flax = (conv(4, (1, 1), feature_group_count=2) for conv in (layers.Conv, nn.Conv))
    params = flax.init(jax.random.key(1), x)
    chex.assert_trees_all_close(ours.apply(params, x), flax.apply(params, x), rtol=1e-5)


def test_a_pointwise_convolution_computes_in_its_type():
    x = jnp.ones((1, 2, 2, 3))
    layer = layers.Conv(4, (1, 1), dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    assert params['params']['kernel'].dtype == jnp.float32
    assert layer.apply(params, x).dtype == jnp.bfloat16
