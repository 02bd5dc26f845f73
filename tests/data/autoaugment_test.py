"""The elementary operations are Pillow's, and so is the policy that is made of them."""

import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from balms_jax.data import autoaugment, image_operations

SIDE = 32
GREY = (128, 128, 128)
# Pillow's blend multiplies and adds in float32. On x86-64 each is rounded, as here; other
# compilers may fuse the two, which can move a value across an integer.
BLEND_TOLERANCE = 0 if platform.machine() in ('x86_64', 'AMD64') else 1


def _test_images():
    """Noise of full and of narrow range, smooth images, and constant and two-level channels."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, SIDE, SIDE, 3))
    low, width = rng.integers(0, 100, (8, 1, 1, 3)), rng.integers(1, 150, (8, 1, 1, 3))
    narrow = low + noise[::-1] * width // 255
    coarse = rng.integers(0, 256, (8, 5, 5, 3)).astype(np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.BICUBIC)) for c in coarse]
    flat = np.broadcast_to(rng.integers(0, 256, (4, 1, 1, 3)), (4, SIDE, SIDE, 3))
    binary = np.where(noise[:4] < 40, 255, 0)
    # One pixel apart from a constant: equalize's step is 0 there, autocontrast's range 1.
    speck = np.full((1, SIDE, SIDE, 3), 77)
    speck[0, 3, 4] = 78
    return np.concatenate([noise, narrow, smooth, flat, binary, speck]).astype(np.uint8)


IMAGES = _test_images()


def _by_pillow(function, images=IMAGES):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images])


@functools.cache
def _compiled(operation):
    return jax.jit(
        lambda images, *arguments: jax.vmap(lambda image: operation(image, *arguments))(images)
    )


def _batched(operation, *arguments):
    arguments = [jnp.float32(argument) for argument in arguments]
    return np.asarray(_compiled(operation)(IMAGES, *arguments))


def _levels_apart(ours, pillows):
    return np.abs(ours.astype(int) - pillows.astype(int))


def _affine(coefficients, resample):
    def transform(image):
        return image.transform(image.size, Image.AFFINE, coefficients, resample, fillcolor=GREY)

    return transform


def _pillow_operation(name, level, sign):
    """The operation at a level as AutoAugment's widely used Pillow implementation defines it."""
    if name in ('color', 'contrast', 'brightness', 'sharpness'):
        factor = 1 + sign * np.linspace(0, 0.9, 10)[level]
        return lambda image: getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
    slope = sign * np.linspace(0, 0.3, 10)[level]
    distance = sign * SIDE * np.linspace(0, 150 / 331, 10)[level]
    return {
        'shear_x': _affine((1, slope, 0, 0, 1, 0), Image.BICUBIC),
        'shear_y': _affine((1, 0, 0, slope, 1, 0), Image.BICUBIC),
        'translate_x': _affine((1, 0, distance, 0, 1, 0), Image.NEAREST),
        'translate_y': _affine((1, 0, 0, 0, 1, distance), Image.NEAREST),
        'rotate': lambda image: image.rotate(np.linspace(0, 30, 10)[level], fillcolor=GREY),
        'posterize': lambda image: ImageOps.posterize(image, round(np.linspace(8, 4, 10)[level])),
        'solarize': lambda image: ImageOps.solarize(image, np.linspace(256, 0, 10)[level]),
        'autocontrast': ImageOps.autocontrast,
        'equalize': ImageOps.equalize,
        'invert': ImageOps.invert,
    }[name]


@pytest.mark.parametrize('operation', [image_operations.equalize, image_operations.invert])
def test_tables_are_pillows(operation):
    """Both are integer maps of the values, so nothing may differ."""
    np.testing.assert_array_equal(
        _batched(operation), _by_pillow(getattr(ImageOps, operation.__name__))
    )


@pytest.mark.parametrize('bits', [1, 4, 5, 6, 7, 8])
def test_posterize_is_pillows(bits):
    """A bit mask."""
    ours = _batched(image_operations.posterize, bits)
    np.testing.assert_array_equal(ours, _by_pillow(lambda image: ImageOps.posterize(image, bits)))


@pytest.mark.parametrize('threshold', [0, 1, 56.89, 128, 199.11, 255, 256])
def test_solarize_is_pillows(threshold):
    """A comparison with a real threshold: 256 changes nothing, 0 inverts everything."""
    ours = _batched(image_operations.solarize, threshold)
    pillows = _by_pillow(lambda image: ImageOps.solarize(image, threshold))
    np.testing.assert_array_equal(ours, pillows)


def test_autocontrast_is_pillows_but_for_exact_integers():
    """Pillow truncates ``x * scale + offset`` in float64.

    Its rounding error can lose a level only where the exact quotient is an integer; there we give
    the integer. Everywhere else the results agree.
    """
    ours = _batched(image_operations.autocontrast).astype(int)
    pillows = _by_pillow(ImageOps.autocontrast).astype(int)
    low = IMAGES.min((1, 2), keepdims=True).astype(int)
    spread = np.maximum(IMAGES.max((1, 2), keepdims=True) - low, 1)
    exact = 255 * (IMAGES - low) % spread == 0
    np.testing.assert_array_equal(ours[~exact], pillows[~exact])
    assert set(np.unique(ours[exact] - pillows[exact])) <= {0, 1}


@pytest.mark.parametrize('name', ['color', 'contrast', 'brightness', 'sharpness'])
def test_enhancements_are_pillows(name):
    """Integer degenerate image, then a float32 blend, rounded as Pillow's is and truncated."""
    for factor in (0.0, *np.linspace(0.1, 1.9, 19)):
        ours = _batched(getattr(image_operations, name), factor)
        enhancer = getattr(ImageEnhance, name.capitalize())
        pillows = _by_pillow(lambda image, f=factor, e=enhancer: e(image).enhance(f))
        assert _levels_apart(ours, pillows).max() <= BLEND_TOLERANCE, factor


@pytest.mark.parametrize('name', ['rotate', 'translate_x', 'translate_y'])
def test_nearest_neighbour_operations_are_pillows(name):
    """They copy pixels or fill, so they agree exactly when they choose the same pixels."""
    for level in range(10):
        for sign in (-1, 1):
            strength = autoaugment._strength(name, level, sign)
            ours = _batched(getattr(image_operations, name), strength)
            pillows = _by_pillow(_pillow_operation(name, level, sign))
            np.testing.assert_array_equal(ours, pillows, err_msg=f'level {level}, sign {sign}')


@pytest.mark.parametrize('name', ['shear_x', 'shear_y'])
def test_shears_are_pillows_to_one_level(name):
    """Pillow evaluates the cubic in float64 and truncates; ours is float32.

    A value can fall on the other side of an integer only where the cubic is within float32's error
    of one: at most a few percent of the pixels (the offsets are multiples of 1/60 pixel, and those
    that are thirds make every 27th cubic an integer), and then by one level.
    """
    for level in range(10):
        for sign in (-1, 1):
            strength = autoaugment._strength(name, level, sign)
            ours = _batched(getattr(image_operations, name), strength)
            apart = _levels_apart(ours, _by_pillow(_pillow_operation(name, level, sign)))
            assert apart.max() <= 1, (level, sign)
            assert np.mean(apart > 0) < 0.02, (level, sign)


@pytest.mark.parametrize('size', [(20, 32), (32, 20)])
def test_geometry_holds_for_oblong_images(size):
    """Height and width enter the maps separately; a swap would show here and not on squares."""
    image = IMAGES[0, : size[0], : size[1]]
    pillow_image = Image.fromarray(image)
    expected = {
        'rotate': pillow_image.rotate(0.3, fillcolor=GREY),
        'translate_x': _affine((1, 0, 0.3 * size[1], 0, 1, 0), Image.NEAREST)(pillow_image),
        'translate_y': _affine((1, 0, 0, 0, 1, 0.3 * size[0]), Image.NEAREST)(pillow_image),
        'shear_x': _affine((1, 0.3, 0, 0, 1, 0), Image.BICUBIC)(pillow_image),
        'shear_y': _affine((1, 0, 0, 0.3, 1, 0), Image.BICUBIC)(pillow_image),
    }
    for name, pillows in expected.items():
        ours = np.asarray(getattr(image_operations, name)(jnp.asarray(image), 0.3))
        assert _levels_apart(ours, np.asarray(pillows)).max() <= name.startswith('shear'), name


def _draw(number, applied, positive):
    return autoaugment.SubPolicyDraw(jnp.int32(number), jnp.array(applied), jnp.array(positive))


@pytest.mark.parametrize('number', range(25))
def test_sub_policies_are_pillows(number):
    """Each stage is Pillow's operation with that sign, and both applied are one after the other.

    A shear or an autocontrast may be one level off. The operation after it can enlarge that, so
    Pillow's second operation is given our first one's result.
    """
    apply = _compiled(autoaugment.apply_sub_policy)
    for positive in ([False, False], [False, True], [True, False], [True, True]):
        images = IMAGES
        for stage, (name, _, level) in enumerate(autoaugment.CIFAR10_POLICY[number]):
            pillow_operation = _pillow_operation(name, level, 1 if positive[stage] else -1)
            pillows = _by_pillow(pillow_operation, images)
            images = np.asarray(apply(images, _draw(number, np.arange(2) == stage, positive)))
            tolerance = 1 if name in ('shear_y', 'autocontrast') else BLEND_TOLERANCE
            assert _levels_apart(images, pillows).max() <= tolerance, (name, positive)
        both = _draw(number, [True, True], positive)
        np.testing.assert_array_equal(apply(IMAGES, both), images)


def test_sub_policy_not_applied_is_the_identity():
    """Neither operation drawn: the image must come back as it went in."""
    result = _compiled(autoaugment.apply_sub_policy)(IMAGES, _draw(8, [False, False], [True, True]))
    np.testing.assert_array_equal(result, IMAGES)


def test_sub_policies_signs_and_operations_are_drawn_as_stated():
    """Frequencies of 20,000 draws lie within five standard errors of their probabilities."""
    keys = jax.random.split(jax.random.key(1), 20_000)
    draws = jax.jit(jax.vmap(autoaugment.draw_sub_policy))(keys)
    drawn, applied, positive = (np.asarray(field) for field in draws)

    def assert_frequency(hits, probability):
        error = np.sqrt(probability * (1 - probability) / hits.size)
        assert abs(hits.mean() - probability) <= 5 * error

    for number, pair in enumerate(autoaugment.CIFAR10_POLICY):
        chosen = drawn == number
        assert_frequency(chosen, 1 / 25)
        for stage in range(2):
            assert_frequency(applied[chosen, stage], pair[stage][1])
    assert_frequency(positive[:, 0], 0.5)
    assert_frequency(positive[:, 0] == positive[:, 1], 0.5)


def test_policy_strengths_take_signs_where_they_should():
    """Rotation is positive only; translation stays within 45.4 % of the side, shear within 0.3."""
    for pair in autoaugment.CIFAR10_POLICY:
        for name, _, level in pair:
            negative, positive = (autoaugment._strength(name, level, sign) for sign in (-1, 1))
            if name.startswith(('shear', 'translate')):
                assert negative == -positive
                assert 0 < positive <= (0.3 if name.startswith('shear') else 150 / 331)
            elif name in ('color', 'contrast', 'brightness', 'sharpness'):
                assert negative + positive == pytest.approx(2)
                assert 0.099 < negative <= positive
            else:
                assert negative == positive >= 0
