r"""Stage 2 of the detector: its class layer alone is fine-tuned, plain or by the Meta Reweighter.

All else is frozen, so that a step needs no more of an image than its regions' features and
categories. Where these come from, of a cache or of fresh draws, is not the step's business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from balms_jax.detection import losses
from balms_jax.detection.steps import CategoryLoss
from balms_jax.detection.targets import NO_CATEGORY
from balms_jax.meta_gradients import WeightedLosses, value_and_meta_grad

PyTree = Any
Logits = Callable[[PyTree, jax.Array], jax.Array]
"""(class layer, features ``[regions, features]``) → ``[regions, categories]``"""


class Regions(NamedTuple):
    """What the class layer learns from, of any number of images."""

    features: jax.Array
    """``[regions, features]``"""
    categories: jax.Array
    """0 to C − 1, and ``NO_CATEGORY`` for background, int32, ``[regions]``"""
    where: jax.Array
    """Which are no padding, bool, ``[regions]``"""


class MetaRegions(NamedTuple):
    """What a step of the Meta Reweighter learns from."""

    trial: Regions
    """Of the step that is looked through and thrown away."""
    meta: Regions
    """Of images drawn by ``repeat_factors.meta_repeat_factors``."""
    real: Regions
    """Of the step that stays: new draws, as a rule of the trial's images."""


class State(NamedTuple):
    """What the next step depends on."""

    classifier: PyTree
    """The class layer's parameters."""
    opt_state: PyTree
    psi: jax.Array | None
    """ψ, ``[categories]``; None where nothing is learned beside the class layer."""
    psi_opt_state: PyTree
    key: jax.Array
    """Folded with the step for what a step draws."""
    step: jax.Array
    """int32, a scalar"""


class Metrics(NamedTuple):
    """Of a step, in nats a region."""

    loss: jax.Array
    """Before the step, weighted; a scalar."""
    meta_loss: jax.Array | None
    """After the trial step, a scalar; None without one."""


def foreground_weights(psi: jax.Array, categories: jax.Array) -> jax.Array:
    r"""The Meta Reweighter's weights of regions: foreground by its category, background 1.

    .. math:: w_b = \frac{\sigma(\psi_{y_b})}{\frac1{|F|} \sum_{i \in F} \sigma(\psi_{y_i})}
        \text{ for } b \in F, \quad 1 \text{ else}

    with F the batch's foreground. Without background these are the weights of
    ``rebalancers.meta_reweighter``.

    Args:
        psi: ψ, ``[categories]``.
        categories: y, int, ``[regions]``; ``NO_CATEGORY`` for background and padding.

    Returns:
        Weights, ``[regions]``, of ψ's type; of mean 1 over the foreground.

    Raises:
        ValueError: if ψ or the categories have another number of axes.

    Example:
        >>> print(foreground_weights(jnp.array([0.0, 100.0]), jnp.array([0, -1, 1])))
        [0.6666667 1.        1.3333334]

    References:
        BALMS (arXiv 2007.10740), §4.1, and its released code for LVIS.
    """
    if psi.ndim != 1 or categories.ndim != 1:
        raise ValueError(
            f'psi: got shape {psi.shape} for categories {categories.shape}, wanted [categories] '
            'and [regions]'
        )
    is_foreground = categories >= 0
    log_rates = jax.nn.log_sigmoid(psi)[jnp.maximum(categories, 0)]
    # Rates relative to the largest, so that those which all vanish still have a mean.
    largest = jnp.max(log_rates, where=is_foreground, initial=-jnp.inf)
    relative = jnp.where(is_foreground, log_rates - jax.lax.stop_gradient(largest), 0)
    rates = jnp.where(is_foreground, jnp.exp(relative), 0)
    total = rates.sum()
    number = is_foreground.sum(dtype=psi.dtype)
    return jnp.where(is_foreground, number * rates / jnp.where(total > 0, total, 1), 1)


def init_state(
    key: jax.Array,
    classifier: PyTree,
    optimizer: optax.GradientTransformation,
    psi: jax.Array | None = None,
    psi_optimizer: optax.GradientTransformation | None = None,
) -> State:
    """The state before the first step of stage 2.

    Args:
        key: a PRNG key.
        classifier: the class layer's parameters after stage 1, ``params['classifier']``.
        optimizer: of the class layer, as the step gets it.
        psi: ψ to start from, ``[categories]``, as ``rebalancers.meta_reweighter(counts).psi``; for
            :func:`make_meta_step`.
        psi_optimizer: of ψ, as the step gets it.

    Returns:
        The state.

    Raises:
        ValueError: if one of ψ and its optimizer is given without the other.
    """
    if (psi is None) != (psi_optimizer is None):
        raise ValueError('psi: got one of ψ and psi_optimizer, wanted both or neither')
    psi_opt_state = None if psi_optimizer is None else psi_optimizer.init(psi)
    opt_state, step = optimizer.init(classifier), jnp.zeros((), jnp.int32)
    return State(classifier, opt_state, psi, psi_opt_state, key, step)


def make_step(
    logits: Logits, category_loss: CategoryLoss, optimizer: optax.GradientTransformation
) -> Callable[[State, Regions], tuple[State, Metrics]]:
    r"""Builds a step of plain fine-tuning, on the mean of the regions' losses.

    .. math:: L = \frac1N \sum_b \ell_b

    Args:
        logits: of the class layer.
        category_loss: ℓ of a region, such as ``losses.sigmoid_loss``.
        optimizer: any of optax.

    Returns:
        (state, regions) → (the next state, the metrics). It is pure, of fixed shapes.

    Example:
        >>> step = make_step(lambda w, features: features @ w, losses.sigmoid_loss, optax.sgd(1.0))
        >>> state = init_state(jax.random.key(0), jnp.zeros((1, 2)), optax.sgd(1.0))
        >>> one = Regions(jnp.ones((1, 1)), jnp.array([1]), jnp.array([True]))
        >>> after, metrics = step(state, one)
        >>> print(after.classifier, round(float(metrics.loss), 3))
        [[-0.5  0.5]] 1.386

    References:
        BALMS (arXiv 2007.10740), §4.1: decoupled training on LVIS.
    """
    train_loss = _train_loss(logits, category_loss, _equal_weights)

    def step(state: State, regions: Regions) -> tuple[State, Metrics]:
        (loss, _), gradient = jax.value_and_grad(train_loss, has_aux=True)(
            state.classifier, None, regions
        )
        return _updated(state, optimizer, gradient), Metrics(loss, None)

    return step


def make_meta_step(
    logits: Logits,
    category_loss: CategoryLoss,
    optimizer: optax.GradientTransformation,
    psi_optimizer: optax.GradientTransformation,
    *,
    meta_loss: CategoryLoss = losses.sigmoid_loss,
    mode: str = 'reverse',
) -> Callable[[State, MetaRegions], tuple[State, Metrics]]:
    r"""Builds a step of the Meta Reweighter.

    .. math:: L(\theta, \psi) = \frac1N \sum_b w_b(\psi)\, \ell_b(\theta), \qquad
        \tilde\theta(\psi) = \theta + U(\nabla_\theta L(\theta, \psi)), \qquad
        \nabla_\psi L_{meta}(\tilde\theta(\psi))

    with w of :func:`foreground_weights` and U the optimizer's update. ψ takes its step first. Then
    θ takes its own, on new regions, by the weights of the new ψ.

    Args:
        logits: of the class layer.
        category_loss: ℓ of a region, such as ``losses.balanced_sigmoid_loss`` with its fractions.
        optimizer: of the class layer; its momentum and weight decay act in the trial step too.
        psi_optimizer: of ψ; ``optax.adam(0.01)`` in the released code, 0.001 in the paper.
        meta_loss: of a region, whose mean is L_meta: the plain sigmoid in the paper; in effect
            ``category_loss`` itself in the released code.
        mode: how the meta-gradient is taken, one of ``meta_gradients.MODES``.

    Returns:
        (state, regions of the three kinds) → (the next state, the metrics). It is pure, of fixed
        shapes. Without foreground weights do not depend on ψ, and its gradient is 0.

    Raises:
        ValueError: if the mode is unknown.

    Example:
        >>> descent = optax.sgd(1.0)
        >>> step = make_meta_step(
        ...     lambda w, features: features @ w, losses.sigmoid_loss, descent, descent)
        >>> state = init_state(jax.random.key(0), jnp.zeros((2, 2)), descent, jnp.zeros(2), descent)
        >>> both = Regions(jnp.array([[1.0, 0.5], [0.0, 1.0]]), jnp.arange(2), jnp.ones(2, bool))
        >>> second = both._replace(where=jnp.array([False, True]))
        >>> after, _ = step(state, MetaRegions(both, second, both))
        >>> print(after.psi.round(2))  # Less of the first category's loss, more of the second's.
        [-0.09  0.09]

    References:
        BALMS (arXiv 2007.10740), §4.1, and its released code for LVIS.
    """
    train_loss = _train_loss(logits, category_loss, foreground_weights)
    of_meta_set = _train_loss(logits, meta_loss, _equal_weights)
    look_through = value_and_meta_grad(
        train_loss, lambda params, regions: of_meta_set(params, None, regions), optimizer, mode=mode
    )

    def step(state: State, regions: MetaRegions) -> tuple[State, Metrics]:
        trial = look_through(
            state.psi, state.classifier, state.opt_state, regions.trial, regions.meta
        )
        updates, psi_opt_state = psi_optimizer.update(
            trial.psi_grad, state.psi_opt_state, state.psi
        )
        psi = optax.apply_updates(state.psi, updates)
        (loss, _), gradient = jax.value_and_grad(train_loss, has_aux=True)(
            state.classifier, psi, regions.real
        )
        after = _updated(state, optimizer, gradient)
        after = after._replace(psi=psi, psi_opt_state=psi_opt_state)
        return after, Metrics(loss, trial.meta_loss)

    return step


def _train_loss(
    logits: Logits,
    category_loss: CategoryLoss,
    weights: Callable[[PyTree, jax.Array], jax.Array | float],
) -> WeightedLosses:
    """Σ w ℓ / N over the regions that are no padding."""

    def losses_of(params: PyTree, regions: Regions) -> tuple[jax.Array, None]:
        values = category_loss(logits(params, regions.features), regions.categories)
        return jnp.where(regions.where, values, 0), None

    def weigh(psi: PyTree, regions: Regions, values: jax.Array) -> jax.Array:
        # The mean is over all slots: what padding takes from it is given back.
        number = jnp.maximum(regions.where.sum(dtype=values.dtype), 1)
        of_regions = weights(psi, jnp.where(regions.where, regions.categories, NO_CATEGORY))
        return jnp.where(regions.where, of_regions * values.size / number, 0)

    return WeightedLosses(losses_of, weigh)


def _equal_weights(psi: PyTree, categories: jax.Array) -> float:
    del psi, categories
    return 1.0


def _updated(state: State, optimizer: optax.GradientTransformation, gradient: PyTree) -> State:
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.classifier)
    classifier = optax.apply_updates(state.classifier, updates)
    return state._replace(classifier=classifier, opt_state=opt_state, step=state.step + 1)
