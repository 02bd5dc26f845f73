"""Part D, first half: what looking K steps ahead changes, and what it tends to."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from balms_jax import meta_gradients, sampling
from balms_jax.estimators import ESTIMATORS
from balms_jax.training import recipe
from experiments.laboratory import head, statistics
from experiments.laboratory.features import Tail
from experiments.laboratory.head import Params, Point, Task
from experiments.laboratory.ledger import Ledger

HORIZONS = (1, 2, 4, 8, 16, 64)
ESTIMATED = ('classes', 'score_leave_one_out', 'expectation')
OPTIMIZER = recipe.Optimizer()


def measure(
    ledger: Ledger,
    tail: Tail,
    horizons: Sequence[int] = HORIZONS,
    *,
    warm_steps: int,
    steps: int,
    draws: int,
    meta_size: int = 200,
) -> None:
    """The K-step gradient of the expected loss against the implicit one, and its noise.

    Two starts: the minimum of the expected loss at the ψ of training, and the head as training left
    it. The implicit gradient is that of the minimum. The steps are the second stage's: Nesterov's
    momentum at the training's learning rate, its momentum as it was, or 0 at the minimum.

    Args:
        ledger: of the rows.
        tail: the training set.
        horizons: every K.
        warm_steps: after which the training is looked at.
        steps: its whole length.
        draws: of a K-step gradient on drawn batches.
        meta_size: of the one balanced meta batch.
    """
    task = head.make_task(tail)
    settings = head.Settings('expectation', steps=steps, meta_batch=meta_size)
    points: dict[str, tuple[Point, Any]] = {}

    def prepare() -> tuple[Point, Any]:
        if not points:
            training = jax.jit(lambda key: head.train(task, settings, key, rounds=warm_steps)[0])
            point = training(jax.random.key(0))
            points['point'] = point, task.meta_batch(jax.random.key(1), meta_size)
        return points['point']

    def limit() -> dict[str, Any]:
        point, meta_batch = prepare()
        params, facts = _minimum(task, point, meta_batch)
        return {'params': jax.tree.map(lambda p: np.asarray(p).tolist(), params), **facts}

    implicit = ledger.row('implicit', limit)
    exact = np.array(implicit['psi_grad'])
    for where in ('minimum', 'training'):
        for horizon in horizons:

            def row(where: str = where, horizon: int = horizon) -> dict[str, Any]:
                point, meta_batch = prepare()
                if where == 'minimum':
                    params = {k: jnp.array(v, jnp.float32) for k, v in implicit['params'].items()}
                    # The same place of the schedule, no momentum.
                    still = jax.tree.map(
                        lambda s: s if jnp.issubdtype(s.dtype, jnp.integer) else 0 * s,
                        point.opt_state,
                    )
                    point = point._replace(params=params, opt_state=still)
                found = {}
                expected = expected_gradient(task, point, meta_batch, horizon, steps)
                found['expected'] = _against(expected, exact)
                for name in ESTIMATED if where == 'training' else ():
                    samples = drawn_gradients(task, point, meta_batch, name, horizon, steps, draws)
                    found[name] = statistics.of_samples(samples, expected)
                return found

            ledger.row(f'{where}/{horizon}', row)


def _against(gradient: np.ndarray, limit: np.ndarray) -> dict[str, float]:
    norms = np.linalg.norm(gradient), np.linalg.norm(limit)
    cosine = gradient @ limit / (norms[0] * norms[1])
    return {'cosine': float(cosine), 'norm': float(norms[0] / norms[1])}


def _expected_loss(task: Task, decay: float) -> Any:
    r"""(θ, ψ, nothing) → :math:`\sum_c q_c \bar\ell_c + \frac\lambda2 \|\theta\|^2`."""
    counts, classes = task.tail.counts, task.tail.labels

    def loss(params: Params, psi: jax.Array, batch: Any) -> tuple[jax.Array, None]:
        del batch
        q = sampling.rated_class_probabilities(psi, counts)
        values = task.example_losses(params, task.features, classes)
        squares = sum(jnp.sum(p * p) for p in params.values())
        return (q / jnp.asarray(counts, q.dtype))[classes] @ values + decay / 2 * squares, None

    return loss


def _minimum(task: Task, point: Point, meta_batch: Any) -> tuple[Params, dict[str, Any]]:
    """The minimum of the expected loss by Newton's method in float64, and the gradient there."""
    with jax.enable_x64(True):
        double = head.make_task(task.tail, task.tau, jnp.float64)
        loss = _expected_loss(double, OPTIMIZER.weight_decay)
        psi = jnp.asarray(point.psi, jnp.float64)
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), point.params)
        flat, restore = ravel_pytree(params)

        @jax.jit
        def value(flat: jax.Array) -> jax.Array:
            return loss(restore(flat), psi, None)[0]

        gradient = jax.jit(jax.grad(value))

        @jax.jit
        def newton(flat: jax.Array) -> jax.Array:
            product = jax.linearize(jax.grad(value), flat)[1]
            return jax.scipy.sparse.linalg.cg(product, gradient(flat), tol=1e-8, maxiter=2000)[0]

        for _ in range(30):
            if jnp.linalg.norm(gradient(flat)) < 1e-10:
                break
            direction, size = newton(flat), 1.0
            while value(flat - size * direction) > value(flat) and size > 1e-6:
                size /= 2
            flat = flat - size * direction
        inputs, labels = meta_batch
        implicit = meta_gradients.implicit_meta_grad(
            loss, head.meta_loss, iterations=3000, tolerance=1e-10
        )
        out = jax.jit(lambda psi, flat, meta: implicit(psi, restore(flat), None, meta))(
            psi, flat, (jnp.asarray(inputs, jnp.float64), labels)
        )
        return restore(flat), {
            'psi_grad': np.asarray(out.psi_grad).tolist(),
            'stationarity': float(out.stationarity),
            'residual': float(out.residual),
            'distance': float(jnp.linalg.norm(flat - ravel_pytree(params)[0])),
            'length': float(jnp.linalg.norm(flat)),
        }


def expected_gradient(
    task: Task, point: Point, meta_batch: Any, horizon: int, steps: int
) -> np.ndarray:
    """The K-step gradient of ψ where every step descends the expected loss, ``[classes]``."""
    with jax.enable_x64(True):
        double = head.make_task(task.tail, task.tau, jnp.float64)

        def widened(leaf: jax.Array) -> jax.Array:
            return leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf

        psi, params, opt_state, meta_batch = jax.tree.map(
            widened, (point.psi, point.params, point.opt_state, meta_batch)
        )
        step = meta_gradients.value_and_meta_grad(
            _expected_loss(double, 0.0),  # The optimizer decays.
            head.meta_loss,
            head.head_optimizer(steps),
            mode='lean',
            steps=horizon,
            scan=horizon > 1,
        )
        batch = jnp.zeros(horizon) if horizon > 1 else jnp.zeros(())
        out = jax.jit(step)(psi, params, opt_state, batch, meta_batch)
        return np.asarray(out.psi_grad)


def drawn_gradients(
    task: Task, point: Point, meta_batch: Any, name: str, horizon: int, steps: int, draws: int
) -> np.ndarray:
    """K-step gradients of ψ on drawn batches, ``[draws, classes]``."""
    estimator = ESTIMATORS[name](task.tail.counts)
    step = meta_gradients.value_and_meta_grad(
        task.weighted(estimator),
        head.meta_loss,
        head.head_optimizer(steps),
        mode='forward_over_reverse',
        steps=horizon,
        scan=horizon > 1,
    )

    def one(key: jax.Array) -> jax.Array:
        def draw(key: jax.Array) -> head.Batch:
            return task.draw(key, point.psi, estimator, 128)

        batch = jax.vmap(draw)(jax.random.split(key, horizon)) if horizon > 1 else draw(key)
        return step(point.psi, point.params, point.opt_state, batch, meta_batch).psi_grad

    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=16))
    return np.asarray(run(jax.random.split(jax.random.key(4), draws)))
