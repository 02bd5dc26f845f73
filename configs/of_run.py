"""The config that a run was trained with, to train it again or with a key changed.

Command   python -m balms_jax --config configs/of_run.py:run=runs/balms --workdir runs/again
Arguments run: its work directory
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from balms_jax.training import arguments, checks, recipe


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(argument, run='')
    file = Path(given['run']) / 'config.json'
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise recipe.ConfigError(f'run: {file} is no config of a run: {error}') from error
    # By way of a recipe, so that a setting which the run's version did not know has its default.
    return recipe.to_config(checks.from_config(values))
