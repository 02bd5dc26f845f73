r"""What ψ is and how it enters training: the learned rebalancing methods.

Each is a :class:`Rebalancer`: pure functions that say where ψ starts, how a batch is drawn under
it, and what weight it gives every loss of the batch. ``meta_gradients`` learns any of them.

Two kinds of step are known. In the first the meta-gradient looks through the real step. In the
other it looks through a *trial* step, plain SGD that is thrown away, and the real step takes the
weights that come of it, :math:`\frac1B \sum_b w_b\, \ell_b`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import priors, sampling
from balms_jax.estimators import ESTIMATORS, Draw

PyTree = Any


class Rebalancer(NamedTuple):
    """A learned parameter ψ and its ways into training: the draw, the weights, the logits."""

    psi: PyTree  # where it starts
    draw: Callable[[jax.Array, PyTree, int], Draw]  # (key, ψ, batch size) → the batch
    weights: Callable[[PyTree, Draw, jax.Array], jax.Array]  # (ψ, batch, losses [batch]) → [batch]
    summary: Callable[[PyTree], dict[str, jax.Array]]  # what the records show of ψ, each [classes]
    log_adjustment: Callable[[PyTree], jax.Array] | None = None
    """ψ → what is added to the logits in training, ``[classes]``; None: nothing"""
    probabilities: Callable[[PyTree], jax.Array] | None = None
    """ψ → how often each class is drawn, ``[classes]``; None: the draw does not follow ψ"""
    real_weights: Callable[[PyTree, jax.Array | None, Draw, jax.Array], jax.Array] | None = None
    """(ψ after its step, ∂L_meta/∂z [batch] if the mode makes it, batch, losses [batch]) → w of the
    real step, [batch]; None: the step that was looked through is the real one"""
    sums_trial: bool = False
    """whether a trial step is along the sum of the batch's losses, not along their mean"""


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
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)
    draw, z = ESTIMATORS[estimator](counts, temperature=temperature)

    def weights(psi: jax.Array, draw: Draw, losses: jax.Array) -> jax.Array:
        del losses
        return z(psi, draw)

    def probabilities(psi: jax.Array) -> jax.Array:
        return sampling.rated_class_probabilities(psi, counts)

    def summary(psi: jax.Array) -> dict[str, jax.Array]:
        return {'sampling_rates': sampling.rates(psi), 'class_probabilities': probabilities(psi)}

    first = sampling.initial_psi(counts, initial_power)
    return Rebalancer(first, draw, weights, summary, probabilities=probabilities)


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
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)

    def weights(psi: jax.Array, draw: Draw, losses: jax.Array) -> jax.Array:
        del losses
        # A softmax, so that rates which all vanish still have a mean.
        log_rates = jax.nn.log_sigmoid(psi)[draw.classes]
        return log_rates.size * jax.nn.softmax(log_rates)

    def summary(psi: jax.Array) -> dict[str, jax.Array]:
        rates = sampling.rates(psi)
        mean = jnp.sum(sampling.class_probabilities(counts).astype(rates.dtype) * rates)
        return {'sampling_rates': rates, 'loss_weights': rates / mean}

    return Rebalancer(
        sampling.initial_psi(counts, initial_power), _instance_balanced(counts), weights, summary
    )


def learned_adjustment(class_counts: np.ndarray, *, initial_power: float = 0.0) -> Rebalancer:
    r"""A learned logit adjustment: ψ = log ξ takes the place of Balanced Softmax's log n.

    .. math:: L = \frac1B \sum_b -\log \frac{\xi_{y} e^{\eta_{y}}}{\sum_j \xi_j e^{\eta_j}},
        \qquad \xi_j = e^{\psi_j}

    Whether the search finds the derived ξ_j = n_j is the question. The batch is drawn
    instance-balanced; the loss that it is added to should be plain softmax.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        initial_power: p, where ξ starts at n^p: 0 at plain softmax, 1 at Balanced Softmax.

    Returns:
        The rebalancer; ψ is ``[classes]``.

    Raises:
        ValueError: if counts are no whole numbers, or a class is empty.

    Example:
        >>> adjustment = learned_adjustment(np.array([90, 10]), initial_power=1.0)
        >>> print(jnp.array_str(jnp.exp(adjustment.psi), precision=2))
        [0.9 0.1]

    References:
        The bi-level form of cost-sensitive learning (Khan et al., arXiv 1508.03422).
    """
    priors.check_whole_counts(class_counts)
    priors.check_no_empty_class(class_counts)
    counts = np.asarray(class_counts)

    def summary(psi: jax.Array) -> dict[str, jax.Array]:
        return {'log_adjustment': psi - psi.mean()}

    return Rebalancer(
        initial_power * priors.log_prior(counts),
        _instance_balanced(counts),
        _equal_weights,
        summary,
        log_adjustment=lambda psi: psi,
    )


def learning_to_reweight(class_counts: np.ndarray) -> Rebalancer:
    r"""L2RW: every example of the batch is weighed by its own meta-gradient, and nothing is kept.

    .. math:: w_b = B\, \frac{\max(-\partial L_{meta} / \partial \epsilon_b, 0)}{\sum_i
        \max(-\partial L_{meta} / \partial \epsilon_i, 0)}

    through a trial step of :math:`\sum_b \epsilon_b \ell_b` at ε = 0, which moves nothing. Where
    no example helps, all weights are 0.

    Args:
        class_counts: n, ``[classes]``, whole numbers.

    Returns:
        The rebalancer; ψ has no entries. Its engine's mode must be one of single examples.

    Raises:
        ValueError: if counts are no whole numbers; when used, if the mode gives no gradients.

    Example:
        >>> rebalancer = learning_to_reweight(np.array([90, 10]))
        >>> gradients, draw = jnp.array([-1.0, 2.0]), Draw(jnp.array([0, 95]), jnp.array([0, 1]))
        >>> print(rebalancer.real_weights((), gradients, draw, jnp.zeros(2)))
        [2. 0.]

    References:
        Ren et al., Learning to Reweight Examples (arXiv 1803.09050), Algorithm 1.
    """
    priors.check_whole_counts(class_counts)

    def weights(psi: PyTree, draw: Draw, losses: jax.Array) -> jax.Array:
        del psi, draw
        return jnp.zeros_like(losses)

    def real_weights(
        psi: PyTree, gradients: jax.Array | None, draw: Draw, losses: jax.Array
    ) -> jax.Array:
        del psi, draw, losses
        helpful = jnp.maximum(-_of_every_example(gradients), 0)
        total = helpful.sum()
        return helpful.size * helpful / jnp.where(total > 0, total, 1)

    return Rebalancer(
        (),
        _instance_balanced(np.asarray(class_counts)),
        weights,
        lambda psi: {},
        real_weights=real_weights,
    )


def meta_weight_net(class_counts: np.ndarray, *, width: int = 100, seed: int = 0) -> Rebalancer:
    r"""Meta-Weight-Net: a small network learns the weight that a loss of some size gets.

    .. math:: w_b = V(\ell_b; \psi) = \sigma(a^\top \max(W \ell_b + c, 0) + d)

    The trial step takes the weights before, the real one those after ψ's step.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        width: hidden units.
        seed: of the first ψ.

    Returns:
        The rebalancer; ψ is {'hidden': {'kernel', 'bias'}, 'output': {'kernel', 'bias'}}.

    Raises:
        ValueError: if counts are no whole numbers.

    Example:
        >>> rebalancer = meta_weight_net(np.array([90, 10]))
        >>> draw = Draw(jnp.array([0, 95]), jnp.array([0, 1]))
        >>> print(rebalancer.weights(rebalancer.psi, draw, jnp.zeros(2)).shape)
        (2,)

    References:
        Shu et al., Meta-Weight-Net (arXiv 1902.07379), Eqns. 3–5.
    """
    priors.check_whole_counts(class_counts)
    hidden_key, output_key = jax.random.split(jax.random.key(seed))
    psi = {
        'hidden': _dense(hidden_key, 1, width),
        'output': _dense(output_key, width, 1),
    }

    def weigh(psi: PyTree, losses: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(_affine(psi['hidden'], losses[:, None]))
        return jax.nn.sigmoid(_affine(psi['output'], hidden)[:, 0])

    return Rebalancer(
        psi,
        _instance_balanced(np.asarray(class_counts)),
        lambda psi, draw, losses: weigh(psi, jax.lax.stop_gradient(losses)),
        lambda psi: {},
        real_weights=lambda psi, gradients, draw, losses: weigh(psi, losses),
    )


def class_balanced_domain_adaptation(
    class_counts: np.ndarray, *, beta: float = 0.9999, rate: float = 0.01
) -> Rebalancer:
    r"""Jamal et al.: class-balanced weights, each corrected by the example's own meta-gradient.

    .. math:: w_b = \frac{C}{Z} \frac{1 - \beta}{1 - \beta^{n_{y_b}}} + \epsilon_b,
        \qquad \epsilon_b = -\gamma\, \partial L_{meta} / \partial \epsilon_b

    through a trial step at ε = 0 along the gradient of Σ w ℓ over the batch; the real step is
    along that of their mean. Nothing is kept from step to step.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        beta: β of :func:`priors.class_balanced_weights`.
        rate: γ, the length of the correction.

    Returns:
        The rebalancer; ψ has no entries. Its engine's mode must be one of single examples.

    Raises:
        ValueError: if counts are no whole numbers; when used, if the mode gives no gradients.

    Example:
        >>> rebalancer = class_balanced_domain_adaptation(np.array([50, 50]))
        >>> gradients, draw = jnp.array([-1.0, 2.0]), Draw(jnp.array([0, 95]), jnp.array([0, 1]))
        >>> weights = rebalancer.real_weights((), gradients, draw, jnp.zeros(2))
        >>> print(jnp.array_str(weights, precision=2))
        [1.01 0.98]

    References:
        Jamal et al., Rethinking Class-Balanced Methods from a Domain Adaptation Perspective
        (arXiv 2003.10780), Algorithm 1.
    """
    priors.check_whole_counts(class_counts)
    of_class = priors.class_balanced_weights(class_counts, beta)

    def weights(psi: PyTree, draw: Draw, losses: jax.Array) -> jax.Array:
        del psi
        return of_class[draw.classes].astype(losses.dtype)

    def real_weights(
        psi: PyTree, gradients: jax.Array | None, draw: Draw, losses: jax.Array
    ) -> jax.Array:
        return weights(psi, draw, losses) - rate * _of_every_example(gradients)

    return Rebalancer(
        (),
        _instance_balanced(np.asarray(class_counts)),
        weights,
        lambda psi: {'loss_weights': of_class},
        real_weights=real_weights,
        sums_trial=True,
    )


def _instance_balanced(counts: np.ndarray) -> Callable[[jax.Array, PyTree, int], Draw]:
    def draw(key: jax.Array, psi: PyTree, batch_size: int) -> Draw:
        del psi
        probabilities = sampling.class_probabilities(counts)
        return Draw(*sampling.draw_examples(key, probabilities, counts, batch_size))

    return draw


def _equal_weights(psi: PyTree, draw: Draw, losses: jax.Array) -> jax.Array:
    del psi, draw
    return jnp.ones_like(losses)


def _of_every_example(gradients: jax.Array | None) -> jax.Array:
    if gradients is None:
        raise ValueError(
            'gradients: got None, wanted the meta-gradient of every example, which the modes of '
            'single examples give'
        )
    return gradients


def _dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A layer's first parameters, uniform in ±1/√inputs."""
    bound, keys = inputs**-0.5, jax.random.split(key)
    return {
        'kernel': jax.random.uniform(keys[0], (inputs, outputs), minval=-bound, maxval=bound),
        'bias': jax.random.uniform(keys[1], (outputs,), minval=-bound, maxval=bound),
    }


def _affine(layer: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    return inputs @ layer['kernel'] + layer['bias'][None]


REBALANCERS: dict[str, Callable[..., Rebalancer]] = {
    'meta_sampler': meta_sampler,
    'meta_reweighter': meta_reweighter,
    'learned_adjustment': learned_adjustment,
    'learning_to_reweight': learning_to_reweight,
    'meta_weight_net': meta_weight_net,
    'class_balanced_domain_adaptation': class_balanced_domain_adaptation,
}
ONE_BY_ONE = ('learning_to_reweight', 'class_balanced_domain_adaptation')
"""Those that read the meta-gradient of every example's weight."""
