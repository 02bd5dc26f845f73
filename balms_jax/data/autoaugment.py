"""AutoAugment's CIFAR-10 policy: 25 pairs of operations, one pair drawn for each image.

Cubuk, Zoph, Mané, Vasudevan and Le, AutoAugment: Learning Augmentation Strategies from Data, CVPR
2019, Table 7, https://arxiv.org/abs/1805.09501
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.data import image_operations

# The sub-policies: two operations each, an operation being (name, probability, level 0 to 9).
CIFAR10_POLICY = (
    (('invert', 0.1, 7), ('contrast', 0.2, 6)),
    (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
    (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.5, 8), ('equalize', 0.9, 2)),
    (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
    (('color', 0.4, 3), ('brightness', 0.6, 7)),
    (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
    (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('color', 0.7, 7), ('translate_x', 0.5, 8)),
    (('equalize', 0.3, 7), ('autocontrast', 0.4, 8)),
    (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
    (('brightness', 0.9, 6), ('color', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 3)),
    (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
    (('color', 0.9, 9), ('equalize', 0.6, 6)),
    (('autocontrast', 0.8, 4), ('solarize', 0.2, 8)),
    (('brightness', 0.1, 3), ('color', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 3)),
    (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.9, 2), ('solarize', 0.8, 3)),
    (('equalize', 0.8, 8), ('invert', 0.1, 3)),
    (('translate_y', 0.7, 9), ('autocontrast', 0.9, 1)),
)


class SubPolicyDraw(NamedTuple):
    """What is random about AutoAugment, for one image.

    Attributes:
        sub_policy: its number, ``[]``, int32 in ``0 .. 24``.
        applied: whether each of its two operations happens, ``[2]``, bool.
        positive: the sign of each operation's magnitude, ``[2]``, bool.
    """

    sub_policy: jax.Array
    applied: jax.Array
    positive: jax.Array


def draw_sub_policy(key: jax.Array) -> SubPolicyDraw:
    """Draws a sub-policy uniformly, its operations by their probabilities, signs by fair coins."""
    policy_key, applied_key, sign_key = jax.random.split(key, 3)
    sub_policy = jax.random.randint(policy_key, (), 0, len(CIFAR10_POLICY))
    probabilities = jnp.array([[op[1] for op in pair] for pair in CIFAR10_POLICY], jnp.float32)
    return SubPolicyDraw(
        sub_policy=sub_policy,
        applied=jax.random.bernoulli(applied_key, probabilities[sub_policy]),
        positive=jax.random.bernoulli(sign_key, shape=(2,)),
    )


def apply_sub_policy(image: jax.Array, draw: SubPolicyDraw) -> jax.Array:
    """Applies the two operations of a drawn sub-policy in turn.

    Args:
        image: ``[height, width, 3]``, uint8.
        draw: which sub-policy, and what was drawn for it.

    Returns:
        ``[height, width, 3]``, uint8.
    """
    # Under vmap a switch computes every branch, so each stage computes the operations its own
    # column of the policy names, and selects; the compiler fuses most into few passes.
    for stage in range(2):
        operations = [pair[stage] for pair in CIFAR10_POLICY]
        names = sorted({name for name, _, _ in operations})
        codes = jnp.array([names.index(name) for name, _, _ in operations], jnp.int32)
        strengths = [[_strength(op, level, s) for s in (-1, 1)] for op, _, level in operations]
        sign = draw.positive[stage].astype(jnp.int32)
        strength = jnp.array(strengths, jnp.float32)[draw.sub_policy, sign]
        code = jnp.where(draw.applied[stage], codes[draw.sub_policy], -1)
        before = image
        for candidate, name in enumerate(names):
            changed = _OPERATIONS[name](before, strength)
            image = jnp.where(code == candidate, changed, image)
    return image


def _strength(name: str, level: int, sign: int) -> float:
    """The argument that an operation of the policy takes at a level of 0 to 9."""
    fraction = level / 9
    if name.startswith('shear'):
        return sign * 0.3 * fraction
    if name.startswith('translate'):
        return sign * 150 / 331 * fraction
    if name in ('color', 'contrast', 'brightness', 'sharpness'):
        return 1 + sign * 0.9 * fraction
    return {
        'rotate': 30 * fraction,
        'posterize': float(np.round(8 - 4 * fraction)),
        'solarize': 256 * (1 - fraction),
    }.get(name, 0.0)


_OPERATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    'rotate': image_operations.rotate,
    'translate_x': image_operations.translate_x,
    'translate_y': image_operations.translate_y,
    'shear_x': image_operations.shear_x,
    'shear_y': image_operations.shear_y,
    'invert': lambda image, _: image_operations.invert(image),
    'solarize': image_operations.solarize,
    'posterize': image_operations.posterize,
    'autocontrast': lambda image, _: image_operations.autocontrast(image),
    'equalize': lambda image, _: image_operations.equalize(image),
    'color': image_operations.color,
    'contrast': image_operations.contrast,
    'brightness': image_operations.brightness,
    'sharpness': image_operations.sharpness,
}
