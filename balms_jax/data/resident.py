"""Data that lives on the device, sorted by class, and how a step reads it."""

from collections.abc import Callable

import jax

from balms_jax.data import augment, color_jitter

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def augmentation(name: str) -> Augmentation:
    """Looks up an augmentation of uint8 images, (key, images) → images, by its config name."""
    augmentations: dict[str, Augmentation] = {
        'none': lambda key, images: images,
        'flip': augment.random_flip,
        'crop_flip': _crop_and_flip,
        'flip_jitter': _flip_and_jitter,
        'cifar': augment.cifar_augmentation,
    }
    return augmentations[name]


def read_features(inputs: jax.Array, examples: jax.Array, key: jax.Array) -> jax.Array:
    """Takes cached features, each in a random one of its views.

    Args:
        inputs: float ``[views, examples, features]``.
        examples: places, ``[batch]``.
        key: a PRNG key.

    Returns:
        ``[batch, features]``.
    """
    views = jax.random.randint(key, examples.shape, 0, inputs.shape[0])
    return inputs[views, examples]


def _crop_and_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    return augment.random_flip(flip_key, augment.random_crop(crop_key, images))


def _flip_and_jitter(key: jax.Array, images: jax.Array) -> jax.Array:
    flip_key, jitter_key = jax.random.split(key)
    return color_jitter.color_jitter(jitter_key, augment.random_flip(flip_key, images))
