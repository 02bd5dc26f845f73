r"""How does a draw get a gradient? The estimators of the sampling gradient.

At sampling rates of ψ class j is drawn with probability :math:`q_j \propto n_j \sigma(\psi_j)`. A
real step on the drawn batch,

.. math:: \tilde\theta = \theta + U\Big(\nabla_\theta \frac1B \sum_b z_b\, \ell_b\Big), \qquad
    a_b = \frac{\partial L_{meta}(\tilde\theta)}{\partial z_b}, \qquad
    \nabla_\psi = \sum_b a_b\, \frac{\partial z_b}{\partial \psi}

gives every drawn example's influence a on the meta loss. So an estimator is a draw and weights z.
*Unbiased* is said of :math:`\nabla_\psi \operatorname{E} L_{meta}(\tilde\theta)` to first order in
the step: exactly so where U is linear, as SGD's is, and L_meta is between θ and θ̃.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import priors, sampling
from balms_jax.sampling import one_with_gradient_of


class Draw(NamedTuple):
    """A training batch as it was drawn, from a data set sorted by class."""

    examples: jax.Array  # places in the data set, [batch], int32
    classes: jax.Array  # their labels, [batch], int32
    noise: jax.Array | None = None  # what a differentiable draw was made by


class Estimator(NamedTuple):
    """A way to draw a batch at the rates of ψ, and weights that carry the gradient of ψ.

    A draw may be stale, made at another ψ: its examples keep their places, and the weights are
    those of the ψ given.
    """

    draw: Callable[[jax.Array, jax.Array, int], Draw]  # (key, ψ [classes], batch size) → the batch
    weights: Callable[[jax.Array, Draw], jax.Array]  # (ψ, batch) → z, [batch], of ψ's type


def gumbel_over_examples(class_counts: np.ndarray, *, temperature: float = 1.0) -> Estimator:
    r"""The official estimator: Gumbel straight-through over all examples.

    .. math:: \frac{\partial z_b}{\partial \psi_j} =
        \frac{1 - s_j}{T}\, p_b\, (1[c_b = j] - P_{bj})

    with p and P of :func:`sampling.straight_through_over_examples`. Biased; in scale alone where
    all rates are equal: to a drawn example all others are then alike, so that the mean is that of
    :func:`score` times a constant. It needs noise ``[batch, examples]``.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        temperature: T of the soft sample, above 0.

    Returns:
        The estimator; z is exactly 1.

    Raises:
        ValueError: if counts are no whole numbers; when used, if T is not above 0 or another
            estimator made the draw.

    Example:
        >>> estimator = gumbel_over_examples(np.array([3, 1]))
        >>> draw = estimator.draw(jax.random.key(0), jnp.zeros(2), 4)
        >>> print(draw.noise.shape, estimator.weights(jnp.zeros(2), draw))
        (4, 4) [1. 1. 1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2, and its released code.
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)
    labels = np.repeat(np.arange(counts.size, dtype=np.int32), counts.astype(np.int64))

    def draw(key: jax.Array, psi: jax.Array, batch_size: int) -> Draw:
        noise_key, _ = jax.random.split(key)
        gumbel = jax.random.gumbel(noise_key, (batch_size, labels.size), psi.dtype)
        examples, _ = sampling.straight_through_over_examples(psi, labels, gumbel, temperature)
        return Draw(examples, jnp.asarray(labels)[examples], gumbel)

    def weights(psi: jax.Array, draw: Draw) -> jax.Array:
        return sampling.straight_through_over_examples(
            psi, labels, _noise_of(draw), temperature, drawn=draw.examples
        )[1]

    return Estimator(draw, weights)


def gumbel_over_classes(class_counts: np.ndarray, *, temperature: float = 1.0) -> Estimator:
    r"""Gumbel straight-through over the classes, then any example of the class.

    .. math:: \frac{\partial z_b}{\partial \psi_j} =
        \frac{1 - s_j}{T}\, p_b\, (1[c_b = j] - p_{bj})

    with p of :func:`sampling.straight_through_over_classes`. Biased; in scale alone where all
    classes are equally likely, for the reason given at :func:`gumbel_over_examples`. The draws have
    the distribution of those; the gradient is another one.

    Args:
        class_counts: n, ``[classes]``, whole numbers.
        temperature: T of the soft sample, above 0.

    Returns:
        The estimator; z is exactly 1.

    Raises:
        ValueError: if counts are no whole numbers; when used, if T is not above 0 or another
            estimator made the draw.

    Example:
        >>> estimator = gumbel_over_classes(np.array([3, 1]))
        >>> draw = estimator.draw(jax.random.key(0), jnp.zeros(2), 4)
        >>> print(draw.noise.shape, estimator.weights(jnp.zeros(2), draw))
        (4, 2) [1. 1. 1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2; Jang et al., Gumbel-Softmax (arXiv 1611.01144).
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)

    def draw(key: jax.Array, psi: jax.Array, batch_size: int) -> Draw:
        noise_key, example_key = jax.random.split(key)
        gumbel = jax.random.gumbel(noise_key, (batch_size, counts.size), psi.dtype)
        classes, _ = sampling.straight_through_over_classes(psi, counts, gumbel, temperature)
        return Draw(sampling.examples_by_class(example_key, classes, counts), classes, gumbel)

    def weights(psi: jax.Array, draw: Draw) -> jax.Array:
        return sampling.straight_through_over_classes(
            psi, counts, _noise_of(draw), temperature, drawn=draw.classes
        )[1]

    return Estimator(draw, weights)


def score(class_counts: np.ndarray) -> Estimator:
    r"""The score function: independent draws, each weighted by its log probability's gradient.

    .. math:: \frac{\partial z_b}{\partial \psi} = \frac{\partial \log q_{c_b}}{\partial \psi}

    Unbiased, because :math:`\nabla_\psi \sum_j q_j \bar a_j = \sum_j q_j \bar a_j \nabla_\psi \log
    q_j`, where :math:`\bar a_j` is the mean influence of class j.

    Args:
        class_counts: n, ``[classes]``, whole numbers.

    Returns:
        The estimator; z is exactly 1.

    Raises:
        ValueError: if counts are no whole numbers.

    Example:
        >>> estimator = score(np.array([1, 1]))
        >>> draw = Draw(jnp.array([0, 1]), jnp.array([0, 1]))
        >>> print(jax.jacobian(estimator.weights)(jnp.zeros(2), draw))
        [[ 0.25 -0.25]
         [-0.25  0.25]]

    References:
        Williams, Simple Statistical Gradient-Following Algorithms (1992).
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)

    def weights(psi: jax.Array, draw: Draw) -> jax.Array:
        return one_with_gradient_of(_log_probabilities(psi, draw, counts))

    return Estimator(_draw_by_class(sampling.draw_classes, counts), weights)


def score_leave_one_out(class_counts: np.ndarray) -> Estimator:
    r"""The score function with the mean influence of the others as each draw's baseline.

    .. math:: \frac{\partial z_b}{\partial \psi} = \frac{\partial}{\partial \psi} \Big(\log q_{c_b}
        - \frac1{B-1} \sum_{i \ne b} \log q_{c_i}\Big), \quad \nabla_\psi = \sum_b
        \Big(a_b - \frac1{B-1} \sum_{i \ne b} a_i\Big) \frac{\partial \log q_{c_b}}{\partial \psi}

    Both are one sum over pairs, read by either index. Unbiased: to first order in the step the
    influences of the others do not depend on draw b, and :math:`\operatorname{E} \nabla_\psi \log
    q_{c_b} = \nabla_\psi \sum_j q_j = 0`. What all influences share cancels.

    Args:
        class_counts: n, ``[classes]``, whole numbers.

    Returns:
        The estimator; z is exactly 1.

    Raises:
        ValueError: if counts are no whole numbers; when used, if a batch holds fewer than two.

    Example:
        >>> estimator = score_leave_one_out(np.array([1, 1]))
        >>> draw = Draw(jnp.array([0, 1]), jnp.array([0, 1]))
        >>> print(jax.jacobian(estimator.weights)(jnp.zeros(2), draw))
        [[ 0.5 -0.5]
         [-0.5  0.5]]

    References:
        Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free! (2019).
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)

    def draw_classes(key: jax.Array, probabilities: jax.Array, batch_size: int) -> jax.Array:
        _check_two(batch_size)
        return sampling.draw_classes(key, probabilities, batch_size)

    def weights(psi: jax.Array, draw: Draw) -> jax.Array:
        batch_size = draw.classes.size
        _check_two(batch_size)
        log_q = _log_probabilities(psi, draw, counts)
        return one_with_gradient_of(batch_size / (batch_size - 1) * (log_q - log_q.mean()))

    return Estimator(_draw_by_class(draw_classes, counts), weights)


def systematic(class_counts: np.ndarray) -> Estimator:
    r"""The score function of a systematic draw: every class as often as q says, up to rounding.

    .. math:: \frac{\partial z_b}{\partial \psi} = \frac{\partial \log q_{c_b}}{\partial \psi}

    Unbiased as :func:`score` is, for class j is drawn B q_j times in expectation. Which classes are
    drawn is left to chance by less than one example each, and what all influences share nearly
    cancels.

    Args:
        class_counts: n, ``[classes]``, whole numbers.

    Returns:
        The estimator; z is exactly 1.

    Raises:
        ValueError: if counts are no whole numbers.

    Example:
        >>> estimator = systematic(np.array([3, 1]))
        >>> draw = estimator.draw(jax.random.key(0), jnp.zeros(2), 4)
        >>> print(draw.classes, estimator.weights(jnp.zeros(2), draw))
        [0 0 0 1] [1. 1. 1. 1.]

    References:
        :func:`sampling.systematic_classes`.
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)
    return Estimator(_draw_by_class(sampling.systematic_classes, counts), score(counts).weights)


def systematic_examples(class_counts: np.ndarray) -> Estimator:
    r"""The systematic draw of classes, and of each class examples that are spread over it.

    .. math:: \frac{\partial z_b}{\partial \psi} = \frac{\partial \log q_{c_b}}{\partial \psi}

    Unbiased as :func:`systematic` is, for every example is as likely as any other of its class. A
    class with few examples shows each about equally often, so that less is left to chance: nothing,
    where the batch holds all of them.

    Args:
        class_counts: n, ``[classes]``, whole numbers.

    Returns:
        The estimator; z is exactly 1.

    Raises:
        ValueError: if counts are no whole numbers.

    Example:
        >>> estimator = systematic_examples(np.array([6, 2]))
        >>> draw = estimator.draw(jax.random.key(0), jnp.array([0.0, 20.0]), 5)
        >>> print(draw.classes, draw.examples)
        [0 0 0 1 1] [2 4 0 6 7]

    References:
        :func:`sampling.systematic_classes`, :func:`sampling.systematic_examples_by_class`.
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)
    draw = _draw_by_class(
        sampling.systematic_classes, counts, sampling.systematic_examples_by_class
    )
    return Estimator(draw, score(counts).weights)


def expectation(class_counts: np.ndarray) -> Estimator:
    r"""The expectation over classes: every class is drawn equally often and weighs what q says.

    .. math:: z_b = C\, q_{c_b}(\psi), \qquad \operatorname{E} \frac1B \sum_b z_b\, \ell_b =
        \sum_j q_j\, \bar\ell_j

    C counts the classes that are not empty. z is an importance weight with its value: the real step
    is weighted, in expectation that of a draw at q. Unbiased; for the weighted step itself to every
    order, because its draw does not depend on ψ. Where C divides B, the classes are not random at
    all, only their examples.

    Args:
        class_counts: n, ``[classes]``, whole numbers.

    Returns:
        The estimator; z has mean 1, exactly so where C divides B.

    Raises:
        ValueError: if counts are no whole numbers.

    Example:
        >>> estimator = expectation(np.array([3, 1]))
        >>> draw = estimator.draw(jax.random.key(0), jnp.zeros(2), 4)
        >>> z = estimator.weights(jnp.zeros(2), draw)
        >>> print(draw.classes, jnp.array_str(z, precision=2))
        [0 0 1 1] [1.5 1.5 0.5 0.5]

    References:
        Owen, Monte Carlo Theory, Methods and Examples (2013), §8.4 and §9.
    """
    priors.check_whole_counts(class_counts)
    counts = np.asarray(class_counts)

    def equally_often(key: jax.Array, probabilities: jax.Array, batch_size: int) -> jax.Array:
        del probabilities
        equal = sampling.class_probabilities(counts, 0.0)
        return sampling.systematic_classes(key, equal, batch_size)

    def weights(psi: jax.Array, draw: Draw) -> jax.Array:
        q = sampling.rated_class_probabilities(psi, counts)
        return int(np.count_nonzero(counts)) * q[draw.classes]

    return Estimator(_draw_by_class(equally_often, counts), weights)


def _draw_by_class(
    draw_classes: Callable[[jax.Array, jax.Array, int], jax.Array],
    counts: np.ndarray,
    examples_by_class: Callable[..., jax.Array] = sampling.examples_by_class,
) -> Callable[[jax.Array, jax.Array, int], Draw]:
    """A draw of classes by their probabilities at ψ, then of an example of each."""

    def draw(key: jax.Array, psi: jax.Array, batch_size: int) -> Draw:
        class_key, example_key = jax.random.split(key)
        probabilities = sampling.rated_class_probabilities(psi, counts)
        classes = draw_classes(class_key, probabilities, batch_size)
        return Draw(examples_by_class(example_key, classes, counts), classes)

    return draw


def _noise_of(draw: Draw) -> jax.Array:
    if draw.noise is None:
        raise ValueError('draw: got one without noise, wanted one that this estimator made')
    return draw.noise


def _log_probabilities(psi: jax.Array, draw: Draw, counts: np.ndarray) -> jax.Array:
    """Log q of every drawn class, ``[batch]``."""
    return sampling.rated_log_class_probabilities(psi, counts)[draw.classes]


def _check_two(batch_size: int) -> None:
    if batch_size < 2:
        raise ValueError(
            f'batch_size: got {batch_size}, wanted at least 2, for each draw has the others as '
            'its baseline'
        )


def _without_temperature(make: Callable[[np.ndarray], Estimator]) -> Callable[..., Estimator]:
    """Takes a temperature, as all of ``ESTIMATORS`` do, where nothing is softened by it."""

    def made(class_counts: np.ndarray, *, temperature: float = 1.0) -> Estimator:
        del temperature
        return make(class_counts)

    return made


# name → (class counts, temperature=T) → the estimator
ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    'examples': gumbel_over_examples,
    'classes': gumbel_over_classes,
    'score': _without_temperature(score),
    'score_leave_one_out': _without_temperature(score_leave_one_out),
    'systematic': _without_temperature(systematic),
    'systematic_examples': _without_temperature(systematic_examples),
    'expectation': _without_temperature(expectation),
}
