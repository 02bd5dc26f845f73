"""Random augmentations have the distributions they state, each image by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.data import augment

SIDE = 32
IMAGES = np.random.default_rng(0).integers(0, 256, (32, SIDE, SIDE, 3), np.uint8)


def test_random_crop_offsets_are_uniform():
    """Every pixel tells its place, so its value gives the offsets: all 81, equally often.

    The chi-squared statistic over 80 degrees of freedom has mean 80, standard deviation 12.6.
    """
    rows, columns = np.mgrid[1:33, 1:33]
    image = np.stack([rows, columns], axis=-1).astype(np.uint8)
    number = 8100
    images = np.broadcast_to(image, (number, *image.shape))
    crops = np.asarray(jax.jit(augment.random_crop)(jax.random.key(0), images))
    # Row 16 and column 16 of a crop always lie inside the image.
    top, left = crops[:, 16, 16, 0] - 17 + 4, crops[:, 16, 16, 1] - 17 + 4
    counts = np.bincount(top.astype(int) * 9 + left, minlength=81)
    assert counts.size == 81
    assert ((counts - 100) ** 2 / 100).sum() < 80 + 5 * 12.6
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    for crop, y, x in zip(crops[:20], top[:20], left[:20], strict=True):
        np.testing.assert_array_equal(crop, padded[y : y + 32, x : x + 32])


def test_random_flip_mirrors_half_of_the_images():
    """Each image is itself or its mirror image; the rate is within five standard errors of 1/2."""
    image = IMAGES[0]
    images = np.broadcast_to(image, (2000, *image.shape))
    flipped = np.asarray(augment.random_flip(jax.random.key(0), images))
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    kept = (flipped == image).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize('size', [16, 5])
def test_cutout_blackens_a_clipped_square(size):
    """Black is a rectangle of the sides that clipping leaves, and centres are uniform.

    A centre c in 0 .. 31 leaves min(c - s//2 + s, 32) - max(c - s//2, 0) rows; the mean area is
    the square of that number's mean, since the two coordinates are independent.
    """
    number = 4000
    images = np.full((number, SIDE, SIDE, 3), 200, np.uint8)
    cut = np.asarray(jax.jit(augment.cutout, static_argnums=2)(jax.random.key(0), images, size))
    black = (cut == 0).all(-1)
    assert ((cut == 0) == black[..., None]).all()
    assert (cut[~black] == 200).all()
    rows, columns = black.any(2), black.any(1)
    np.testing.assert_array_equal(black, rows[:, :, None] & columns[:, None, :])
    starts = np.arange(SIDE) - size // 2
    heights = np.minimum(starts + size, SIDE) - np.maximum(starts, 0)
    for side in (rows, columns):
        assert set(side.sum(1)) == set(heights)
        # Contiguous: a run starts once.
        assert (np.diff(side.astype(int), prepend=0, axis=1).clip(0).sum(1) == 1).all()
    area = np.outer(heights, heights)
    assert abs(black.sum((1, 2)).mean() - area.mean()) < 5 * area.std() / np.sqrt(number)


def test_normalise_standardises_each_channel():
    """The definition in float64, to float32's precision."""
    mean, std = np.array([0.49, 0.48, 0.45]), np.array([0.2, 0.3, 0.4])
    result = augment.normalise(jnp.asarray(IMAGES), mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixup_weight_has_betas_moments(alpha):
    """Beta(α, α) has mean 1/2 and variance 1 / (4 (2α + 1)); one λ serves a whole batch.

    Example i alone is 1 at place i, so what is there after mixing is λ, or 1 if i is its own
    partner, which a uniform permutation makes one example of a batch on average, with variance 1.
    """
    number, batch = 3000, 8
    keys, images = jax.random.split(jax.random.key(0), number), jnp.eye(batch, dtype=jnp.float32)
    mix = jax.jit(jax.vmap(lambda key: augment.mixup(key, images, images, alpha)))
    mixed, targets = map(np.asarray, mix(keys))
    np.testing.assert_array_equal(mixed, targets)
    # Every example is used once in its own place and once as a partner; a target stays one.
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed.sum(2), 1, rtol=1e-6)
    own = np.einsum('nii->ni', mixed)
    weight = own.min(1)
    alone = own > 1 - 1e-6
    np.testing.assert_array_equal(np.where(alone, weight[:, None], own), weight[:, None] + 0 * own)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weight.mean() - 0.5) < 5 * np.sqrt(variance / number)
    assert weight.var() == pytest.approx(variance, rel=0.1)
    # Where λ rounds to 1 the partners cannot be seen.
    seen = alone[weight < 1 - 1e-6].sum(1)
    assert abs(seen.mean() - 1) < 5 / np.sqrt(seen.size)


def test_cifar_augmentation_compiled_equals_uncompiled():
    """Integer arithmetic, and float arithmetic guarded against fusion, do not depend on jit."""
    images, key = jnp.asarray(IMAGES[::4]), jax.random.key(3)
    compiled = jax.jit(augment.cifar_augmentation)(key, images)
    assert compiled.dtype == jnp.uint8
    assert compiled.shape == images.shape
    np.testing.assert_array_equal(compiled, augment.cifar_augmentation(key, images))


def test_an_image_is_augmented_independently_of_the_others():
    """Each image has its own key: replacing or leaving out the others must change nothing."""
    augmented = jax.jit(augment.cifar_augmentation)
    key = jax.random.key(5)
    images = np.broadcast_to(IMAGES[0], (64, SIDE, SIDE, 3))
    others = np.concatenate([images[:1], np.broadcast_to(IMAGES[-1], (63, SIDE, SIDE, 3))])
    alone = augmented(key, images[:1])
    together = augmented(key, images)
    np.testing.assert_array_equal(together[:1], alone)
    np.testing.assert_array_equal(together[:1], augmented(key, others)[:1])
    assert len(np.unique(np.asarray(together).reshape(64, -1), axis=0)) > 50


def test_messages_name_the_argument():
    """A wrong type or shape must say which argument it is."""
    key, images = jax.random.key(0), jnp.asarray(IMAGES)
    values = jnp.ones((2, 4), jnp.float32)
    for call, message in (
        (lambda: augment.random_flip(key, images.astype(jnp.float32)), 'images: got float32'),
        (lambda: augment.random_crop(key, images[0]), 'images: got shape'),
        (lambda: augment.random_crop(key, images, -1), 'padding'),
        (lambda: augment.cutout(key, images, 0), 'size'),
        (lambda: augment.autoaugment_cifar10(key, images[..., :1]), 'images.*width, 3'),
        (lambda: augment.normalise(images, 0.5, [0.2] * 3), 'mean'),
        (lambda: augment.normalise(images, [0.5] * 3, [0.2] * 2), 'std'),
        (lambda: augment.mixup(key, images, values, 1.0), 'images'),
        (lambda: augment.mixup(key, values, values[:1], 1.0), 'targets'),
        (lambda: augment.mixup(key, values, values, 0.0), 'alpha'),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize('alpha', [0.1, 0.2, 2.0])
def test_balanced_mixups_weight_is_beta_of_alpha_and_1(alpha):
    """Its mean is α / (1 + α): a little of the balanced batch where α is small."""
    ours, theirs = jnp.zeros((1, 1)), jnp.ones((1, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    mix = jax.vmap(lambda key: augment.balanced_mixup(key, ours, ours, theirs, theirs, alpha))
    images, targets = jax.jit(mix)(keys)
    np.testing.assert_array_equal(images, targets)
    variance = alpha / ((1 + alpha) ** 2 * (2 + alpha))
    error = 5 * np.sqrt(variance / 4000)
    assert np.mean(images) == pytest.approx(alpha / (1 + alpha), abs=error)


def test_balanced_mixup_refuses_batches_of_two_sizes():
    a, b = jnp.ones((2, 3)), jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r'balanced_images: got shape \(4, 3\), wanted \(2, 3\)'):
        augment.balanced_mixup(jax.random.key(0), a, a, b, a, 1.0)
