"""Annotated images as the rows of batches: read, resized, mirrored and padded on the host."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from balms_jax.data.decoding import (
    CORRUPT,
    CorruptImageError,
    Decoder,
    check_corrupt_policy,
)
from balms_jax.data.list_files import MISSING_POLICIES
from balms_jax.detection.annotations import Annotations
from balms_jax.detection.padding import (
    PaddedImage,
    fitted,
    mirrored,
    padded_image,
    padded_objects,
)
from balms_jax.detection.steps import Batch

Pixels = Callable[[int], NDArray[np.uint8]]
"""The place of an image → ``[rows, columns, 3]``"""


@dataclasses.dataclass(frozen=True, eq=False)
class PixelFiles:
    """Images in files, by their places.

    Attributes:
        paths: ``[images]``
    """

    paths: Sequence[str]

    def __call__(self, place: int) -> NDArray[np.uint8]:
        """Reads one; raises what Pillow does for a file that is no whole image."""
        with Image.open(self.paths[place]) as image:
            return np.asarray(image.convert('RGB'))


@dataclasses.dataclass(frozen=True, eq=False)
class PixelArrays:
    """Images in memory, by their places.

    Attributes:
        arrays: of each ``[rows, columns, 3]``, uint8.
    """

    arrays: Sequence[NDArray[np.uint8]]

    def __call__(self, place: int) -> NDArray[np.uint8]:
        """Gives one."""
        return self.arrays[place]


@dataclasses.dataclass(frozen=True)
class View:
    """How an image becomes a row of a batch.

    Attributes:
        shape: height and width after padding, in pixels.
        shortest: lengths of the shorter side, in pixels, one of which is drawn; less if the image
            would not fit the shape.
        mirrored: how often left and right are exchanged, in 0..1.
        most_objects: of an image, after padding.
        mask_size: rows and columns of a mask over its object's box.
    """

    shape: tuple[int, int]
    shortest: tuple[int, ...]
    mirrored: float = 0.0
    most_objects: int = 100
    mask_size: int = 112


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Annotated images that a stream reads the rows of its batches from.

    Attributes:
        annotations: of the images.
        pixels: reads an image.
        view: how it becomes a row.
        corrupt: where an image cannot be read, ``'error'`` or ``'skip'``, which takes another one.

    Raises:
        ValueError: if there is no such policy.

    Example:
        >>> from balms_jax.detection import annotations, scenes
        >>> drawn = list(scenes.scenes(0, np.ones(36, int)))
        >>> known = annotations.parse(annotations.as_lvis(drawn, scenes.CATEGORIES))
        >>> view = View((64, 96), (48, 64), mirrored=0.5, most_objects=5)
        >>> images = ImageSet(known, PixelArrays([scene.image for scene in drawn]), view)
        >>> row = images.row(0, np.random.default_rng(0))
        >>> row.images.shape, row.objects.boxes.shape, row.objects.masks.shape
        ((64, 96, 3), (5, 4), (5, 112, 112))
    """

    annotations: Annotations
    pixels: Pixels
    view: View
    corrupt: str = 'error'

    def __post_init__(self) -> None:
        check_corrupt_policy(self.corrupt)

    def __len__(self) -> int:
        return len(self.annotations.images)

    def decoder(self, seed: int) -> Decoder:
        """What reads the rows of a training stream.

        Args:
            seed: of scales and mirroring, and of what takes a corrupt image's place.
        """
        names = [image.file_name for image in self.annotations.images]
        return Decoder(names, self.row, seed, self._all if self.corrupt == 'skip' else None)

    def row(self, place: int, random: np.random.Generator) -> Batch:
        """An image and its objects, in one of the ways that training sees them.

        Args:
            place: of the image.
            random: what is drawn from.

        Returns:
            A row of a batch: uint8 pixels ``[height, width, 3]``, the size ``[2]`` of the image
            within them, and its objects.

        Raises:
            OSError, ValueError: if the image cannot be read, or is not of the size that is
                annotated.
        """
        view, annotated = self.view, self.annotations.images[place]
        shortest = int(random.choice(view.shortest))
        exchanged = random.random() < view.mirrored
        image = self._padded(place, shortest)
        objects = padded_objects(annotated, view.most_objects, view.mask_size, image.scale)
        row = Batch(*cast(tuple[Any, ...], (image.pixels, image.size, objects)))
        return mirrored(row, image.scale * annotated.width) if exchanged else row

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the array of all images, padded."""
        return (len(self), *self.view.shape, 3)

    def __getitem__(self, places: slice) -> NDArray[np.uint8]:
        """Images as at test, their shorter side of the largest length: ``[images, ...]``.

        Raises:
            CorruptImageError: naming the one that cannot be read.
        """
        shortest, images = max(self.view.shortest), []
        for place in range(*places.indices(len(self))):
            try:
                images.append(self._padded(place, shortest).pixels)
            except CORRUPT as error:
                name = self.annotations.images[place].file_name
                raise CorruptImageError(f'{name}: {type(error).__name__}: {error}') from error
        return np.stack(images) if images else np.zeros((0, *self.shape[1:]), np.uint8)

    def sizes(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """All images as at test: sizes without padding ``[images, 2]``, scales ``[images]``."""
        shortest = max(self.view.shortest)
        fits = [
            fitted((image.height, image.width), self.view.shape, shortest)
            for image in self.annotations.images
        ]
        return (
            np.array([[height, width] for height, width, _ in fits], np.float32).reshape(-1, 2),
            np.array([scale for _, _, scale in fits], np.float64),
        )

    def _padded(self, place: int, shortest: int) -> PaddedImage:
        pixels, annotated = self.pixels(place), self.annotations.images[place]
        if pixels.shape[:2] != (annotated.height, annotated.width):
            raise ValueError(
                f'{annotated.file_name}: got {pixels.shape[0]} × {pixels.shape[1]} pixels, wanted '
                f'the {annotated.height} × {annotated.width} that are annotated'
            )
        return padded_image(pixels, self.view.shape, shortest)

    def _all(self, place: int) -> NDArray[np.int64]:
        return np.arange(len(self))


def locate(
    annotations: Annotations, folder: Path | str, missing: str = 'error'
) -> tuple[Annotations, PixelFiles]:
    """Finds the files of images.

    LVIS v0.5 has the names of COCO 2014, ``COCO_val2014_000000000139.jpg``, for images that COCO
    2017 calls ``000000000139.jpg``: either is found.

    Args:
        annotations: of the images.
        folder: that their names are told from.
        missing: where a file is not there, ``'error'`` or ``'skip'``, which drops its image.

    Returns:
        The annotations of the images that are there, and their files.

    Raises:
        ValueError: if there is no such policy, or no image is there.
        FileNotFoundError: naming the first one that is not there, and how many are not.
    """
    if missing not in MISSING_POLICIES:
        raise ValueError(f'missing: got {missing!r}, wanted {" or ".join(MISSING_POLICIES)}')
    paths = [_path(Path(folder), image.file_name) for image in annotations.images]
    there = [path.is_file() for path in paths]
    absent = [str(path) for path, found in zip(paths, there, strict=True) if not found]
    if absent and missing == 'error':
        raise FileNotFoundError(
            f'{absent[0]}: is not there, as {len(absent)} of {len(paths)} images; wanted all, or '
            "missing='skip'"
        )
    if not any(there):
        raise ValueError(f'{folder}: holds none of the {len(paths)} images')
    kept = tuple(i for i, found in zip(annotations.images, there, strict=True) if found)
    files = PixelFiles([str(path) for path, found in zip(paths, there, strict=True) if found])
    return dataclasses.replace(annotations, images=kept), files


def _path(folder: Path, name: str) -> Path:
    if name.startswith('COCO_') and not (folder / name).is_file():
        return folder / name[-len('000000000139.jpg') :]
    return folder / name
