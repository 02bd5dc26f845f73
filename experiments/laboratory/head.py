"""A linear head on cached features: its losses, its training by the Meta Sampler, its states."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax import meta_gradients, sampling
from balms_jax.estimators import ESTIMATORS, Draw, Estimator
from balms_jax.losses import balanced_softmax_cross_entropy_with_integer_labels
from balms_jax.meta_gradients import WeightedLosses
from balms_jax.training import learners, recipe
from experiments.laboratory.features import Tail

Params = dict[str, jax.Array]
HISTORY = 25  # How many of the last ψ are kept for stale draws.


class Batch(NamedTuple):
    """A drawn training batch."""

    inputs: jax.Array  # [batch, features]
    draw: Draw
    shift: jax.Array  # τ log π, [classes]; in the batch, so that τ may be traced for K > 1 too


class Point(NamedTuple):
    """Where a training is."""

    params: Params
    opt_state: Any
    psi: jax.Array
    psi_opt_state: Any


class Settings(NamedTuple):
    """How the head and ψ are trained, beside what may be traced."""

    estimator: str = 'classes'
    temperature: float = 1.0
    horizon: int = 1  # K, real steps that one meta-gradient looks through
    every: int = 1  # real steps from one meta step to the next, for K = 1
    meta_batch: int = 200
    mode: str = 'forward_over_reverse'
    psi_learning_rate: float = 0.01  # 0: ψ stays where it starts
    initial_power: float = 0.0
    steps: int = 2000
    batch_size: int = 128

    @property
    def length(self) -> int:
        """Real steps in a round, which has one meta step."""
        return self.horizon + self.every - 1


class Task(NamedTuple):
    """What is trained on what."""

    tail: Tail
    features: jax.Array  # the tail's, on the device
    log_prior: jax.Array
    tau: Any = 1.0  # of the loss CE(η + τ log π): 1 Balanced Softmax, 0 softmax

    def losses(self, params: Params, batch: Any) -> tuple[jax.Array, None]:
        """The loss of every example of a batch."""
        return _cross_entropy(params, batch.inputs, batch.draw.classes, batch.shift), None

    def example_losses(self, params: Params, inputs: jax.Array, labels: Any) -> jax.Array:
        """CE(η + τ log π), ``[batch]``."""
        return _cross_entropy(params, inputs, labels, self.shift)

    @property
    def shift(self) -> jax.Array:
        """τ log π, ``[classes]``."""
        return self.tau * self.log_prior

    def weighted(self, estimator: Estimator) -> WeightedLosses:
        """The training loss of a draw."""

        def weights(psi: jax.Array, batch: Batch, losses: jax.Array) -> jax.Array:
            del losses
            return estimator.weights(psi, batch.draw)

        return WeightedLosses(self.losses, weights)

    def draw(self, key: jax.Array, psi: jax.Array, estimator: Estimator, size: int) -> Batch:
        """A training batch at the rates of ψ."""
        drawn = estimator.draw(key, psi, size)
        return Batch(self.features[drawn.examples], drawn, self.shift)

    def meta_batch(self, key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """A balanced batch of the training set: inputs and labels."""
        class_key, example_key = jax.random.split(key)
        classes = sampling.stratified_classes(class_key, self.tail.counts.size, size)
        examples = sampling.examples_by_class(example_key, classes, self.tail.counts)
        return self.features[examples], classes


def make_task(tail: Tail, tau: Any = 1.0, dtype: Any = jnp.float32) -> Task:
    """The task of a tail."""
    prior = tail.counts / tail.counts.sum()
    return Task(tail, jnp.asarray(tail.features, dtype), jnp.asarray(np.log(prior), dtype), tau)


def _cross_entropy(
    params: Params, inputs: jax.Array, labels: jax.Array, shift: jax.Array
) -> jax.Array:
    return balanced_softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels, shift)


def logits(params: Params, inputs: jax.Array) -> jax.Array:
    """``[batch, classes]``."""
    return inputs @ params['kernel'] + params['bias'][None]


def meta_loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    """Plain cross-entropy of a balanced batch."""
    inputs, labels = batch
    values = optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels)
    return values.mean(), None


def head_optimizer(length: int) -> optax.GradientTransformation:
    """That of the second stage: Nesterov's momentum, weight decay, a cosine from 0.1 to 0."""
    return learners.make_optimizer(recipe.Optimizer(), length)


def start(task: Task, key: jax.Array, settings: Settings) -> Point:
    """A fresh head, and ψ."""
    shape = (task.features.shape[1], task.tail.counts.size)
    bound = shape[0] ** -0.5
    kernel = jax.random.uniform(key, shape, task.features.dtype, -bound, bound)
    params = {'kernel': kernel, 'bias': jnp.zeros(shape[1], kernel.dtype)}
    psi = sampling.initial_psi(task.tail.counts, settings.initial_power).astype(kernel.dtype)
    optimizer, adam = head_optimizer(settings.steps), psi_optimizer(settings)
    return Point(params, optimizer.init(params), psi, adam.init(psi))


def remember(
    history: jax.Array, psi: jax.Array, step: jax.Array, lag: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A ring buffer of ψ: ``[HISTORY, classes]`` with this one in it, and the one of lag ago."""
    history = history.at[step % HISTORY].set(psi)
    return history, history[jnp.maximum(step - lag, 0) % HISTORY]


def train(
    task: Task, settings: Settings, key: jax.Array, lag: Any = 0, rounds: int = 0, records: int = 1
) -> tuple[Point, jax.Array]:
    """Trains the head and ψ.

    Args:
        task: the task.
        settings: how.
        key: of all draws.
        lag: how many rounds ago the ψ was that batches are drawn at, below HISTORY.
        rounds: how many, all of ``settings.steps`` by default.
        records: how often ψ is recorded on the way; divides rounds.

    Returns:
        Where it ends, and ψ at the end of each of so many equal parts, ``[records, classes]``.
    """
    rounds = rounds or settings.steps // settings.length
    one_round = _one_round(task, settings)
    start_key, key = jax.random.split(key)
    first = start(task, start_key, settings)
    history = jnp.tile(first.psi[None], (HISTORY, 1))

    def several(carry: Any, _: None) -> tuple[Any, jax.Array]:
        carry = jax.lax.fori_loop(0, rounds // records, lambda _, c: step(c), carry)
        return carry, carry[0].psi

    def step(carry: Any) -> Any:
        point, history, count = carry
        history, stale = remember(history, point.psi, count, lag)
        point = one_round(point, stale, jax.random.fold_in(key, count))
        return point, history, count + 1

    begun = (first, history, jnp.zeros((), jnp.int32))
    (point, _, _), recorded = jax.lax.scan(several, begun, length=records)
    return point, recorded


def _one_round(task: Task, settings: Settings) -> Any:
    """(point, ψ of the draws, key) → point: one meta step, then plain ones."""
    estimator = ESTIMATORS[settings.estimator](task.tail.counts, temperature=settings.temperature)
    optimizer, adam = head_optimizer(settings.steps), psi_optimizer(settings)
    train_loss, horizon = task.weighted(estimator), settings.horizon
    meta_step = meta_gradients.value_and_meta_grad(
        train_loss, meta_loss, optimizer, mode=settings.mode, steps=horizon, scan=horizon > 1
    )

    def draw(key: jax.Array, stale: jax.Array) -> Batch:
        return task.draw(key, stale, estimator, settings.batch_size)

    def plain(point: Point, key: jax.Array, stale: jax.Array) -> Point:
        batch = draw(key, stale)
        grads = jax.grad(train_loss, has_aux=True)(point.params, point.psi, batch)[0]
        updates, opt_state = optimizer.update(grads, point.opt_state, point.params)
        params = optax.apply_updates(point.params, updates)
        return point._replace(params=params, opt_state=opt_state)

    def one_round(point: Point, stale: jax.Array, key: jax.Array) -> Point:
        draw_key, meta_key, plain_key = jax.random.split(key, 3)
        if horizon == 1:
            batch = draw(draw_key, stale)
        else:
            batch = jax.vmap(draw, (0, None))(jax.random.split(draw_key, horizon), stale)
        out = meta_step(
            point.psi,
            point.params,
            point.opt_state,
            batch,
            task.meta_batch(meta_key, settings.meta_batch),
        )
        updates, psi_state = adam.update(out.psi_grad, point.psi_opt_state, point.psi)
        psi = optax.apply_updates(point.psi, updates)
        point = Point(out.params, out.opt_state, psi, psi_state)
        keys = jax.random.split(plain_key, settings.every)[1:]
        return jax.lax.scan(lambda p, k: (plain(p, k, stale), None), point, keys)[0]

    return one_round


def psi_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Adam, as the second stage has it."""
    meta = recipe.Meta(learning_rate=settings.psi_learning_rate)
    return learners.make_psi_optimizer(meta)
