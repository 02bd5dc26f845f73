"""The vision transformer for images cut into patches of 16 × 16."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from balms_jax.models.layers import rematerialised

EPSILON = 1e-6
HEAD_WIDTH = 64


class EncoderBlock(nn.Module):
    """Self-attention, then a perceptron with one hidden layer; each after a norm, each added."""

    width: int
    heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[batch, tokens, width] → the same; nothing in it depends on ``train``."""
        del train
        xavier, hidden = nn.initializers.xavier_uniform(), 4 * self.width
        # PyTorch's own, of a linear layer: uniform in ±1/√(number of inputs).
        uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        almost_zero = nn.initializers.normal(1e-6)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=xavier)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name='norm_1')(x)
        qkv = dense(3 * self.width, name='qkv')(y)
        by_head = (*x.shape[:-1], self.heads, self.width // self.heads)
        query, key, value = (part.reshape(by_head) for part in jnp.split(qkv, 3, -1))
        # Its softmax is taken in float32.
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(self.width, kernel_init=uniform, name='out')(y)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name='norm_2')(x)
        y = nn.gelu(dense(hidden, bias_init=almost_zero, name='mlp_1')(y), approximate=False)
        return x + dense(self.width, bias_init=almost_zero, name='mlp_2')(y)


class VisionTransformer(nn.Module):
    """Patches, a class token and learned positions; the token after the last block's norm.

    Its parameters are torchvision's, initialised as there. Of 12 blocks and width 384 (ViT-S/16,
    6 heads) there are 22,050,664 for images of 224 × 224 with a linear classifier of 1000 classes.
    Positions are learned for the image size that it was initialised with, and serve no other.

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words (arXiv 2010.11929), §3.1; the size S:
        Touvron et al., Training data-efficient image transformers (arXiv 2012.12877), Table 1.
    """

    width: int = 384
    depth: int = 12
    patch: int = 16
    dtype: DTypeLike | None = None  # of the computation; None: that of images and parameters
    remat: bool = False  # Whether a block's activations are computed again on the way back.

    @property
    def heads(self) -> int:
        """Of 64 channels each; a narrow network has one head."""
        return max(1, self.width // HEAD_WIDTH)

    @property
    def width_multiple(self) -> int:
        """What the width must be a multiple of: whole heads."""
        return HEAD_WIDTH if self.heads > 1 else 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, height, width, channels] → features [batch, width]."""
        count, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f'images: got {height} × {width}, wanted multiples of {self.patch}, the patch'
            )
        fan_in = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
        sides = (self.patch, self.patch)
        cut = nn.Conv(
            self.width,
            sides,
            sides,
            padding='VALID',
            dtype=self.dtype,
            kernel_init=fan_in,
            name='patches',
        )
        x = cut(images)
        x = x.reshape(count, -1, self.width)
        token = self.param('class_token', nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (count, 1, self.width)), x], 1)
        normal = nn.initializers.normal(0.02)
        x = x + self.param('positions', normal, (1, *x.shape[1:])).astype(x.dtype)
        block = rematerialised(EncoderBlock, self.remat)
        for index in range(self.depth):
            name = f'EncoderBlock_{index}'
            x = block(self.width, self.heads, dtype=self.dtype, name=name)(x, train)
        # A norm takes one token at a time, and of the others nothing is wanted.
        return nn.LayerNorm(EPSILON, dtype=self.dtype, name='norm')(x[:, 0])
