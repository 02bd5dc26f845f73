"""CIFAR's training augmentation: crop, flip, AutoAugment, cutout; normalise; mixup.

Every function is pure, has fixed shapes and compiles: augmentation runs on the device, inside the
training step. Images are uint8, ``[batch, height, width, channels]``. Each image draws from its own
key, so what happens to it does not depend on the rest of the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.data import autoaugment, image_operations


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

    See :func:`autoaugment.draw_sub_policy` for what is random and
    :func:`autoaugment.apply_sub_policy` for the rest.

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

    def of_image(key: jax.Array, image: jax.Array) -> jax.Array:
        return autoaugment.apply_sub_policy(image, autoaugment.draw_sub_policy(key))

    return _per_image(of_image, key, images)


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
