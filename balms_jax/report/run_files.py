"""The files of a run directory: read, checked and told apart from broken ones."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
"""The name of a number, or of an array → its shape."""


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file and what is wrong."""


def read_kind(path: Path) -> str:
    """What a run directory is of: 'classifier' or 'detector'.

    Raises:
        RunError: if the directory is no run, or its run.json is broken.
    """
    return str(_read_run_json(path).get('kind', 'classifier'))


def read_facts(
    path: Path, counts: str = 'class_counts', names: str = 'class_names'
) -> dict[str, Any]:
    """The run.json of a run directory, checked.

    Args:
        path: the run directory.
        counts: where the training images of every class stand.
        names: where the names of the classes stand; numbers if they do not.

    Returns:
        The facts.

    Raises:
        RunError: if the directory is no run, or a fact is missing or of another type.
    """
    file, facts = path / 'run.json', _read_run_json(path)
    wanted = {'method': str, 'dataset': str, 'seed': int, counts: list, 'stages': list}
    for name, kind in wanted.items():
        if not isinstance(facts.get(name), kind):
            raise RunError(f'{file}: {name}: got {facts.get(name)!r}, wanted {kind.__name__}')
    optional = {
        'imbalance_factor': (int, float),
        'parameter_count': (int,),
        'versions': (dict,),
        'missing_images': (dict,),
        'replaced_images': (dict,),
    }
    for name, kinds in optional.items():
        if facts.get(name) is not None and not isinstance(facts[name], kinds):
            words = ' or '.join(kind.__name__ for kind in kinds)
            raise RunError(f'{file}: {name}: got {facts[name]!r}, wanted {words}, or null')
    if not is_counts(facts[counts]) or not any(facts[counts]):
        raise RunError(f'{file}: {counts}: wanted whole numbers of images, not all 0')
    named = facts.setdefault(names, [str(index) for index in range(len(facts[counts]))])
    if not isinstance(named, list) or len(named) != len(facts[counts]):
        raise RunError(f'{file}: {names}: wanted {len(facts[counts])} names, as {counts} has')
    for stage in facts['stages']:
        if not isinstance(stage, dict) or not isinstance(stage.get('steps'), int):
            raise RunError(f"{file}: stages: got {stage!r}, wanted objects with 'name' and 'steps'")
        stage['name'] = str(stage.get('name'))
    return facts


def is_counts(values: list[Any]) -> bool:
    """Whether all are whole numbers of at least 0."""
    return all(isinstance(n, int) and n >= 0 for n in values)


def read_metrics(
    file: Path, facts: dict[str, Any], check: Callable[[Any, str], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The lines of metrics.jsonl by kind, in the order of training, as a run has them.

    Args:
        file: metrics.jsonl, which a run that has just started lacks.
        facts: run.json.
        check: (a line, where it stands) → the line with floats and arrays of the right shapes.

    Returns:
        Lines by kind; of a step that a resumed run repeated the later line.

    Raises:
        RunError: if a line is broken.
    """
    starts = itertools.accumulate((stage['steps'] for stage in facts['stages']), initial=0)
    offsets = {stage['name']: start for stage, start in zip(facts['stages'], starts, strict=False)}
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for line, where in read_lines(file):
        kind, stage, step = line.get('kind'), line.get('stage'), line.get('step')
        if not isinstance(kind, str) or not isinstance(step, int):
            raise RunError(f"{where}: wanted a 'kind' in words and a whole 'step'")
        if stage not in offsets:
            raise RunError(f'{where}: stage {stage!r} is not one of run.json: {[*offsets]}')
        # A resumed run may have repeated some steps: the later line holds. Step 0 of a stage and
        # the last step before it are two, though as many steps were taken.
        record = check(line, where)
        record['at'] = offsets[stage] + step
        found[kind, [*offsets].index(stage), step] = record
    metrics: dict[str, list[dict[str, Any]]] = {}
    for (kind, _, _), line in sorted(found.items(), key=lambda item: item[0]):
        metrics.setdefault(kind, []).append(line)
    return metrics


def read_lines(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a JSON-lines file, each with where it stands; none if there is no file."""
    lines = _read_text(file).split('\n') if file.exists() else []
    # What follows the last newline is empty, or what a killed run was writing.
    for number, text in enumerate(lines[:-1], start=1):
        where = f'{file}, line {number}'
        yield _parse_object(text, where), where


def checked(record: Any, shapes: Shapes, where: str) -> dict[str, Any]:
    """The record with floats and arrays of the right shapes, NaN for null.

    Args:
        record: an object of a JSON file.
        shapes: of what is checked where the record has it; all else stays as it is.
        where: it stands, for the message.

    Returns:
        A new record.

    Raises:
        RunError: if it is no object, or a value is of another shape.
    """
    if not isinstance(record, dict):
        raise RunError(f'{where}: wanted an object')
    found = dict(record)
    for name in shapes.keys() & record.keys():
        found[name] = array_of(record[name], shapes[name], f'{where}: {name}')
    return found


def array_of(value: Any, shape: tuple[int, ...], where: str) -> Any:
    """A number as a float, numbers as an array of the shape, NaN for null."""
    if shape == () and type(value) is float:  # Thousands of training lines take this way.
        return value
    wanted = f'{" x ".join(map(str, shape))} numbers' if shape else 'a number'
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise RunError(f'{where}: wanted {wanted}') from None
    if isinstance(value, str) or array.shape not in {shape, ()}:
        raise RunError(f'{where}: got shape {[*array.shape]}, wanted {wanted}')
    if array.shape == shape:
        return array if shape else float(array)
    if value is not None:
        raise RunError(f'{where}: got {value!r}, wanted {wanted}')
    return np.full(shape, np.nan)


def _read_run_json(path: Path) -> dict[str, Any]:
    if not (path / 'run.json').is_file():
        what = 'has no run.json' if path.is_dir() else 'is no directory'
        raise RunError(f'{path}: not a run directory: it {what}')
    return read_object(path / 'run.json')


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds, which must be an object."""
    return _parse_object(_read_text(file), str(file))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise RunError(f'{file}: missing') from None
    except UnicodeDecodeError as error:
        raise RunError(f'{file}: not UTF-8 text: {error.reason}') from None
    except OSError as error:
        raise RunError(f'{file}: cannot be read: {error.strerror}') from None


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f'line {error.lineno}, column {error.colno}'
        raise RunError(f'{where}: broken JSON: {error.msg} at {place}') from None
    if not isinstance(value, dict):
        raise RunError(f'{where}: got a {type(value).__name__}, wanted an object')
    return value
