"""Run directories of detectors as data: read whole and checked."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from balms_jax.report.run_files import (
    RunError,
    checked,
    is_counts,
    read_facts,
    read_lines,
    read_metrics,
    read_object,
)
from balms_jax.report.runs import Run

FREQUENCY_GROUPS = {'f': 'frequent', 'c': 'common', 'r': 'rare'}
GROUP_MEASURES = {'AP_f': 'f', 'AP_c': 'c', 'AP_r': 'r'}
MEASURES = ('AP', *GROUP_MEASURES, 'AP50', 'AP75')
LOSS_PARTS = ('objectness', 'proposals', 'categories', 'boxes', 'masks')
_KINDS = ('masks', 'boxes')
_SCALARS = (*MEASURES, *LOSS_PARTS, 'loss', 'meta_loss', 'learning_rate')


@dataclasses.dataclass(frozen=True)
class PicturedObject:
    """An object of a picture.

    Attributes:
        category: its index.
        score: of a detection, in 0..1; 1 of a true object.
        mask: how much of each cell of the frame it covers, ``[cells, cells]``, in 0..1.
        frame: that the mask lies over, ``[4]``, in pixels: ``pasting.paste`` takes the two.
    """

    category: int
    score: float
    mask: np.ndarray
    frame: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """A test image, what is found in it and what is there.

    Attributes:
        place: of the image in the test set.
        pixels: uint8, ``[height, width, 3]``.
        found: detections, best first.
        there: true objects; None where the run did not keep them.
    """

    place: int
    pixels: np.ndarray
    found: tuple[PicturedObject, ...]
    there: tuple[PicturedObject, ...] | None


@dataclasses.dataclass(frozen=True)
class DetectorRun(Run):
    """One training run of a detector; its classes are the categories of objects.

    ``evaluations['uniform']`` holds the measures of masks (of boxes, where objects have no
    masks) by their names, such as ``'AP_r'``, with ``of_categories`` ``[categories]``; ``box_AP``;
    ``gradient_weights``, ``gradient_weight_exponent`` and, if they were learned, ``weights``.

    Attributes:
        throughput: images a second by stage, the median over its records.
        pictures: the first test images; empty if none were kept.
    """

    throughput: Mapping[str, float]
    pictures: tuple[Picture, ...]

    @property
    def class_counts(self) -> np.ndarray:
        """Training images that hold each category, ``[categories]``."""
        return np.asarray(self.facts['image_counts'])

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, ``[categories]``."""
        return [str(name) for name in self.facts['category_names']]

    @property
    def object_counts(self) -> np.ndarray:
        """Training objects of each category, ``[categories]``."""
        return np.asarray(self.facts['object_counts'])

    @property
    def frequencies(self) -> np.ndarray:
        """The frequency group of each category, one of ``FREQUENCY_GROUPS``, ``[categories]``."""
        return np.asarray(self.facts['frequencies'])

    @property
    def measured(self) -> str:
        """What the precision is of: 'masks' or 'boxes'."""
        return str(self.final.get('measured', _KINDS[0]))

    @property
    def final(self) -> dict[str, Any]:
        """The final evaluation, or else the latest one, with the weights learned by then."""
        rates = self.metrics.get('rates', [{}])[-1]
        return {k: v for k, v in rates.items() if k == 'weights'} | super().final

    def lacks(self, field: str) -> bool:
        """Whether the field is of a frequency group without a category, or without an object."""
        if field not in GROUP_MEASURES:
            return False
        empty = not (self.frequencies == GROUP_MEASURES[field]).any()
        return empty or (self.finished and not np.isfinite(self.final[field]))


def read_detector_run(path: Path | str) -> DetectorRun:
    """Reads and checks the run directory of a detector.

    Args:
        path: the directory with run.json, config.json, metrics.jsonl, throughput.jsonl and, once
            the run has finished, evaluation.json and pictures.npz.

    Returns:
        The run. A line that a killed run left half-written is dropped.

    Raises:
        RunError: if the directory is no detector's run, or a file is broken; the message names it.
    """
    path = Path(path)
    facts = read_facts(path, counts='image_counts', names='category_names')
    if facts.get('kind') != 'detector':
        raise RunError(f'{path}: got the run of a classifier, wanted that of a detector')
    _check_categories(facts, path / 'run.json')
    categories = len(facts['image_counts'])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_SCALARS, ())
    shapes['weights'] = (categories,)
    metrics = read_metrics(
        path / 'metrics.jsonl', facts, lambda line, where: checked(line, shapes, where)
    )
    evaluations = {}
    if (path / 'evaluation.json').exists():
        evaluations['uniform'] = _read_evaluation(path / 'evaluation.json', categories)
        _add_last(metrics, facts['stages'], evaluations['uniform'])
    return DetectorRun(
        path=path,
        facts=facts,
        config=read_object(path / 'config.json'),
        metrics=metrics,
        evaluations=evaluations,
        throughput=_read_throughput(path / 'throughput.jsonl'),
        pictures=read_pictures(path / 'pictures.npz', categories),
    )


def _check_categories(facts: dict[str, Any], file: Path) -> None:
    categories = len(facts['image_counts'])
    counts, frequencies = facts.get('object_counts'), facts.get('frequencies')
    if not isinstance(counts, list) or not is_counts(counts) or len(counts) != categories:
        raise RunError(f'{file}: object_counts: wanted {categories} whole numbers of objects')
    if (
        not isinstance(frequencies, list)
        or len(frequencies) != categories
        or not all(isinstance(f, str) and f in FREQUENCY_GROUPS for f in frequencies)
    ):
        words = ', '.join(FREQUENCY_GROUPS)
        raise RunError(f'{file}: frequencies: wanted one of {words} of {categories} categories')


def _read_evaluation(file: Path, categories: int) -> dict[str, Any]:
    """The measures by the names of :class:`DetectorRun`."""
    content = read_object(file)
    if 'boxes' not in content:
        raise RunError(f"{file}: lacks 'boxes'")
    kind = next(kind for kind in _KINDS if kind in content)
    of_kind, of_boxes = (
        checked(content[name], dict.fromkeys(MEASURES, ()), f'{file}: {name}')
        for name in (kind, 'boxes')
    )
    missing = [name for name in MEASURES if name not in of_kind]
    if missing:
        raise RunError(f'{file}: {kind}: lacks {missing[0]!r}')
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ('gradient_weights', 'weights'), (categories,)
    )
    shapes['gradient_weight_exponent'] = ()
    others = checked({k: v for k, v in content.items() if v is not None}, shapes, str(file))
    each = {name: (categories,) for name in _KINDS}
    of_categories = checked(content.get('of_categories', {}), each, f'{file}: of_categories')
    return {
        **of_kind,
        **{name: others[name] for name in shapes.keys() & others.keys()},
        **({'of_categories': of_categories[kind]} if kind in of_categories else {}),
        'box_AP': of_boxes.get('AP', np.nan),
        'measured': kind,
    }


def _add_last(
    metrics: dict[str, list[dict[str, Any]]],
    stages: list[dict[str, Any]],
    evaluation: dict[str, Any],
) -> None:
    """Ends the evaluations during training in the final one."""
    lines = metrics.setdefault('evaluation', [])
    end = sum(stage['steps'] for stage in stages)
    if stages and not (lines and lines[-1]['at'] == end and lines[-1]['step']):
        last = {'kind': 'evaluation', 'stage': stages[-1]['name'], 'step': stages[-1]['steps']}
        lines.append({**last, 'at': end, **{name: evaluation[name] for name in MEASURES}})


def _read_throughput(file: Path) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    for line, where in read_lines(file):
        checked_line = checked(line, {'images_per_second': ()}, where)
        if 'images_per_second' in checked_line:
            rates.setdefault(str(line.get('stage')), []).append(checked_line['images_per_second'])
    return {stage: float(np.median(values)) for stage, values in rates.items()}


_FOUND = ('boxes', 'scores', 'categories', 'masks', 'where')
_THERE = ('true_frames', 'true_categories', 'true_masks', 'true_where')


def read_pictures(file: Path, categories: int) -> tuple[Picture, ...]:
    """Reads and checks pictures.npz.

    Args:
        file: as ``keep_pictures`` writes it.
        categories: how many there are.

    Returns:
        The pictures, without their padding; none if there is no file.

    Raises:
        RunError: if the file is broken.
    """
    if not file.exists():
        return ()
    try:
        with np.load(file) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f'{file}: cannot be read: {error}') from None
    _check_pictures(arrays, categories, file)
    pictures = []
    for k, place in enumerate(arrays['places']):
        height, width = arrays['sizes'][k].astype(int)
        there = None
        if 'true_where' in arrays:
            # A frame begins at the edge of a pixel, a detection's box at the centre of one.
            frames = arrays['true_frames'][k] - 0.5
            true = (arrays[f'true_{name}'][k] for name in ('categories', 'masks', 'where'))
            there = _objects(frames, np.ones(len(frames)), *true)
        found = _objects(*(arrays[name][k] for name in _FOUND))
        pictures.append(Picture(int(place), arrays['images'][k, :height, :width], found, there))
    return tuple(pictures)


def _objects(
    frames: np.ndarray,
    scores: np.ndarray,
    categories: np.ndarray,
    masks: np.ndarray,
    where: np.ndarray,
) -> tuple[PicturedObject, ...]:
    cells = masks / np.float32(255 if masks.dtype == np.uint8 else 1)
    return tuple(
        PicturedObject(int(categories[k]), float(scores[k]), cells[k], frames[k])
        for k in np.flatnonzero(where)
    )


def _check_pictures(arrays: dict[str, np.ndarray], categories: int, file: Path) -> None:
    wanted = ['images', 'sizes', 'places', *_FOUND]
    wanted += _THERE if 'true_where' in arrays else ()
    for name in wanted:
        if name not in arrays:
            raise RunError(f'{file}: lacks {name!r}')
        if arrays[name].shape[:1] != arrays['images'].shape[:1]:
            raise RunError(f'{file}: {name}: wanted one a picture, of {len(arrays["images"])}')
    if arrays['images'].ndim != 4 or arrays['images'].dtype != np.uint8:
        raise RunError(f'{file}: images: wanted bytes, [pictures, height, width, 3]')
    for name in ('categories', 'true_categories'):
        held = arrays.get(name, np.zeros(0, int))
        if held.size and not 0 <= held.min() <= held.max() < categories:
            raise RunError(f'{file}: {name}: wanted indices below {categories}')
