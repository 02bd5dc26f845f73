"""Part C: bias and spread of every estimator of the sampling gradient."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import meta_gradients, sampling
from balms_jax.estimators import ESTIMATORS
from balms_jax.meta_gradients.update import differentiable_update
from experiments import exact_moments
from experiments.laboratory import head, statistics
from experiments.laboratory.features import Pool, Tail, cut
from experiments.laboratory.head import Point, Task
from experiments.laboratory.ledger import Ledger

TEMPERATURES = (0.3, 0.5, 1.0, 2.0, 4.0, 10.0)
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
GUMBEL = ('examples', 'classes')
UNEVEN = (-1.0, 0.5, 1.5)  # ψ of the enumerable problems, beside ψ = 0


class Case(NamedTuple):
    """A point of training and how its gradient is estimated."""

    estimator: str
    batch_size: int = 128
    imbalance_factor: float = 100.0
    classes: int = 10
    temperature: float = 1.0
    point: str = 'learned'  # ψ of training; or 'zero'; or 'tiny step': as if training ended next

    @property
    def name(self) -> str:
        """A name of its own."""
        return '/'.join(str(value) for value in self)


class Sizes(NamedTuple):
    """How much is measured."""

    batch_sizes: tuple[int, ...] = (32, 128, 512)
    imbalance_factors: tuple[float, ...] = (10.0, 50.0, 100.0, 200.0)
    classes: tuple[int, ...] = (2, 5, 10, 100)
    temperatures: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    base: tuple[int, float, int] = (128, 100.0, 10)
    draws: int = 1024
    noise: float = 4e8  # At most so many numbers of noise for 'examples'.
    warm_steps: int = 500
    training_steps: int = 2000
    meta_batch: int = 200
    points: tuple[str, ...] = ('learned', 'zero', 'tiny step')

    def length(self, point: str) -> int:
        """Of the training, at the end of which the learning rate is 0."""
        return self.warm_steps + 1 if point == 'tiny step' else self.training_steps


def enumerate_problems(ledger: Ledger, *, few: bool = False) -> None:
    """Exact bias and spread on small problems: by temperature, and by the size of the step."""
    problem = exact_moments.classifier_problem((4, 2, 1), seed=0)
    temperatures = TEMPERATURES[2:4] if few else TEMPERATURES
    rates = LEARNING_RATES[:5:4] if few else LEARNING_RATES
    if few:
        problem = exact_moments.classifier_problem((2, 1, 1), batch_size=2)
    for name in ESTIMATORS:
        for label, psi in (('zero', np.zeros(3)), ('uneven', np.array(UNEVEN))):
            for t in temperatures if name in GUMBEL else (1.0,):
                row = functools.partial(_enumerated, problem, psi, name, t)
                ledger.row(f'temperature/{name}/{label}/{t:g}', row)
        for rate in rates:
            stepped = problem._replace(learning_rate=rate)
            row = functools.partial(_enumerated, stepped, np.array(UNEVEN), name, 1.0)
            ledger.row(f'rate/{name}/{rate:g}', row)


def _enumerated(
    problem: exact_moments.Problem, psi: np.ndarray, name: str, temperature: float
) -> dict[str, float]:
    exact = exact_moments.exact_gradient(problem, psi)
    mean, covariance = exact_moments.moments(problem, psi, name, temperature)
    return statistics.of_moments(mean, covariance, exact)


def cases(sizes: Sizes) -> Iterator[Case]:
    """The grid: the base of every estimator, then one thing varied at a time."""
    size, factor, classes = sizes.base
    bases = [Case(name, size, factor, classes) for name in ESTIMATORS]
    yield from bases
    for point in sizes.points[1:]:
        yield from (base._replace(point=point) for base in bases)
    for batch_size in set(sizes.batch_sizes) - {size}:
        yield from (base._replace(batch_size=batch_size) for base in bases)
    for other in set(sizes.imbalance_factors) - {factor}:
        yield from (base._replace(imbalance_factor=other) for base in bases)
    for number in set(sizes.classes) - {classes}:
        yield from (base._replace(classes=number) for base in bases)
    for temperature in set(sizes.temperatures) - {1.0}:
        for base in bases:
            if base.estimator in GUMBEL:
                yield base._replace(temperature=temperature)


def measure(ledger: Ledger, pools: dict[str, Pool], sizes: Sizes) -> None:
    """The measures of every case, at a point of training on real features."""
    trainings: dict[tuple[float, int], tuple[Task, Point, Any]] = {}
    exact: dict[tuple[float, int, str], np.ndarray] = {}
    for case in cases(sizes):
        place = case.imbalance_factor, case.classes
        pool = pools.get('cifar100') if case.classes == 100 else pools['main']
        if pool is None:
            continue

        def row(case: Case = case, place: Any = place, pool: Pool = pool) -> dict[str, Any]:
            if place not in trainings:
                trainings[place] = _training(cut(pool, *place), sizes)
            task, point, meta_batch = trainings[place]
            if case.point == 'zero':
                point = point._replace(psi=jnp.zeros_like(point.psi))
            key, steps = (*place, case.point), sizes.length(case.point)
            if key not in exact:
                exact[key] = exact_gradient(task, point, meta_batch, steps)
            return _estimated(case, task, point, meta_batch, exact[key], sizes)

        ledger.row(case.name, row)
    ledger.row('meta batch', lambda: _meta_batch_row(cut(pools['main'], *sizes.base[1:]), sizes))


def _training(tail: Tail, sizes: Sizes) -> tuple[Task, Point, Any]:
    """A head in the middle of its training, and a meta batch."""
    task = head.make_task(tail)
    settings = head.Settings('expectation', steps=sizes.training_steps)
    settings = settings._replace(meta_batch=max(sizes.meta_batch, 2 * tail.counts.size))
    training = jax.jit(lambda key: head.train(task, settings, key, rounds=sizes.warm_steps)[0])
    meta_batch = task.meta_batch(jax.random.key(1), settings.meta_batch)
    return task, training(jax.random.key(0)), meta_batch


def exact_gradient(task: Task, point: Point, meta_batch: Any, steps: int) -> np.ndarray:
    r"""The gradient of the meta loss after the expected update, in float64.

    .. math:: \nabla_\psi L_{meta}\Big(\theta + U\Big(\sum_c q_c(\psi)
        \frac{1}{n_c} \sum_{y_i = c} \nabla \ell_i(\theta)\Big)\Big)

    Args:
        task: the task; all its examples are read.
        point: θ, the optimizer's state, ψ.
        meta_batch: inputs and labels.
        steps: the length of the training, for the learning rate.

    Returns:
        The gradient, ``[classes]``.
    """
    with jax.enable_x64(True):
        double = head.make_task(task.tail, task.tau, jnp.float64)
        params, opt_state, psi, (inputs, labels) = jax.tree.map(
            _double, (point.params, point.opt_state, point.psi, meta_batch)
        )
        counts, classes = task.tail.counts, task.tail.labels
        update = differentiable_update(head.head_optimizer(steps))

        def meta_loss(psi: jax.Array) -> jax.Array:
            q = sampling.rated_class_probabilities(psi, counts)
            weights = (q / jnp.asarray(counts, q.dtype))[classes]

            def expected_loss(params: head.Params) -> jax.Array:
                return weights @ double.example_losses(params, double.features, classes)

            after, _ = update(jax.grad(expected_loss)(params), opt_state, params, None)
            return head.meta_loss(after, (inputs, labels))[0]

        return np.asarray(jax.jit(jax.grad(meta_loss))(psi))


def psi_gradients(
    task: Task, point: Point, meta_batch: Any, case: Case, draws: int, steps: int, seed: int = 2
) -> np.ndarray:
    """What the estimator makes of independent draws, ``[draws, classes]``."""
    estimator = ESTIMATORS[case.estimator](task.tail.counts, temperature=case.temperature)
    meta_step = meta_gradients.value_and_meta_grad(
        task.weighted(estimator),
        head.meta_loss,
        head.head_optimizer(steps),
        mode='per_example',
    )

    def one(key: jax.Array) -> jax.Array:
        batch = task.draw(key, point.psi, estimator, case.batch_size)
        return meta_step(point.psi, point.params, point.opt_state, batch, meta_batch).psi_grad

    # A chunk at a time: the noise of one official draw has an entry for every example.
    noise = case.batch_size * (len(task.features) if case.estimator == 'examples' else 256)
    chunk = int(np.clip(8e6 / noise, 1, 64))
    draws = -(-draws // chunk) * chunk  # Whole chunks: a rest would be compiled for itself.
    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=chunk))
    return np.asarray(run(jax.random.split(jax.random.key(seed), draws)))


def meta_batch_gradients(task: Task, point: Point, size: int, draws: int) -> np.ndarray:
    """The expected update's gradient by random meta batches, to first order in the step."""
    counts, classes = task.tail.counts, task.tail.labels

    def one(key: jax.Array) -> jax.Array:
        direction = jax.grad(head.meta_loss, has_aux=True)(
            point.params, task.meta_batch(key, size)
        )[0]

        def influence(params: head.Params) -> jax.Array:
            return task.example_losses(params, task.features, classes)

        return jax.jvp(influence, (point.params,), (direction,))[1]

    def psi_gradient(key: jax.Array) -> jax.Array:
        means = jax.ops.segment_sum(one(key), classes, counts.size) / jnp.asarray(
            counts, jnp.float32
        )
        _, pull_back = jax.vjp(
            lambda psi: sampling.rated_class_probabilities(psi, counts), point.psi
        )
        return pull_back(-means)[0]

    keys = jax.random.split(jax.random.key(3), draws)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(psi_gradient, keys))(keys))


def _estimated(
    case: Case, task: Task, point: Point, meta_batch: Any, exact: np.ndarray, sizes: Sizes
) -> dict[str, Any]:
    draws = sizes.draws
    if case.estimator == 'examples':
        noise = case.batch_size * len(task.features)
        draws = int(np.clip(sizes.noise / noise, 96, draws))
    samples = psi_gradients(task, point, meta_batch, case, draws, sizes.length(case.point))
    return {
        **case._asdict(),
        **statistics.of_samples(samples, exact),
        'exact_norm': float(np.linalg.norm(exact)),
        'exact': exact.tolist(),
        'mean': samples.mean(0).tolist(),
        'sampling_rates': np.asarray(sampling.rates(point.psi)).tolist(),
    }


def _meta_batch_row(tail: Tail, sizes: Sizes) -> dict[str, Any]:
    """For comparison: the spread that a random meta batch alone brings, at the base case."""
    task, point, _ = _training(tail, sizes)
    samples = meta_batch_gradients(task, point, sizes.meta_batch, min(sizes.draws, 512))
    return statistics.of_samples(samples, samples.mean(0))


def _double(leaf: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
