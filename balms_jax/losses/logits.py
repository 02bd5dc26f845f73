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


def fitting_prior(
    log_prior: ArrayLike,
    logits: jax.Array,
    axes: tuple[int, ...],
    dtype: jnp.dtype,
    name: str = 'log_prior',
) -> jax.Array:
    """The log prior at the logits' rank; raises ValueError for one that does not fit."""
    known = priors.concrete(log_prior)
    if known is not None and np.any(np.isnan(known) | (known == np.inf)):
        raise ValueError(f'{name}: got NaN or +inf, wanted finite numbers or -inf')
    log_prior = jnp.asarray(log_prior)
    if jnp.issubdtype(log_prior.dtype, jnp.integer):
        raise ValueError(
            f'{name}: got {log_prior.dtype}, wanted logs; for counts: balms_jax.log_prior(counts)'
        )
    class_shape = tuple(logits.shape[a] for a in axes)
    known_axes: tuple[int, ...] | None = axes
    if log_prior.ndim != logits.ndim or log_prior.ndim == 1:
        if log_prior.shape != class_shape and log_prior.shape != (int(np.prod(class_shape)),):
            raise ValueError(
                f'{name}: got shape {log_prior.shape}, wanted [classes] = {class_shape} or one '
                f"that broadcasts to the logits' {logits.shape}"
            )
        known_axes = None
        log_prior = log_prior.reshape(class_shape)
        others = tuple(a for a in range(logits.ndim) if a not in axes)
        log_prior = jnp.expand_dims(log_prior.transpose(np.argsort(axes)), others)
    fits = all(p in (1, size) for p, size in zip(log_prior.shape, logits.shape, strict=True))
    if not fits or any(log_prior.shape[a] != logits.shape[a] for a in axes):
        raise ValueError(
            f"{name}: got shape {log_prior.shape}, wanted one that broadcasts to the logits' "
            f'{logits.shape} and has every class'
        )
    if known is not None and np.any(np.all(known == -np.inf, axis=known_axes)):
        raise ValueError(f'{name}: got -inf for every class, wanted one class with examples')
    return log_prior.astype(dtype)


def fitting_where(
    where: ArrayLike | None, logits: jax.Array, axes: tuple[int, ...]
) -> jax.Array | None:
    """Which elements to include, bool, at the logits' rank; raises ValueError for another shape.

    It has the logits' shape, or, one an example, that of the labels; an axis may have size 1.
    """
    if where is None:
        return None
    where = jnp.asarray(where, bool)
    of_examples = tuple(size for a, size in enumerate(logits.shape) if a not in axes)
    whole = where
    if where.ndim == len(of_examples):
        whole = jnp.expand_dims(where, axes)
    fits = whole.ndim == logits.ndim and all(
        size in (1, wanted) for size, wanted in zip(whole.shape, logits.shape, strict=True)
    )
    # Several axes of classes are flattened into one: they are there whole, or not at all.
    class_shape = tuple(whole.shape[a] for a in axes) if fits else ()
    if class_shape not in ((1,) * len(axes), tuple(logits.shape[a] for a in axes)):
        raise ValueError(
            f"where: got shape {where.shape}, wanted the logits' {logits.shape} or {of_examples}, "
            'one an example'
        )
    return whole


def integer_labels(
    labels: ArrayLike, logits: jax.Array, axes: tuple[int, ...], where: jax.Array | None = None
) -> jax.Array:
    """The labels as an array, one an example; raises ValueError unless they are classes.

    While they are traced, those out of range become C: a gather fills it in, where it would wrap a
    negative one around. So do those of examples that ``where``, at the logits' rank, excludes
    whole: padding need not be a class.
    """
    labels = jnp.asarray(labels)
    num_classes = int(np.prod([logits.shape[a] for a in axes]))
    wanted = tuple(size for a, size in enumerate(logits.shape) if a not in axes)
    if labels.shape != wanted:
        raise ValueError(f'labels: got shape {labels.shape}, wanted {wanted}, one an example')
    included = labels
    if where is not None:
        is_included = jnp.broadcast_to(jnp.any(where, axes), wanted)
        included = jnp.where(is_included, labels, jnp.zeros_like(labels))
    priors.check_labels(included, num_classes)
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
