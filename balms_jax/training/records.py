"""What a run leaves behind in its work directory, for people and for the page.

run.json          what was trained on what: facts
config.json       the whole config
metrics.jsonl     one object a line: 'train' at every step, 'rates' (what is learned of ψ),
                  'evaluation'. The same for an interrupted run as for an undisturbed one.
throughput.jsonl  images per second from checkpoint to checkpoint, without compilations; differs
                  from run to run
evaluation.json   the final evaluation
tensorboard/      the scalars again
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balms_jax.training.checkpoints import describe_differences, flatten

# What may differ between an interrupted run and its resumption.
# Data and weights are known by their fingerprints, wherever the files are.
FREE_KEYS = (
    'class_shards',
    'data.data_dir',
    'data.download',
    'data.files.prefetch',
    'data.files.prefixes',
    'data.files.test',
    'data.files.train',
    'data.files.workers',
    'data.prefetch',
    'data.test',
    'data.test_images',
    'data.train',
    'data.train_images',
    'data.workers',
    'detector.weights',
    'devices',
    'model.weights',
    'records.keep',
    'records.tensorboard',
    'steps_per_call',
)


class WorkdirError(RuntimeError):
    """A work directory that belongs to another run or cannot be used."""


class Records:
    """The files of one run."""

    def __init__(
        self, workdir: Path, config: dict[str, Any], *, tensorboard: bool, writes: bool = True
    ) -> None:
        """Opens a work directory, or makes it.

        Args:
            workdir: of this run alone.
            config: the whole nested config.
            tensorboard: whether scalars are written for TensorBoard too.
            writes: whether this is the one of several processes that writes.

        Raises:
            WorkdirError: if another run's config is in it; nothing is changed.
            OSError: if it cannot be written.
        """
        self.workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        check_workdir(workdir, config)
        self._writes = writes
        self.json('config', config)
        self._metrics_path = workdir / 'metrics.jsonl'
        self._tensorboard_wanted = tensorboard
        self._board: Any = None

    def resume(self, checkpointed: Mapping[str, int]) -> None:
        """Drops what was recorded after the last checkpoints, and opens the files to go on.

        Args:
            checkpointed: the step of each stage's last checkpoint; a stage without one starts anew.
        """
        if not self._writes:
            return
        kept = []
        if self._metrics_path.exists():
            for line in self._metrics_path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # Cut off by a kill.
                if record['step'] <= checkpointed.get(record['stage'], -1):
                    kept.append(line + '\n')
        _write_whole(self._metrics_path, ''.join(kept))
        self._metrics = open(self._metrics_path, 'a', encoding='utf-8')  # noqa: SIM115
        (self.workdir / 'throughput.jsonl').touch()  # A short run may have no line for it.
        if self._tensorboard_wanted and self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.workdir / 'tensorboard'))

    def begin(self, stage: str) -> None:
        """Names the stage of the lines to come."""
        self._stage = stage

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Appends a line to metrics.jsonl and its numbers to TensorBoard."""
        if not self._writes:
            return
        record = {'kind': kind, 'stage': self._stage, 'step': step, **values}
        self._metrics.write(json.dumps(record, allow_nan=False) + '\n')
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f'{self._stage}/{kind}/{name}', value, step)

    def throughput(self, step: int, images_per_second: float) -> None:
        """Appends to throughput.jsonl."""
        if not self._writes:
            return
        record = {'stage': self._stage, 'step': step, 'images_per_second': images_per_second}
        with open(self.workdir / 'throughput.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')

    def sync(self) -> None:
        """Puts what was written on the disk, as before a checkpoint."""
        if self._writes:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())

    def json(self, name: str, value: Any) -> None:
        """Writes NAME.json, whole or not at all."""
        if self._writes:
            write_json(self.workdir / f'{name}.json', value)

    def replaced_images(self) -> Counter[str]:
        """How often each corrupt image had been replaced, by path, as run.json tells it.

        Of several processes the first one's is the sum, and the others begin with none.
        """
        if not self._writes:
            return Counter()
        try:
            facts = json.loads((self.workdir / 'run.json').read_text())
        except (OSError, ValueError):
            return Counter()  # The run has not begun.
        return Counter(facts.get('replaced_images'))

    def close(self) -> None:
        """Closes the files."""
        if hasattr(self, '_metrics'):
            self._metrics.close()
        if self._board is not None:
            self._board.close()
            self._board = None


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Refuses a work directory that holds another run; one without a run is fine.

    Raises:
        WorkdirError: naming what differs.
    """
    earlier = workdir / 'config.json'
    if not earlier.exists():
        return
    try:
        found = json.loads(earlier.read_text())
    except ValueError as error:
        raise WorkdirError(f'{earlier}: is no JSON ({error})') from error
    differences = describe_differences(identity(found), identity(config))
    if differences:
        raise WorkdirError(
            f'{workdir}: belongs to another run: {differences}. Use another work directory.'
        )


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config without what may differ when a run goes on."""
    return {k: v for k, v in flatten(dict(config)).items() if k not in FREE_KEYS}


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    _write_whole(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f'.{path.name}.unfinished')
    with open(unfinished, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
