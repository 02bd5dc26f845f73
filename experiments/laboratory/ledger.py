"""Results by name in a JSON file, each measured once: a command that was stopped goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console

from balms_jax.training.records import write_json

CONSOLE = rich.console.Console(highlight=False, soft_wrap=True)


class Ledger:
    """The rows of one part."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Opens the file, or begins it.

        Args:
            path: of the file.
            settings: what all its rows were measured with, plain JSON.

        Raises:
            ValueError: if there are rows measured with other settings.
        """
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            found = json.loads(path.read_text())
            if found['settings'] != self.settings:
                raise ValueError(
                    f'{path}: was measured with {found["settings"]}, wanted {self.settings}: '
                    'take another --folder, or move the file away'
                )
            self.rows = found['rows']

    def row(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of that name, measured now if it never was."""
        if name not in self.rows:
            CONSOLE.print(f'{self.path.stem}: {name}')
            self.rows[name] = measure()
            write_json(self.path, {'settings': self.settings, 'rows': self.rows})
        return self.rows[name]
