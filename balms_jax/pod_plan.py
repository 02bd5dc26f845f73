r"""Plans a pod before it is rented: compiles a config's steps for TPUs that are not there.

    python -m balms_jax.pod_plan --config configs/digits_lt.py:method=balms_end_to_end \
        --topology v5e:4x4 --topology v6e:4x4 --output plan

Prints memory by kind, FLOPs, collectives, and an estimate of time and of the largest batch, for one
device, and writes plan.json and page.html. No data is read, no parameter is drawn.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balms_jax import extras

with extras.needed('train', 'the plan of a pod'):
    import jax
    from absl import app, flags, logging
    from ml_collections import config_flags
    from rich.console import Console
    from rich.table import Table

    from balms_jax.detection_training import checks as detector_checks
    from balms_jax.detection_training.recipe import Recipe as DetectorRecipe
    from balms_jax.planning import compiled, page, plan, tables, targets
    from balms_jax.training.arguments import parse_flags
    from balms_jax.training.recipe import Recipe, read_as

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What would be trained: FILE, or FILE:name=value,… as in training.'
)
TOPOLOGY = flags.DEFINE_multi_string(
    'topology',
    None,
    'Chip and shape, such as v5e:4x4; or cpu or gpu, the devices of this machine. May be repeated, '
    'or several may follow one another.',
)
SLICES = flags.DEFINE_integer('slices', 1, 'How many of each TPU shape, joined by the network.')
STAGE = flags.DEFINE_string('stage', 'stage_1', 'Which stage of the config.')
STEPS = flags.DEFINE_list('steps', list(compiled.KINDS), 'Which steps to compile.')
LARGEST_BATCH = flags.DEFINE_bool(
    'largest_batch', True, 'Estimate the largest batch; it compiles the training steps once more.'
)
OUTPUT = flags.DEFINE_string('output', None, 'The folder of plan.json and page.html; none if none.')


def main(arguments: list[str]) -> int:
    """Plans, prints and writes; returns the exit code."""
    topologies = [*(TOPOLOGY.value or ()), *arguments[1:]]
    if 'gpu' not in topologies:
        # With libtpu installed JAX would look for a TPU here; the compiler needs none.
        jax.config.update('jax_platforms', 'cpu')
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.FATAL)  # Schedules that are only described warn in vain.
    console = Console(highlight=False)
    wanted = plan.Wanted(STAGE.value, tuple(STEPS.value), LARGEST_BATCH.value)
    try:
        of_detector = detector_checks.is_detector(CONFIG.value)
        recipe: Recipe | DetectorRecipe = (
            read_as(DetectorRecipe, CONFIG.value) if of_detector else read_as(Recipe, CONFIG.value)
        )
        plan.check(recipe, wanted)
        found = [
            targets.find(name, SLICES.value if name not in targets.LOCAL else 1)
            for name in topologies
        ]
        command, folder = _command(sys.argv[1:]), OUTPUT.value and Path(OUTPUT.value)

        def keep(made: dict[str, Any]) -> None:
            if folder:
                write(made, folder, command)

        told = plan.Told(lambda line: console.print(line, markup=False), keep)
        made = plan.make(recipe, found, wanted, told)
        show(made, console)
        if folder:
            console.print(f'page: {folder / "page.html"}', markup=False, soft_wrap=True)
    except (OSError, ValueError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    return 0


def show(made: Mapping[str, Any], console: Console) -> None:
    """Prints a table for each topology, its steps side by side, and what the meta step adds."""
    for target in made['targets']:
        alone = {**made, 'targets': [target]}
        title = f'{tables.label(target)}: {target["chips"]} chips, {target["devices"]} devices'
        table = Table('of one device', title=title, title_justify='left')
        for kind in target['steps']:
            table.add_column(f'{kind} step', justify='right')
        for name, values in _sideways(alone, list(target['steps'])).items():
            if set(values) != {'—'}:
                table.add_row(name, *values)
        console.print(table)
    for row in tables.meta_rows(made):
        facts = ', '.join(f'{name} {value}' for name, value in row.items() if name != 'topology')
        console.print(f'{row["topology"]}, meta over plain: {facts}', markup=False)
    console.print(tables.headline(made), markup=False)


def _sideways(made: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, list[str]]:
    """The rows of one topology's tables as columns: quantity → its value in each step."""
    turned: dict[str, list[str]] = {}

    def put(name: str, kind: str, value: str) -> None:
        turned.setdefault(name, ['—'] * len(kinds))[kinds.index(kind)] = value

    for row in [*tables.memory_rows(made), *tables.time_rows(made)]:
        for name, value in row.items():
            if name not in ('topology', 'chips', 'step'):
                put(name, row['step'], value)
    for row in tables.collective_rows(made):
        text = f'{row["count"]}: {row["bytes"]}'
        put(row['collective'], row['step'], text)
    return turned


def write(made: Mapping[str, Any], folder: Path, command: str) -> Path:
    """Writes plan.json and page.html.

    Args:
        made: of :func:`plan.make`.
        folder: made if it is not there.
        command: that made the plan, for the page.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'plan.json').write_text(json.dumps(made, indent=1) + '\n', encoding='utf-8')
    (folder / 'page.html').write_text(page.render(made, command), encoding='utf-8')
    return folder


def run() -> None:
    """The command."""
    flags.mark_flags_as_required(['config', 'topology'])
    sys.modules['__main__'].__doc__ = __doc__
    os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')  # Of a TPU that is missing, as it should be.
    app.run(main, flags_parser=parse_flags)


def _command(arguments: Sequence[str]) -> str:
    return f'python -m balms_jax.pod_plan {shlex.join(arguments)}'


if __name__ == '__main__':
    run()
