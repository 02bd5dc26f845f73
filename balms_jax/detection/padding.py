"""Images and their ground truth, resized and padded to fixed shapes, as a step takes them."""

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from balms_jax.detection import run_lengths
from balms_jax.detection.annotations import AnnotatedImage
from balms_jax.detection.steps import Batch
from balms_jax.detection.targets import Objects

SIGNS = np.array([-1, 1, -1, 1], np.float32)  # of x₀, y₀, x₁, y₁ in a mirror


class PaddedImage(NamedTuple):
    """An image in the upper left of a larger one of zeros."""

    pixels: NDArray[np.uint8]
    """``[height, width, 3]`` of the padded image"""
    size: NDArray[np.float32]
    """Height and width of the image within it, ``[2]``, in pixels"""
    scale: float
    """By which the image was enlarged."""


def padded_image(pixels: NDArray[np.uint8], shape: tuple[int, int], shortest: int) -> PaddedImage:
    """Resizes an image, so that its shorter side has a length, or so that it fits; pads it.

    Args:
        pixels: ``[rows, columns, 3]``.
        shape: height and width after padding, in pixels.
        shortest: the length of the shorter side, in pixels, if the image then fits the shape.

    Returns:
        The padded image.

    Raises:
        ValueError: if the pixels are not of three channels, or a length is below 1.

    Example:
        >>> padded = padded_image(np.full((30, 60, 3), 9, np.uint8), (32, 40), shortest=40)
        >>> padded.pixels.shape, padded.size.tolist(), round(padded.scale, 3)
        ((32, 40, 3), [20.0, 40.0], 0.667)
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f'pixels: got shape {pixels.shape}, wanted [rows, columns, 3]')
    rows, columns = pixels.shape[:2]
    height, width, scale = fitted((rows, columns), shape, shortest)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    output = np.zeros((*shape, 3), np.uint8)
    output[:height, :width] = np.asarray(resized)
    return PaddedImage(output, np.array([height, width], np.float32), scale)


def fitted(size: tuple[int, int], shape: tuple[int, int], shortest: int) -> tuple[int, int, float]:
    """The size that :func:`padded_image` gives an image.

    Args:
        size: its rows and columns.
        shape: height and width after padding, in pixels.
        shortest: the length of the shorter side, in pixels, if the image then fits the shape.

    Returns:
        Height and width in pixels, and the scale.

    Raises:
        ValueError: if a length is below 1.

    Example:
        >>> fitted((30, 60), (32, 40), shortest=40)[:2]
        (20, 40)
    """
    if min(*shape, shortest) < 1:
        raise ValueError(f'shape: got {shape} and shortest {shortest}, wanted at least a pixel')
    rows, columns = size
    scale = min(shortest / min(rows, columns), shape[0] / rows, shape[1] / columns)
    return max(round(scale * rows), 1), max(round(scale * columns), 1), scale


def padded_objects(
    annotated: AnnotatedImage, number: int, mask_size: int = 112, scale: float = 1.0
) -> Objects:
    """An image's ground truth, padded to a fixed number of objects, as a training step takes it.

    A mask is stored over its object's box: whole images of masks would not fit a device.

    Args:
        annotated: the image's annotations.
        number: of objects after padding, at least those of the image.
        mask_size: rows and columns of a mask.
        scale: by which the image is enlarged.

    Returns:
        Objects, of NumPy arrays. The mask of one without segmentation is its box.

    Raises:
        ValueError: if the image has more objects.

    Example:
        >>> annotated = AnnotatedImage(1, 'a.jpg', 8, 8, np.float32([[2, 2, 6, 4]]), np.int32([5]),
        ...                        np.array([False]), ([[2, 2, 6, 2, 6, 4, 2, 4]],))
        >>> objects = padded_objects(annotated, 2, mask_size=4, scale=2.0)
        >>> objects.boxes.tolist(), objects.where.tolist()
        ([[4.0, 4.0, 12.0, 8.0], [0.0, 0.0, 0.0, 0.0]], [True, False])
    """
    found = len(annotated.boxes)
    if found > number:
        raise ValueError(
            f'number: got {number}, wanted at least the {found} of {annotated.file_name}'
        )
    boxes = np.zeros((number, 4), np.float32)
    boxes[:found] = scale * annotated.boxes
    categories = np.zeros(number, np.int32)
    categories[:found] = annotated.categories
    crowd = np.zeros(number, bool)
    crowd[:found] = annotated.crowd
    masks = np.zeros((number, mask_size, mask_size), np.float32)
    frames = np.zeros((number, 4), np.float32)
    for k, (box, segmentation) in enumerate(
        zip(annotated.boxes, annotated.segmentations, strict=True)
    ):
        # Whole pixels about the box, so that a mask's cells are whole parts of them.
        x0, y0 = np.floor(np.maximum(box[:2], 0)).astype(int)
        x1 = int(np.clip(np.ceil(box[2]), x0 + 1, max(annotated.width, x0 + 1)))
        y1 = int(np.clip(np.ceil(box[3]), y0 + 1, max(annotated.height, y0 + 1)))
        frames[k] = scale * np.array([x0, y0, x1, y1], np.float32)
        if segmentation is None:
            masks[k] = 1
        else:
            whole = run_lengths.decode(segmentation, annotated.height, annotated.width)
            cropped = Image.fromarray(whole[y0:y1, x0:x1].astype(np.float32))
            size = (mask_size, mask_size)
            masks[k] = np.asarray(cropped.resize(size, Image.Resampling.BOX))
    arrays = (boxes, categories, masks, frames, np.arange(number) < found, crowd)
    return Objects(*cast(tuple[Any, ...], arrays))


def mirrored(row: Batch, width: float) -> Batch:
    """Exchanges left and right.

    Args:
        row: of a batch, NumPy arrays: an image ``[height, width, 3]``, its size, its objects.
        width: of the image without its padding, in pixels, as the boxes have it.

    Returns:
        The row; the image stays in the upper left.

    Example:
        >>> annotated = AnnotatedImage(1, 'a.jpg', 4, 8, np.float32([[1, 0, 3, 4]]), np.int32([5]),
        ...                        np.array([False]), (None,))
        >>> image = padded_image(np.zeros((4, 8, 3), np.uint8), (8, 8), shortest=4)
        >>> row = Batch(image.pixels, image.size, padded_objects(annotated, 1, mask_size=4))
        >>> mirrored(row, 8.0).objects.boxes.tolist()
        [[5.0, 0.0, 7.0, 4.0]]
    """
    rows, columns = (int(side) for side in row.sizes)
    pixels = np.array(row.images)
    pixels[:rows, :columns] = pixels[:rows, :columns][:, ::-1]
    objects = row.objects
    # What is padding stays zeros.
    where: Any = objects.where[:, None]
    boxes, frames = (
        np.where(
            where, np.array([width, 0, width, 0], np.float32) + corners[:, [2, 1, 0, 3]] * SIGNS, 0
        )
        for corners in (objects.boxes, objects.frames)
    )
    masks = np.ascontiguousarray(objects.masks[:, :, ::-1])
    exchanged: dict[str, Any] = {'boxes': boxes, 'frames': frames, 'masks': masks}
    return Batch(cast(Any, pixels), row.sizes, objects._replace(**exchanged))
