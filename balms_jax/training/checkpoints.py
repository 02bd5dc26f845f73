"""Checkpoints of a stage: atomic, the last few kept, tied to the run and data they belong to.

They are written in the background while training goes on.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from balms_jax.training.recipe import Recipe
from balms_jax.training.state import TrainState

PyTree = Any


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, cannot be read, or belongs to another run."""


class Checkpoints:
    """The checkpoints of one stage, by step."""

    def __init__(self, directory: Path, *, keep: int, identity: dict[str, Any]) -> None:
        """Opens the folder; nothing is read or written yet.

        Args:
            directory: of this stage's checkpoints; made at the first one.
            keep: how many of the last ones are kept.
            identity: what they belong to, as flat JSON: 'model.width' → 16 and the like.
        """
        self.directory = directory.resolve()
        self.identity = identity
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=False
        )
        self._options = options
        self._begun: int | None = None  # the step that is being written
        self._manager: ocp.CheckpointManager | None = None

    @property
    def latest_step(self) -> int | None:
        """The step of the last whole checkpoint, None if there is none.

        Raises:
            CheckpointError: if one that was begun could not be written.
        """
        self.wait()
        if not self.directory.is_dir():
            return None
        return self._open().latest_step()

    def save(self, state: TrainState) -> None:
        """Begins to write a checkpoint: whole under its final name in the end, or not at all.

        Returns when the arrays are in the host's memory, where no step can overwrite them: the
        state may be donated. The rest is written in the background; one save follows another.

        Raises:
            CheckpointError: if it, or the one before, cannot be written. Earlier checkpoints stay.
        """
        self.save_arrays(int(state.step), _to_arrays(state))

    def save_arrays(self, step: int, arrays: dict[str, jax.Array]) -> None:
        """Begins to write arrays by name, as :meth:`save` does those of a state."""
        record = {'identity': self.identity, 'digest': _digest(arrays)}
        self.wait()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._open().save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    identity=ocp.args.JsonSave(record),
                ),
            )
        except Exception as error:  # Whatever the storage raised, the run must say so and stop.
            raise CheckpointError(self._not_written(step, error)) from error
        self._begun = step

    def wait(self) -> None:
        """Until the checkpoint that was begun last is whole.

        Raises:
            CheckpointError: if it could not be written. Earlier checkpoints stay.
        """
        if self._begun is None:
            return
        step, self._begun = self._begun, None
        try:
            self._open().wait_until_finished()
        except Exception as error:
            raise CheckpointError(self._not_written(step, error)) from error

    def restore(self, like: TrainState) -> TrainState:
        """Reads the last checkpoint.

        Args:
            like: a state of the same structure, shapes and placement.

        Returns:
            The state, exactly as saved.

        Raises:
            CheckpointError: if it is damaged, or belongs to another run; it is left as it is.
        """
        return _from_arrays(self.restore_arrays(_to_arrays(like)), like)

    def restore_arrays(self, like: dict[str, Any]) -> dict[str, jax.Array]:
        """Reads the arrays of the last checkpoint, as :meth:`restore` does those of a state.

        Args:
            like: arrays, or shapes with shardings, by name.
        """
        step = self.latest_step
        assert step is not None, 'nothing to restore'
        path, digest = f'{self.directory}/{step}', self.check(step)
        try:
            arrays = self._open().restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(
                        jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
                    )
                ),
            )['state']
        except Exception as error:
            raise CheckpointError(_damaged(path, error)) from error
        if _digest(arrays) != digest:
            raise CheckpointError(_damaged(path, 'its arrays are not those that were saved'))
        return arrays

    def check(self, step: int) -> str:
        """Whether a checkpoint is this run's; returns the digest of its arrays.

        Raises:
            CheckpointError: if it is damaged, or belongs to another run.
        """
        path = f'{self.directory}/{step}'
        try:
            found = self._open().restore(
                step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
            )['identity']
            identity, digest = found['identity'], found['digest']
        except Exception as error:
            raise CheckpointError(_damaged(path, error)) from error
        differences = describe_differences(identity, self.identity)
        if differences:
            raise CheckpointError(f'{path} belongs to another run: {differences}')
        return digest

    def close(self) -> None:
        """Ends what the folder holds open, when what was begun is written.

        Raises:
            CheckpointError: if it could not be written.
        """
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        return self._manager

    def _not_written(self, step: int, error: Exception) -> str:
        return f'{self.directory}/{step}: the checkpoint could not be written: {error}'


def flatten(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'model': {'width': 16}} → {'model.width': 16}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = list(value) if isinstance(value, tuple) else value
    return flat


def describe_differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Names what two flat identities differ in; empty if in nothing.

    A setting that the version of ``found`` did not know yet had its default then.
    """
    defaults = flatten(dataclasses.asdict(Recipe()))
    there = {key: defaults[key] for key in wanted.keys() & defaults.keys()} | found
    absent = 'nothing'
    return ', '.join(
        f'{key} is {there.get(key, absent)!r} there and {wanted.get(key, absent)!r} here'
        for key in sorted(there.keys() | wanted.keys())
        if there.get(key, absent) != wanted.get(key, absent)
    )


def _damaged(path: str, why: object) -> str:
    first_line = str(why).strip().split('\n')[0][:300]
    return (
        f'{path}: the checkpoint is damaged or not one of ours ({first_line}). Move this folder '
        'away to go on from the one before it.'
    )


def _to_arrays(state: TrainState) -> PyTree:
    """A plain dictionary; the typed key as its data; None left out, as it has no leaves."""
    arrays = {name: getattr(state, name) for name in state.__dataclass_fields__}
    arrays['key'] = jax.random.key_data(state.key)
    # Leaves by their path: optimizer states are tuples and named tuples.
    leaves, _ = jax.tree.flatten_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def _from_arrays(arrays: PyTree, like: TrainState) -> TrainState:
    names = list(_to_arrays(like))
    leaves = [arrays[name] for name in names]
    fields = {name: getattr(like, name) for name in like.__dataclass_fields__}
    fields['key'] = jax.random.key_data(like.key)
    fields = jax.tree.unflatten(jax.tree.structure(fields), leaves)
    key = jax.random.wrap_key_data(fields.pop('key'), impl=jax.random.key_impl(like.key))
    return TrainState(key=key, **fields)


def _digest(arrays: PyTree) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        if not (value.is_fully_addressable or value.is_fully_replicated):
            value = multihost_utils.process_allgather(value, tiled=True)
        value = np.asarray(value)
        digest.update(f'{name} {value.dtype} {value.shape}'.encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
