"""What turns features into logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Linear(nn.Module):
    r"""The linear classifier, :math:`\eta = W f + b`."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[batch, features] → logits [batch, classes]."""
        # Uniform in ±1/√(number of features).
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        return nn.Dense(self.num_classes, kernel_init=init)(features)


class Cosine(nn.Module):
    r"""The scaled cosine classifier, :math:`\eta_j = s \cos(w_j, f)`.

    Without the scale s the logits lie in −1..1, where the log prior, several units wide, would
    decide alone.
    """

    num_classes: int
    scale: float

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[batch, features] → logits [batch, classes]."""
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        kernel = self.param('kernel', init, (features.shape[-1], self.num_classes))
        kernel = kernel.astype(features.dtype)
        return self.scale * (_normalise(features, -1) @ _normalise(kernel, 0))


def _normalise(x: jax.Array, axis: int) -> jax.Array:
    """To length 1; a zero vector stays zero and has a finite gradient."""
    squared = jnp.sum(x * x, axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))
