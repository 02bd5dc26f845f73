"""A small convolutional network for 8 × 8 digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class DigitsNet(nn.Module):
    """Two 3 × 3 convolutions with batch norm, the second of stride 2, and a hidden layer."""

    width: int = 16
    branches: tuple[str, ...] = ()  # Each a hidden layer of its own; none: one for all.
    dtype: DTypeLike | None = None  # of the computation; None: that of images and parameters

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, 8, 8, 1] → features [batch, 4 · width], of each branch."""
        x = images
        for planes, stride in ((self.width, 1), (2 * self.width, 2)):
            x = nn.Conv(planes, (3, 3), (stride, stride), use_bias=False, dtype=self.dtype)(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)
            x = nn.relu(norm(x))
        x, names = x.reshape(x.shape[0], -1), self.branches or (None,)
        hidden = [nn.Dense(4 * self.width, name=n, dtype=self.dtype)(x) for n in names]
        return nn.relu(jnp.concatenate(hidden, -1))
