"""CIFAR's training augmentation: crop, flip, AutoAugment, cutout; normalise; mixup.

Every function is pure, has fixed shapes and compiles: augmentation runs on the device, inside the
training step. Images are uint8, ``[batch, height, width, channels]``. Each image draws from its own
key, so what happens to it does not depend on the rest of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax.data import image_operations


def random_crop(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Crops a random window of the original size out of the zero-padded image.

    The window's top and left offsets are independent and uniform on ``0 .. 2 * padding``.

    Args:
        key: PRNG key.
        images: ``[batch, height, width, channels]``, uint8.
        padding: zero pixels added on each side, at least 0.

    Returns:
        ``[batch, height, width, channels]``, uint8.

    Raises:
        ValueError: if ``images`` are not a uint8 batch, or ``padding`` is negative.
    """
    _check_images(images)
    if padding < 0:
        raise ValueError(f'padding: got {padding}, wanted at least 0')

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

    return _per_image(crop, key, images)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
        key: PRNG key.
        images: ``[batch, height, width, channels]``, uint8.

    Returns:
        ``[batch, height, width, channels]``, uint8.

    Raises:
        ValueError: if ``images`` are not a uint8 batch.
    """
    _check_images(images)

    def flip(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return _per_image(flip, key, images)


def cutout(key: jax.Array, images: jax.Array, size: int = 16) -> jax.Array:
    """Blackens a square whose centre is a uniformly drawn pixel, clipped at the border.

    With centre c, rows and columns ``c - size // 2 .. c - size // 2 + size - 1`` become 0.

    Args:
        key: PRNG key.
        images: ``[batch, height, width, channels]``, uint8.
        size: the square's side in pixels, at least 1.

    Returns:
        ``[batch, height, width, channels]``, uint8.

    Raises:
        ValueError: if ``images`` are not a uint8 batch, or ``size`` is below 1.

    References:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
        2017, https://arxiv.org/abs/1708.04552
    """
    _check_images(images)
    if size < 1:
        raise ValueError(f'size: got {size}, wanted at least 1')

    def cut(key: jax.Array, image: jax.Array) -> jax.Array:
        sides = jnp.array(image.shape[:2])
        top, left = jax.random.randint(key, (2,), 0, sides) - size // 2
        rows, columns = image_operations.pixel_grid(image)
        hidden = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        return jnp.where(hidden[..., None], jnp.uint8(0), image)

    return _per_image(cut, key, images)


def normalise(images: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    r"""Scales pixels to [0, 1], then standardises each channel.

    .. math:: z = (x / 255 - \mu) / \sigma

    Args:
        images: ``[batch, height, width, channels]``, uint8.
        mean: μ, ``[channels]``, on the scale of [0, 1].
        std: σ, ``[channels]``, on the scale of [0, 1].

    Returns:
        ``[batch, height, width, channels]``, float32.

    Raises:
        ValueError: if ``images`` are not a uint8 batch, or ``mean`` or ``std`` is not
            ``[channels]``.

    Example:
        >>> print(normalise(jnp.full((1, 1, 1, 2), 255, jnp.uint8), [0.5, 0.0], [0.25, 0.5]))
        [[[[2. 2.]]]]
    """
    _check_images(images)
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    for name, moment in (('mean', mean), ('std', std)):
        if moment.shape != images.shape[-1:]:
            raise ValueError(f'{name}: got shape {moment.shape}, wanted {images.shape[-1:]}')
    return (images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    r"""Mixes every example with a partner, images and targets alike.

    .. math::
        \tilde x_i = \lambda x_i + (1 - \lambda) x_{p(i)}, \quad
        \tilde t_i = \lambda t_i + (1 - \lambda) t_{p(i)}, \quad
        \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    with one λ and one uniformly random permutation p for the whole batch.

    Args:
        key: PRNG key.
        images: ``[batch, ...]``, floating point.
        targets: each example's distribution over the classes, ``[batch, classes]``, floating point.
        alpha: α > 0; near 0 hardly mixes, 1 draws λ uniformly.

    Returns:
        The mixed images and targets, of the shapes and types given.

    Raises:
        ValueError: if ``images`` or ``targets`` are not floating point, ``targets`` are not
            ``[batch, classes]``, or ``alpha`` is not positive.

    References:
        Zhang, Cisse, Dauphin and Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018,
        https://arxiv.org/abs/1710.09412
    """
    _check_mixable(images, targets, alpha)
    weight_key, partner_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32)
    partners = jax.random.permutation(partner_key, images.shape[0])
    return _mix(weight, images, images[partners]), _mix(weight, targets, targets[partners])


def balanced_mixup(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    balanced_images: jax.Array,
    balanced_targets: jax.Array,
    alpha: float,
) -> tuple[jax.Array, jax.Array]:
    r"""Mixes a little of a class-balanced batch into an instance-balanced one.

    .. math::
        \tilde x_i = (1 - \lambda) x_i + \lambda x'_i, \quad
        \tilde t_i = (1 - \lambda) t_i + \lambda t'_i, \quad
        \lambda \sim \mathrm{Beta}(\alpha, 1)

    with one λ, of mean α / (1 + α), for the whole batch.

    Args:
        key: PRNG key.
        images: drawn as often as the classes are, ``[batch, ...]``, floating point.
        targets: each example's distribution over the classes, ``[batch, classes]``, floating point.
        balanced_images: x′, drawn from all classes alike, of the shape and type of ``images``.
        balanced_targets: t′, of the shape and type of ``targets``.
        alpha: α > 0; near 0 hardly mixes.

    Returns:
        The mixed images and targets, of the shapes and types given.

    Raises:
        ValueError: as :func:`mixup`, or if the two batches differ in shape.

    References:
        Galdran, Carneiro and González Ballester, Balanced-MixUp for Highly Imbalanced Medical
        Image Classification, MICCAI 2021, https://arxiv.org/abs/2109.09850
    """
    _check_mixable(images, targets, alpha)
    for name, ours, theirs in (
        ('balanced_images', images, balanced_images),
        ('balanced_targets', targets, balanced_targets),
    ):
        if ours.shape != theirs.shape:
            raise ValueError(f'{name}: got shape {theirs.shape}, wanted {ours.shape}')
    weight = 1 - jax.random.beta(key, alpha, 1.0, dtype=jnp.float32)
    return _mix(weight, images, balanced_images), _mix(weight, targets, balanced_targets)


def _check_mixable(images: jax.Array, targets: jax.Array, alpha: float) -> None:
    for name, array in (('images', images), ('targets', targets)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f'{name}: got {array.dtype}, wanted floating point')
    if targets.ndim != 2 or targets.shape[0] != images.shape[0]:
        raise ValueError(f'targets: got shape {targets.shape}, wanted [{images.shape[0]}, classes]')
    if not alpha > 0:
        raise ValueError(f'alpha: got {alpha}, wanted a positive number')


def _mix(weight: jax.Array, values: jax.Array, partners: jax.Array) -> jax.Array:
    share = weight.astype(values.dtype)
    return share * values + (1 - share) * partners


def cifar_augmentation(key: jax.Array, images: jax.Array) -> jax.Array:
    """The CIFAR recipe: pad-4 crop, flip, AutoAugment's CIFAR-10 policy, cutout of 16.

    Args:
        key: PRNG key.
        images: ``[batch, height, width, 3]``, uint8.

    Returns:
        ``[batch, height, width, 3]``, uint8; :func:`normalise` comes after.

    Raises:
        ValueError: if ``images`` are not a uint8 batch with 3 channels.
    """
    crop_key, flip_key, policy_key, cutout_key = jax.random.split(key, 4)
    images = random_crop(crop_key, images)
    images = random_flip(flip_key, images)
    images = autoaugment_cifar10(policy_key, images)
    return cutout(cutout_key, images)


def autoaugment_cifar10(key: jax.Array, images: jax.Array) -> jax.Array:
    """Applies one sub-policy of AutoAugment's CIFAR-10 policy, drawn uniformly, to each image.

    See :func:`draw_sub_policy` for what is random and :func:`apply_sub_policy` for the rest.

    Args:
        key: PRNG key.
        images: ``[batch, height, width, 3]``, uint8.

    Returns:
        ``[batch, height, width, 3]``, uint8.

    Raises:
        ValueError: if ``images`` are not a uint8 batch with 3 channels.

    References:
        Cubuk, Zoph, Mané, Vasudevan and Le, AutoAugment: Learning Augmentation Strategies from
        Data, CVPR 2019, Table 7, https://arxiv.org/abs/1805.09501
    """
    _check_images(images, channels=3)
    return _per_image(lambda k, image: apply_sub_policy(image, draw_sub_policy(k)), key, images)


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


def _per_image(
    function: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, images: jax.Array
) -> jax.Array:
    """Maps a function of one key and one image over the batch, a key an image."""
    return jax.vmap(function)(jax.random.split(key, images.shape[0]), images)


def _check_images(images: jax.Array, channels: int | None = None) -> None:
    """Raises a ValueError unless the images are a uint8 batch (with so many channels)."""
    if images.dtype != jnp.uint8:
        raise ValueError(f'images: got {images.dtype}, wanted uint8')
    if images.ndim != 4 or channels not in (None, images.shape[-1]):
        wanted = f'[batch, height, width, {channels or "channels"}]'
        raise ValueError(f'images: got shape {images.shape}, wanted {wanted}')
