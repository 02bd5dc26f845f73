r"""What are the bias and the variance of each sampling gradient? Exactly, where one can enumerate.

The problem is one step of SGD on the mean of B drawn losses, and a meta loss. What is estimated is

.. math:: \nabla_\psi \operatorname{E} L_{meta}(\tilde\theta), \qquad
    \tilde\theta = \theta - \frac\eta B \sum_b z_b \nabla \ell_{x_b}(\theta), \qquad
    \Pr(x_b) = q_{y_{x_b}}(\psi) / n_{y_{x_b}}

of independent draws with z = 1. An estimator's value is :math:`\sum_b a_b\, \partial z_b / \partial
\psi`, with the influence :math:`a_b = \partial L_{meta}(\tilde\theta) / \partial z_b`. Its draws
are enumerated with their probabilities. What is random of a Gumbel estimator once the draw is known
is integrated by quadrature. All is in float64.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from balms_jax import sampling
from balms_jax.estimators import ESTIMATORS, Draw, Estimator


class Problem(NamedTuple):
    """A step of SGD from θ on a data set sorted by class, and what is wanted of it."""

    class_counts: np.ndarray  # n, [classes], at least 1
    losses: Callable[[jax.Array], jax.Array]  # θ → ℓ of every example, [examples]
    meta_loss: Callable[[jax.Array], jax.Array]  # θ → L_meta, a scalar
    params: np.ndarray  # θ, [parameters]
    learning_rate: float = 0.1  # η
    batch_size: int = 3  # B; what is enumerated grows as examples to this power

    @property
    def labels(self) -> np.ndarray:
        """The class of every example, ``[examples]``."""
        return np.repeat(np.arange(self.class_counts.size), self.class_counts)


class Moments(NamedTuple):
    """The mean and the covariance of an estimate of the gradient of ψ."""

    mean: np.ndarray  # [classes]
    covariance: np.ndarray  # [classes, classes]


class Outcomes(NamedTuple):
    """All batches that may be drawn."""

    examples: np.ndarray  # [outcomes, batch]
    probabilities: jax.Array  # [outcomes]


def classifier_problem(
    class_counts: Sequence[int],
    *,
    seed: int = 0,
    learning_rate: float = 0.1,
    batch_size: int = 3,
    meta_examples: int = 4,
) -> Problem:
    """A linear classifier of points of the plane, trained with Balanced Softmax.

    Args:
        class_counts: n, ``[classes]``, at least 1.
        seed: of the points, one normal cloud a class, and of θ, ``[3 · classes]``.
        learning_rate: η.
        batch_size: B.
        meta_examples: of each class; the meta loss is their mean cross-entropy.

    Returns:
        The problem.
    """
    rng = np.random.default_rng(seed)
    counts = np.asarray(class_counts)
    centres = rng.normal(size=(counts.size, 2))
    log_prior = np.log(counts / counts.sum())

    def points(labels: np.ndarray) -> np.ndarray:
        return centres[labels] + rng.normal(size=(labels.size, 2))

    labels = np.repeat(np.arange(counts.size), counts)
    meta_labels = np.repeat(np.arange(counts.size), meta_examples)
    inputs, meta_inputs = points(labels), points(meta_labels)
    params = rng.normal(scale=0.5, size=3 * counts.size)

    def cross_entropy(
        params: jax.Array, inputs: np.ndarray, labels: np.ndarray, shift: np.ndarray
    ) -> jax.Array:
        kernel, bias = params[: -counts.size].reshape(2, -1), params[-counts.size :]
        log_p = jax.nn.log_softmax(inputs @ kernel + (bias + shift)[None, :])
        return -log_p[jnp.arange(labels.size), labels]

    return Problem(
        counts,
        lambda params: cross_entropy(params, inputs, labels, log_prior),
        lambda params: cross_entropy(params, meta_inputs, meta_labels, 0 * log_prior).mean(),
        params,
        learning_rate,
        batch_size,
    )


def linearised(problem: Problem) -> Problem:
    r"""The same problem to first order in the step.

    .. math:: L_{meta}(\theta') \to L_{meta}(\theta) +
        \langle \nabla L_{meta}(\theta), \theta' - \theta \rangle
    """
    with jax.enable_x64(True):
        params = jnp.asarray(problem.params)
        value, slope = jax.value_and_grad(problem.meta_loss)(params)
    return problem._replace(meta_loss=lambda moved: value + slope @ (moved - params))


def exact_gradient(problem: Problem, psi: ArrayLike) -> np.ndarray:
    """The gradient of the expected meta loss after a step on independent draws, ``[classes]``."""
    with jax.enable_x64(True):
        z, examples = jnp.ones(problem.batch_size), jnp.asarray(_all_batches(problem))
        meta_losses = jax.jit(jax.vmap(_meta_loss_after_step(problem), (None, 0)))(z, examples)

        def expected_meta_loss(psi: jax.Array) -> jax.Array:
            q = sampling.rated_class_probabilities(psi, problem.class_counts)
            return _independent(problem, q).probabilities @ meta_losses

        return np.asarray(jax.grad(expected_meta_loss)(jnp.asarray(psi, float)))


def psi_gradients(problem: Problem, psi: jax.Array, estimator: Estimator, draws: Draw) -> jax.Array:
    r"""What an estimator makes of each draw.

    .. math:: \nabla_\psi L_{meta}(\tilde\theta(z(\psi))) = \sum_b a_b\, \partial z_b / \partial\psi

    Args:
        problem: the problem.
        psi: ψ, ``[classes]``, float64.
        estimator: one of the library.
        draws: every field with a leading axis of draws.

    Returns:
        Gradients, ``[draws, classes]``.
    """
    meta_loss = _meta_loss_after_step(problem)

    def gradient(draw: Draw) -> jax.Array:
        return jax.grad(lambda psi: meta_loss(estimator.weights(psi, draw), draw.examples))(psi)

    return jax.jit(jax.vmap(gradient))(draws)


def moments(problem: Problem, psi: ArrayLike, estimator: str, temperature: float = 1.0) -> Moments:
    """The exact mean and covariance of an estimator's gradient.

    Args:
        problem: the problem.
        psi: ψ, ``[classes]``.
        estimator: a name of ``ESTIMATORS``.
        temperature: T of the Gumbel estimators; the quadrature is meant for 0.3 and above.

    Returns:
        The moments; to about 1e-10 of their size for the Gumbel estimators, else to rounding.
    """
    with jax.enable_x64(True):
        psi = jnp.asarray(psi, float)
        q = sampling.rated_class_probabilities(psi, problem.class_counts)
        if estimator in ('examples', 'classes'):
            return _gumbel_moments(problem, psi, estimator, temperature)
        examples, probabilities = OUTCOMES[estimator](problem, q)
        draws = Draw(jnp.asarray(examples), jnp.asarray(problem.labels[examples]))
        made = ESTIMATORS[estimator](problem.class_counts)
        return _moments(probabilities, psi_gradients(problem, psi, made, draws))


def soft_sample_moments(
    rates: np.ndarray, counts: np.ndarray, drawn: int, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""Moments of a soft sample, once it is known which outcome was drawn.

    Outcomes of class j have weight w_j each, and one of class c has the largest score. With p its
    entry of the soft sample, and P_j class j's mass in it, these are

    .. math:: \operatorname{E} p P_j, \qquad \operatorname{E} p P_j\, p P_k \qquad (j, k \ne c)

    Scores are :math:`-\log E_i` of exponential times E of rates w, of which the drawn outcome has
    the first, :math:`E_c \sim \operatorname{Exp}(W)`, W the sum of all w. The others are later by
    :math:`\operatorname{Exp}(w_i)` independently. So an outcome's entry is, beside the drawn one's,

    .. math:: R_i = (E_i / E_c)^{-1/T} = \Big(1 + \frac{W Y_i}{w_i M}\Big)^{-1/T}, \quad
        p = \frac1A, \quad p P_j = \frac1{A^2} \sum_{i \in j} R_i, \quad A = 1 + \sum_{i \ne c} R_i

    with M and all Y standard exponential. By :math:`A^{-k} = \int s^{k-1} e^{-sA} ds / (k-1)!` the
    expectation given M and s is a product over the outcomes: three axes of one rule, M, Y and s,
    do for any number of outcomes.

    Args:
        rates: w, ``[classes]``.
        counts: outcomes of each class, ``[classes]``, at least 1.
        drawn: c.
        temperature: T.

    Returns:
        First moments ``[classes]`` and second ones ``[classes, classes]``; 0 at class c.
    """
    points, weights = _exponential_rule()
    ratios = np.einsum('j,m,y->jmy', (rates @ counts) / rates, 1 / points, points)
    R = (1 + ratios) ** (-1 / temperature)
    # E R^k e^{−sR} over Y, for k = 0, 1, 2: [power, classes, M, s]
    damped = np.stack([np.exp(-s * R) * weights for s in points], -2)
    powers = np.stack([(damped * R[:, :, None] ** k).sum(-1) for k in range(3)])

    others = counts - (np.arange(counts.size) == drawn)
    no_other_is_first = np.prod(powers[0] ** others[:, None, None], axis=0)
    mass = weights[:, None] * weights * no_other_is_first
    n = counts[:, None, None]
    first = n * powers[1] / powers[0]
    pairs = np.einsum('jms,kms->jkms', first, first)
    # Within a class, n (n − 1) pairs are of two outcomes, n of one with itself.
    same = first**2 * (n - 1) / n + n * powers[2] / powers[0]
    pairs[np.diag_indices(counts.size)] = same

    rest = np.arange(counts.size) != drawn
    mean = np.einsum('ms,s,jms->j', mass, points, first)
    second = np.einsum('ms,s,jkms->jk', mass, points**3 / 6, pairs)
    return mean * rest, second * np.outer(rest, rest)


def _meta_loss_after_step(problem: Problem) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(z [batch], examples [batch]) → L_meta(θ̃)."""
    params = jnp.asarray(problem.params)
    gradients = jax.jit(jax.jacobian(problem.losses))(params)  # ∇ℓ of every example

    def meta_loss(z: jax.Array, examples: jax.Array) -> jax.Array:
        step = problem.learning_rate / problem.batch_size * (z @ gradients[examples])
        return problem.meta_loss(params - step)

    return meta_loss


def _moments(probabilities: ArrayLike, values: ArrayLike) -> Moments:
    p, x = np.asarray(probabilities), np.asarray(values)
    mean = p @ x
    return Moments(mean, np.einsum('o,oj,ok->jk', p, x - mean, x - mean))


def _all_batches(problem: Problem) -> np.ndarray:
    """Every tuple of examples, ``[outcomes, batch]``."""
    examples = range(problem.labels.size)
    return np.array(list(itertools.product(examples, repeat=problem.batch_size)))


def _independent(problem: Problem, q: jax.Array) -> Outcomes:
    examples = _all_batches(problem)
    each = (q / jnp.asarray(problem.class_counts, q.dtype))[problem.labels]
    return Outcomes(examples, each[examples].prod(1))


def _systematic(problem: Problem, q: ArrayLike, *, systematic_examples: bool = False) -> Outcomes:
    """Batches of which the classes are drawn by one u, and the examples one by one or by one r."""
    counts, size = problem.class_counts, problem.batch_size
    starts = counts.cumsum() - counts
    cumulative = np.cumsum(np.asarray(q))[:-1]

    def spread(j: int, times: int) -> list[tuple[int, ...]]:
        """What one r, uniform in 0..n − 1, may make of a class."""
        places = np.arange(times) * counts[j] // times
        return [tuple(starts[j] + (r + places) % counts[j]) for r in range(counts[j])]

    outcomes: list[tuple[int, ...]] = []
    probabilities: list[float] = []
    # The classes change where a point (u + i) / B meets a sum of q.
    cuts = np.sort(np.concatenate([[0.0], (size * cumulative) % 1, [1.0]]))
    for left, right in itertools.pairwise(cuts):
        points = ((left + right) / 2 + np.arange(size)) / size
        classes = np.searchsorted(cumulative, points, side='right')
        if systematic_examples:
            choices = [spread(*pair) for pair in zip(*np.unique_counts(classes), strict=True)]
            batches = [sum(parts, ()) for parts in itertools.product(*choices)]
        else:
            members = [range(starts[j], starts[j] + counts[j]) for j in classes]
            batches = list(itertools.product(*members))
        outcomes += batches
        probabilities += [(right - left) / len(batches)] * len(batches)
    return Outcomes(np.array(outcomes), jnp.array(probabilities))


def _equally_often(problem: Problem, q: jax.Array) -> Outcomes:
    return _systematic(problem, np.full(q.size, 1 / q.size))


OUTCOMES: dict[str, Callable[[Problem, jax.Array], Outcomes]] = {
    'score': _independent,
    'score_leave_one_out': _independent,
    'systematic': _systematic,
    'systematic_examples': functools.partial(_systematic, systematic_examples=True),
    'expectation': _equally_often,
}


def _gumbel_moments(
    problem: Problem, psi: jax.Array, estimator: str, temperature: float
) -> Moments:
    r"""Moments given the draw, by quadrature, then over all draws.

    :math:`\partial z_b / \partial \psi_j = \frac{1 - s_j}{T} p_b (1[c_b = j] - P_{bj})`. For j = c
    the last factor is the mass of the other classes.
    """
    counts = problem.class_counts
    s = np.asarray(sampling.rates(psi))
    if estimator == 'examples':
        rates, outcomes = s, counts
    else:
        rates, outcomes = counts * s, np.ones_like(counts)
    of_class = []
    for c in range(counts.size):
        mean, second = soft_sample_moments(rates, outcomes, c, temperature)
        jacobian = -np.eye(counts.size)
        jacobian[c] = 1
        jacobian *= (1 - s)[:, None] / temperature
        mean = jacobian @ mean
        of_class.append((mean, jacobian @ second @ jacobian.T - np.outer(mean, mean)))
    means, covariances = (np.stack(values) for values in zip(*of_class, strict=True))

    examples, p = _independent(problem, sampling.rated_class_probabilities(psi, counts))
    influences = jax.jit(jax.vmap(jax.grad(_meta_loss_after_step(problem)), (None, 0)))
    a = np.asarray(influences(jnp.ones(problem.batch_size), jnp.asarray(examples)))
    classes = problem.labels[examples]
    # Given the draw, the noise of each of its examples is independent.
    given_draw = np.einsum('ob,obj->oj', a, means[classes])
    noise = np.einsum('o,ob,objk->jk', np.asarray(p), a**2, covariances[classes])
    mean, covariance = _moments(p, given_draw)
    return Moments(mean, covariance + noise)


def _exponential_rule(spacing: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of E f(Y), Y standard exponential.

    Equally spaced in log Y: f may bend at any scale, and the error falls exponentially.
    """
    log_y = np.arange(-30, 4.2, spacing)  # leaves out 1e-13 and e^−66 of the mass
    y = np.exp(log_y)
    return y, spacing * y * np.exp(-y)
