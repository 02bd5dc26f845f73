"""Which examples a step takes, where no rebalancer decides, and which of the meta set."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import sampling, shuffling
from balms_jax.rebalancers import Draw
from balms_jax.training.recipe import Meta, Stage
from balms_jax.training.state import TrainState


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


def unlearned(
    stage: Stage, class_counts: tuple[int, ...], state: TrainState, key: jax.Array
) -> Draw:
    """The draw of a step without a rebalancer."""
    if stage.draws == 'shuffled':
        return shuffled(stage, class_counts, state)
    probabilities = draw_probabilities(stage, class_counts, state.step)
    return independent(key, probabilities, np.asarray(class_counts), stage.batch_size)


def shuffled(stage: Stage, class_counts: tuple[int, ...], state: TrainState) -> Draw:
    """The next examples of an epoch's order."""
    # The state's own key: the same at every step of the stage.
    num_examples = sum(class_counts)
    examples = shuffling.epoch_shuffle(state.key, state.step, stage.batch_size, num_examples)
    ends = jnp.asarray(np.cumsum(class_counts), jnp.int32)
    classes = jnp.searchsorted(ends, examples, side='right')
    return Draw(examples, classes.astype(jnp.int32))


def independent(key: jax.Array, probabilities: jax.Array, counts: np.ndarray, size: int) -> Draw:
    """Classes by their probabilities, then an example of each, with replacement."""
    class_key, example_key = jax.random.split(key)
    classes = sampling.draw_classes(class_key, probabilities, size)
    return Draw(sampling.examples_by_class(example_key, classes, counts), classes)


def of_meta_set(meta: Meta, meta_counts: tuple[int, ...], key: jax.Array) -> Draw:
    """A class-balanced draw of the meta set."""
    counts, size = np.asarray(meta_counts), meta.batch_size
    if meta.draws == 'class_balanced':
        return independent(key, jnp.full(counts.size, 1 / counts.size), counts, size)
    class_key, example_key = jax.random.split(key)
    classes = sampling.stratified_classes(class_key, counts.size, size)
    return Draw(sampling.examples_by_class(example_key, classes, counts), classes)
