"""The residual network for 32 × 32 images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from balms_jax.models.layers import batch_norm, convolution, fan_in_init


class Block(nn.Module):
    """Two 3 × 3 convolutions and an option-A shortcut, which has no parameters."""

    planes: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → [batch, height / stride, width / stride, planes]."""
        y = _conv(self.planes, self.stride)(x)
        y = nn.relu(batch_norm(train)(y))
        y = _conv(self.planes)(y)
        y = batch_norm(train)(y)
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

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → features [batch, 4 · width], of each branch."""
        x = nn.relu(batch_norm(train)(_conv(self.width)(images)))
        places = [(group, block) for group in range(3) for block in range((self.depth - 2) // 6)]
        for group, block in places[:-1]:
            x = self._block(group, block)(x, train)
        ends = [self._block(*places[-1], name)(x, train) for name in self.branches or (None,)]
        return jnp.concatenate(ends, -1).mean((1, 2))

    def _block(self, group: int, block: int, name: str | None = None) -> Block:
        return Block(self.width * 2**group, 2 if group and not block else 1, name=name)


def _conv(planes: int, stride: int = 1) -> nn.Conv:
    return convolution(planes, 3, stride, fan_in_init)
