"""What every loss asks of its logits and labels, and the type it computes in."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax import priors


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


def integer_labels(labels: ArrayLike, logits: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The labels as an array, one an example; raises ValueError unless they are classes.

    While they are traced, those out of range become C: a gather fills it in, where it would wrap a
    negative one around.
    """
    labels = jnp.asarray(labels)
    num_classes = int(np.prod([logits.shape[a] for a in axes]))
    priors.check_labels(labels, num_classes)
    wanted = tuple(size for a, size in enumerate(logits.shape) if a not in axes)
    if labels.shape != wanted:
        raise ValueError(f'labels: got shape {labels.shape}, wanted {wanted}, one an example')
    return priors.class_places(labels, num_classes)


def binary_labels(labels: ArrayLike, logits: jax.Array) -> jax.Array:
    """Labels of the logits' shape, in the type of the computation; raises ValueError for others."""
    labels = jnp.asarray(labels)
    if labels.shape != logits.shape:
        raise ValueError(f"labels: got shape {labels.shape}, wanted the logits' {logits.shape}")
    return labels.astype(compute_dtype(logits))


def foreground_of_every_class(foreground: ArrayLike | None, logits: jax.Array) -> jax.Array | None:
    """Which samples hold an object, ``[..., 1]``, bool; raises ValueError for another shape."""
    if foreground is None:
        return None
    foreground = jnp.asarray(foreground)
    if foreground.shape != logits.shape[:-1]:
        raise ValueError(f'foreground: got shape {foreground.shape}, wanted {logits.shape[:-1]}')
    return foreground.astype(bool)[..., None]
