"""The feature pyramid: strong features at every scale, from the levels of a residual network."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from balms_jax.models.layers import Conv


class FeaturePyramid(nn.Module):
    r"""Each level is its own features and those of the coarser level, enlarged.

    .. math:: M_5 = L_5 C_5, \quad M_k = L_k C_k + \mathrm{enlarge}(M_{k+1}), \quad
        P_k = S_k * M_k, \quad P_6 = P_5 \text{ at every second cell}

    with 1 × 1 convolutions L and 3 × 3 convolutions S, both with a bias.

    References:
        Lin et al., Feature Pyramid Networks (arXiv 1612.03144), §3; names and shapes of the
        parameters: torchvision's ``FeaturePyramidNetwork`` with ``LastLevelMaxPool``.
    """

    channels: int = 256
    dtype: DTypeLike | None = None  # of the computation; None: that of features and parameters

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """C2 to C5, each [batch, rows, columns, its channels] → P2 to P6, [batch, …, channels]."""
        # Uniform in ±√(3 / fan in).
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')
        merged: list[jax.Array] = []
        for k in reversed(range(len(levels))):
            lateral = Conv(
                self.channels, (1, 1), kernel_init=init, dtype=self.dtype, name=f'lateral_{k}'
            )(levels[k])
            merged.insert(0, lateral + _enlarged(merged[0], lateral.shape) if merged else lateral)
        smoothed = [
            Conv(self.channels, (3, 3), kernel_init=init, dtype=self.dtype, name=f'smooth_{k}')(
                features
            )
            for k, features in enumerate(merged)
        ]
        return (*smoothed, smoothed[-1][:, ::2, ::2])


def _enlarged(features: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Each cell four times, cut to an odd number of rows or columns where there is one."""
    doubled = jnp.repeat(jnp.repeat(features, 2, 1), 2, 2)
    return doubled[:, : shape[1], : shape[2]]
