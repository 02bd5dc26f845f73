"""The layers that the residual networks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

NORM_EPSILON = 1e-5  # Added to a variance, as torchvision's batch norms do.
# Kaiming normal.
fan_in_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def plus_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """[…, features] + [features], where JAX is told to promote no ranks too."""
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class Conv(nn.Conv):
    """Flax's convolution; one of 1 × 1 is computed as the matrix product that it is.

    The gradient of a ResNet-50 takes two CPU cores 0.7 of the time so.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[…, rows, columns, channels] → […, its rows, its columns, features]."""
        pointwise = self.kernel_size == (1, 1) and self.padding in ('SAME', 0)
        if not pointwise or self.feature_group_count != 1:
            return super().__call__(x)
        rows, columns = np.broadcast_to(1 if self.strides is None else self.strides, 2)
        kernel = self.param('kernel', self.kernel_init, (1, 1, x.shape[-1], self.features))
        bias = self.param('bias', self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x[..., ::rows, ::columns, :] @ kernel[0, 0]
        return y if bias is None else plus_bias(y, bias)


def convolution(
    planes: int,
    size: int,
    stride: int,
    init: Initializer,
    dtype: DTypeLike | None = None,
    groups: int = 1,
) -> Conv:
    """Of odd size, without a bias; padded by half its size on each side, whatever the stride."""
    # 'SAME' would pad a strided one at the end only.
    return Conv(
        planes,
        (size, size),
        (stride, stride),
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
    )


def batch_norm(train: bool, dtype: DTypeLike | None = None) -> nn.BatchNorm:
    """Under jit over a mesh its statistics are those of the global batch, in shard_map the share's.

    Statistics and normalisation are float32; what comes out is rounded to the dtype.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=NORM_EPSILON, dtype=dtype
    )


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """A block of (x, train) that keeps its input alone for the backward pass, if asked.

    Give it a name: that which Flax makes up would change with ``remat``.
    """
    return nn.remat(block, static_argnums=(2,)) if remat else block


def image_mean(x: jax.Array) -> jax.Array:
    """[batch, height, width, channels] → [batch, channels], in float32 at least."""
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
