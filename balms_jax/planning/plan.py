"""The plan of a config over topologies, as plain numbers for plan.json, the table and the page."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, Protocol

from balms_jax import extras, models
from balms_jax.detection_training import checks as detector_checks
from balms_jax.detection_training.recipe import Recipe as DetectorRecipe
from balms_jax.planning import chips, collectives, compiled, shapes
from balms_jax.planning.classifiers import Classifier
from balms_jax.planning.compiled import Compiled, DoesNotFitError
from balms_jax.planning.targets import Target
from balms_jax.training import checks
from balms_jax.training.recipe import ConfigError, Recipe
from balms_jax.training.state import TrainState

MEMORY_GOAL = 1.75  # of the meta step, in memories of the plain one
REDUCTIONS_GOAL = 2.0  # of the meta step beyond the plain one's, in gradients


class Wanted(NamedTuple):
    """What a plan is to hold."""

    stage: str = 'stage_1'
    kinds: tuple[str, ...] = compiled.KINDS
    batches: bool = True  # whether to estimate the largest batch, which compiles each step again


class Run(Protocol):
    """What a plan asks of a run, of a classifier or of a detector."""

    @property
    def recipe(self) -> Any:
        """With ``method``, ``name``, ``data.name``, ``stages`` and ``evaluation.batch_size``."""

    def changed(self, recipe: Any) -> 'Run':
        """The run with another recipe."""

    def check(self) -> None:
        """Raises ConfigError for what does not fit the data."""

    def check_cut(self, name: str, devices: int) -> None:
        """Raises ConfigError if a stage cannot be cut over so many devices."""

    def facts(self) -> dict[str, Any]:
        """The network, the shape of an image, the numbers of classes and of examples."""

    def first_state(self, name: str) -> TrainState:
        """The shapes of the state that a stage starts from."""

    def evaluated(self, target: Target) -> int:
        """Images of a batch of the evaluation."""

    def least_meta_batch(self, name: str) -> int:
        """Below so many images the stage's meta set cannot be drawn."""

    def lowered(self, name: str, kind: str, target: Target) -> Any:
        """One step, ``'plain'``, ``'meta'`` or ``'evaluation'``, as training would compile it."""


def run_of(recipe: Recipe | DetectorRecipe) -> Run:
    """The run of a recipe, without its images where their shape is known."""
    if isinstance(recipe, Recipe):
        return Classifier(shapes.whole(recipe))
    with extras.needed('detection', 'the plan of a detector'):
        from balms_jax.planning import detectors

        return detectors.detector_run(recipe)


def check(recipe: Recipe | DetectorRecipe, wanted: Wanted) -> None:
    """Raises ConfigError for what cannot be planned, before anything is compiled."""
    if isinstance(recipe, Recipe):
        checks.check(recipe)
    else:
        detector_checks.check(recipe)
    if wanted.stage not in recipe.stages:
        raise ConfigError(f'stage: got {wanted.stage!r}, wanted one of {", ".join(recipe.stages)}')
    for kind in wanted.kinds:
        if kind not in compiled.KINDS:
            raise ConfigError(f'steps: got {kind!r}, wanted one of {", ".join(compiled.KINDS)}')


class Told(NamedTuple):
    """Who is told of a plan while it is made: compiling a large step takes many minutes."""

    say: Callable[[str], None] = lambda line: None
    keep: Callable[[dict[str, Any]], None] = lambda plan: None
    """Is given the plan as far as it is, after every step."""


def make(
    recipe: Recipe | DetectorRecipe,
    targets: Sequence[Target],
    wanted: Wanted,
    told: Told | None = None,
) -> dict[str, Any]:
    """Compiles a stage's steps for every target.

    Args:
        recipe: what would be trained.
        targets: the devices.
        wanted: which stage and steps.
        told: of each step, before it is compiled and after.

    Returns:
        The plan: facts of the config, and ``'targets'``, a list with the ``'steps'`` of each and
        what the meta step adds, ``'meta_over_plain'``. Sizes are bytes of one device, times
        seconds. The meta step is left out where the stage has no rebalancer. The gradient is that
        of one device too, which holds a share of the classifier where devices share the classes.

    Raises:
        ConfigError: if the stage or a step is unknown, or a batch cannot be cut evenly.
        ValueError: if the devices cannot share the classes as the recipe says.
    """
    told = told or Told()
    check(recipe, wanted)
    if isinstance(recipe, Recipe):
        targets = [target.sharing_classes(recipe.class_shards) for target in targets]
    of = run_of(recipe)
    of.check()
    for target in targets:
        _check_cut(of, wanted.stage, target)
    stage = recipe.stages[wanted.stage]
    kinds = [k for k in wanted.kinds if k != 'meta' or stage.meta.rebalancer != 'none']
    state = of.first_state(wanted.stage)
    result = {
        **_facts(of, wanted.stage),
        'parameters': models.count_parameters(state.params),
        'gradient_bytes': shapes.bytes_of_device(targets[0].mesh, state.trained),
        'targets': [],
    }
    for target in targets:
        steps: dict[str, Any] = {}
        record = {
            'topology': target.topology,
            'slices': target.slices,
            'chips': target.chips,
            'devices': target.mesh.size,
            'device': None if target.chip is None else target.chip._asdict(),
            'steps': steps,
            'meta_over_plain': None,
        }
        result['targets'].append(record)
        for kind in kinds:
            told.say(f'{target.topology}: the {kind} step')
            steps[kind] = _step(of, wanted, kind, target, told.say)
            record['meta_over_plain'] = meta_over_plain(steps, result['gradient_bytes'])
            told.keep(result)
    return result


def meta_over_plain(steps: Mapping[str, Any], gradient_bytes: int) -> dict[str, Any] | None:
    """What the meta step adds, against the goals; None where one of the two was not compiled.

    Args:
        steps: records by kind, as in a plan.
        gradient_bytes: of one gradient.

    Returns:
        'memory' and 'flops' as ratios; 'reductions': the bytes all-reduced beyond the plain
        step's, in gradients; 'within_goals'.

    Example:
        >>> plain = {'memory': {'peak': 100}, 'flops': 10.0, 'all_reduced': 40.0}
        >>> meta = {'memory': {'peak': 150}, 'flops': 30.0, 'all_reduced': 80.0}
        >>> meta_over_plain({'plain': plain, 'meta': meta}, 40)
        {'memory': 1.5, 'flops': 3.0, 'reductions': 1.0, 'within_goals': True}
    """
    both = [steps.get(kind, {'does_not_fit': ''}) for kind in ('plain', 'meta')]
    if any('does_not_fit' in each for each in both):
        return None
    plain, meta = both
    memory = meta['memory']['peak'] / plain['memory']['peak']
    reductions = (meta['all_reduced'] - plain['all_reduced']) / gradient_bytes
    return {
        'memory': memory,
        'flops': meta['flops'] / plain['flops'] if plain['flops'] else None,
        'reductions': reductions,
        'within_goals': memory <= MEMORY_GOAL and reductions <= REDUCTIONS_GOAL,
    }


def _facts(of: Run, name: str) -> dict[str, Any]:
    recipe, stage = of.recipe, of.recipe.stages[name]
    learns = stage.meta.rebalancer != 'none'
    return {
        'method': recipe.method,
        'recipe': recipe.name,
        'dataset': recipe.data.name,
        **of.facts(),
        'stage': name,
        'trains': stage.trains,
        'batch_size': stage.batch_size,
        'meta_batch_size': stage.meta.batch_size if learns else None,
        'meta_mode': stage.meta.mode if learns else None,
        'evaluation_batch_size': recipe.evaluation.batch_size,
        'versions': {name: _version(name) for name in ('balms_jax', 'jax', 'libtpu')},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_cut(of: Run, name: str, target: Target) -> None:
    try:
        of.check_cut(name, target.mesh.shape['data'])
    except ConfigError as error:
        raise ConfigError(f'{error} of {target.topology}') from None


def _step(
    of: Run, wanted: Wanted, kind: str, target: Target, say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of a step."""
    try:
        step = compiled.compile_step(of.lowered(wanted.stage, kind, target))
    except DoesNotFitError as error:
        return {'does_not_fit': str(error)}
    sums = collectives.summed(step.collectives)
    record: dict[str, Any] = {
        'memory': step.memory._asdict(),
        'flops': step.flops,
        'bytes_accessed': step.bytes_accessed,
        'collectives': {name: each._asdict() for name, each in sums.items()},
        'all_reduced': collectives.all_reduced(step.collectives),
        'compile_seconds': round(step.seconds, 1),
    }
    if target.chip is not None:
        record['fits'] = step.memory.peak <= target.chip.hbm
        record['estimate'] = _estimate(step, target, _examples(of, wanted.stage, kind, target))
    if wanted.batches and kind != 'evaluation' and target.chip is not None:
        say(f'{target.topology}: the {kind} step with another batch')
        record['largest_batch'] = _largest(of, wanted.stage, kind, target, step)
    return record


def _examples(of: Run, name: str, kind: str, target: Target) -> int:
    if kind == 'evaluation':
        return of.evaluated(target)
    return int(of.recipe.stages[name].batch_size)


def _estimate(step: Compiled, target: Target, examples: int) -> dict[str, float]:
    assert target.chip is not None
    bounds = chips.roofline(
        target.chip,
        step.flops,
        step.bytes_accessed,
        step.collectives,
        target.mesh.size,
        target.slices,
    )
    return {
        **bounds._asdict(),
        'step': bounds.step,
        'serial': bounds.serial,
        'mfu': chips.mfu(target.chip, step.flops, bounds.step),
        'images_per_second': examples / bounds.step if bounds.step else 0.0,
    }


def _largest(of: Run, name: str, kind: str, target: Target, step: Compiled) -> dict[str, Any]:
    """The largest batch, from the memory of a second size: half where that can be cut, or twice."""
    assert target.chip is not None
    stage = of.recipe.stages[name]
    devices = target.mesh.shape['data']
    halves = not stage.batch_size % (2 * devices)
    if kind == 'meta':
        enough = stage.meta.batch_size // 2 >= of.least_meta_batch(name)
        halves = halves and not stage.meta.batch_size % (2 * devices) and enough

    def scaled(size: int) -> int:
        return size // 2 if halves else size * 2

    meta = dataclasses.replace(stage.meta, batch_size=scaled(stage.meta.batch_size))
    other = dataclasses.replace(stage, batch_size=scaled(stage.batch_size), meta=meta)
    changed = of.changed(dataclasses.replace(of.recipe, **{name: other}))
    try:
        second = compiled.compile_step(changed.lowered(name, kind, target))
        points = (
            (stage.batch_size, float(step.memory.peak)),
            (other.batch_size, float(second.memory.peak)),
        )
        size = chips.largest_batch(points, target.chip.hbm, devices)
    except ValueError as error:
        return {'second_size': other.batch_size, 'examples': None, 'reason': str(error)}
    return {'second_size': other.batch_size, 'examples': size, 'peaks': [p for _, p in points]}
