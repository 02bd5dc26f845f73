"""Image files as arrays that are decoded when they are asked for."""

import concurrent.futures
import dataclasses
import os

import numpy as np
from numpy.typing import NDArray

from balms_jax.data.decoding import (
    CentreCrop,
    Decoder,
    FileReader,
    OfOneClass,
    RandomResizedCrop,
    Transform,
    check_corrupt_policy,
    check_faults,
)
from balms_jax.data.list_files import ImageList


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in files, ``[examples, size, size, 3]``, uint8: indexing decodes, in threads.

    Attributes:
        files: which, sorted by class.
        crop: what of each, as at test.
        varied: what of each in training, of the same size; None: the same.
        corrupt: where an image cannot be decoded, ``'error'`` or ``'skip'``, which takes another of
            its class.
        threads: that decode.

    Raises:
        ValueError: if there is no such policy.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from balms_jax.data.list_files import read_folders
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> (root / 'cat').mkdir()
        >>> Image.new('RGB', (6, 5)).save(root / 'cat' / '1.jpg')
        >>> images = ImageFiles(read_folders(root), CentreCrop(4, resize=4))
        >>> print(images.shape, images[0:1].sum())
        (1, 4, 4, 3) 0
    """

    files: ImageList
    crop: CentreCrop
    varied: RandomResizedCrop | None = None
    corrupt: str = 'error'
    threads: int = 2

    def __post_init__(self) -> None:
        check_corrupt_policy(self.corrupt)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the array that they would be."""
        return (len(self), self.crop.size, self.crop.size, 3)

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, places: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Decodes those at some places.

        Raises:
            CorruptImageError: if one cannot be, and nothing may take its place.
        """
        return self.view(places, 0)

    def view(self, places: slice | NDArray[np.integer], view: int) -> NDArray[np.uint8]:
        """Decodes those at some places, in one of the ways that training sees them in.

        What takes the place of a corrupt image is warned of by name.

        Args:
            places: which.
            view: the number of the way; 0: as at test.

        Returns:
            ``[examples, size, size, 3]``.

        Raises:
            CorruptImageError: as by indexing.
        """
        decoder = self._decoder(self.varied if view and self.varied else self.crop, 0)
        chosen = np.arange(len(self))[places].tolist()
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            read = list(pool.map(lambda place: decoder.read(view, place, place), chosen))
        check_faults([fault for _, _, faults in read for fault in faults])
        images = np.empty((len(read), *self.shape[1:]), np.uint8)
        for i, (image, _, _) in enumerate(read):
            assert image is not None
            images[i] = image
        return images

    def decoder(self, seed: int) -> Decoder:
        """What decodes a training stream's tasks.

        Args:
            seed: of the crops and of what takes a corrupt image's place.
        """
        return self._decoder(self.varied or self.crop, seed)

    def _decoder(self, crop: Transform, seed: int) -> Decoder:
        files = self.files
        stand_ins = OfOneClass(files.class_counts) if self.corrupt == 'skip' else None
        return Decoder(files.paths, FileReader(files.paths, crop, files.records), seed, stand_ins)


Images = NDArray[np.uint8] | ImageFiles
"""Images ``[examples, height, width, channels]``, in memory or in files."""


def subset(images: Images, places: NDArray[np.integer]) -> Images:
    """Some of the images, in the order of their places; files stay files.

    Example:
        >>> subset(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 2])).shape
        (2, 2, 2, 1)
    """
    if isinstance(images, ImageFiles):
        return dataclasses.replace(images, files=images.files.take(places))
    return images[places]


def identity(images: Images) -> NDArray[np.generic]:
    """What tells images apart from others: their pixels, or the names of the files.

    Names are told from the folder on that holds them all, so that it may move.

    Args:
        images: in memory or in files.

    Returns:
        An array for :func:`sources.fingerprint`.
    """
    if not isinstance(images, ImageFiles):
        return images
    paths = images.files.paths
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ''
    names = [os.path.relpath(path, common).encode() for path in paths]
    return np.frombuffer(b'\n'.join(names), np.uint8)
