"""A small convolutional network for 8 × 8 digits."""

import flax.linen as nn
import jax


class DigitsNet(nn.Module):
    """Two 3 × 3 convolutions with batch norm, the second of stride 2, and a hidden layer."""

    width: int = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[batch, 8, 8, 1] → features [batch, 4 · width]."""
        x = images
        for planes, stride in ((self.width, 1), (2 * self.width, 2)):
            x = nn.Conv(planes, (3, 3), (stride, stride), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.relu(nn.Dense(4 * self.width)(x.reshape(x.shape[0], -1)))
