"""The residual networks for 224 × 224 images."""

import flax.linen as nn
import jax

from balms_jax.models.layers import batch_norm, convolution, fan_out_init


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, projected where the shape changes."""

    planes: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → [batch, height / stride, width / stride, planes]."""
        y = nn.relu(batch_norm(train)(_conv(self.planes, 3, self.stride)(x)))
        y = batch_norm(train)(_conv(self.planes, 3)(y))
        return nn.relu(y + _shortcut(x, self.planes, self.stride, train))


class Bottleneck(nn.Module):
    """1 × 1 down to the planes, 3 × 3 with the stride, 1 × 1 up to four times the planes."""

    planes: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → [batch, height / stride, width / stride, 4 planes]."""
        y = nn.relu(batch_norm(train)(_conv(self.planes, 1)(x)))
        y = nn.relu(batch_norm(train)(_conv(self.planes, 3, self.stride)(y)))
        y = batch_norm(train)(_conv(4 * self.planes, 1)(y))
        return nn.relu(y + _shortcut(x, 4 * self.planes, self.stride, train))


LAYOUTS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ImageNetResNet(nn.Module):
    """A stem, four groups of blocks with 1, 2, 4 and 8 times the width, the mean over the image.

    Its parameters and its paddings are torchvision's, whose bottlenecks stride at the 3 × 3 (the
    paper's at the first 1 × 1). Depth 50 and width 64 have 25,557,032 parameters with a linear
    classifier of 1000 classes.

    References:
        He et al., Deep Residual Learning (arXiv 1512.03385), Table 1; depth 10: Liu et al.,
        Large-Scale Long-Tailed Recognition in an Open World (arXiv 1904.05160), §4.
    """

    depth: int = 50
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → features [batch, 8 (of bottlenecks 32) · width]."""
        block, sizes = LAYOUTS[self.depth]
        x = nn.relu(batch_norm(train)(_conv(self.width, 7, 2)(images)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for group, size in enumerate(sizes):
            for index in range(size):
                stride = 2 if group and not index else 1
                x = block(self.width * 2**group, stride)(x, train)
        return x.mean((1, 2))


def _shortcut(x: jax.Array, channels: int, stride: int, train: bool) -> jax.Array:
    if stride == 1 and x.shape[-1] == channels:
        return x
    return batch_norm(train)(_conv(channels, 1, stride)(x))


def _conv(planes: int, size: int, stride: int = 1) -> nn.Conv:
    return convolution(planes, size, stride, fan_out_init)
