"""Which image files there are and of which class: list files and folders, sorted by class."""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balms_jax.data.decoding import Records

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
MISSING_POLICIES = ('error', 'skip')

_Entry = tuple[str, int]  # A path as listed, and its label.


class ListFileError(ValueError):
    """A list file cannot be read; the message names the file and the line."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageList:
    """The image files of a data set, sorted by class; an example's id is its place here.

    Attributes:
        paths: of the files, ``[examples]``; within a class in the order they were listed.
        labels: ``[examples]``, int32, never decreasing.
        class_names: ``[classes]``.
        missing: files that were listed, but are not there and were dropped.
        missing_counts: how many files were dropped, ``[classes]``, int64.
        records: gives the encoded image of a path, where paths name no files; else None.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    missing: tuple[str, ...]
    missing_counts: NDArray[np.int64]
    records: Records | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """n, ``[classes]``, in examples."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def take(self, places: NDArray[np.integer]) -> 'ImageList':
        """Some of the files.

        Args:
            places: which, in an order that keeps them sorted by class.

        Returns:
            Their list.
        """
        paths = tuple(self.paths[place] for place in places)
        return dataclasses.replace(self, paths=paths, labels=self.labels[places])


def read_list_file(
    file: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    prefixes: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    missing: str = 'error',
) -> ImageList:
    """Reads lines of ``relative/path label``, as ImageNet-LT, Places-LT and iNaturalist have them.

    Empty lines are passed over. A path may hold spaces.

    Args:
        file: the list, UTF-8.
        root: the folder that the paths are relative to.
        prefixes: old → new beginnings of the listed paths; the first that fits is replaced.
        class_names: ``[classes]``; by default the labels up to the largest, as text.
        missing: where a listed file is not there, ``'error'`` or ``'skip'``, which drops it, warns
            and keeps it in :attr:`ImageList.missing`.

    Returns:
        The files, sorted by class.

    Raises:
        ListFileError: if the list is empty, or a line has no label, a label that is no class, or a
            path that came before.
        FileNotFoundError: if files are missing, with their number and the first ones.
        ValueError: if ``missing`` is no policy.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ('b.jpg', 'a.jpg'):
        ...     (root / name).touch()
        >>> _ = (root / 'list.txt').write_text('old/b.jpg 1' + chr(10) + 'old/a.jpg 0')
        >>> images = read_list_file(root / 'list.txt', root, prefixes={'old/': ''})
        >>> print([Path(path).name for path in images.paths], images.class_counts)
        ['a.jpg', 'b.jpg'] [1 1]

    References:
        Liu et al., Large-Scale Long-Tailed Recognition in an Open World (arXiv 1904.05160), whose
        lists these are.
    """
    entries: list[_Entry] = []
    first_line: dict[str, int] = {}
    with open(file, encoding='utf-8') as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f'{os.fspath(file)}, line {number}'
            path, label = _parsed(line, where)
            if path in first_line:
                raise ListFileError(f'{where}: {path} came before, in line {first_line[path]}')
            first_line[path] = number
            _check_label(label, class_names, where)
            entries.append((path, label))
    return _image_list(entries, Path(root), _Options(str(file), prefixes, class_names, missing))


def read_inaturalist_json(
    file: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    prefixes: Mapping[str, str] | None = None,
    missing: str = 'error',
) -> ImageList:
    """Reads the JSON of iNaturalist 2018: images, annotations and, where given, categories.

    Args:
        file: JSON in the format of COCO, with one annotation an image.
        root: as in :func:`read_list_file`.
        prefixes: as in :func:`read_list_file`.
        missing: as in :func:`read_list_file`.

    Returns:
        The files, sorted by class; the classes are the categories' ids, 0 to C − 1.

    Raises:
        ListFileError: if a part is missing, there is no image, an image has no or two annotations,
            or an id is no class.
        FileNotFoundError: as :func:`read_list_file`.
        ValueError: if ``missing`` is no policy.
    """
    name = os.fspath(file)
    try:
        content = json.loads(Path(file).read_text(encoding='utf-8'))
        files = {image['id']: image['file_name'] for image in content['images']}
        annotated = [(note['image_id'], note['category_id']) for note in content['annotations']]
        categories = {c['id']: str(c['name']) for c in content.get('categories', ())}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ListFileError(f'{name}: {type(error).__name__} {error}') from error
    if len(dict(annotated)) != len(annotated) or dict(annotated).keys() != files.keys():
        raise ListFileError(f'{name}: wanted exactly one annotation an image')
    class_names = [categories[j] for j in sorted(categories)] or None
    if sorted(categories) != list(range(len(categories))):
        raise ListFileError(f'{name}: wanted categories with the ids 0 to {len(categories) - 1}')
    for image, label in annotated:
        if type(label) is not int:
            raise ListFileError(f'{name}, image {image}: category {label!r} is no integer')
        _check_label(label, class_names, f'{name}, image {image}')
    entries = [(files[image], label) for image, label in annotated]
    return _image_list(entries, Path(root), _Options(name, prefixes, class_names, missing))


def read_folders(root: str | os.PathLike[str], extensions: Iterable[str] = EXTENSIONS) -> ImageList:
    """Reads a data set with one folder a class; classes and files in alphabetical order.

    Args:
        root: holds the classes' folders; files beside them are passed over.
        extensions: of the images, in lower case, with the dot; deeper folders are searched too.

    Returns:
        The files; a folder without images is a class without examples.

    Raises:
        ListFileError: if there is no folder or no image.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ('dog/1.jpg', 'cat/1.JPEG', 'cat/notes.txt'):
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     (root / name).touch()
        >>> images = read_folders(root)
        >>> print(images.class_names, images.class_counts)
        ('cat', 'dog') [1 1]
    """
    folders = sorted(path for path in Path(root).iterdir() if path.is_dir())
    wanted = tuple(extensions)
    entries = [
        (str(path.relative_to(root)), label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.rglob('*'))
        if path.suffix.lower() in wanted
    ]
    class_names = [folder.name for folder in folders]
    return _image_list(entries, Path(root), _Options(str(root), None, class_names, 'error'))


def read(
    where: str,
    root: str | os.PathLike[str],
    prefixes: Sequence[str] = (),
    missing: str = 'error',
) -> ImageList:
    """Reads which images there are: of a list file, iNaturalist's JSON, or folders.

    Args:
        where: a folder that holds one folder a class; a file ``*.json``; or any other file, a list
            of ``path label``. Relative to the root.
        root: the folder that listed paths are relative to.
        prefixes: ``'old=new'`` beginnings of listed paths.
        missing: where a listed file is not there, ``'error'`` or ``'skip'``.

    Returns:
        The files, sorted by class.

    Raises:
        FileNotFoundError: if there is no such folder or file, or as the readers.
        ListFileError: as the readers.
        ValueError: if a prefix is not of that form, or ``missing`` is no policy.
    """
    renamed = {}
    for prefix in prefixes:
        old, equals, new = prefix.partition('=')
        if not equals or not old:
            raise ValueError(f"prefixes: got {prefix!r}, wanted 'old=new'")
        renamed[old] = new
    path = Path(root) / where
    if path.is_dir():
        return read_folders(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such list file or folder of images')
    reader = read_inaturalist_json if path.suffix == '.json' else read_list_file
    return reader(path, root, prefixes=renamed, missing=missing)


@dataclasses.dataclass(frozen=True)
class _Options:
    name: str  # Of the list, for messages.
    prefixes: Mapping[str, str] | None
    class_names: Sequence[str] | None
    missing: str


def _parsed(line: str, where: str) -> _Entry:
    words = line.strip().rsplit(maxsplit=1)
    if len(words) != 2:
        raise ListFileError(f'{where}: got {line.strip()!r}, wanted "relative/path label"')
    try:
        # int() takes 1_0 too, which no list means.
        label = int(words[1]) if '_' not in words[1] else None
    except ValueError:
        label = None
    if label is None:
        raise ListFileError(f'{where}: label {words[1]!r} is no integer')
    return words[0], label


def _check_label(label: int, class_names: Sequence[str] | None, where: str) -> None:
    if label < 0:
        raise ListFileError(f'{where}: label {label} is negative')
    if class_names is not None and label >= len(class_names):
        raise ListFileError(f'{where}: label {label}, wanted 0 to {len(class_names) - 1}')


def _image_list(entries: list[_Entry], root: Path, options: _Options) -> ImageList:
    if options.missing not in MISSING_POLICIES:
        wanted = ' or '.join(MISSING_POLICIES)
        raise ValueError(f'missing: got {options.missing!r}, wanted {wanted}')
    if not entries:
        raise ListFileError(f'{options.name}: lists no image')
    names = options.class_names or [str(j) for j in range(1 + max(label for _, label in entries))]
    located = [(_located(path, root, options.prefixes), label) for path, label in entries]
    exists = _Existence()
    absent = [entry for entry in located if not exists.of(entry[0])]
    if absent:
        _report(absent, len(located), options)
        lost = set(absent)
        located = [entry for entry in located if entry not in lost]
    located.sort(key=lambda entry: entry[1])  # Stable: the listed order stays within a class.
    counts = np.bincount([label for _, label in absent], minlength=len(names)) if absent else None
    return ImageList(
        paths=tuple(path for path, _ in located),
        labels=np.array([label for _, label in located], np.int32),
        class_names=tuple(names),
        missing=tuple(path for path, _ in absent),
        missing_counts=np.zeros(len(names), np.int64) if counts is None else counts,
    )


def _located(path: str, root: Path, prefixes: Mapping[str, str] | None) -> str:
    for old, new in (prefixes or {}).items():
        if path.startswith(old):
            path = new + path.removeprefix(old)
            break
    return str(root / path)


class _Existence:
    """Whether files are there, by reading each folder once: a list may hold half a million."""

    def __init__(self) -> None:
        self._folders: dict[str, set[str]] = {}

    def of(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            try:
                self._folders[folder] = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._folders[folder] = set()
        return name in self._folders[folder]


def _report(absent: list[_Entry], listed: int, options: _Options) -> None:
    """Raises, or warns, that files are missing: how many, the first, and how many by class."""
    first = ', '.join(path for path, _ in absent[:3])
    labels, counts = np.unique([label for _, label in absent], return_counts=True)
    by_class = ', '.join(f'{j}: {n}' for j, n in zip(labels[:10], counts[:10], strict=True))
    more = ', …' if len(labels) > 10 else ''
    message = (
        f'{options.name}: {len(absent)} of {listed} images are not there, the first: {first} '
        f'(by class: {by_class}{more})'
    )
    if options.missing == 'error' or len(absent) == listed:
        hint = "; missing='skip' leaves them out" if len(absent) < listed else ''
        raise FileNotFoundError(message + hint)
    warnings.warn(f'{message}; they are left out', stacklevel=4)
