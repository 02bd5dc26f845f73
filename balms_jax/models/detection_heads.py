"""The heads of Mask R-CNN: what is computed of a pyramid level, and of a region's features."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from balms_jax.models.layers import Conv, fan_in_init, fan_out_init, plus_bias


class ProposalHead(nn.Module):
    """A 3 × 3 convolution; of each cell and anchor the logit of an object and four deltas.

    References:
        Ren et al., Faster R-CNN (arXiv 1506.01497), §3.1.
    """

    anchors: int  # of a cell
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[batch, rows, columns, channels] → logits [batch, n], deltas [batch, n, 4].

        The n are rows, then columns, then anchors.
        """
        batch, init = features.shape[0], nn.initializers.normal(0.01)

        def conv(planes: int, size: int, name: str) -> Conv:
            return Conv(planes, (size, size), kernel_init=init, dtype=self.dtype, name=name)

        hidden = nn.relu(conv(features.shape[-1], 3, 'hidden')(features))
        logits = conv(self.anchors, 1, 'objectness')(hidden)
        deltas = conv(4 * self.anchors, 1, 'deltas')(hidden)
        return logits.reshape(batch, -1), deltas.reshape(batch, -1, 4)


class BoxHead(nn.Module):
    """Two hidden layers; deltas for each category, or one for all.

    References:
        Lin et al., Feature Pyramid Networks (arXiv 1612.03144), §4.2.
    """

    outputs: int  # categories, or 1
    features: int = 1024
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[…, bins, bins, channels] → features […, features], deltas […, outputs, 4]."""
        x = regions.reshape(*regions.shape[:-3], -1)
        for name in ('hidden_0', 'hidden_1'):
            layer = nn.Dense(self.features, kernel_init=fan_in_init, dtype=self.dtype, name=name)
            x = nn.relu(layer(x))
        init = nn.initializers.normal(0.001)
        deltas = nn.Dense(4 * self.outputs, kernel_init=init, dtype=self.dtype, name='deltas')(x)
        return x, deltas.reshape(*x.shape[:-1], self.outputs, 4)


class CategoryHead(nn.Module):
    r"""The linear classifier of a region's category, which begins at a prior probability.

    .. math:: \eta = W f + b, \qquad b = \operatorname{logit} \rho

    so that with one sigmoid a category the many background regions cost little from the start.

    References:
        Lin et al., Focal Loss (arXiv 1708.02002), §3.3.
    """

    outputs: int  # categories, and the background for a softmax
    prior: float | None = 0.001  # ρ; None: b = 0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[…, features] → logits […, outputs]."""
        bias = math.log(self.prior / (1 - self.prior)) if self.prior is not None else 0.0
        return nn.Dense(
            self.outputs,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(bias),
        )(features)


class Doubling(nn.Module):
    r"""The transposed convolution of 2 × 2 at stride 2, as the matrix product that it is.

    No two of its inputs meet in an output:

    .. math:: y_{2i+a, 2j+b} = K_{1-a, 1-b}^\top x_{ij} + c, \qquad a, b \in \{0, 1\}

    with the kernel K ``[2, 2, channels, features]`` of Flax's ``ConvTranspose``, which takes
    two CPU cores 19 times as long: for the spread-out inputs of its gradient XLA has no fast way.
    """

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[…, rows, columns, channels] → […, 2 rows, 2 columns, features]."""
        *batch, rows, columns, channels = x.shape
        kernel = self.param('kernel', fan_out_init, (2, 2, channels, self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum('...ijc,abco->...iajbo', x, kernel[::-1, ::-1])
        return plus_bias(y.reshape(*batch, 2 * rows, 2 * columns, self.features), bias)


class MaskHead(nn.Module):
    """Four 3 × 3 convolutions, one that doubles the size; a mask for each category, or for all.

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), Figure 4 (right).
    """

    outputs: int  # categories, or 1
    channels: int = 256
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, regions: jax.Array) -> jax.Array:
        """[…, bins, bins, channels] → logits […, 2 bins, 2 bins, outputs]."""
        x = regions
        for name in ('hidden_0', 'hidden_1', 'hidden_2', 'hidden_3'):
            layer = Conv(
                self.channels, (3, 3), kernel_init=fan_out_init, dtype=self.dtype, name=name
            )
            x = nn.relu(layer(x))
        enlarge = Doubling(self.channels, dtype=self.dtype, name='double')
        logits = Conv(
            self.outputs, (1, 1), kernel_init=fan_out_init, dtype=self.dtype, name='logits'
        )
        return logits(nn.relu(enlarge(x)))
