"""Masks as polygons and run lengths, as annotations and detections hold them."""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from numpy.typing import NDArray


def decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of an object.

    Args:
        segmentation: polygons ``[[x, y, x, y, …], …]`` in pixels, or run lengths.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        Its mask, ``[height, width]``.

    Raises:
        ValueError: if run lengths are of an image of another size.

    Example:
        >>> print(decode([[1, 0, 3, 0, 3, 2, 1, 2]], 2, 4).astype(int))
        [[0 1 1 0]
         [0 1 1 0]]
    """
    if isinstance(segmentation, dict):
        if list(segmentation['size']) != [height, width]:
            raise ValueError(
                f'segmentation: got size {segmentation["size"]}, wanted {[height, width]}'
            )
        if isinstance(segmentation['counts'], list):
            segmentation = run_lengths.frPyObjects(segmentation, height, width)
        return run_lengths.decode(segmentation).astype(bool)
    parts = run_lengths.frPyObjects(segmentation, height, width)
    return run_lengths.decode(run_lengths.merge(parts)).astype(bool)


def encode(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as compressed run lengths, as annotations and detections hold it.

    Args:
        pixels: ``[height, width]``.

    Returns:
        ``{'size': [height, width], 'counts': …}``, which JSON can hold.

    Example:
        >>> pixels = np.eye(3, dtype=bool)
        >>> bool((decode(encode(pixels), 3, 3) == pixels).all())
        True
    """
    encoded = run_lengths.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {'size': list(pixels.shape), 'counts': encoded['counts'].decode('ascii')}
