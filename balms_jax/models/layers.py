"""The layers that the residual networks share."""

import flax.linen as nn
from jax.nn.initializers import Initializer

# Kaiming normal.
fan_in_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def convolution(planes: int, size: int, stride: int, init: Initializer) -> nn.Conv:
    """Of odd size, without a bias; padded by half its size on each side, whatever the stride."""
    # 'SAME' would pad a strided one at the end only.
    return nn.Conv(
        planes,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=False,
        kernel_init=init,
    )


def batch_norm(train: bool) -> nn.BatchNorm:
    """Under jit over a mesh its statistics are those of the global batch."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
