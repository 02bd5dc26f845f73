"""The residual network for 32 × 32 images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from balms_jax.models.layers import (
    Conv,
    batch_norm,
    convolution,
    fan_in_init,
    image_mean,
    rematerialised,
)


class Block(nn.Module):
    """Two 3 × 3 convolutions and an option-A shortcut, which has no parameters."""

    planes: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → [batch, height / stride, width / stride, planes]."""
        y = _conv(self.planes, self.stride, self.dtype)(x)
        y = nn.relu(batch_norm(train, self.dtype)(y))
        y = _conv(self.planes, 1, self.dtype)(y)
        y = batch_norm(train, self.dtype)(y)
        if self.stride != 1 or x.shape[-1] != self.planes:
            pad = (self.planes - x.shape[-1]) // 2
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (pad, self.planes - x.shape[-1] - pad)))
        return nn.relu(y + x)


class CifarResNet(nn.Module):
    """Three groups of blocks with 1, 2 and 4 times the width, then the mean over the image.

    Depth 32 and width 16 have 463,504 parameters.

    References:
        He et al., Deep Residual Learning (arXiv 1512.03385), §4.2.
    """

    depth: int = 32
    width: int = 16
    branches: tuple[str, ...] = ()  # Each a last block of its own; none: one for all.
    dtype: DTypeLike | None = None  # of the computation; None: that of images and parameters
    remat: bool = False  # Whether a block's activations are computed again on the way back.

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → features [batch, 4 · width], of each branch."""
        stem = _conv(self.width, 1, self.dtype)(images)
        x = nn.relu(batch_norm(train, self.dtype)(stem))
        places = [(group, block) for group in range(3) for block in range((self.depth - 2) // 6)]
        names = [f'Block_{index}' for index in range(len(places))]
        for place, name in zip(places[:-1], names[:-1], strict=True):
            x = self._block(*place, name)(x, train)
        ends = [self._block(*places[-1], end)(x, train) for end in self.branches or names[-1:]]
        return image_mean(jnp.concatenate(ends, -1))

    def _block(self, group: int, block: int, name: str) -> nn.Module:
        stride = 2 if group and not block else 1
        make = rematerialised(Block, self.remat)
        return make(self.width * 2**group, stride, dtype=self.dtype, name=name)


def _conv(planes: int, stride: int, dtype: DTypeLike | None) -> Conv:
    return convolution(planes, 3, stride, fan_in_init, dtype)
