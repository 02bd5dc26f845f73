"""Taking over the finished first stage of another run."""

import contextlib
import shutil
from pathlib import Path

from balms_jax.training.checkpoints import CheckpointError, Checkpoints
from balms_jax.training.material import Material
from balms_jax.training.recipe import Recipe
from balms_jax.training.records import WorkdirError
from balms_jax.training.stage_states import open_checkpoints, open_features


def check_stage_1(run: Path, recipe: Recipe, material: Material) -> None:
    """Refuses a run whose first stage is not this recipe's, or not finished.

    Raises:
        WorkdirError: with what differs.
    """
    check_finished(run, recipe.stage_1.steps, open_checkpoints(run, recipe, 'stage_1', material))


def check_finished(run: Path, steps: int, checkpoints: Checkpoints) -> None:
    """Refuses a run whose first stage is not that of the checkpoints' identity, or not finished.

    Args:
        run: its work directory.
        steps: of the first stage.
        checkpoints: of its first stage, as this run would open them; they are closed.

    Raises:
        WorkdirError: with what differs.
    """
    if not (checkpoints.directory / str(steps)).is_dir():
        raise WorkdirError(f'stage_1_from: {run} holds no first stage finished at step {steps}')
    try:
        checkpoints.check(steps)
    except CheckpointError as error:
        raise WorkdirError(f'stage_1_from: {error}') from error
    finally:
        checkpoints.close()


def take_over_stage_1(run: Path, workdir: Path, recipe: Recipe, material: Material) -> None:
    """Copies the finished first stage of another run: its last checkpoint and its records.

    Features that it keeps are copied too, if they are those that the second stage takes. Nothing is
    done where the work directory has a first stage already.
    """
    copy_stage_1(run, workdir, recipe.stage_1.steps, features=_has_features(run, recipe, material))


def copy_stage_1(run: Path, workdir: Path, steps: int, *, features: bool = False) -> None:
    """Copies a finished first stage, as :func:`take_over_stage_1` does.

    Args:
        run: whose it is.
        workdir: where it goes.
        steps: of the stage.
        features: whether those that the run keeps are copied too.
    """
    theirs, ours = (folder / 'checkpoints' / 'stage_1' for folder in (run, workdir))
    if ours.exists():
        return
    lines = (run / 'metrics.jsonl').read_text().splitlines(keepends=True)
    if features:
        shutil.copytree(run / 'features', workdir / 'features', dirs_exist_ok=True)
    ours_unfinished = ours.with_name('.stage_1.unfinished')
    shutil.rmtree(ours_unfinished, ignore_errors=True)
    shutil.copytree(theirs / str(steps), ours_unfinished / str(steps))
    first_stage = [line for line in lines if '"stage": "stage_1"' in line]
    (workdir / 'metrics.jsonl').write_text(''.join(first_stage))
    ours_unfinished.rename(ours)


def _has_features(run: Path, recipe: Recipe, material: Material) -> bool:
    """Whether a run keeps the features that this recipe's second stage takes."""
    features = open_features(run, recipe, recipe.stage_2, material)
    if features is None or not recipe.stage_2.steps:
        return False
    with contextlib.closing(features):
        try:
            return features.latest_step is not None and bool(features.check(0))
        except CheckpointError:
            return False
