"""What turns features into logits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

PyTree = Any


class Linear(nn.Module):
    r"""The linear classifier, :math:`\eta = W f + b`."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[batch, features] → logits [batch, classes]."""
        # Uniform in ±1/√(number of features).
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        return nn.Dense(self.num_classes, kernel_init=init)(features)


class Cosine(nn.Module):
    r"""The scaled cosine classifier, :math:`\eta_j = s \cos(w_j, f)`.

    Without the scale s the logits lie in −1..1, where the log prior, several units wide, would
    decide alone.
    """

    num_classes: int
    scale: float

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[batch, features] → logits [batch, classes]."""
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        kernel = self.param('kernel', init, (features.shape[-1], self.num_classes))
        kernel = kernel.astype(features.dtype)
        return self.scale * (_normalise(features, -1) @ _normalise(kernel, 0))


class Experts(nn.Module):
    r"""Linear classifiers side by side, :math:`\eta_e = W_e f + b_e`, each trained with its own τ.

    References:
        Zhang et al., Self-Supervised Aggregation of Diverse Experts (SADE), NeurIPS 2022, arXiv
        2107.09249, §4.1: experts of τ = 0, 1 and 2. Theirs have blocks of their own too.
    """

    num_classes: int
    experts: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[batch, features] → logits [batch, experts, classes]."""
        logits = Linear(self.experts * self.num_classes, name='linear')(features)
        return logits.reshape(*features.shape[:-1], self.experts, self.num_classes)


# Of the bilateral network: what trains each.
BRANCHES = ('uniform', 'reversed')


class Bilateral(nn.Module):
    r"""A linear classifier for each half of the features, :math:`\eta_e = 2 (W_e f_e + b_e)`.

    Their mean is the prediction at test.

    References:
        Zhou et al., BBN: Bilateral-Branch Network, CVPR 2020, arXiv 1912.02413, Eqn. 1.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[batch, 2 · features] → logits [batch, 2, classes]."""
        halves = jnp.split(features, len(BRANCHES), -1)
        logits = [
            Linear(self.num_classes, name=name)(half)
            for name, half in zip(BRANCHES, halves, strict=True)
        ]
        return 2 * jnp.stack(logits, -2)


def tau_normalized(params: PyTree, tau: ArrayLike) -> PyTree:
    r"""A linear classifier whose classes' weights are brought towards one length, without biases.

    .. math:: \tilde w_j = w_j / \lVert w_j \rVert^\tau, \quad \tilde b_j = 0

    Args:
        params: of :class:`Linear`: a kernel ``[features, classes]`` and a bias ``[classes]``.
        tau: τ, 0 for the weights as they are to 1 for weights of one length, or beyond.

    Returns:
        Parameters of the same structure.

    References:
        Kang et al., Decoupling Representation and Classifier, ICLR 2020, arXiv 1910.09217, Eqn. 3.
    """
    ((name, dense),) = params.items()
    squared = jnp.sum(dense['kernel'] ** 2, 0, keepdims=True)
    # ‖w‖^−τ; a zero vector stays zero.
    scale = jnp.maximum(squared, 1e-12) ** (-jnp.asarray(tau, squared.dtype) / 2)
    return {name: {'kernel': dense['kernel'] * scale, 'bias': jnp.zeros_like(dense['bias'])}}


def nearest_mean(params: PyTree, features: jax.Array, labels: jax.Array) -> PyTree:
    r"""The linear classifier that picks the class whose mean feature has the largest cosine.

    .. math:: \mu_j = \frac{1}{n_j} \sum_{i: y_i = j} f_i / \lVert f_i \rVert, \quad
        w_j = \mu_j / \lVert \mu_j \rVert, \quad b_j = 0

    Args:
        params: of :class:`Linear`, for their structure and shapes.
        features: f, ``[examples, features]``.
        labels: y, ``[examples]``, integers.

    Returns:
        Parameters of the same structure. A class without an example is never picked over one with
        a positive cosine.

    References:
        Kang et al., Decoupling Representation and Classifier, ICLR 2020, arXiv 1910.09217, §4.2.
    """
    ((name, dense),) = params.items()
    is_class = jax.nn.one_hot(labels, dense['bias'].size, dtype=features.dtype)
    # The length of a sum is no matter, so it serves as the mean.
    kernel = _normalise(_normalise(features, -1).T @ is_class, 0)
    return {name: {'kernel': kernel, 'bias': jnp.zeros_like(dense['bias'])}}


def _normalise(x: jax.Array, axis: int) -> jax.Array:
    """To length 1; a zero vector stays zero and has a finite gradient."""
    squared = jnp.sum(x * x, axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))
