"""Images in the records of a prepared TensorFlow Datasets folder, in place of files."""

import os
import pathlib
from typing import Any

import numpy as np

from balms_jax.data.list_files import ImageList

ARRAY_RECORD = 'array_record'  # The format that is read without TensorFlow.


class TfdsRecords:
    """The encoded images of a prepared split by their names, ``name/split#number``.

    Args:
        source: of ``builder.as_data_source``, without decoding.
    """

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getitem__(self, name: str) -> bytes:
        """Reads one record."""
        return self._source[int(name.rpartition('#')[2])]['image']


def find(name: str, root: str | os.PathLike[str] | None) -> tuple[Any, str]:
    """Looks for a prepared set.

    Args:
        name: of the builder.
        root: the TensorFlow Datasets folder; None: TFDS' own.

    Returns:
        Its builder, or None where nothing of that name is known, and the format that it is prepared
        in, such as :data:`ARRAY_RECORD`; '' if it is not.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        return None, ''
    prepared = (builder.data_path / 'dataset_info.json').exists()
    return builder, builder.info.file_format.value if prepared else ''


def read_tfds(name: str, split: str, root: str | os.PathLike[str]) -> ImageList:
    """Reads which images a prepared set holds. Its labels are read once, all records for it.

    Args:
        name: of the builder, such as ``'cifar10'`` or ``'imagenet2012_subset/10pct'``.
        split: such as ``'train'`` or ``'validation[:50%]'``.
        root: the TensorFlow Datasets folder.

    Returns:
        The images, sorted by class, with their records.

    Raises:
        FileNotFoundError: if it is not prepared there, as array_record files.
        ValueError: if it has no features ``image`` and ``label``.
    """
    import tensorflow_datasets as tfds

    folder = pathlib.Path(root) / name
    builder, prepared_as = find(name, root)
    if prepared_as != ARRAY_RECORD:
        raise FileNotFoundError(
            f'{folder}: no TensorFlow Datasets folder of array_record files; '
            f"builder.download_and_prepare(file_format='array_record') makes one"
        )
    if not {'image', 'label'} <= set(builder.info.features):
        raise ValueError(
            f'{folder}: got features {", ".join(builder.info.features)}, wanted image and label'
        )
    source = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
    labels = np.array([source[i]['label'] for i in range(len(source))], np.int32)
    order = np.argsort(labels, kind='stable')
    names = tuple(builder.info.features['label'].names)
    return ImageList(
        paths=tuple(f'{name}/{split}#{i}' for i in order),
        labels=labels[order],
        class_names=names,
        missing=(),
        missing_counts=np.zeros(len(names), np.int64),
        records=TfdsRecords(source),
    )
