"""Which examples a step takes of the training set, and which of the meta set."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax import sampling, shuffling
from balms_jax.rebalancers import Draw, Rebalancer
from balms_jax.training.recipe import Meta, Stage

PyTree = Any
# Streams of randomness within a step.
DRAW, READ, META_DRAW, META_READ, MIX, LOSS = range(6)


class Streamed(NamedTuple):
    """A batch that was drawn and read elsewhere, in place of the data that it is drawn from."""

    inputs: jax.Array  # of the drawn examples, in their order
    draw: Draw


def step_keys(key: jax.Array, step: ArrayLike) -> jax.Array:
    """The keys of a step's streams of randomness, made of the stage's key."""
    return jax.random.split(jax.random.fold_in(key, step), 6)


def draw_probabilities(stage: Stage, class_counts: tuple[int, ...], step: Any) -> jax.Array:
    """How often each class is drawn at a step without a rebalancer, ``[classes]``."""
    counts = np.asarray(class_counts)
    if stage.draws == 'progressive':
        progress = jnp.asarray(step, jnp.float32) / stage.steps
        return sampling.progressive_class_probabilities(counts, progress)
    if stage.draws == 'bilateral':
        share = uniform_share(stage, step)
        uniform, reverse = (sampling.class_probabilities(counts, power) for power in (1.0, -1.0))
        return share * uniform + (1 - share) * reverse
    powers = {'shuffled': 1.0, 'instance_balanced': 1.0, 'square_root': 0.5, 'class_balanced': 0.0}
    return sampling.class_probabilities(counts, powers[stage.draws])


def uniform_share(stage: Stage, step: Any) -> jax.Array:
    """How much the uniform one of two branches counts: 1 − (step / steps)²."""
    return 1 - jnp.square(jnp.asarray(step, jnp.float32) / stage.steps)


def of_training_set(
    stage: Stage,
    class_counts: tuple[int, ...],
    rebalancer: Rebalancer | None,
    key: jax.Array,
    step: ArrayLike,
    psi: PyTree = None,
) -> Draw:
    """The draw of a step: a function of what it is given alone, on whatever device.

    Args:
        stage: whose settings name the draw.
        class_counts: n.
        rebalancer: that draws, or None.
        key: of the stage, the same at every step.
        step: steps taken before.
        psi: ψ that the rebalancer draws at.

    Returns:
        The batch.
    """
    counts, size = np.asarray(class_counts), stage.batch_size
    within = step_keys(key, step)[DRAW]
    if rebalancer is not None:
        return rebalancer.draw(within, psi, size)
    if stage.draws == 'shuffled':
        return shuffled(stage, class_counts, key, step)
    return Draw(
        *sampling.draw_examples(within, draw_probabilities(stage, class_counts, step), counts, size)
    )


def shuffled(stage: Stage, class_counts: tuple[int, ...], key: jax.Array, step: ArrayLike) -> Draw:
    """The next examples of an epoch's order."""
    examples = shuffling.epoch_shuffle(key, step, stage.batch_size, sum(class_counts))
    ends = jnp.asarray(np.cumsum(class_counts), jnp.int32)
    classes = jnp.searchsorted(ends, examples, side='right')
    return Draw(examples, classes.astype(jnp.int32))


def of_meta_set(meta: Meta, meta_counts: tuple[int, ...], key: jax.Array, step: ArrayLike) -> Draw:
    """A draw balanced over the meta set's classes that have examples.

    Arguments as of :func:`of_training_set`.
    """
    counts, size = np.asarray(meta_counts), meta.batch_size
    within, held = step_keys(key, step)[META_DRAW], np.flatnonzero(counts)
    if meta.draws == 'class_balanced':
        level = jnp.where(jnp.asarray(counts > 0), 1 / held.size, 0.0)
        return Draw(*sampling.draw_examples(within, level, counts, size))
    class_key, example_key = jax.random.split(within)
    classes = jnp.asarray(held, jnp.int32)[sampling.stratified_classes(class_key, held.size, size)]
    return Draw(sampling.examples_by_class(example_key, classes, counts), classes)
