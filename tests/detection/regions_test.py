"""RoIAlign is its definition, sample by sample; exact on planes, and has the right gradient."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from balms_jax.detection import regions

SETTINGS = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
STRIDES = (4, 8)
SHAPES = ((40, 44), (20, 22))


def pyramid_of(seed, channels=2):
    random = np.random.default_rng(seed)
    return [random.normal(size=(*shape, channels)).astype(np.float32) for shape in SHAPES]


def bilinear(features, y, x):
    rows, columns, _ = features.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return 0
    y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    v, u = y - top, x - left
    upper = (1 - u) * features[top, left] + u * features[top, right]
    return (1 - v) * upper + v * ((1 - u) * features[bottom, left] + u * features[bottom, right])


def sample_by_sample(pyramid, region, bins, samples=2):
    """As torchvision's kernel: one region, one bin, one sample after another."""
    x0, y0, x1, y1 = map(float, region)
    side = np.sqrt((x1 - x0) * (y1 - y0))
    level = int(np.clip(np.floor(4 + np.log2(max(side, 1) / 224) + 1e-6) - 2, 0, 1))
    features, stride = pyramid[level].astype(np.float64), STRIDES[level]
    height, width = max((y1 - y0) / stride, 1), max((x1 - x0) / stride, 1)
    output = np.zeros((bins, bins, features.shape[-1]))
    for b, d, i, j in np.ndindex(bins, bins, samples, samples):
        y = y0 / stride + height / bins * (b + (i + 0.5) / samples)
        x = x0 / stride + width / bins * (d + (j + 0.5) / samples)
        output[b, d] += bilinear(features, y, x) / samples**2
    return output


@SETTINGS
@hypothesis.given(
    st.lists(
        st.tuples(*[st.floats(-12, 176, width=32)] * 2, *[st.floats(0, 150, width=32)] * 2),
        min_size=3,
        max_size=3,
    ),
    st.integers(0, 9),
)
def test_it_is_the_definition_also_beyond_the_border(sides, seed):
    some = np.array([[x, y, x + w, y + h] for x, y, w, h in sides], np.float32)
    pyramid = pyramid_of(seed)
    found = jax.jit(lambda p, r: regions.region_features(p, r, STRIDES, 3))(pyramid, some)
    expected = [sample_by_sample(pyramid, region, 3) for region in some]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_plane_is_read_at_the_bins_centres():
    # Bilinear interpolation is exact on a plane, and the mean of a bin's samples is at its centre.
    pyramid = [
        np.stack(np.mgrid[: shape[0], : shape[1]], -1).astype(np.float32) * stride
        for shape, stride in zip(SHAPES, STRIDES, strict=True)
    ]
    # Each channel is a coordinate in pixels; one region a level.
    some = jnp.array([[4.0, 5.0, 32.0, 26.0], [1.0, 2.0, 150.0, 140.0]])
    np.testing.assert_array_equal(regions.assigned_levels(some, STRIDES), [0, 1])
    found = regions.region_features(pyramid, some, STRIDES, 7)
    for region, values in zip(some, found, strict=True):
        x0, y0, x1, y1 = region
        centres = (np.arange(7) + 0.5) / 7
        np.testing.assert_allclose(values[:, 0, 0], y0 + (y1 - y0) * centres, rtol=1e-5)
        np.testing.assert_allclose(values[0, :, 1], x0 + (x1 - x0) * centres, rtol=1e-5)


def test_levels_by_size():
    # 224 pixels belong to level 4; half of that to the level of half the stride. Cut at both ends.
    sides = jnp.array([1.0, 55.0, 56.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 4000.0])
    some = jnp.stack([0 * sides, 0 * sides, sides, sides], -1)
    found = regions.assigned_levels(some, (4, 8, 16, 32))
    np.testing.assert_array_equal(found, [0, 0, 0, 0, 1, 1, 2, 2, 3, 3])


def test_gradients_of_the_features():
    some = jnp.array([[3.0, 5.0, 30.0, 26.0], [-9.0, -9.0, 190.0, 160.0], [0.0, 0.0, 0.0, 0.0]])
    with jax.enable_x64(True):
        pyramid = [jnp.asarray(f, jnp.float64) for f in pyramid_of(0, channels=1)]
        read = jax.jit(lambda p: regions.region_features(p, some, STRIDES, 2))
        check_grads(read, (pyramid,), order=1, modes=['rev'])


def test_what_a_region_does_not_touch_gets_no_gradient():
    some = jnp.array([[8.0, 8.0, 16.0, 16.0]])  # Cells 2 to 4 of the first level.
    gradient, coarser = jax.jit(
        jax.grad(lambda p: regions.region_features(p, some, STRIDES, 2).sum())
    )([jnp.asarray(f) for f in pyramid_of(0, channels=1)])
    touched = np.zeros(SHAPES[0], bool)
    touched[2:5, 2:5] = True
    np.testing.assert_array_equal(gradient[..., 0] != 0, touched)
    np.testing.assert_allclose(gradient.sum(), 4, rtol=1e-6)  # Each of 4 bins has weights of sum 1.
    assert (coarser == 0).all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'strides': (4,)}, r'pyramid: got 2 levels, wanted one for each of \(4,\)'),
        ({'strides': (4, 16)}, r'strides: got \(4, 16\), wanted powers of 2'),
        ({'strides': (3, 6)}, r'strides: got \(3, 6\)'),
        ({'bins': 0}, 'bins: got 0'),
        ({'samples': 0}, 'bins: got 2 of 0 samples'),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {'pyramid': pyramid_of(0), 'regions': jnp.zeros((1, 4)), 'strides': STRIDES, 'bins': 2}
    with pytest.raises(ValueError, match=message):
        regions.region_features(**(valid | arguments))
