r"""The meta-gradient of a converged inner problem: what K inner steps tend to as K → ∞.

Where :math:`\nabla_\theta L(\theta^*, \psi) = 0`, the implicit function theorem says how the
minimum moves with ψ, and with it the meta loss there:

.. math:: H w = \nabla L_{meta}(\theta^*), \quad H = \nabla^2_\theta L(\theta^*, \psi), \qquad
    \nabla_\psi L_{meta}(\theta^*(\psi)) = -\frac{\partial}{\partial \psi}
    \big\langle w, \nabla_\theta L(\theta^*, \psi) \big\rangle

It does not matter which steps led to θ*: none is kept or differentiated.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from balms_jax.meta_gradients.train_loss import MetaLoss, PyTree, TrainLoss

Product = Callable[[PyTree], PyTree]


class ImplicitGradient(NamedTuple):
    """The meta-gradient at a minimum, and how far to trust it."""

    meta_loss: jax.Array  # L_meta(θ), a scalar
    psi_grad: PyTree  # ∇_ψ L_meta(θ*(ψ)), of ψ's structure
    stationarity: jax.Array  # ‖∇_θ L(θ, ψ)‖, 0 at θ*
    residual: jax.Array  # ‖(H + λI) w − v‖ / ‖v‖ with v = ∇L_meta(θ), 0 where w is exact
    train_loss: jax.Array  # L(θ, ψ), a scalar
    train_aux: PyTree
    meta_aux: PyTree


def implicit_meta_grad(
    train_loss: TrainLoss,
    meta_loss: MetaLoss,
    *,
    solver: str = 'conjugate_gradient',
    iterations: int = 100,
    tolerance: float = 1e-6,
    rate: float | None = None,
    damping: float = 0.0,
) -> Callable[..., ImplicitGradient]:
    r"""Makes the function that takes the meta-gradient of ψ at parameters that have converged.

    .. math:: (H + \lambda I)\, w = \nabla L_{meta}(\theta^*), \qquad
        \nabla_\psi = -\frac{\partial}{\partial \psi} \big\langle w, \nabla_\theta L \big\rangle

    Solvers; an iteration is one product with H, which is never formed:

    - ``'conjugate_gradient'``: exact after as many iterations as there are parameters, and often
      long before. It asks for a positive definite H + λI.
    - ``'neumann'``: :math:`w = \eta \sum_{k<K} (I - \eta (H + \lambda I))^k \nabla L_{meta}` with
      rate η and K iterations. At θ* and λ = 0 this is the meta-gradient of K steps of SGD of that
      rate, to rounding; K = 1 is the one step of BALMS. It converges for η < 2 / ‖H + λI‖.

    Args:
        train_loss: L: (params, psi, batch) → (scalar, aux), with its weight decay if it has any.
            Parameters that were frozen belong into batch.
        meta_loss: (params, meta_batch) → (scalar, aux).
        solver: one of the above.
        iterations: K, the most that are taken; ``'neumann'`` takes them all.
        tolerance: of the residual, where ``'conjugate_gradient'`` stops.
        rate: η, of ``'neumann'`` alone.
        damping: λ, as if L had one more term :math:`\frac\lambda2 \lVert\theta-\theta^*\rVert^2`,
            θ* held.

    Returns:
        f(psi, params, batch, meta_batch) → :class:`ImplicitGradient`. params is θ*, batch all that
        it was trained on; ψ and params are any pytrees.

    Raises:
        ValueError: if the solver is unknown, iterations is no whole number above 0, tolerance or
            damping is negative, or the rate is missing, not positive, or there but not asked for.

    Example:
        >>> def train_loss(w, psi, x): return jnp.sum(psi * (w - x) ** 2) / 2, None
        >>> def meta_loss(w, x): return (w - x) ** 2 / 2, None
        >>> gradient = implicit_meta_grad(train_loss, meta_loss)
        >>> w, psi, x = jnp.array(0.0), jnp.ones(2), jnp.array([1.0, -1.0])
        >>> out = gradient(psi, w, x, jnp.array(1.0))  # w = Σψx / Σψ, so ∂w/∂ψ = (x − w) / Σψ.
        >>> print(out.psi_grad, out.stationarity, out.residual)
        [-0.5  0.5] 0.0 0.0

    Note:
        It is exact for a head with weight decay: L is strictly convex, H at least the decay. For a
        network it is a local statement and H may have negative curvature; the residual tells
        whether w solves the system at all. Damping helps it to, with a bias towards the direction
        of a single step of SGD. Where stationarity is not small against ∇L_meta, θ is not θ*, and
        neither is the gradient that of the minimum.

        The products run inside a loop, where XLA's CPU backend is slow at convolutions.

    References:
        Bengio, Gradient-Based Optimization of Hyperparameters (Neural Computation 2000); Lorraine
        et al. (arXiv 1911.02590), Theorems 1 and 2; iMAML (arXiv 1909.04630); BALMS (arXiv
        2007.10740), Algorithm 1, for the one step.
    """
    solve = _solver(solver, iterations, tolerance, rate)
    if not damping >= 0:
        raise ValueError(f'damping: got {damping!r}, wanted at least 0')

    def gradient(
        psi: PyTree, params: PyTree, batch: PyTree, meta_batch: PyTree
    ) -> ImplicitGradient:
        def gradients(params: PyTree) -> tuple[tuple[PyTree, PyTree], tuple[jax.Array, PyTree]]:
            (loss, aux), grads = jax.value_and_grad(train_loss, argnums=(0, 1), has_aux=True)(
                params, psi, batch
            )
            return grads, (loss, aux)

        # The mixed derivatives commute: one linearisation in θ, w ↦ (H w, ∂_ψ⟨w, ∇_θ L⟩).
        (grads, _), push_forward, (loss, train_aux) = jax.linearize(gradients, params, has_aux=True)
        (meta_value, meta_aux), v = jax.value_and_grad(meta_loss, has_aux=True)(params, meta_batch)

        def damped_product(w: PyTree) -> PyTree:
            return jax.tree.map(lambda h, d: h + damping * d, push_forward(w)[0], w)

        w = solve(damped_product, v)
        norm = optax.tree.norm(v)
        residual = optax.tree.norm(jax.tree.map(jnp.subtract, damped_product(w), v))
        return ImplicitGradient(
            meta_loss=meta_value,
            psi_grad=jax.tree.map(jnp.negative, push_forward(w)[1]),
            stationarity=optax.tree.norm(grads),
            residual=residual / jnp.where(norm > 0, norm, 1),
            train_loss=loss,
            train_aux=train_aux,
            meta_aux=meta_aux,
        )

    return gradient


def _solver(
    solver: str, iterations: int, tolerance: float, rate: float | None
) -> Callable[[Product, PyTree], PyTree]:
    """(w ↦ A w, v) → w with A w = v, of the solver's name."""
    if solver not in ('conjugate_gradient', 'neumann'):
        raise ValueError(f"solver: got {solver!r}, wanted 'conjugate_gradient' or 'neumann'")
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f'iterations: got {iterations!r}, wanted a whole number of at least 1')
    if not tolerance >= 0:
        raise ValueError(f'tolerance: got {tolerance!r}, wanted at least 0')
    if solver == 'conjugate_gradient':
        if rate is not None:
            raise ValueError(f"rate: got {rate!r}, wanted None: only 'neumann' has one")
        return lambda product, v: jax.scipy.sparse.linalg.cg(
            product, v, tol=tolerance, maxiter=iterations
        )[0]
    if rate is None or not rate > 0:
        raise ValueError(f"rate: got {rate!r}, wanted a number above 0 for 'neumann'")
    return lambda product, v: _neumann(product, v, rate, iterations)


def _neumann(product: Product, v: PyTree, rate: float, iterations: int) -> PyTree:
    """Horner's rule, w ← w + η (v − A w): a step of gradient descent on ½⟨w, A w⟩ − ⟨v, w⟩."""

    def add_term(_: int, w: PyTree) -> PyTree:
        return jax.tree.map(lambda w, a, v: w + rate * (v - a), w, product(w), v)

    return jax.lax.fori_loop(1, iterations, add_term, jax.tree.map(lambda v: rate * v, v))
