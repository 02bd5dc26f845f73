"""How an image file becomes pixels of one size: decoded by Pillow, cropped, resized; on the host.

What is random about a crop comes in as a generator.
"""

import dataclasses
import io
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Transform = Callable[[Image.Image, np.random.Generator], NDArray[np.uint8]]

# What Pillow raises for a file that is no image, is cut off, or claims to be huge.
CORRUPT = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
CORRUPT_POLICIES = ('error', 'skip')

_THREAD = threading.local()


class Records(Protocol):
    """Encoded images by their names."""

    def __getitem__(self, name: str) -> bytes:
        """What the file of an image would hold."""


class CorruptImageError(RuntimeError):
    """An image cannot be decoded; the message names the file."""


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    r"""Crops a window of random area and shape, and resizes it bilinearly: torchvision's rule.

    .. math:: w = \mathrm{round}\sqrt{A a r}, \quad h = \mathrm{round}\sqrt{A a / r}, \quad
        a \sim U[scale], \quad \log r \sim U[\log ratio]

    of an image with A pixels, at a uniformly drawn place. After ten windows that do not fit, the
    largest central one of an allowed shape is taken.

    Attributes:
        size: of the result, in pixels.
        scale: the range of the window's share of the area, within (0, 1].
        ratio: the range of its width / height, above 0.

    Raises:
        ValueError: if an attribute is out of its range.

    Example:
        >>> crop = RandomResizedCrop(4)
        >>> crop(Image.new('RGB', (9, 7)), np.random.default_rng(0)).shape
        (4, 4, 3)

    References:
        Szegedy et al., Going Deeper with Convolutions (arXiv 1409.4842); torchvision's
        RandomResizedCrop.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f'scale: got {self.scale}, wanted a range within (0, 1]')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f'ratio: got {self.ratio}, wanted a range above 0')

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Gives ``[size, size, 3]``, uint8."""
        window = random_window(image.size, self.scale, self.ratio, rng)
        # Cropped first, so that no pixel outside of the window counts.
        cropped = image.crop(window)
        return np.asarray(cropped.resize((self.size, self.size), Image.Resampling.BILINEAR))


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """Resizes the shorter side bilinearly, then takes the central square.

    Attributes:
        size: of the result, in pixels.
        resize: the shorter side before the crop, in pixels, at least ``size``.

    Raises:
        ValueError: if an attribute is out of its range.

    Example:
        >>> crop = CentreCrop(4, resize=5)
        >>> crop(Image.new('RGB', (9, 7)), np.random.default_rng(0)).shape
        (4, 4, 3)
    """

    size: int
    resize: int

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.resize < self.size:
            raise ValueError(f'resize: got {self.resize}, wanted at least size {self.size}')

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Gives ``[size, size, 3]``, uint8; nothing is random."""
        del rng
        shorter = min(image.size)
        width, height = (int(side * self.resize / shorter) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (round((side - self.size) / 2) for side in (width, height))
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))


def random_window(
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """The window of :class:`RandomResizedCrop`.

    Args:
        image_size: width and height, in pixels.
        scale: the range of the share of the area.
        ratio: the range of width / height.
        rng: what is drawn from.

    Returns:
        Left, top, right and bottom, in pixels, within the image.

    Example:
        >>> random_window((6, 4), (1.0, 1.0), (1.5, 1.5), np.random.default_rng(0))
        (0, 0, 6, 4)
    """
    width, height = image_size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(float(np.sqrt(area * shape))), round(float(np.sqrt(area / shape)))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(0, rest + 1)) for rest in (width - w, height - h))
            return left, top, left + w, top + h
    shape = np.clip(width / height, *ratio)
    w, h = min(width, round(float(height * shape))), min(height, round(float(width / shape)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def decode(
    file: str | io.BytesIO, transform: Transform, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Reads an image file as RGB and transforms it.

    Args:
        file: its path, or what it holds, in any format that Pillow reads.
        transform: the crop and resize.
        rng: what the transform draws from.

    Returns:
        ``[size, size, 3]``, uint8.

    Raises:
        OSError, SyntaxError, ValueError, struct.error: of :data:`CORRUPT`, if it is no whole image.
    """
    with Image.open(file) as image:
        return transform(image.convert('RGB'), rng)


class Fault(NamedTuple):
    """An image that could not be decoded.

    Attributes:
        position: of the example in the global batch.
        example: the one that was drawn.
        path: its file.
        message: what is wrong with it.
        replacement: the example that took its place; −1: none.
    """

    position: int
    example: int
    path: str
    message: str
    replacement: int


class Task(NamedTuple):
    """A contiguous part of a global batch.

    Attributes:
        step: of the batch.
        position: of its first example in the global batch.
        examples: ids, in order.
    """

    step: int
    position: int
    examples: tuple[int, ...]


class Decoded(NamedTuple):
    """A decoded task: rows ``[examples, ...]``, ids ``[examples]``, and what failed."""

    rows: Any
    examples: NDArray[np.int32]
    faults: tuple[Fault, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FileReader:
    """Reads an example's image and transforms it.

    Attributes:
        paths: ``[examples]``
        transform: the crop and resize.
        records: gives the encoded image of a path, where paths name no files.
    """

    paths: Sequence[str]
    transform: Transform
    records: Records | None = None

    def __call__(self, example: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Gives ``[size, size, 3]``; raises what :func:`decode` does."""
        path = self.paths[example]
        file = path if self.records is None else io.BytesIO(self.records[path])
        return decode(file, self.transform, rng)


@dataclasses.dataclass(frozen=True, eq=False)
class OfOneClass:
    """Tells which examples share the class of one.

    Attributes:
        class_counts: n, ``[classes]``, of examples that are sorted by class.

    Example:
        >>> OfOneClass(np.array([2, 3]))(2)
        array([2, 3, 4])
    """

    class_counts: NDArray[np.int64]

    def __call__(self, example: int) -> NDArray[np.int64]:
        """Gives their ids."""
        ends = np.cumsum(self.class_counts)
        label = np.searchsorted(ends, example, side='right')
        return np.arange(ends[label] - self.class_counts[label], ends[label])


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """Decodes tasks; a result is a function of the files, the seed and the task alone.

    Attributes:
        paths: of the files, for messages, ``[examples]``.
        reader: reads an example, by what it may draw from: an array, or a tree of arrays.
        seed: of what it draws and of replacements, below 2³¹.
        stand_ins: gives the examples that may take a corrupt one's place; None: none may.
    """

    paths: Sequence[str]
    reader: Callable[[int, np.random.Generator], Any]
    seed: int
    stand_ins: Callable[[int], NDArray[np.int64]] | None = None

    def __call__(self, task: Task) -> Decoded:
        """Decodes a task, up to the first corrupt image whose place nothing takes."""
        rows, examples = [], []
        faults: list[Fault] = []
        for position, drawn in enumerate(task.examples, task.position):
            row, example, failed = self.read(task.step, position, drawn)
            faults.extend(failed)
            if row is None:
                return Decoded(np.zeros(0, np.uint8), np.zeros(0, np.int32), (*faults,))
            rows.append(row)
            examples.append(example)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        return Decoded(stacked, np.array(examples, np.int32), tuple(faults))

    def read(self, step: int, position: int, drawn: int) -> tuple[Any, int, list[Fault]]:
        """Decodes one example, or, by the policy, the first whole one of its stand-ins.

        Args:
            step: of the batch.
            position: in the global batch.
            drawn: the example's id.

        Returns:
            Its row, or None; the id of the example that it is of; what failed on the way.
        """
        failed: list[tuple[int, str]] = []
        example, attempt = drawn, 0
        # One generator a try: a corrupt image does not move what the others draw.
        rng = generator(self.seed, step, position, attempt)
        row = None
        while row is None:
            try:
                row = self.reader(example, rng)
            except CORRUPT as error:
                failed.append((example, f'{type(error).__name__}: {error}'))
                others = self._others(drawn, [e for e, _ in failed])
                if not len(others):
                    break
                attempt += 1
                rng = generator(self.seed, step, position, attempt)
                example = int(rng.choice(others))
        replacement = -1 if row is None else example
        faults = [Fault(position, e, self.paths[e], why, replacement) for e, why in failed]
        return row, example, faults

    def _others(self, drawn: int, failed: list[int]) -> NDArray[np.int64]:
        """The stand-ins that did not fail."""
        if self.stand_ins is None:
            return np.zeros(0, np.int64)
        return np.setdiff1d(self.stand_ins(drawn), failed)


def generator(seed: int, step: int, position: int, attempt: int) -> np.random.Generator:
    """A generator of random numbers for each seed, step, position and attempt, all at least 0.

    A thread has one, which is set to where it is to draw from: Philox is a function of a key and a
    counter. A new one for every image takes a tenth of the time that a small image takes.

    Args:
        seed: of the stream.
        step: of the batch.
        position: in the global batch.
        attempt: how often it was tried before.

    Returns:
        The thread's generator, until the next call.

    Example:
        >>> float(generator(0, 1, 2, 0).random()) == float(generator(0, 1, 2, 0).random())
        True

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    if not hasattr(_THREAD, 'generator'):
        _THREAD.generator = np.random.Generator(np.random.Philox(key=0))
        _THREAD.state = _THREAD.generator.bit_generator.state  # A copy; of its buffer all is used.
    place = _THREAD.state['state']
    place['key'][:] = seed, 0
    place['counter'][:] = 0, attempt, position, step  # The first word counts what is drawn.
    _THREAD.generator.bit_generator.state = _THREAD.state
    return _THREAD.generator


def check_corrupt_policy(policy: str) -> None:
    """Raises ValueError for what is no policy for corrupt images."""
    if policy not in CORRUPT_POLICIES:
        raise ValueError(f'corrupt: got {policy!r}, wanted {" or ".join(CORRUPT_POLICIES)}')


def check_faults(faults: Sequence[Fault]) -> None:
    """Warns of images that could not be decoded, by name; once of each.

    Raises:
        CorruptImageError: if nothing took the place of one.
    """
    fatal = [fault for fault in faults if fault.replacement < 0]
    if fatal:
        raise CorruptImageError(
            f'{fatal[0].path}: {fatal[0].message}'
            + (f'; {len(fatal)} images in all' if len(fatal) > 1 else '')
            + "; with corrupt='skip' another image takes its place"
        )
    for fault in faults:
        warnings.warn(
            f'{fault.path}: {fault.message}; another image takes its place',
            stacklevel=2,
        )


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f'size: got {size}, wanted at least 1')
