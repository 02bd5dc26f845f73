"""What a region looks like: RoIAlign over the levels of a feature pyramid."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.detection import boxes

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # ImageNet's images, and C4 of which their classifier is.
SAMPLES = 2  # of a bin along each axis


class AxisSamples(NamedTuple):
    """Linear interpolation along one axis: which cells are read, and with which weights."""

    cells: jax.Array
    """int32, ``[regions, bins, 2 * samples]``"""
    weights: jax.Array
    """float32, ``[regions, bins, 2 * samples]``; of sum 1 over the last axis within the features"""


def sample_axis(
    start: jax.Array, length: jax.Array, size: ArrayLike, bins: int, samples: int = SAMPLES
) -> AxisSamples:
    r"""Where each bin of a region is read along one axis: RoIAlign is the product of two of these.

    .. math:: p_{bi} = start + \frac{length}{bins} \Big( b + \frac{i + 1/2}{samples} \Big), \qquad
        v_b = \frac1{samples} \sum_i (1 - \lambda) f_{\lfloor p_{bi} \rfloor}
        + \lambda f_{\lfloor p_{bi} \rfloor + 1}, \quad \lambda = p_{bi} - \lfloor p_{bi} \rfloor

    A cell's value stands at its index. Within a cell beyond the border the border's value is read,
    further out 0.

    Args:
        start: where each region begins, ``[regions]``, in cells.
        length: how long it is, ``[regions]``, in cells.
        size: of the features, in cells; an integer, or one a region, ``[regions]``.
        bins: of each region.
        samples: of each bin.

    Returns:
        Cells and weights.

    Raises:
        ValueError: if bins or samples are below 1.

    Example:
        >>> axis = sample_axis(jnp.array([1.0]), jnp.array([2.0]), 8, bins=2, samples=1)
        >>> print(axis.cells, axis.weights)  # At 1.5 and 2.5.
        [[[1 2]
          [2 3]]] [[[0.5 0.5]
          [0.5 0.5]]]

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3 and Figure 3; torchvision's ``roi_align`` with
        ``aligned=False``.
    """
    if bins < 1 or samples < 1:
        raise ValueError(f'bins: got {bins} of {samples} samples, wanted at least 1 of 1')
    steps = (jnp.arange(bins * samples, dtype=jnp.float32) + 0.5) / (bins * samples)
    position = start[:, None] + length[:, None] * steps[None, :]
    last = jnp.broadcast_to(jnp.asarray(size, jnp.int32), start.shape)[:, None] - 1
    border = last.astype(jnp.float32)
    inside = (position >= -1) & (position <= border + 1)
    position = jnp.clip(position, 0, border)
    low = position.astype(jnp.int32)
    fraction = position - low.astype(jnp.float32)
    cells = jnp.stack([low, jnp.minimum(low + 1, last)], -1)
    weights = jnp.stack([1 - fraction, fraction], -1) / samples
    weights = jnp.where(inside[..., None], weights, 0)
    shape = (start.shape[0], bins, 2 * samples)
    return AxisSamples(cells.reshape(shape), weights.reshape(shape))


def assigned_levels(regions: ArrayLike, strides: Sequence[int]) -> jax.Array:
    r"""The pyramid level whose cells fit a region's size.

    .. math:: k = \Big\lfloor 4 + \log_2 \frac{\sqrt A}{224} + 10^{-6} \Big\rfloor

    cut to the levels there are.

    Args:
        regions: ``[..., 4]``, in pixels.
        strides: 2ᵏ of each level, in pixels, each twice the one before it.

    Returns:
        The index of the level among the strides, int32, ``[...]``; 0 for padding.

    Raises:
        ValueError: if strides are no powers of 2 that double.

    Example:
        >>> sides = jnp.array([0.0, 111.0, 112.0, 224.0, 2000.0])
        >>> regions = jnp.stack([0 * sides, 0 * sides, sides, sides], -1)
        >>> print(assigned_levels(regions, strides=(4, 8, 16, 32)))
        [0 0 1 2 3]

    References:
        Lin et al., Feature Pyramid Networks (arXiv 1612.03144), Eqn. 1; the ε: torchvision.
    """
    lowest = strides[0].bit_length() - 1
    if list(strides) != [2 ** (lowest + k) for k in range(len(strides))]:
        raise ValueError(f'strides: got {tuple(strides)}, wanted powers of 2, each twice the last')
    side = jnp.maximum(jnp.sqrt(boxes.areas(regions)), 1)
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(side / CANONICAL_SIZE) + 1e-6).astype(jnp.int32)
    return jnp.clip(level - lowest, 0, len(strides) - 1)


def region_features(
    pyramid: Sequence[jax.Array],
    regions: jax.Array,
    strides: Sequence[int],
    bins: int,
    samples: int = SAMPLES,
) -> jax.Array:
    r"""RoIAlign: the features of each region, from the level that fits its size.

    .. math:: v_{bdc} = \sum_{i, j} w^y_{bi} \, w^x_{dj} \, f_{y_{bi}, x_{dj}, c}

    with the rows y, columns x and weights of :func:`sample_axis`. It is linear in the features, and
    differentiable: the gradient is scattered to the cells that were read.

    Args:
        pyramid: the features of each level, ``[rows, columns, channels]``, of one image.
        regions: ``[regions, 4]``, in pixels. Padding is read as a region of one cell.
        strides: of the levels, in pixels.
        bins: rows and columns of what is returned: 7 for boxes, 14 for masks.
        samples: of a bin along each axis.

    Returns:
        ``[regions, bins, bins, channels]``, in the features' type and units.

    Raises:
        ValueError: if pyramid and strides differ in number, or a number is out of its range.

    Example:
        >>> rows, columns = jnp.mgrid[:8, :8].astype(jnp.float32)
        >>> regions = jnp.array([[8.0, 4.0, 24.0, 20.0]])  # From column 2 and row 1, 4 × 4 cells.
        >>> print(region_features([columns[..., None]], regions, (4,), bins=2)[0, :, :, 0])
        [[3. 5.]
         [3. 5.]]

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3; torchvision's ``MultiScaleRoIAlign``.
    """
    if len(pyramid) != len(strides) or not pyramid:
        raise ValueError(f'pyramid: got {len(pyramid)} levels, wanted one for each of {strides}')
    level = assigned_levels(regions, strides)
    rows, columns = (
        jnp.array([f.shape[axis] for f in pyramid], jnp.int32)[level] for axis in (0, 1)
    )
    stride = jnp.array(strides, jnp.float32)[level]
    # All levels in one array of cells, so that one gather serves regions of every level.
    cells = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in pyramid])
    begins = [sum(f.shape[0] * f.shape[1] for f in pyramid[:k]) for k in range(len(pyramid))]
    first = jnp.array(begins, jnp.int32)[level]
    x0, y0, x1, y1 = regions.T / stride[None, :]
    y = sample_axis(y0, jnp.maximum(y1 - y0, 1), rows, bins, samples)
    x = sample_axis(x0, jnp.maximum(x1 - x0, 1), columns, bins, samples)
    row = first[:, None, None] + y.cells * columns[:, None, None]
    read = cells[row[:, :, None, :, None] + x.cells[:, None, :, None, :]]
    weights = y.weights[:, :, None, :, None] * x.weights[:, None, :, None, :]
    # Multiplied and summed, not contracted: this fuses with the gather.
    return (read * weights[..., None].astype(read.dtype)).sum((3, 4))
