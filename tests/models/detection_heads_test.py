"""The heads of Mask R-CNN: what is computed as a matrix product is the layer that it stands for."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from balms_jax.models import detection_heads


def test_doubling_is_the_transposed_convolution():
    """The weights of torchvision's masks are converted to the kernel of Flax's ConvTranspose."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
    ours, flax = detection_heads.Doubling(7), nn.ConvTranspose(7, (2, 2), (2, 2))
    params = flax.init(jax.random.key(1), x[0])
    params['params']['bias'] = jnp.arange(7.0)

    def loss(network, params, x):
        y = network.apply(params, x)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    grads = jax.value_and_grad(loss, (1, 2), has_aux=True)
    (_, got), got_gradients = grads(ours, params, x)
    (_, wanted), wanted_gradients = grads(flax, params, x.reshape(6, 4, 5, 6))
    chex.assert_trees_all_close(got.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(got_gradients[0], wanted_gradients[0], rtol=1e-4, atol=1e-4)
    x_gradient = got_gradients[1].reshape(wanted_gradients[1].shape)
    chex.assert_trees_all_close(x_gradient, wanted_gradients[1], rtol=1e-4, atol=1e-4)
    like = ours.init(jax.random.key(1), x)
    chex.assert_trees_all_equal_shapes_and_dtypes(like, flax.init(jax.random.key(1), x[0]))
