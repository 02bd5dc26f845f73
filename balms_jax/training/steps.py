"""One training step, plain or with a learned rebalancer, and many of them in one compiled call."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax import meta_gradients, sampling
from balms_jax.meta_gradients.train_loss import TrainLoss
from balms_jax.rebalancers import Draw, Rebalancer
from balms_jax.training import draws
from balms_jax.training.draws import DRAW, META_READ, READ, Streamed, step_keys
from balms_jax.training.learners import learning_rate, make_optimizer, make_psi_optimizer
from balms_jax.training.objectives import make_example_losses
from balms_jax.training.recipe import Stage
from balms_jax.training.state import TrainState, passed
from balms_jax.training.step_parts import Batch, Given, Parts, Task

PyTree = Any
Step = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_step(task: Task, stage: Stage, rebalancer: Rebalancer | None) -> Step:
    """Makes the function that takes one step.

    Args:
        task: the network and the data.
        stage: the stage's settings.
        rebalancer: what is learned beside the parameters, or None.

    Returns:
        (state, resident inputs of the training set, of the meta set) → (state, metrics); of either
        its :class:`draws.Streamed` batch may be given instead. Metrics are 'loss' (nats),
        'learning_rate', and with a rebalancer 'meta_loss' and what it shows of ψ, each
        ``[classes]``; where draws are stale, 'staleness' in steps.
    """
    parts = Parts(
        task,
        stage,
        make_optimizer(stage.optimizer, stage.steps),
        learning_rate(stage.optimizer, stage.steps),
        make_example_losses(stage.loss, task.class_counts),
    )
    if rebalancer is not None:
        return _meta_step(parts, rebalancer)
    return _bilateral_step(parts) if stage.draws == 'bilateral' else _plain_step(parts)


def _plain_step(parts: Parts) -> Step:
    def step(
        state: TrainState, train_inputs: Given, meta_inputs: Given
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        del meta_inputs
        keys = step_keys(state.key, state.step)
        draw = parts.drawn(state, train_inputs, None)
        batch = parts.batch(draw, train_inputs, keys)
        after, value = parts.step_along(state, batch, jnp.ones_like)
        return after, {'loss': value, 'learning_rate': parts.schedule(state.step)}

    return step


def _bilateral_step(parts: Parts) -> Step:
    """Two batches, one for each branch; the loss goes over from the first to the second (BBN)."""
    task, stage, counts = parts.task, parts.stage, np.asarray(parts.task.class_counts)

    def step(
        state: TrainState, train_inputs: Given, meta_inputs: Given
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        del meta_inputs
        keys = step_keys(state.key, state.step)
        reversed_probabilities = sampling.class_probabilities(counts, -1.0)
        both = (
            draws.shuffled(stage, task.class_counts, state.key, state.step),
            Draw(
                *sampling.draw_examples(
                    keys[DRAW], reversed_probabilities, counts, stage.batch_size
                )
            ),
        )
        uniform, reverse = (
            parts.batch(draw, train_inputs, jax.random.split(key, len(keys)))
            for draw, key in zip(both, jax.random.split(keys[READ]), strict=True)
        )
        share = draws.uniform_share(stage, state.step)

        def loss(trained: PyTree) -> tuple[jax.Array, PyTree]:
            # Each branch sees its own batch alone, the trunk both. What is unused is not computed.
            params, before = {**state.frozen, **trained}, state.batch_stats
            of_uniform, after = task.logits(params, before, uniform.inputs, True)
            of_reverse, last = task.logits(
                params, after | _part(before, 'reversed'), reverse.inputs, True
            )
            logits = share * of_uniform[:, 0] + (1 - share) * of_reverse[:, 1]
            values = [
                parts.example_losses(logits, batch.targets, batch.spared).mean()
                for batch in (uniform, reverse)
            ]
            return share * values[0] + (1 - share) * values[1], last | _part(after, 'uniform')

        after, value = parts.descend(state, loss)
        return after, {'loss': value, 'learning_rate': parts.schedule(state.step)}

    return step


def _part(batch_stats: dict[str, PyTree], name: str) -> dict[str, PyTree]:
    return {name: batch_stats[name]} if name in batch_stats else {}


def _meta_step(parts: Parts, rebalancer: Rebalancer) -> Step:
    task, meta = parts.task, parts.stage.meta
    psi_optimizer, real_weights = make_psi_optimizer(meta), rebalancer.real_weights

    def step(
        state: TrainState, train_inputs: Given, meta_inputs: Given
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        keys, rate = step_keys(state.key, state.step), parts.schedule(state.step)
        draw = parts.drawn(state, train_inputs, rebalancer)
        batch = parts.batch(draw, train_inputs, keys)
        if isinstance(meta_inputs, Streamed):
            meta_draw = meta_inputs.draw
        else:
            meta_draw = task.deal(draws.of_meta_set(meta, task.meta_counts, state.key, state.step))
        meta_images = task.read(meta_inputs, meta_draw.examples, keys[META_READ])
        meta_batch = task.place((meta_images, meta_draw.classes))

        def meta_loss(trained: PyTree, batch: tuple[jax.Array, jax.Array], *_: PyTree) -> tuple:
            # Plain cross-entropy on a class-balanced batch. Its batch statistics are dropped.
            inputs, labels = batch
            params = {**state.frozen, **trained}
            logits, _ = task.logits(params, state.batch_stats, inputs, True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), None

        # A trial step is plain SGD at the real one's rate, and thrown away; along the sum of the
        # losses it is one along their mean at as many times the rate.
        times = parts.stage.batch_size if rebalancer.sums_trial else 1
        optimizer = parts.optimizer if real_weights is None else optax.sgd(times * rate)
        out = meta_gradients.value_and_meta_grad(
            _train_loss(parts, rebalancer, state),
            meta_loss,
            optimizer,
            mode=meta.mode,
            parts=parts.stage.accumulation,
        )(
            state.psi,
            state.trained,
            state.opt_state if real_weights is None else optimizer.init(state.trained),
            batch,
            meta_batch,
            # In parts the batch statistics go from each to the next.
            state.batch_stats if parts.stage.accumulation > 1 else None,
        )
        updates, psi_opt_state = psi_optimizer.update(out.psi_grad, state.psi_opt_state, state.psi)
        psi = optax.apply_updates(state.psi, updates)
        after, value = replace(state, psi=psi, psi_opt_state=psi_opt_state), out.train_loss
        stale = {}
        if meta.staleness:
            after = replace(after, past_psi=passed(state.past_psi, state.psi))
            stale = {'staleness': jnp.minimum(state.step, meta.staleness).astype(rate.dtype)}
        if real_weights is None:
            after = parts.after(after, out.params, out.train_aux, out.opt_state)
        else:
            w = functools.partial(real_weights, psi, out.example_grads, draw)
            after, value = parts.step_along(after, batch, w)
        return after, {
            'loss': value,
            'meta_loss': out.meta_loss,
            'learning_rate': rate,
            **stale,
            **rebalancer.summary(psi),
        }

    return step


def _train_loss(parts: Parts, rebalancer: Rebalancer, state: TrainState) -> TrainLoss:
    """(trained, ψ, batch, batch statistics if carried) → (the training loss, the next ones)."""
    log_adjustment = rebalancer.log_adjustment

    def at(*carried: PyTree) -> TrainState:
        return replace(state, batch_stats=carried[0]) if carried else state

    if log_adjustment is None:
        correction = _importance(parts, rebalancer, state)
        return meta_gradients.WeightedLosses(
            lambda trained, batch, *carried: parts.losses(at(*carried), trained, batch),
            lambda psi, batch, values: (
                rebalancer.weights(psi, batch.draw, values) * correction(batch.draw.classes)
            ),
        )

    def adjusted(
        trained: PyTree, psi: PyTree, batch: Batch, *carried: PyTree
    ) -> tuple[jax.Array, PyTree]:
        values, batch_stats = parts.losses(at(*carried), trained, batch, log_adjustment(psi))
        return values.mean(), batch_stats

    return adjusted


def _importance(
    parts: Parts, rebalancer: Rebalancer, state: TrainState
) -> Callable[[jax.Array], jax.Array | float]:
    r"""Classes → what corrects a stale draw for its batch's sake, :math:`q_y(\psi) / q_y(\psi')`.

    In expectation the batch then has the loss that one drawn at today's ψ would have.
    """
    if not parts.stage.meta.importance:
        return lambda classes: 1.0
    assert rebalancer.probabilities is not None
    ratio = rebalancer.probabilities(state.psi) / rebalancer.probabilities(state.drawn_psi)
    return lambda classes: jax.lax.stop_gradient(ratio)[classes]


def compile_steps(
    step: Step, runs: int = 1, *, own_inputs: bool = False, stays: PyTree = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles (state, train inputs, meta inputs, number of steps) → (state, metrics of each).

    The state is donated. More than one step is scanned: on accelerators, or without convolutions,
    which XLA runs some ten times slower inside a scan on the CPU.

    Args:
        step: of one run.
        runs: how many are stacked in the state, and taken at once.
        own_inputs: whether each of several has inputs of its own, stacked; else all share them.
        stays: the shardings of the state, which the next state is to have too; None: as it comes.

    Returns:
        The function. Its metrics are ``[steps, runs, ...]``.
    """
    if runs > 1:
        inputs_axis = 0 if own_inputs else None
        step = jax.vmap(step, in_axes=(0, inputs_axis, inputs_axis))

    def run(
        state: TrainState, train_inputs: Given, meta_inputs: Given, steps: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if steps == 1:
            state, metrics = step(state, train_inputs, meta_inputs)
            metrics = jax.tree.map(lambda value: value[None], metrics)
        else:
            state, metrics = jax.lax.scan(
                lambda state, _: step(state, train_inputs, meta_inputs), state, length=steps
            )
        return state, metrics if runs > 1 else jax.tree.map(lambda v: v[:, None], metrics)

    return jax.jit(
        run, static_argnames='steps', donate_argnames='state', out_shardings=(stays, None)
    )
