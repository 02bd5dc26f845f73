"""The batches of a stage whose images are decoded while it trains: drawn here as a step would.

They come of the same functions of the state: its key, its step, and the ψ that it draws at. So
nothing but the state is to be kept to go on, and they are those of resident data.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from balms_jax.data.image_files import ImageFiles, Images
from balms_jax.data.stream_draws import on_host
from balms_jax.data.streamed import Stream
from balms_jax.rebalancers import Draw, Rebalancer
from balms_jax.training import draws, mesh
from balms_jax.training.draws import Streamed
from balms_jax.training.material import Material
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any


@contextlib.contextmanager
def stage_streams(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    rebalancer: Rebalancer | None,
    devices: Mesh,
    state: TrainState,
    skipped: collections.Counter[str],
    deal: Callable[[Draw], Draw] = lambda draw: draw,
) -> Iterator[Callable[[TrainState], tuple[PyTree, PyTree]]]:
    """Opens the streams of a stage.

    Where the draw follows ψ, a batch can be drawn as many steps ahead as its ψ is old. With a
    staleness of more than ``prefetch`` the host never waits for the device.

    Args:
        recipe: with the settings of the files.
        stage: what trains.
        material: whose images are in files.
        rebalancer: that draws, or None.
        devices: the mesh that a batch is cut over.
        state: that the stage starts or goes on from.
        skipped: counts how often each corrupt image was replaced, by path.
        deal: orders a draw over the devices, as of :class:`step_parts.Task`.

    Yields:
        The function (the state before a step; every step's in turn) → what the step is given of the
        training set and of the meta set. It raises CorruptImageError for an image that cannot be
        decoded, where nothing may take its place.
    """
    first, staleness = int(state.step), stage.meta.staleness
    follows = rebalancer is not None and rebalancer.probabilities is not None
    # By the step that it is of. Before the first there are those of the state.
    psi: dict[int, PyTree] = {
        first - staleness + i: jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), state.past_psi)
        for i in range(staleness)
    }
    key = _on_host(state.key)

    def compiled(draw: Callable[..., Draw]) -> Callable[..., Draw]:
        return jax.jit(lambda *arguments: deal(draw(*arguments)))

    train_draw = compiled(
        functools.partial(draws.of_training_set, stage, material.class_counts, rebalancer)
    )
    meta_draw = compiled(functools.partial(draws.of_meta_set, stage.meta, material.meta_counts))

    def of_training_set(step: int) -> Draw | None:
        if not follows:
            return train_draw(key, np.int32(step))
        at = step - staleness
        # np.asarray waits for the step that ψ comes of.
        return train_draw(key, np.int32(step), np.asarray(psi[at])) if at in psi else None

    def of_meta_set(step: int) -> Draw:
        return meta_draw(key, np.int32(step))

    with contextlib.ExitStack() as opened:

        def opened_stream(
            images: Images, draw: Callable[[int], Draw | None], size: int, seed: int
        ) -> '_Batches':
            batches = _Batches(images, draw, size, devices, recipe, first, seed)
            opened.callback(batches.stream.close)
            return batches

        seed = 2 * (recipe.seed % 2**30)  # Two for each of the run's: the meta set's crops differ.
        train = opened_stream(material.train_images, of_training_set, stage.batch_size, seed)
        meta = None
        if rebalancer is not None:
            size = stage.meta.batch_size
            meta = opened_stream(material.meta_images, of_meta_set, size, seed + 1)

        def give(state: TrainState) -> tuple[PyTree, PyTree]:
            if follows:
                step = train.stream.step
                psi[step] = jnp.copy(state.psi)  # The state is donated to the step.
                psi.pop(step - staleness - 1, None)
            return train.next(skipped), () if meta is None else meta.next(skipped)

        yield give


class _Batches:
    """A stream of batches with their draws, laid out on the devices."""

    def __init__(
        self,
        images: Images,
        draw: Callable[[int], Draw | None],
        size: int,
        devices: Mesh,
        recipe: Recipe,
        first: int,
        seed: int,
    ) -> None:
        assert isinstance(images, ImageFiles)
        self._draw, self._size, self._devices = draw, size, devices
        self._ahead: dict[int, Draw] = {}
        self.stream = Stream(
            images,
            self._examples,
            step=first,
            seed=seed,
            workers=recipe.data.files.workers,
            prefetch=recipe.data.files.prefetch,
            rows=mesh.own_rows(devices, size),
        )

    def next(self, skipped: collections.Counter[str]) -> Streamed:
        batch = next(self.stream)
        skipped.update(fault.path for fault in batch.faults)
        images = jax.make_array_from_process_local_data(
            mesh.by_example(self._devices),
            batch.images,
            (self._size, *batch.images.shape[1:]),
        )
        return Streamed(images, mesh.lay_out(self._devices, self._ahead.pop(batch.step)))

    def _examples(self, step: int) -> np.ndarray | None:
        with on_host():
            drawn = jax.device_get(self._draw(step))
        if drawn is None:
            return None
        self._ahead[step] = drawn
        return drawn.examples


def _on_host(key: jax.Array) -> jax.Array:
    """The key, out of the devices that a state is laid out on."""
    with on_host():
        data = jnp.asarray(np.asarray(jax.random.key_data(key)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
