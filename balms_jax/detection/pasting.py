"""A detection's mask, told over its box, as pixels of the image: on the host, with NumPy alone."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def paste(
    mask: ArrayLike, box: ArrayLike, shape: tuple[int, int], scale: float = 1.0
) -> NDArray[np.bool_]:
    """A detection's mask in the original image: undoes ``targets.mask_targets``.

    A pixel's value stands at its index, as there.

    Args:
        mask: probabilities, ``[28, 28]``.
        box: that the mask covers, ``[4]``, in pixels of the scaled image.
        shape: height and width of the original image, in pixels.
        scale: by which the image was enlarged for the detector.

    Returns:
        Where the interpolated mask is at least one half, bool, ``[height, width]``.

    Example:
        >>> print(paste(np.ones((28, 28)), np.array([1.5, -0.5, 3.5, 1.5]), (2, 6)).astype(int))
        [[0 0 1 1 0 0]
         [0 0 1 1 0 0]]

    References:
        He et al., Mask R-CNN (arXiv 1703.06870), §3.1: resized to the box, cut at 0.5.
    """
    mask, (x0, y0, x1, y1) = np.asarray(mask, np.float32), np.asarray(box, np.float64)

    def along(start: float, end: float, length: int, cells: int) -> NDArray[np.float32]:
        """Linear interpolation from cells to pixels, ``[length, cells]``; 0 out of the box."""
        pixels = scale * (np.arange(length) + 0.5) - 0.5
        position = (pixels - start) / max(end - start, 1) * cells - 0.5
        weights = 1 - np.abs(position[:, None] - np.arange(cells)[None, :])
        return np.maximum(weights, 0).astype(np.float32)

    rows = along(y0, y1, shape[0], mask.shape[0])
    columns = along(x0, x1, shape[1], mask.shape[1])
    return rows @ mask @ columns.T >= 0.5
