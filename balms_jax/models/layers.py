"""The layers that the residual networks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

NORM_EPSILON = 1e-5  # Added to a variance, as torchvision's batch norms do.
# Kaiming normal.
fan_in_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def convolution(
    planes: int,
    size: int,
    stride: int,
    init: Initializer,
    dtype: DTypeLike | None = None,
    groups: int = 1,
) -> nn.Conv:
    """Of odd size, without a bias; padded by half its size on each side, whatever the stride."""
    # 'SAME' would pad a strided one at the end only.
    return nn.Conv(
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
