"""What every training step is made of: a batch, its losses, an update of the parameters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax import sampling
from balms_jax.data import augment
from balms_jax.meta_gradients.parts import accumulate, together
from balms_jax.rebalancers import Draw, Rebalancer
from balms_jax.training import draws
from balms_jax.training.draws import LOSS, MIX, READ, Streamed
from balms_jax.training.objectives import ExampleLosses
from balms_jax.training.recipe import Stage
from balms_jax.training.state import TrainState

PyTree = Any
Logits = Callable[[PyTree, PyTree, jax.Array, bool], tuple[jax.Array, PyTree]]
"""(params, batch_stats, inputs, train) → ([batch, classes], batch_stats)"""
Loss = Callable[[PyTree], tuple[jax.Array, PyTree]]
"""trained → (the loss of a batch, the next batch_stats)"""

Given = jax.Array | Streamed
"""Data that the step draws its batch from, or the batch itself."""
# Streams of randomness within the mixing.
PARTNER_DRAW, PARTNER_READ, PARTNER_SHARE = range(3)


@dataclass(frozen=True)
class Task:
    """What a stage trains on what, as pure functions."""

    logits: Logits
    read: Callable[[Any, jax.Array, jax.Array], jax.Array]
    """(what is given, places [batch], key) → inputs of the batch, augmented"""
    class_counts: tuple[int, ...]
    meta_counts: tuple[int, ...]
    place: Callable[[PyTree], PyTree] = lambda batch: batch
    """Lays a batch out over the devices."""
    deal: Callable[[Draw], Draw] = lambda draw: draw
    """Orders a draw that may be sorted by class, where devices look at their shares alone."""


class Batch(NamedTuple):
    """A training batch with all that its loss needs."""

    inputs: jax.Array
    draw: Draw
    targets: jax.Array  # distributions [batch, classes] if mixed, else labels [batch]
    spared: jax.Array  # which examples spare the tail, [batch], bool


class Parts(NamedTuple):
    """What every step is made of."""

    task: Task
    stage: Stage
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    example_losses: ExampleLosses

    def drawn(self, state: TrainState, given: Given, rebalancer: Rebalancer | None) -> Draw:
        """The step's examples: of the batch if that is given, else drawn of the data."""
        if isinstance(given, Streamed):
            return given.draw
        counts, psi = self.task.class_counts, state.drawn_psi
        return self.task.deal(
            draws.of_training_set(self.stage, counts, rebalancer, state.key, state.step, psi)
        )

    def batch(self, draw: Draw, train_inputs: Given, keys: jax.Array) -> Batch:
        """The drawn examples, read, augmented and mixed."""
        stage, classes = self.stage, len(self.task.class_counts)
        inputs = self.task.read(train_inputs, draw.examples, keys[READ])
        targets = draw.classes
        if stage.mixup:
            targets = jax.nn.one_hot(targets, classes, dtype=inputs.dtype)
            inputs, targets = self._mixed(inputs, targets, train_inputs, keys[MIX])
        spared = jax.random.bernoulli(keys[LOSS], stage.loss.ignored, draw.classes.shape)
        return self.task.place(Batch(inputs, draw, targets, spared))

    def _mixed(
        self, inputs: jax.Array, targets: jax.Array, train_inputs: Given, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        stage, counts = self.stage, np.asarray(self.task.class_counts)
        if stage.mixup_partners == 'batch':
            return augment.mixup(key, inputs, targets, stage.mixup)
        keys = jax.random.split(key, 3)
        class_balanced = sampling.class_probabilities(counts, 0.0)
        balanced = Draw(
            *sampling.draw_examples(keys[PARTNER_DRAW], class_balanced, counts, len(targets))
        )
        return augment.balanced_mixup(
            keys[PARTNER_SHARE],
            inputs,
            targets,
            self.task.read(train_inputs, balanced.examples, keys[PARTNER_READ]),
            jax.nn.one_hot(balanced.classes, counts.size, dtype=targets.dtype),
            stage.mixup,
        )

    def losses(
        self,
        state: TrainState,
        trained: PyTree,
        batch: Batch,
        adjustment: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """ℓ of every example, ``[batch]``, and the next batch statistics."""
        params = {**state.frozen, **trained}
        logits, batch_stats = self.task.logits(params, state.batch_stats, batch.inputs, True)
        if self.stage.loss.name == 'cost_sensitive':
            adjustment = jnp.log(state.psi.costs)
        return self.example_losses(logits, batch.targets, batch.spared, adjustment), batch_stats

    def weighted_loss(
        self, state: TrainState, batch: Batch, weights: Callable[[jax.Array], jax.Array]
    ) -> Loss:
        """The mean of weights(losses) · losses, the weights taken for constants."""

        def loss(trained: PyTree) -> tuple[jax.Array, PyTree]:
            values, batch_stats = self.losses(state, trained, batch)
            return jnp.mean(weights(jax.lax.stop_gradient(values)) * values), batch_stats

        return loss

    def step_along(
        self, state: TrainState, batch: Batch, weights: Callable[[jax.Array], jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        """A step of the optimizer along the gradient of the weighted loss, in parts if asked."""
        if self.stage.accumulation > 1:
            return self.descend_in_parts(state, batch, weights)
        return self.descend(state, self.weighted_loss(state, batch, weights))

    def descend(self, state: TrainState, loss: Loss) -> tuple[TrainState, jax.Array]:
        """A step of the optimizer along the gradient of the loss."""
        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.trained)
        return self.updated(state, grads, batch_stats), value

    def descend_in_parts(
        self, state: TrainState, batch: Batch, weights: Callable[[jax.Array], jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        """A step along the gradient of the weighted loss, computed one micro-batch at a time.

        Batch norm sees a micro-batch, and its statistics move with each. The weights are those of
        the whole batch: where they read its losses, a forward pass computes these first.
        """
        count = self.stage.accumulation

        def values(which: int, micro: Batch, stats: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            values, stats = self.losses(replace(state, batch_stats=stats), state.trained, micro)
            return (), values, stats

        w = weights(together(accumulate(values, batch, count, state.batch_stats)[1]))

        def gradient(which: int, micro: Batch, stats: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            before = replace(state, batch_stats=stats)
            loss = self.weighted_loss(before, micro, lambda _: w[which::count])
            (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.trained)
            return (value, grads), (), stats

        (value, grads), _, stats = accumulate(gradient, batch, count, state.batch_stats)
        return self.updated(state, grads, stats), value

    def updated(self, state: TrainState, grads: PyTree, batch_stats: PyTree) -> TrainState:
        """The state after an update of the optimizer."""
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return self.after(state, trained, batch_stats, opt_state)

    def after(
        self, state: TrainState, trained: PyTree, batch_stats: PyTree, opt_state: PyTree
    ) -> TrainState:
        """The state a step later, and its moving average where one is kept."""
        average = state.average
        if average is not None:
            # Short at first, so that the initial values are soon forgotten.
            steps = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.stage.averaging, (1 + steps) / (10 + steps))
            average = optax.incremental_update((trained, batch_stats), average, 1 - decay)
        return replace(
            state,
            step=state.step + 1,
            trained=trained,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=average,
        )
