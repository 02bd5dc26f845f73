"""Run directories of detectors, such as their training writes, with made-up numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

IMAGE_COUNTS = (400, 150, 60, 12, 5, 2)
STAGES = {'stage_1': 40, 'stage_2': 20}
PARTS = ('objectness', 'proposals', 'categories', 'boxes', 'masks')


def frequency(count: int) -> str:
    return 'r' if count <= 10 else 'c' if count <= 100 else 'f'


def group_means(values: np.ndarray, frequencies: list[str]) -> dict[str, float | None]:
    of = {f: values[np.array(frequencies) == f] for f in 'rcf'}
    return {f'AP_{f}': float(held.mean()) if held.size else None for f, held in of.items()}


def measures(values: np.ndarray, frequencies: list[str]) -> dict[str, float | None]:
    mean = float(values.mean())
    return {'AP': mean, 'AP50': 1.5 * mean, 'AP75': mean, **group_means(values, frequencies)}


def lines_of(method: str, categories: int, precision: dict, finished: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for stage, steps in STAGES.items():
        learns = method == 'balms' and stage == 'stage_2'
        for step in range(1, steps + 1 if finished else steps // 2 + 1):
            place = {'stage': stage, 'step': step}
            line = {'kind': 'train', **place, 'loss': 5.0 / step + 0.5, 'learning_rate': 0.1}
            if stage == 'stage_1':
                line |= {part: 1.0 / step + 0.1 for part in PARTS}
            if learns:
                line['meta_loss'] = 2.0 / step + 0.2
                weights = (0.5 + step / 100 * np.linspace(-1, 1, categories)).tolist()
                lines.append({'kind': 'rates', **place, 'weights': weights})
            lines.append(line)
            if step % 10 == 0:
                lines.append({'kind': 'evaluation', **place, **precision})
        if not finished:
            break
    return lines


def pictures(categories: int, number: int = 2, side: int = 32) -> dict[str, np.ndarray]:
    """Images in a larger, padded one; a true square, and it found, with a doubtful detection."""
    images = np.zeros((number, side, side, 3), np.uint8)
    images[:, : side - 8] = 120
    box = np.array([4.0, 6.0, 12.0, 14.0], np.float32)
    full = np.full((28, 28), 255, np.uint8)
    found = np.stack([box - 0.5, box + 9, np.zeros(4)]).astype(np.float32)
    true = np.stack([box, np.zeros(4)]).astype(np.float32)
    each = {
        'sizes': np.array([side - 8, side], np.float32),
        'scales': np.array(1.0),
        'boxes': found,
        'scores': np.array([0.9, 0.2, 0.0], np.float32),
        'categories': np.array([1, categories - 1, 0], np.int32),
        'masks': np.stack([full, full, 0 * full]),
        'where': np.array([True, True, False]),
        'true_boxes': true,
        'true_frames': true,
        'true_categories': np.array([1, 0], np.int32),
        'true_masks': np.stack([full, 0 * full]),
        'true_where': np.array([True, False]),
    }
    stacked = {name: np.stack([array] * number) for name, array in each.items()}
    return {'images': images, 'places': np.arange(number), **stacked}


def write(
    folder: Path,
    method: str = 'balms',
    seed: int = 0,
    image_counts: tuple[int, ...] = IMAGE_COUNTS,
    *,
    finished: bool = True,
    precision: float = 0.3,
    has_masks: bool = True,
) -> Path:
    """A run directory; every category has the precision, but for a little more for common ones."""
    folder.mkdir(parents=True)
    counts = np.array(image_counts)
    frequencies = [frequency(count) for count in image_counts]
    of_categories = precision * (0.9 + 0.2 * (np.arange(len(counts)) / (len(counts) - 1)))
    found = measures(of_categories, frequencies)
    facts = {
        'kind': 'detector',
        'method': method,
        'dataset': 'scenes',
        'seed': seed,
        'recipe': 'tiny',
        'network': 'Mask R-CNN',
        'parameter_count': 159488,
        'train_images': 600,
        'test_images': 60,
        'dropped': {'images': 3, 'empty_boxes': 0},
        'category_names': [f'c{index}' for index in range(len(counts))],
        'frequencies': frequencies,
        'image_counts': counts.tolist(),
        'object_counts': (2 * counts).tolist(),
        'meta_set': 'the training images' if method == 'balms' else None,
        'selection_rule': 'last step',
        'replaced_images': {},
        'device': '1 x cpu',
        'versions': {'jax': '0.10.2'},
        'stages': [{'name': n, 'steps': steps, 'batch_size': 4} for n, steps in STAGES.items()],
    }
    kinds = ('masks', 'boxes') if has_masks else ('boxes',)
    final = {
        **dict.fromkeys(kinds, found),
        'of_categories': dict.fromkeys(kinds, of_categories.tolist()),
        'gradient_weights': (1.0 / counts).tolist(),
        'gradient_weight_exponent': -1.0,
        'weights': [0.4] * len(counts) if method == 'balms' else None,
    }
    speeds = [('stage_1', 10.0), ('stage_1', 30.0), ('stage_1', 32.0), ('stage_2', 900.0)]
    rates = [{'stage': stage, 'step': 1, 'images_per_second': rate} for stage, rate in speeds]
    lines = lines_of(method, len(counts), found, finished)
    (folder / 'run.json').write_text(json.dumps(facts))
    (folder / 'config.json').write_text(json.dumps({'method': method, 'seed': seed}))
    for name, written in (('metrics', lines), ('throughput', rates)):
        text = ''.join(json.dumps(line) + '\n' for line in written)
        (folder / f'{name}.jsonl').write_text(text)
    if finished:
        (folder / 'evaluation.json').write_text(json.dumps(final))
        np.savez_compressed(folder / 'pictures.npz', **pictures(len(counts)))
    return folder


@pytest.fixture
def write_detector_run() -> Callable[..., Path]:
    return write
