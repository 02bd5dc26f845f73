"""What learns, as a recipe names it: the optimizers of the parameters and of ψ, the rebalancer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from balms_jax.rebalancers import REBALANCERS, Rebalancer
from balms_jax.training.recipe import Meta, Optimizer


def make_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """SGD on the gradient with L2 decay of every parameter added before the momentum."""
    momentum = settings.momentum or None
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(learning_rate(settings, steps), momentum, settings.nesterov),
    )


def learning_rate(settings: Optimizer, steps: int) -> optax.Schedule:
    """A linear warm-up, then a cosine to 0 at the last step, or drops to a tenth.

    Example:
        >>> rate = learning_rate(Optimizer(learning_rate=1.0, drops=(2, 3)), 4)
        >>> print([f'{rate(step):g}' for step in range(4)])
        ['1', '1', '0.1', '0.01']
    """
    peak, rising = settings.learning_rate, settings.warmup_steps
    if settings.drops:
        after = dropping(peak, settings.drops, rising)
        schedule = warmed_up(after, settings.warmup_from, peak, rising)
    else:
        start = settings.warmup_from if rising else peak
        schedule = optax.warmup_cosine_decay_schedule(start, peak, rising, steps)
    return lambda step: schedule(step // settings.hold * settings.hold)


def dropping(peak: float, drops: Sequence[int], rising: int) -> optax.Schedule:
    """The rate after a warm-up of ``rising`` steps: at each of ``drops`` it falls to a tenth."""
    return optax.piecewise_constant_schedule(peak, {drop - rising: 0.1 for drop in drops})


def warmed_up(after: optax.Schedule, start: float, peak: float, rising: int) -> optax.Schedule:
    """A schedule that begins ``rising`` steps later, after a line from ``start`` to ``peak``."""
    if not rising:
        return after
    return optax.join_schedules([optax.linear_schedule(start, peak, rising), after], [rising])


def make_rebalancer(settings: Meta, class_counts: tuple[int, ...]) -> Rebalancer | None:
    """The rebalancer that the settings name, or None."""
    if settings.rebalancer == 'none':
        return None
    options: dict[str, Any] = {}
    if settings.rebalancer in ('meta_sampler', 'meta_reweighter', 'learned_adjustment'):
        options |= {'initial_power': settings.initial_power}
    if settings.rebalancer == 'meta_sampler':
        options |= {'estimator': settings.estimator, 'temperature': settings.temperature}
    return REBALANCERS[settings.rebalancer](np.asarray(class_counts), **options)


def make_psi_optimizer(settings: Meta) -> optax.GradientTransformation:
    """Adam at a constant rate, with L2 decay of ψ if asked."""
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.adam(settings.learning_rate, settings.b1, settings.b2),
    )
