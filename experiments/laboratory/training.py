"""Part D, second half: what becomes of a training, by estimator, horizon, staleness and more."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import sampling
from balms_jax.estimators import ESTIMATORS
from experiments.laboratory import head
from experiments.laboratory.features import Pool, Tail
from experiments.laboratory.head import Settings
from experiments.laboratory.ledger import Ledger

LOSSES = {'balanced softmax': 1.0, 'softmax': 0.0}
RECORDS = 50
RAREST = 3  # so many classes make the tail that is reported


FEW = (
    'no meta, instance-balanced',
    'estimator examples',
    'estimator classes',
    'K = 8',
    'draws 24 steps stale',
)


def variants(base: Settings) -> dict[str, tuple[Settings, int]]:
    """Every training by name, with its lag: the base, and what differs from it in one thing."""
    found: dict[str, tuple[Settings, int]] = {
        'no meta, instance-balanced': (base._replace(psi_learning_rate=0.0), 0),
        'no meta, class-balanced': (base._replace(psi_learning_rate=0.0, initial_power=1.0), 0),
    }
    for name in ESTIMATORS:
        found[f'estimator {name}'] = base._replace(estimator=name), 0
    for temperature in (0.3, 3.0):
        key = f'estimator classes, T = {temperature:g}'
        found[key] = base._replace(temperature=temperature), 0
    for horizon in (2, 4, 8):
        found[f'K = {horizon}'] = base._replace(horizon=horizon), 0
    for every in (4, 16):
        found[f'meta step every {every}'] = base._replace(every=every), 0
    # The same with as much way for ψ to go.
    found['K = 8, rate of ψ × 8'] = base._replace(horizon=8, psi_learning_rate=0.08), 0
    found['meta step every 16, rate of ψ × 16'] = (
        base._replace(every=16, psi_learning_rate=0.16),
        0,
    )
    for lag in (1, 8, 24):
        found[f'draws {lag} steps stale'] = base, lag
    found['quarter meta batch'] = base._replace(meta_batch=max(base.meta_batch // 4, 10)), 0
    found['mode finite_difference'] = base._replace(mode='finite_difference'), 0
    return found


def measure(
    ledger: Ledger, pool: Pool, tail: Tail, base: Settings, seeds: int, *, few: bool = False
) -> None:
    """Trains every variant with both losses, and reads the test set at the last step."""
    training = _compiler(head.make_task(tail), seeds)

    def row(settings: Settings, lag: int, tau: float) -> dict[str, Any]:
        point, psi = training(settings)(jnp.float32(tau), jnp.int32(lag))
        return _record(point.params, psi, pool, tail, settings)

    for name, (settings, lag) in variants(base).items():
        for loss, tau in LOSSES.items():
            if not few or name in FEW:
                ledger.row(f'{loss}/{name}', functools.partial(row, settings, lag, tau))


def _compiler(task: head.Task, seeds: int) -> Callable[[Settings], Any]:
    """Settings → (τ, lag) → (points, ψ), each with an axis of seeds; compiled once."""

    @functools.lru_cache(maxsize=1)
    def training(settings: Settings) -> Any:
        def run(key: jax.Array, tau: jax.Array, lag: jax.Array) -> Any:
            records = record_count(settings)
            return head.train(task._replace(tau=tau), settings, key, lag, records=records)

        keys = jax.random.split(jax.random.key(5), seeds)
        compiled = jax.jit(jax.vmap(run, (0, None, None)))
        return lambda tau, lag: compiled(keys, tau, lag)

    return training


def record_count(settings: Settings) -> int:
    """How often ψ is recorded: at most RECORDS times, equally far apart."""
    rounds = settings.steps // settings.length
    return max(n for n in range(1, RECORDS + 1) if rounds % n == 0)


def _record(
    params: head.Params, psi: jax.Array, pool: Pool, tail: Tail, settings: Settings
) -> dict[str, Any]:
    """What is kept of a training: accuracies by seed, ψ on the way and at the end."""
    logits = jax.vmap(head.logits, (0, None))(params, jnp.asarray(pool.test_features))
    correct = np.asarray(logits.argmax(-1)) == pool.test_labels
    by_class = np.stack(
        [correct[:, pool.test_labels == j].mean(1) for j in range(tail.counts.size)], 1
    )
    rates = np.asarray(sampling.rates(psi))  # [seeds, records, classes]
    q = jax.vmap(sampling.rated_class_probabilities, (0, None))(psi[:, -1], tail.counts)
    length = settings.steps // settings.length * settings.length
    records = rates.shape[1]
    return {
        'accuracy': _short(correct.mean(1)),
        'rarest': _short(by_class[:, -RAREST:].mean(1)),
        'largest': _short(by_class[:, :RAREST].mean(1)),
        'by_class': _short(by_class.mean(0)),
        'steps': [length * (i + 1) // records for i in range(records)],
        'rate_largest': _short(rates[:, :, 0]),
        'rate_rarest': _short(rates[:, :, -1]),
        'final_rates': _short(rates[:, -1]),
        'final_probabilities': _short(np.asarray(q)),
    }


def _short(values: np.ndarray) -> list[Any]:
    """As numbers of five digits."""
    return np.round(np.asarray(values, float), 5).tolist()
