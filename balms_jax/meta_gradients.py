r"""The gradient of a meta loss through an optimizer's update.

With a training loss :math:`L(\theta, \psi)` and any optax transformation, one real step is

.. math:: g = \nabla_\theta L(\theta, \psi), \qquad \tilde\theta(\psi) = \theta + U(g)

and what is sought is :math:`\nabla_\psi L_{meta}(\tilde\theta(\psi))`. By the chain rule it is

.. math:: u = \Big(\frac{\partial U}{\partial g}\Big)^{\!\top} \nabla L_{meta}(\tilde\theta),
    \qquad \nabla_\psi = \frac{\partial}{\partial \psi}
    \big\langle u, \nabla_\theta L(\theta, \psi) \big\rangle

The modes differ only in how they take the last product, a mixed second derivative. g and θ̃ are
also the real step's: they are computed once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
TrainLoss = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]
MetaLoss = Callable[[PyTree, PyTree], tuple[jax.Array, PyTree]]
Update = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


class MetaStep(NamedTuple):
    """One real step of θ and the meta-gradient through it."""

    meta_loss: jax.Array  # L_meta(θ̃), a scalar
    psi_grad: PyTree  # ∇_ψ L_meta(θ̃(ψ)), of ψ's structure
    train_loss: jax.Array  # L(θ, ψ), a scalar; for K > 1 that of every step, [K]
    params: PyTree  # θ̃, after the real step
    opt_state: PyTree  # after the real step
    train_aux: PyTree
    meta_aux: PyTree


class InnerGradient(NamedTuple):
    """The training loss at θ, its gradient, and the mixed product."""

    loss: jax.Array
    aux: PyTree
    grads: PyTree  # ∇_θ L
    mixed_product: Callable[[PyTree], PyTree]  # u ↦ ∂_ψ ⟨u, ∇_θ L⟩


def value_and_meta_grad(
    train_loss: TrainLoss,
    meta_loss: MetaLoss,
    optimizer: optax.GradientTransformation,
    *,
    mode: str = 'reverse',
    steps: int = 1,
) -> Callable[..., MetaStep]:
    r"""Makes the function that takes a step of θ and the meta-gradient of ψ through it.

    .. math:: \theta, \psi \mapsto \tilde\theta(\psi),\ \nabla_\psi L_{meta}(\tilde\theta(\psi))

    Modes, in units of one forward pass at equal batches (a plain step costs 3):

    - ``'reverse'``: the inner gradient is differentiated again in reverse; 8 units where ψ enters
      through weights of the losses. Exact.
    - ``'forward_over_reverse'``: the loss is linearised once; its transpose gives g, its tangent in
      direction u, through ∇_ψ L, the product; 8 units. Exact.
    - ``'lean'``: the same with the forward pass computed again once u is known; 9 units and the
      memory of a plain step. Exact.
    - ``'finite_difference'``: a central difference of ∇_ψ L in direction u, two forward passes
      more; 8 units, but the memory of a plain step. Its error is about √ε of the working precision
      or more where the network has kinks.

    Args:
        train_loss: L: (params, psi, batch) → (scalar, aux). Batch statistics belong into aux.
        meta_loss: (params, meta_batch) → (scalar, aux).
        optimizer: any optax transformation; frozen parameters by its masks.
        mode: one of the above.
        steps: K, how many real steps the meta loss comes after. For K > 1 every array of batch has
            a leading axis of K, train_loss and train_aux are those of all steps, ``[K, ...]``, and
            the modes say how the derivative of each step's gradient is taken: ``'reverse'`` keeps
            every step's backward pass in memory, the others each step's parameters and optimizer
            state alone (``'lean'`` and ``'forward_over_reverse'`` are then the same).

    Returns:
        f(psi, params, opt_state, batch, meta_batch) → :class:`MetaStep`. ψ is any pytree.

    Raises:
        ValueError: if the mode is unknown, K is no whole number above 0, or K > 1 and an array of
            batch has no leading axis of K.

    Example:
        >>> import optax
        >>> def train_loss(w, psi, x): return jnp.mean(psi * (w - x) ** 2), None
        >>> def meta_loss(w, x): return jnp.mean((w - x) ** 2), None
        >>> step = value_and_meta_grad(train_loss, meta_loss, optax.sgd(0.5))
        >>> w, psi, x = jnp.array(0.0), jnp.ones(2), jnp.array([1.0, -1.0])
        >>> out = step(psi, w, optax.sgd(0.5).init(w), x, jnp.array([1.0]))
        >>> print(out.params, out.psi_grad)  # More of the first example, less of the second.
        0.0 [-1.  1.]

    Note:
        Where an entry of g is exactly 0, as a dead unit's is, the derivative of some updates
        (Adam's root, a norm) reads 0/0 as written. It is taken beside 0, where it has its limit.

    References:
        BALMS (arXiv 2007.10740), Algorithm 1; Eqn. 10.
    """
    if mode not in MODES:
        raise ValueError(f'mode: got {mode!r}, wanted one of {", ".join(MODES)}')
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f'steps: got {steps!r}, wanted a whole number of at least 1')
    update = _update(optimizer)
    if steps > 1:
        return _unrolled(train_loss, meta_loss, update, mode, steps)
    inner_gradient = MODES[mode]

    def step(
        psi: PyTree, params: PyTree, opt_state: PyTree, batch: PyTree, meta_batch: PyTree
    ) -> MetaStep:
        inner = inner_gradient(train_loss, params, psi, batch)

        new_params, update_vjp, new_state = jax.vjp(
            lambda grads: update(grads, opt_state, params), inner.grads, has_aux=True
        )
        (loss, meta_aux), meta_grads = jax.value_and_grad(meta_loss, has_aux=True)(
            new_params, meta_batch
        )
        (u,) = update_vjp(meta_grads)
        psi_grad = inner.mixed_product(u)
        return MetaStep(loss, psi_grad, inner.loss, new_params, new_state, inner.aux, meta_aux)

    return step


def reverse(train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree) -> InnerGradient:
    """Reverse over reverse: the gradient is computed, then pulled back to ψ."""

    def gradient(psi: PyTree) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)
        return grads, (loss, aux)

    grads, pull_back, (loss, aux) = jax.vjp(gradient, psi, has_aux=True)
    return InnerGradient(loss, aux, grads, lambda u: pull_back(u)[0])


def forward_over_reverse(
    train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
) -> InnerGradient:
    r"""One linearisation at θ: transposed it gives g, pushed forward ∂_θ(∇_ψ L)·u.

    The mixed derivatives commute: :math:`\partial_\psi \langle u, \nabla_\theta L\rangle =
    \partial_\theta (\nabla_\psi L)\, u`. Where ψ enters by weights of the losses, ∇_ψ L costs one
    forward pass, and its tangent is the tangent of the losses.
    """

    def loss_and_psi_grad(params: PyTree) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        (loss, aux), psi_grad = jax.value_and_grad(train_loss, argnums=1, has_aux=True)(
            params, psi, batch
        )
        return (loss, psi_grad), aux

    (loss, psi_grad), push_forward, aux = jax.linearize(loss_and_psi_grad, params, has_aux=True)
    transposed = jax.linear_transpose(push_forward, params)
    (grads,) = transposed((jnp.ones_like(loss), jax.tree.map(jnp.zeros_like, psi_grad)))
    return InnerGradient(loss, aux, grads, lambda u: push_forward(u)[1])


def lean(train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree) -> InnerGradient:
    r"""The product of :func:`forward_over_reverse`, its forward pass computed again after u.

    Nothing is kept of the first pass while the meta loss is differentiated.
    """
    (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)

    psi_grad = _psi_gradient(train_loss, psi, batch)
    return InnerGradient(
        loss, aux, grads, lambda u: jax.jvp(psi_grad, (_beside(params, u),), (u,))[1]
    )


def finite_difference(
    train_loss: TrainLoss, params: PyTree, psi: PyTree, batch: PyTree
) -> InnerGradient:
    r"""A central difference along u.

    .. math:: \frac{\nabla_\psi L(\theta + h u) - \nabla_\psi L(\theta - h u)}{2h},
        \quad h = \epsilon^{1/3} \frac{1 + \lVert\theta\rVert}{\lVert u \rVert}
    """
    (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)

    psi_grad = _psi_gradient(train_loss, psi, batch)

    def mixed_product(u: PyTree) -> PyTree:
        # Where g is 0, Adam's u is huge and what it multiplies is 0: it would only shrink h.
        u = jax.tree.map(lambda entry, grad: jnp.where(grad == 0, 0, entry), u, grads)
        return _central_difference(psi_grad, params, u)

    return InnerGradient(loss, aux, grads, mixed_product)


MODES: dict[str, Callable[[TrainLoss, PyTree, PyTree, PyTree], InnerGradient]] = {
    'reverse': reverse,
    'forward_over_reverse': forward_over_reverse,
    'lean': lean,
    'finite_difference': finite_difference,
}


def _psi_gradient(train_loss: TrainLoss, psi: PyTree, batch: PyTree) -> Callable[[PyTree], PyTree]:
    """θ ↦ ∇_ψ L(θ, ψ)."""
    return lambda params: jax.grad(train_loss, argnums=1, has_aux=True)(params, psi, batch)[0]


def _central_difference(function: Callable[[PyTree], PyTree], params: PyTree, u: PyTree) -> PyTree:
    """∂ function(params) · u, with a step that is ε^⅓ of the parameters' length."""
    norm, scale = optax.tree.norm(u), 1 + optax.tree.norm(params)
    h = jnp.finfo(norm.dtype).eps ** (1 / 3) * scale / jnp.where(norm > 0, norm, 1)

    def moved(h: jax.Array) -> PyTree:
        return function(jax.tree.map(lambda p, d: p + h.astype(p.dtype) * d, params, u))

    return jax.tree.map(lambda a, b: (a - b) / (2 * h).astype(a.dtype), moved(h), moved(-h))


def _unrolled(
    train_loss: TrainLoss, meta_loss: MetaLoss, update: Update, mode: str, steps: int
) -> Callable[..., MetaStep]:
    """K real steps, then the meta loss; pulled back through all of them."""
    gradient = _gradient_of_mode(train_loss, mode)

    def step(
        psi: PyTree, params: PyTree, opt_state: PyTree, batch: PyTree, meta_batch: PyTree
    ) -> MetaStep:
        for leaf in jax.tree.leaves(batch):
            if jnp.shape(leaf)[:1] != (steps,):
                raise ValueError(
                    f'batch: got an array of shape {jnp.shape(leaf)}, wanted a leading axis of the '
                    f'{steps} steps'
                )

        def train(psi: PyTree) -> tuple[PyTree, tuple[PyTree, list]]:
            # A loop in Python: XLA runs convolutions inside a scan many times slower on the CPU.
            new_params, new_state, recorded = params, opt_state, []
            for k in range(steps):
                one = jax.tree.map(lambda leaf, k=k: leaf[k], batch)
                grads, loss_and_aux = gradient(new_params, psi, one)
                new_params, new_state = update(grads, new_state, new_params)
                recorded.append(loss_and_aux)
            return new_params, (new_state, recorded)

        new_params, pull_back, (new_state, recorded) = jax.vjp(train, psi, has_aux=True)
        (loss, meta_aux), meta_grads = jax.value_and_grad(meta_loss, has_aux=True)(
            new_params, meta_batch
        )
        (psi_grad,) = pull_back(meta_grads)
        train_losses, train_aux = jax.tree.map(lambda *leaves: jnp.stack(leaves), *recorded)
        return MetaStep(loss, psi_grad, train_losses, new_params, new_state, train_aux, meta_aux)

    return step


def _gradient_of_mode(train_loss: TrainLoss, mode: str) -> Callable[..., Any]:
    r"""(params, psi, batch) → (∇_θ L, (L, aux)), whose own derivative is taken by the mode.

    With cotangent v of the gradient, what is pulled back is :math:`\nabla_{\theta,\psi}
    \langle v, \nabla_\theta L\rangle = \partial_\theta (\nabla_{\theta,\psi} L)\, v`, one
    derivative in direction v. It needs the gradient's inputs alone, so nothing of the backward
    pass is kept (Scalable Meta-Learning via Mixed-Mode Differentiation, arXiv 2505.00793).
    """

    def gradient(params: PyTree, psi: PyTree, batch: PyTree) -> tuple[PyTree, Any]:
        (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(params, psi, batch)
        return grads, (loss, aux)

    if mode == 'reverse':
        return gradient

    def forward(params: PyTree, psi: PyTree, batch: PyTree) -> tuple[Any, Any]:
        return gradient(params, psi, batch), (params, psi, batch)

    def backward(inputs: Any, cotangents: Any) -> tuple[PyTree, PyTree, None]:
        params, psi, batch = inputs
        v = cotangents[0]
        params = _beside(params, v)

        def both_gradients(params: PyTree) -> tuple[PyTree, PyTree]:
            return jax.grad(train_loss, argnums=(0, 1), has_aux=True)(params, psi, batch)[0]

        if mode == 'finite_difference':
            products = _central_difference(both_gradients, params, v)
        else:
            products = jax.jvp(both_gradients, (params,), (v,))[1]
        return *products, None

    mixed = jax.custom_vjp(gradient)
    mixed.defvjp(forward, backward)
    return mixed


def _update(optimizer: optax.GradientTransformation) -> Update:
    """(gradient, optimizer state, θ) → (θ after the step, state), differentiated beside g = 0."""

    def take(grads: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, new_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_state

    @jax.custom_jvp
    def update(grads: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        return take(grads, opt_state, params)

    @update.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        grads, opt_state, params = primals
        beside_zero = (_off_zero(grads), opt_state, params)
        return take(*primals), jax.jvp(take, beside_zero, tangents)[1]

    return update


def _beside(params: PyTree, u: PyTree) -> PyTree:
    """θ + 0 u, a θ that is there only after u.

    At θ itself the compiler would merge a later pass with the first one, and keep its activations.
    """
    return jax.tree.map(lambda p, d: p + 0 * d, params, u)


def _off_zero(grads: PyTree) -> PyTree:
    """Moves entries of exactly 0 by less than any norm or root of a square notices."""

    def move(grad: jax.Array) -> jax.Array:
        return jnp.where(grad == 0, float(jnp.finfo(grad.dtype).tiny) ** 0.4, grad)

    return jax.tree.map(move, grads)
