"""Draws at the rates of ψ that have a gradient: straight through a soft sample."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from balms_jax.priors import check_labels, class_places
from balms_jax.sampling.probabilities import log_weights


def one_with_gradient_of(x: jax.Array) -> jax.Array:
    r"""Ones that are differentiated as if they were x.

    .. math:: 1 + (x - \operatorname{stop}(x))

    Args:
        x: finite numbers of any shape.

    Returns:
        The same shape and type; the value is exactly 1 in any precision.

    Example:
        >>> print(jax.value_and_grad(lambda x: one_with_gradient_of(x**2))(3.0))
        (Array(1., dtype=float32, weak_type=True), Array(6., dtype=float32, weak_type=True))
    """
    # In this order: (1 + x) − x is not 1 in sixteen bits.
    return 1 + (x - jax.lax.stop_gradient(x))


def straight_through_over_classes(
    psi: ArrayLike,
    class_counts: ArrayLike,
    gumbel: ArrayLike,
    temperature: float = 1.0,
    *,
    drawn: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Draws classes at the rates of ψ, with a gradient: Gumbel-softmax over the classes.

    .. math:: c_b = \arg\max_j\, (\log n_j s_j + g_{bj}), \quad
        z_b = 1 + (p_b - \operatorname{stop}(p_b)), \quad
        p_b = \operatorname{softmax}_j\big((\log n_j s_j + g_{bj}) / T\big)_{c_b}

    The classes have the distribution of :func:`straight_through_over_examples`; the gradient is
    that of another soft sample. Its cost does not depend on the number of examples.

    Args:
        psi: ψ, ``[classes]``.
        class_counts: n, ``[classes]``.
        gumbel: standard Gumbel noise g, ``[batch, classes]``.
        temperature: T of the soft sample, above 0.
        drawn: classes, ``[batch]``, integers, drawn with this noise at another ψ, to be kept; None:
            those of this ψ.

    Returns:
        The classes c, ``[batch]``, int32, and z, ``[batch]``, whose value is exactly 1 and whose
        gradient is the soft sample's.

    Raises:
        ValueError: if shapes do not fit, counts are no counts, or T is not above 0.

    Example:
        >>> gumbel = jax.random.gumbel(jax.random.key(0), [4, 2])
        >>> classes, z = straight_through_over_classes(jnp.zeros(2), [1, 0], gumbel)
        >>> print(classes, z)
        [0 0 0 0] [1. 1. 1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2; Jang et al., Gumbel-Softmax (arXiv 1611.01144).
    """
    psi, gumbel = jnp.asarray(psi), jnp.asarray(gumbel)
    if gumbel.ndim != 2 or gumbel.shape[1:] != psi.shape:
        raise ValueError(f'gumbel: got shape {gumbel.shape}, wanted [batch, {psi.shape[0]}]')
    return _straight_through(log_weights(psi, class_counts), gumbel, temperature, drawn)


def straight_through_over_examples(
    psi: ArrayLike,
    example_labels: ArrayLike,
    gumbel: ArrayLike,
    temperature: float = 1.0,
    *,
    drawn: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Draws examples at the rates of ψ, with a gradient: the official estimator.

    .. math:: i_b = \arg\max_i\, (\log s_{y_i} + g_{bi}), \quad
        z_b = 1 + (p_b - \operatorname{stop}(p_b)), \quad
        \frac{\partial z_b}{\partial \psi_j} = (1 - s_j)\, p_b\, (1[y_{i_b} = j] - P_{bj})

    with :math:`p_b` the drawn example's entry of the soft sample and :math:`P_{bj}` class j's mass
    in it. It needs noise for every example of the data set.

    Args:
        psi: ψ, ``[classes]``.
        example_labels: y, ``[examples]``, any integer type.
        gumbel: standard Gumbel noise g, ``[batch, examples]``.
        temperature: T of the soft sample, above 0.
        drawn: examples, ``[batch]``, integers, drawn with this noise at another ψ, to be kept;
            None: those of this ψ.

    Returns:
        The examples i, ``[batch]``, int32, and z, ``[batch]``, whose value is exactly 1 and whose
        gradient is the soft sample's.

    Raises:
        ValueError: if shapes do not fit, labels are no integers or a known one is no class, or T
            is not above 0.

    Example:
        >>> gumbel = jax.random.gumbel(jax.random.key(0), [2, 3])
        >>> labels = jnp.array([0, 0, 1])
        >>> examples, z = straight_through_over_examples(jnp.zeros(2), labels, gumbel)
        >>> print(examples.shape, z)
        (2,) [1. 1.]

    References:
        BALMS (arXiv 2007.10740), §3.2, and its released code.
    """
    psi, labels, gumbel = jnp.asarray(psi), jnp.asarray(example_labels), jnp.asarray(gumbel)
    check_labels(example_labels, psi.size, name='example_labels')
    if gumbel.ndim != 2 or gumbel.shape[1:] != labels.shape:
        raise ValueError(f'gumbel: got shape {gumbel.shape}, wanted [batch, {labels.size}]')
    log_masses = jax.nn.log_sigmoid(psi)[class_places(labels, psi.size)]
    return _straight_through(log_masses, gumbel, temperature, drawn)


def _straight_through(
    log_masses: jax.Array, gumbel: jax.Array, temperature: float, drawn: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f'temperature: got {temperature}, wanted a number above 0')
    scores = log_masses[None, :] + gumbel
    drawn = jnp.argmax(scores, axis=-1) if drawn is None else jnp.asarray(drawn)
    if drawn.shape != scores.shape[:1] or not jnp.issubdtype(drawn.dtype, jnp.integer):
        raise ValueError(
            f'drawn: got {drawn.dtype}{list(drawn.shape)}, wanted integers, [{scores.shape[0]}]'
        )
    drawn = drawn.astype(jnp.int32)
    soft = jax.nn.softmax(scores / temperature, axis=-1)
    p = jnp.take_along_axis(soft, drawn[:, None], axis=-1)[:, 0]
    return drawn, one_with_gradient_of(p)
