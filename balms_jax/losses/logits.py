"""What every loss asks of its logits, and the type it computes in."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def float_logits(logits: ArrayLike) -> jax.Array:
    """The logits as an array; raises ValueError unless they are floats with an axis of classes."""
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f'logits: got {logits.dtype}, wanted a float type')
    if logits.ndim == 0:
        raise ValueError('logits: got a scalar, wanted an axis of classes')
    return logits


def compute_dtype(logits: jax.Array) -> jnp.dtype:
    """Sixteen bits hold neither a sum over many classes nor the prior: they are widened."""
    return logits.dtype if jnp.finfo(logits.dtype).bits >= 32 else jnp.dtype(jnp.float32)
