"""Trains methods beside each other with several seeds, and skips what is done."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import rich.console
from ml_collections import ConfigDict

from balms_jax.training import job
from balms_jax.training.checks import from_config
from balms_jax.training.interruption import Interrupted
from balms_jax.training.progress import Progress
from balms_jax.training.recipe import Recipe
from balms_jax.training.records import check_workdir

console = rich.console.Console(highlight=False, soft_wrap=True)
# Methods of one stage, which others begin with.
END_TO_END = ('softmax', 'balanced_softmax', 'softmax_cbs')


@contextlib.contextmanager
def exit_on_failure() -> Iterator[None]:
    """A run that cannot go on ends the program, with its reason as the last line."""
    try:
        yield
    except (*job.FAILURES, Interrupted) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, Interrupted) else 1)


def train_all(
    config: Callable[[str], ConfigDict],
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    records: Path | None = None,
    together: bool = False,
    page_only: bool = False,
) -> list[Path]:
    """Trains what is not trained yet; returns every finished run's directory, or its record.

    A first stage that a finished run of the seed has taken end to end is taken over from it.

    Args:
        config: gives a method's config.
        methods: names.
        seeds: of the runs.
        folder: of the runs, ``<method>-<seed>`` each; finished ones are skipped.
        records: of the small files of runs that are finished elsewhere, which are skipped too.
        together: whether a method's seeds are trained under one ``vmap``.
        page_only: whether nothing is trained.
    """
    recipes = {method: from_config(config(method)) for method in methods}  # Refused now, or never.
    begun = {name: from_config(config(name)) for name in END_TO_END} | recipes

    def wanted(method: str, seed: int) -> job.RunSpec:
        values = config(method)
        values.seed = seed
        donors = [
            finished(f'{name}-{seed}', folder)
            for name, recipe in begun.items()
            if name != method and _begins_alike(recipes[method], recipe)
        ]
        return job.RunSpec(
            from_config(values),
            folder / f'{method}-{seed}',
            values.to_dict(),
            next(filter(None, donors), None),
        )

    for method in methods:
        left = []
        for spec in [wanted(method, seed) for seed in seeds]:
            check_workdir(spec.workdir, spec.config or {})
            if records:
                check_workdir(records / spec.workdir.name, spec.config or {})
            if not page_only and not finished(spec.workdir.name, folder, records):
                left.append(spec)
        for group in [left] if together and left else [[spec] for spec in left]:
            named = ' '.join(str(spec.recipe.seed) for spec in group)
            title = f'{method}, {"seeds" if len(group) > 1 else "seed"} {named},'
            job.train_together(group, Progress(title=title))
    names = [f'{method}-{seed}' for method in methods for seed in seeds]
    return [place for name in names if (place := finished(name, folder, records))]


def finished(name: str, folder: Path, records: Path | None = None) -> Path | None:
    """Where a finished run lies: its own directory, or else its record; None if it is unfinished.

    Args:
        name: ``<method>-<seed>``.
        folder: of the runs.
        records: of the small files of runs, if any.
    """
    places = [place / name for place in (folder, records) if place]
    return next((place for place in places if (place / 'evaluation.json').exists()), None)


def _begins_alike(a: Recipe, b: Recipe) -> bool:
    return (a.data, a.model, a.stage_1) == (b.data, b.model, b.stage_1)
