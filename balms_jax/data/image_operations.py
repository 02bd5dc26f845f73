"""AutoAugment's elementary operations: Pillow's, as pure functions of one image.

Each takes ``[height, width, channels]`` uint8 and returns one. They give Pillow's integers, but for
shears and autocontrast: there Pillow computes in float64 and truncates, and where the exact value
is an integer, or within float32's error of one, the result may be one level off.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

FILL = 128  # The grey that rotation, shear and translation uncover.


def rotate(image: jax.Array, degrees: ArrayLike) -> jax.Array:
    """Rotates counter-clockwise about the centre, taking the nearest pixel."""
    height, width, _ = image.shape
    radians = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(radians), jnp.sin(radians)

    def fixed(value: jax.Array) -> jax.Array:
        # Pillow steps through the source in units of 2^-16 pixel; so must we, to pick its pixels.
        return jnp.floor(value * 65536 + 0.5).astype(jnp.int32)

    # The inverse map of output pixel (0, 0), about the centre; then one step a row and a column.
    x0 = width / 2 + cos * (0.5 - width / 2) - sin * (0.5 - height / 2)
    y0 = height / 2 + sin * (0.5 - width / 2) + cos * (0.5 - height / 2)
    y, x = pixel_grid(image)
    source_x = fixed(x0) + x * fixed(cos) + y * fixed(-sin)
    source_y = fixed(y0) + x * fixed(sin) + y * fixed(cos)
    return _pick(image, source_y >> 16, source_x >> 16)


def translate_x(image: jax.Array, fraction: ArrayLike) -> jax.Array:
    """Moves the image left by a fraction of its width, rounded to whole pixels."""
    y, x = pixel_grid(image)
    pixels = jnp.floor(jnp.asarray(fraction, jnp.float32) * image.shape[1] + 0.5)
    return _pick(image, y, x + pixels.astype(jnp.int32))


def translate_y(image: jax.Array, fraction: ArrayLike) -> jax.Array:
    """Moves the image up by a fraction of its height, rounded to whole pixels."""
    return translate_x(image.swapaxes(0, 1), fraction).swapaxes(0, 1)


def shear_x(image: jax.Array, slope: ArrayLike) -> jax.Array:
    """Moves the row whose centre is y left by ``slope * y`` pixels, in bicubic interpolation."""
    height, width, _ = image.shape
    shift = jnp.asarray(slope, jnp.float32) * (jnp.arange(height, dtype=jnp.float32) + 0.5)
    whole = jnp.floor(shift)
    # Rows keep their height, so the bicubic kernel is a cubic along the row, with one t a row.
    t = (shift - whole)[:, None, None]
    y, x = pixel_grid(image)
    column = x + whole.astype(jnp.int32)[:, None]
    a, b, c, d = (
        image[y, jnp.clip(column + tap, 0, width - 1)].astype(jnp.float32) for tap in (-1, 0, 1, 2)
    )
    value = b + t * ((c - a) + t * ((2 * (a - b) + c - d) + t * ((b - a) + (d - c))))
    # A shift by a half pixel lands on the border: inside on the left, outside on the right, which
    # float32 must not reverse.
    centre = x.astype(jnp.float32) + 0.5 + shift[:, None] + 1e-4
    inside = (centre >= 0) & (centre < width)
    return jnp.where(inside[..., None], _to_uint8(value), jnp.uint8(FILL))


def shear_y(image: jax.Array, slope: ArrayLike) -> jax.Array:
    """Moves the column whose centre is x up by ``slope * x`` pixels, in bicubic interpolation."""
    return shear_x(image.swapaxes(0, 1), slope).swapaxes(0, 1)


def invert(image: jax.Array) -> jax.Array:
    """Returns the negative, ``255 - x``."""
    return 255 - image


def solarize(image: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Inverts the values at or above the threshold."""
    bright = image.astype(jnp.float32) >= jnp.asarray(threshold, jnp.float32)
    return jnp.where(bright, 255 - image, image)


def posterize(image: jax.Array, bits: ArrayLike) -> jax.Array:
    """Keeps the highest ``bits`` bits of each value, 1 to 8."""
    dropped = 8 - jnp.asarray(bits).astype(jnp.uint8)
    return (image >> dropped) << dropped


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel's range to 0 to 255: ``floor(255 (x - low) / (high - low))``."""
    low = image.min((0, 1), keepdims=True).astype(jnp.float32)
    high = image.max((0, 1), keepdims=True).astype(jnp.float32)
    # The half keeps an inexact float division off the integers; it never reaches the next one.
    stretched = (255 * (image.astype(jnp.float32) - low) + 0.5) / jnp.maximum(high - low, 1)
    return jnp.where(high > low, _to_uint8(stretched), image)


def equalize(image: jax.Array) -> jax.Array:
    """Maps each channel's values so that their cumulative histogram is close to linear.

    With ``below(v)`` pixels darker than v, ``v -> (step // 2 + below(v)) // step``, where ``step``
    is the number of pixels below the channel's maximum, ``// 255``; unchanged if that is 0.
    """
    pixels = image.reshape(-1, image.shape[-1]).astype(jnp.int32)
    channels = jnp.arange(image.shape[-1])[None]
    counts = jnp.zeros((256, image.shape[-1]), jnp.int32).at[pixels, channels].add(1)
    below = jnp.cumsum(counts, axis=0) - counts
    step = jnp.take_along_axis(below, pixels.max(0, keepdims=True), axis=0) // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255).astype(jnp.uint8)
    equalized = table[pixels, channels].reshape(image.shape)
    return jnp.where(step[None] > 0, equalized, image)


def color(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends from the grey image, at factor 0, through the image, at 1, to beyond."""
    return _blend(jnp.broadcast_to(_grey(image)[..., None], image.shape), image, factor)


def contrast(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends from the mean grey level, at factor 0, through the image, at 1, to beyond."""
    grey = _grey(image)
    mean = (2 * grey.sum() + grey.size) // (2 * grey.size)
    return _blend(jnp.broadcast_to(mean, image.shape), image, factor)


def brightness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends from black, at factor 0, through the image, at 1, to beyond."""
    return _blend(jnp.zeros(image.shape, jnp.int32), image, factor)


def sharpness(image: jax.Array, factor: ArrayLike) -> jax.Array:
    """Blends from the smoothed image, at factor 0, through the image, at 1, to beyond.

    Smoothing weighs a pixel 5 and its eight neighbours 1 each; border pixels keep their value.
    """
    height, width, _ = image.shape
    values = image.astype(jnp.int32)
    total = 4 * values[1:-1, 1:-1] + sum(
        values[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)
    )
    smooth = values.at[1:-1, 1:-1].set((2 * total + 13) // 26)
    return _blend(smooth, image, factor)


def _grey(image: jax.Array) -> jax.Array:
    """Luma (ITU-R 601) in Pillow's 16-bit fixed point, ``[height, width]``, int32."""
    red, green, blue = jnp.unstack(image.astype(jnp.int32), axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(degenerate: jax.Array, image: jax.Array, factor: ArrayLike) -> jax.Array:
    """``degenerate + factor * (image - degenerate)`` in float32, truncated to uint8."""
    factor = jnp.asarray(factor, jnp.float32)
    start = degenerate.astype(jnp.float32)
    difference = image.astype(jnp.float32) - start
    # A compiler may fuse the product into the sum and skip its rounding, which moves values across
    # integers. Two products too short to need rounding leave only one sum to round.
    coarse = jnp.round(factor * 4096) / 4096
    product = coarse * difference + (factor - coarse) * difference
    return _to_uint8(start + product)


def _to_uint8(values: jax.Array) -> jax.Array:
    """Clips to 0 to 255 and truncates."""
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def pixel_grid(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row and column numbers, each ``[height, width]``, int32."""
    height, width, _ = image.shape
    y, x = jnp.mgrid[:height, :width]
    return y.astype(jnp.int32), x.astype(jnp.int32)


def _pick(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The pixels at rows y and columns x, ``[height, width]`` int32 each; FILL outside."""
    height, width, _ = image.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    picked = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], picked, jnp.uint8(FILL))
