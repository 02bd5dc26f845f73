"""How brightness, contrast and saturation are varied on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from balms_jax.data import image_operations

# In this order: the factors' columns, and what a drawn order counts.
_OPERATIONS = (image_operations.brightness, image_operations.contrast, image_operations.color)


class JitterStrengths(NamedTuple):
    """How far each factor may go from 1; 0 leaves the image as it is."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4


DEFAULT_STRENGTHS = JitterStrengths()


def color_jitter(
    key: jax.Array, images: jax.Array, strengths: JitterStrengths = DEFAULT_STRENGTHS
) -> jax.Array:
    r"""Varies brightness, contrast and saturation of each image, in a random order.

    .. math:: x \to \mathrm{clip}(f x + (1 - f)\, g), \quad f \sim U[\max(0, 1 - s), 1 + s]

    in turn with g black (brightness), the mean grey level (contrast) and the grey image
    (saturation): torchvision's ColorJitter of Pillow images, without its hue.

    Args:
        key: PRNG key.
        images: ``[batch, height, width, 3]``, uint8.
        strengths: s of each, at least 0.

    Returns:
        ``[batch, height, width, 3]``, uint8.

    Raises:
        ValueError: if ``images`` are not a uint8 batch of 3 channels, or a strength is negative.

    Example:
        >>> grey = jnp.full((1, 2, 2, 3), 100, jnp.uint8)
        >>> unchanged = color_jitter(jax.random.key(0), grey, JitterStrengths(0.0, 0.5, 0.5))
        >>> print(unchanged.min(), unchanged.max())
        100 100

    References:
        torchvision.transforms.ColorJitter; used for ImageNet-LT by Liu et al. (arXiv 1904.05160).
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f'images: got {images.dtype}{list(images.shape)}, wanted uint8 '
            '[batch, height, width, 3]'
        )
    if min(strengths) < 0:
        raise ValueError(f'strengths: got {strengths}, wanted at least 0')
    reach = jnp.asarray(strengths, jnp.float32)

    def jitter(key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, factor_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(_OPERATIONS))
        factors = jax.random.uniform(
            factor_key, (3,), jnp.float32, jnp.maximum(0, 1 - reach), 1 + reach
        )
        return apply_jitter(image, order, factors)

    return jax.vmap(jitter)(jax.random.split(key, images.shape[0]), images)


def apply_jitter(image: jax.Array, order: jax.Array, factors: jax.Array) -> jax.Array:
    """Applies the three operations in a given order.

    Args:
        image: ``[height, width, 3]``, uint8.
        order: a permutation of 0 (brightness), 1 (contrast) and 2 (saturation), ``[3]``.
        factors: of brightness, contrast and saturation, ``[3]``, at least 0.

    Returns:
        ``[height, width, 3]``, uint8.

    Example:
        >>> image = jnp.full((1, 1, 3), 100, jnp.uint8)
        >>> print(apply_jitter(image, jnp.arange(3), jnp.array([0.5, 1.0, 1.0])))
        [[[50 50 50]]]
    """
    for stage in range(len(_OPERATIONS)):
        # Under vmap every branch is computed anyhow: the one of this stage is selected.
        before = image
        for code, operation in enumerate(_OPERATIONS):
            chosen = order[stage] == code
            image = jnp.where(chosen, operation(before, factors[code]), image)
    return image
