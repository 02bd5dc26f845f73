"""What ψ is and how it enters training: the learned rebalancing methods.

Each is a :class:`Rebalancer`: pure functions that say where ψ starts, how a batch is drawn under
it, and what weight it gives every loss of the batch. ``meta_gradients`` learns any of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import sampling
from balms_jax.estimators import ESTIMATORS, Draw

PyTree = Any


class Rebalancer(NamedTuple):
    """A learned parameter ψ and its two ways into the training loss."""

    psi: PyTree  # where it starts
    draw: Callable[[jax.Array, PyTree, int], Draw]  # (key, ψ, batch size) → the batch
    weights: Callable[[PyTree, Draw, jax.Array], jax.Array]  # (ψ, batch, losses [batch]) → [batch]
    summary: Callable[[PyTree], dict[str, jax.Array]]  # what the records show of ψ, each [classes]


def meta_sampler(
    class_counts: np.ndarray,
    *,
    estimator: str = 'classes',
    initial_power: float = 0.0,
    temperature: float = 1.0,
) -> Rebalancer:
    r"""The Meta Sampler: ψ sets how often each class is drawn.

    .. math:: q_j \propto n_j \sigma(\psi_j), \qquad L = \frac1B \sum_b z_b(\psi)\, \ell_b

    How z follows ψ is the estimator's. Its value is 1, so that the real step is unweighted, but for
    ``'expectation'``.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        estimator: a name of :data:`estimators.ESTIMATORS`; ``'examples'`` is the official one.
        initial_power: p of :func:`sampling.initial_psi`.
        temperature: T of the soft sample of ``'examples'`` and ``'classes'``.

    Returns:
        The rebalancer; ψ is ``[classes]``.

    Raises:
        ValueError: if counts are no whole numbers or the estimator is unknown.

    Example:
        >>> sampler = meta_sampler(np.array([90, 10]))
        >>> draw = sampler.draw(jax.random.key(0), sampler.psi, 4)
        >>> print(sampler.weights(sampler.psi, draw, jnp.zeros(4)))
        [1. 1. 1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f'estimator: got {estimator!r}, wanted one of {", ".join(ESTIMATORS)}')
    sampling.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)
    draw, z = ESTIMATORS[estimator](counts, temperature=temperature)

    def weights(psi: jax.Array, draw: Draw, losses: jax.Array) -> jax.Array:
        del losses
        return z(psi, draw)

    def summary(psi: jax.Array) -> dict[str, jax.Array]:
        return {
            'sampling_rates': sampling.rates(psi),
            'class_probabilities': sampling.rated_class_probabilities(psi, counts),
        }

    return Rebalancer(sampling.initial_psi(counts, initial_power), draw, weights, summary)


def meta_reweighter(class_counts: np.ndarray, *, initial_power: float = 0.0) -> Rebalancer:
    r"""The Meta Reweighter: ψ sets how much each class's losses weigh.

    .. math:: w_b = \frac{\sigma(\psi_{y_b})}{\frac1B \sum_i \sigma(\psi_{y_i})},
        \qquad L = \frac1B \sum_b w_b\, \ell_b

    The batch is drawn instance-balanced; the real step is weighted.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        initial_power: p of :func:`sampling.initial_psi`.

    Returns:
        The rebalancer; ψ is ``[classes]``.

    Raises:
        ValueError: if counts are no whole numbers.

    Example:
        >>> reweighter = meta_reweighter(np.array([90, 10]))
        >>> draw = Draw(jnp.array([0, 95]), jnp.array([0, 1]))
        >>> print(reweighter.weights(jnp.array([0.0, 100.0]), draw, jnp.zeros(2)))
        [0.6666667 1.3333334]

    References:
        BALMS (arXiv 2007.10740), the ablation of §4.3 and the LVIS experiments.
    """
    sampling.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)

    def draw(key: jax.Array, psi: jax.Array, batch_size: int) -> Draw:
        del psi
        class_key, example_key = jax.random.split(key)
        probabilities = sampling.class_probabilities(counts)
        classes = sampling.draw_classes(class_key, probabilities, batch_size)
        return Draw(sampling.examples_by_class(example_key, classes, counts), classes)

    def weights(psi: jax.Array, draw: Draw, losses: jax.Array) -> jax.Array:
        del losses
        # A softmax, so that rates which all vanish still have a mean.
        log_rates = jax.nn.log_sigmoid(psi)[draw.classes]
        return log_rates.size * jax.nn.softmax(log_rates)

    def summary(psi: jax.Array) -> dict[str, jax.Array]:
        rates = sampling.rates(psi)
        mean = jnp.sum(sampling.class_probabilities(counts).astype(rates.dtype) * rates)
        return {'sampling_rates': rates, 'loss_weights': rates / mean}

    return Rebalancer(sampling.initial_psi(counts, initial_power), draw, weights, summary)


REBALANCERS: dict[str, Callable[..., Rebalancer]] = {
    'meta_sampler': meta_sampler,
    'meta_reweighter': meta_reweighter,
}
