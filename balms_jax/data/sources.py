"""Data sets: the embedded digits, CIFAR-10 and CIFAR-100 in memory, and any set of image files.

The CIFARs are read from a prepared TensorFlow Datasets folder, without TensorFlow. To download
and prepare one (170 MB):

    python -m balms_jax.data.sources cifar10 --data_dir DIR

Where there is no network, add ``--archive cifar-10-binary.tar.gz``.
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import os
import shlex
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balms_jax import extras
from balms_jax.data import long_tail

if TYPE_CHECKING:  # They need Pillow, which the embedded digits do not.
    from balms_jax.data.decoding import CentreCrop, RandomResizedCrop
    from balms_jax.data.image_files import Images
    from balms_jax.data.list_files import ImageList

# The means and standard deviations that most CIFAR-10 code normalises with. (The latter are means
# over the images of each image's own deviation; over all pixels it would be 0.247, 0.243, 0.262.)
# CIFAR-100's own are 0.507, 0.487, 0.441 and 0.268, 0.257, 0.276, but the released BALMS code
# uses CIFAR-10's for both, and so do we, to be comparable with its figures.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)

# Of ImageNet's training images, which most code normalises photographs with, torchvision's too.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

SIDES = {'digits': 8, 'cifar10': 32, 'cifar100': 32}  # Of their square images, in pixels.

_DIGITS_TEST_COUNT = 50  # A class; the smallest of the ten classes holds 174 images.
_DIGITS_TEST_SEED = 0  # Of the split alone: the same test set for every run, whatever its seed.


class DataNotFoundError(FileNotFoundError):
    """A data set is not on this machine; the message holds the command that gets it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set as it is before a long tail is cut out of it.

    Attributes:
        name: the name :func:`load` knows it by.
        train_images: ``[examples, height, width, channels]``, uint8, 0 to 255; in files, they are
            decoded when they are asked for.
        train_labels: ``[examples]``, int32, 0 to C − 1.
        test_images: as ``train_images``.
        test_labels: as ``train_labels``.
        class_names: ``[classes]``.
        mean: of image / 255, one a channel.
        std: standard deviation of image / 255, one a channel.
    """

    name: str
    train_images: 'Images'
    train_labels: NDArray[np.int32]
    test_images: 'Images'
    test_labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> Source:
    """Loads a data set into memory.

    ``'digits'`` is scikit-learn's, 8 × 8 grey images scaled from 0..16 to 0..255. Its test split
    is 50 images a class, drawn once with a fixed seed; the other 1,297 are the training pool. The
    CIFARs hold whatever their prepared splits hold.

    Args:
        name: ``'digits'``, ``'cifar10'`` or ``'cifar100'``.
        data_dir: the TensorFlow Datasets folder of the CIFARs; by default TFDS' own
            (``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``).
        download: whether to download and prepare a CIFAR that is not there.

    Returns:
        Its training and test splits.

    Raises:
        DataNotFoundError: if the data set is not in ``data_dir`` and ``download`` is false.
        ValueError: if there is no data set of that name.

    Example:
        >>> source = load('digits')
        >>> source.train_images.shape, source.num_classes
        ((1297, 8, 8, 1), 10)
    """
    if name == 'digits':
        return _load_digits()
    if name in ('cifar10', 'cifar100'):
        return _load_cifar(name, data_dir, download)
    raise ValueError(f'name: got {name!r}, wanted one of digits, cifar10, cifar100')


def of_files(
    name: str,
    train: 'ImageList',
    test: 'ImageList',
    *,
    crop: 'CentreCrop',
    varied: 'RandomResizedCrop | None' = None,
    corrupt: str = 'error',
    threads: int = 2,
) -> Source:
    """Makes a data set of image files; nothing is decoded yet.

    Args:
        name: what to call it.
        train: the files to train on.
        test: those to test on.
        crop: of the images as at test.
        varied: of the training images in training.
        corrupt: as of :class:`ImageFiles`.
        threads: as of :class:`ImageFiles`.

    Returns:
        A source whose images are :class:`ImageFiles`, normalised as ImageNet's.

    Raises:
        ListFileError: if the two name their classes differently.
    """
    from balms_jax.data.image_files import ImageFiles
    from balms_jax.data.list_files import ListFileError

    names = max(train.class_names, test.class_names, key=len)
    for files in (train, test):
        if files.class_names != names[: files.num_classes]:
            raise ListFileError(
                f'{name}: got training classes {_some(train.class_names)} and test classes '
                f'{_some(test.class_names)}, wanted the same'
            )
    train, test = (dataclasses.replace(files, class_names=names) for files in (train, test))
    return Source(
        name=name,
        train_images=ImageFiles(train, crop, varied, corrupt, threads),
        train_labels=train.labels,
        test_images=ImageFiles(test, crop, None, corrupt, threads),
        test_labels=test.labels,
        class_names=names,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )


def fingerprint(*arrays: NDArray[Any]) -> str:
    """Sixteen hexadecimal digits that tell data apart, to tie a checkpoint to its data.

    They are the head of the SHA-256 of every array's type, shape and values, in order.

    Args:
        *arrays: images and labels, of any shape.

    Returns:
        16 characters of 0-9a-f.

    Example:
        >>> fingerprint(np.zeros(3, np.uint8)) == fingerprint(np.zeros((1, 3), np.uint8))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f'{array.dtype.str}{array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
) -> None:
    """Prepares a CIFAR as a TensorFlow Datasets folder of array_record files.

    Does nothing where it is prepared already.

    Args:
        name: ``'cifar10'`` or ``'cifar100'``.
        data_dir: as in :func:`load`.
        archive: the published binary version (``cifar-10-binary.tar.gz``), if it is on this
            machine already; by default it is downloaded and its checksum compared.

    Raises:
        DataNotFoundError: if the archive is to be downloaded and there is no way to it.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    # TFDS' own generator reads the archive through TensorFlow; ours does not.
    builder._split_generators = functools.partial(_cifar_splits, builder, archive)
    builder.download_and_prepare()


def _some(names: Sequence[str]) -> str:
    return f'{", ".join(names[:3])}, … ({len(names)})'


def _load_digits() -> Source:
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    class_names = tuple(str(name) for name in digits.target_names)
    test_counts = [_DIGITS_TEST_COUNT] * len(class_names)
    test = long_tail.long_tailed_subset(labels, test_counts, _DIGITS_TEST_SEED)
    train = np.setdiff1d(np.arange(len(labels)), test)
    pixels = images[train] / 255
    return Source(
        name='digits',
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=class_names,
        mean=(float(pixels.mean()),),
        std=(float(pixels.std()),),
    )


def _load_cifar(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Source:
    from balms_jax.data import tfds_records

    builder, prepared_as = tfds_records.find(name, data_dir)
    if download and not prepared_as:
        prepare(name, data_dir)
        builder, prepared_as = tfds_records.find(name, data_dir)
    root = builder.data_path.parents[1]
    command = f'python -m balms_jax.data.sources {name} --data_dir'
    if not prepared_as:
        raise DataNotFoundError(
            f'{root} holds no prepared {name}; to download (needs network) and prepare it:\n'
            f'  {command} {shlex.quote(str(root))}'
        )
    if prepared_as != tfds_records.ARRAY_RECORD:
        raise DataNotFoundError(
            f'{root} holds {name} as {prepared_as}, which is not read without '
            f'TensorFlow; to prepare it as array_record (needs network), in another folder:\n'
            f'  {command} ANOTHER_FOLDER'
        )
    train_images, train_labels = _read_split(builder, 'train')
    test_images, test_labels = _read_split(builder, 'test')
    return Source(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(builder.info.features['label'].names),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    )


def _read_split(builder: Any, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    import tensorflow_datasets as tfds
    from PIL import Image

    # Pillow directly: TFDS would decode with it too, slower and after asking for OpenCV.
    records = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
    examples = records.__getitems__(range(len(records)))
    images = [np.asarray(Image.open(io.BytesIO(example['image']))) for example in examples]
    labels = [example['label'] for example in examples]
    return np.stack(images), np.array(labels, np.int32)


def _cifar_splits(
    builder: Any, archive: str | os.PathLike[str] | None, download_manager: Any
) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Names the classes, and returns the examples of each split for TFDS to write."""
    cifar = builder._cifar_info
    if archive is None:
        _check_reachable(cifar.url)
        archive = download_manager.download(cifar.url)
    with tarfile.open(archive) as tar:
        read = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    for key, file in zip(cifar.label_keys, cifar.label_files, strict=True):
        builder.info.features[key].names = read[cifar.prefix + file].decode().split()
    return {
        split: _cifar_examples(split, b''.join(read[cifar.prefix + f] for f in files), cifar)
        for split, files in (('train', cifar.train_files), ('test', cifar.test_files))
    }


def _cifar_examples(split: str, data: bytes, cifar: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    from PIL import Image

    num_labels = len(cifar.label_keys)
    # A record is one byte a label, then the image, channels first.
    records = np.frombuffer(data, np.uint8).reshape(-1, num_labels + 3 * 32 * 32)
    images = records[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for i, (record, image) in enumerate(zip(records, images, strict=True)):
        png = io.BytesIO()  # TFDS writes encoded images as they are, arrays through TensorFlow.
        Image.fromarray(np.ascontiguousarray(image)).save(png, 'PNG')
        labels = {key: int(record[k]) for k, key in enumerate(cifar.label_keys)}
        yield i, {'id': f'{split}_{i:05d}', 'image': png.getvalue(), **labels}


def _check_reachable(url: str) -> None:
    """Fails at once where there is no network; TFDS would try again for minutes."""
    try:
        urllib.request.urlopen(url, timeout=20).close()
    except OSError as error:
        raise DataNotFoundError(
            f'{url} cannot be reached ({error}); where there is no network, bring that file by '
            'other means and name it by --archive'
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Downloads and prepares a CIFAR; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog='python -m balms_jax.data.sources', description='Download and prepare a CIFAR.'
    )
    parser.add_argument('name', choices=('cifar10', 'cifar100'))
    parser.add_argument('--data_dir', help="where to keep it (default: TFDS' own folder)")
    parser.add_argument('--archive', help='the published binary version, if it is here already')
    flags = parser.parse_args(arguments)
    try:
        with extras.needed('train', 'preparing a data set'):
            prepare(flags.name, flags.data_dir, flags.archive)
    except DataNotFoundError as error:
        raise SystemExit(f'{flags.name}: {error}') from None


if __name__ == '__main__':
    main()
