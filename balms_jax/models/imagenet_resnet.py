"""The residual networks for 224 × 224 images."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from balms_jax.models.layers import (
    Conv,
    batch_norm,
    convolution,
    fan_out_init,
    image_mean,
    rematerialised,
)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, projected where the shape changes."""

    planes: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → [batch, height / stride, width / stride, planes]."""
        norm = functools.partial(batch_norm, train, self.dtype)
        y = nn.relu(norm()(_conv(self.planes, 3, self.stride, self.dtype)(x)))
        y = norm()(_conv(self.planes, 3, 1, self.dtype)(y))
        return nn.relu(y + _shortcut(self, x, self.planes, train))


class Bottleneck(nn.Module):
    """1 × 1 down to the planes, 3 × 3 with the stride, 1 × 1 up to four times the planes.

    In groups, the 3 × 3 has planes · group_width / 64 channels a group.
    """

    planes: int
    stride: int = 1
    dtype: DTypeLike | None = None
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → [batch, height / stride, width / stride, 4 planes]."""
        inner = self.planes * self.group_width // 64 * self.groups
        norm = functools.partial(batch_norm, train, self.dtype)
        y = nn.relu(norm()(_conv(inner, 1, 1, self.dtype)(x)))
        y = nn.relu(norm()(_conv(inner, 3, self.stride, self.dtype, self.groups)(y)))
        y = norm()(_conv(4 * self.planes, 1, 1, self.dtype)(y))
        return nn.relu(y + _shortcut(self, x, 4 * self.planes, train))


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
    classifier of 1000 classes; in 32 groups of width 4 (ResNeXt), 25,028,904.

    References:
        He et al., Deep Residual Learning (arXiv 1512.03385), Table 1; depth 10: Liu et al.,
        Large-Scale Long-Tailed Recognition in an Open World (arXiv 1904.05160), §4; groups: Xie
        et al., Aggregated Residual Transformations (arXiv 1611.05431), Table 1.
    """

    depth: int = 50
    width: int = 64
    groups: int = 1
    group_width: int = 64
    dtype: DTypeLike | None = None  # of the computation; None: that of images and parameters
    remat: bool = False  # Whether a block's activations are computed again on the way back.

    @property
    def width_multiple(self) -> int:
        """What the width must be a multiple of, so that a group has a whole number of channels."""
        return 64 // self.group_width

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → features [batch, 8 (of bottlenecks 32) · width]."""
        return image_mean(self.levels(images, train)[-1])

    @nn.compact
    def levels(self, images: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """What each group of blocks gives, of strides 4, 8, 16 and 32: C2 to C5 of a detector."""
        block, sizes = LAYOUTS[self.depth]
        grouped: dict[str, Any] = {}
        if self.groups > 1:
            grouped = {'groups': self.groups, 'group_width': self.group_width}
        make, count = rematerialised(block, self.remat), 0
        stem = _conv(self.width, 7, 2, self.dtype)(images)
        x = nn.relu(batch_norm(train, self.dtype)(stem))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for group, size in enumerate(sizes):
            for index in range(size):
                stride, name = 2 if group and not index else 1, f'{block.__name__}_{count}'
                settings = {'dtype': self.dtype, 'name': name, **grouped}
                x = make(self.width * 2**group, stride, **settings)(x, train)
                count += 1
            outputs.append(x)
        return tuple(outputs)


def _shortcut(
    block: BasicBlock | Bottleneck, x: jax.Array, channels: int, train: bool
) -> jax.Array:
    if block.stride == 1 and x.shape[-1] == channels:
        return x
    projected = _conv(channels, 1, block.stride, block.dtype)(x)
    return batch_norm(train, block.dtype)(projected)


def _conv(planes: int, size: int, stride: int, dtype: DTypeLike | None, groups: int = 1) -> Conv:
    return convolution(planes, size, stride, fan_out_init, dtype, groups)
