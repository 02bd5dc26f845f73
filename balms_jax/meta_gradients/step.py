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

from balms_jax.meta_gradients.horizon import check_batches, train_steps
from balms_jax.meta_gradients.modes import MODES, Mode
from balms_jax.meta_gradients.parts import meta_gradient, mode_in_parts
from balms_jax.meta_gradients.train_loss import MetaLoss, PyTree, TrainLoss, check_range
from balms_jax.meta_gradients.update import Optimizer, Update, differentiable_update, reads_psi


class MetaStep(NamedTuple):
    """One real step of θ, or K, and the meta-gradient through it."""

    meta_loss: jax.Array  # L_meta(θ̃), a scalar
    psi_grad: PyTree  # ∇_ψ L_meta(θ̃(ψ)), of ψ's structure
    train_loss: jax.Array  # L(θ, ψ), a scalar; for K > 1 that of every step, [K]
    params: PyTree  # θ̃, after the real step
    opt_state: PyTree  # after the real step
    train_aux: PyTree  # for K > 1 or in parts stacked, [K, ...]; with a carry the last one
    meta_aux: PyTree  # in parts stacked, [parts, ...]
    example_grads: jax.Array | None = None  # ∂L_meta/∂z_b, [batch], in modes that make it


def value_and_meta_grad(
    train_loss: TrainLoss,
    meta_loss: MetaLoss,
    optimizer: Optimizer,
    *,
    mode: str | Mode = 'reverse',
    steps: int = 1,
    segment: int | None = None,
    scan: bool = False,
    parts: int = 1,
) -> Callable[..., MetaStep]:
    r"""Makes the function that takes a step of θ and the meta-gradient of ψ through it.

    .. math:: \theta, \psi \mapsto \tilde\theta(\psi),\ \nabla_\psi L_{meta}(\tilde\theta(\psi))

    Modes, in units of one forward pass at equal batches (a plain step costs 3), and in temporary
    memory, where A is what a plain step keeps of its forward pass:

    ========================  ====  ======  ========================================================
    mode                      time  memory  the product ∂_ψ⟨u, ∇_θ L⟩
    ========================  ====  ======  ========================================================
    ``reverse``               8     1.7 A   the inner gradient is differentiated again in reverse
    ``forward_over_reverse``  8     1.7 A   the backward pass that gave g, linearised and pushed
                                            forward along u
    ``lean``                  9     A       the same, the forward pass computed again after u
    ``per_example``           8     1.7 A   the losses' tangents along u, ∂L_meta/∂z_b, then pulled
                                            back through the weights; a :class:`WeightedLosses`
    ``ghost_product``         7     2.3 A   the same vector from the backward pass that gave g; a
                                            :class:`WeightedLosses` of independent examples
    ``finite_difference``     8     A       a central difference of ∇_ψ L along u. **Not exact**: it
                                            errs by √ε times what the problem makes of it
    ========================  ====  ======  ========================================================

    All but the last are exact: they agree to rounding, for any transformation and any ψ.
    ``per_example`` and ``ghost_product`` need forward mode of the examples' losses, which a
    ``jax.custom_vjp`` has not; ``forward_over_reverse`` and ``lean`` differentiate its rules.
    :func:`finite_difference` makes the last with another scheme, step or precision.

    Args:
        train_loss: L: (params, psi, batch) → (scalar, aux), or a :class:`WeightedLosses`. Batch
            statistics belong into aux.
        meta_loss: (params, meta_batch) → (scalar, aux).
        optimizer: any optax transformation; frozen parameters by its masks. Or ψ ↦ transformation,
            where ψ holds its hyperparameters; its state's structure must not depend on ψ.
        mode: one of the above, or a :class:`Mode`.
        steps: K, how many real steps the meta loss comes after. For K > 1 every array of batch has
            a leading axis of K, and the mode says how the derivative of each step's gradient is
            taken: ``reverse`` keeps the backward pass of a segment's steps in memory, the others
            the parameters and optimizer state alone. A step costs 12 units, 9 with segment 0.
        segment: for K > 1, how many steps are computed again together: ⌈√K⌉ if None. 0: none are;
            memory grows by parameters and optimizer state with every step.
        scan: for K > 1, the steps of a segment are a loop of the compiler, which compiles once; for
            accelerators, as XLA's loops run convolutions many times slower on the CPU.
        parts: for K = 1, how many micro-batches the batch and the meta batch are computed in, one
            after another, so that the activations of one are in memory. Both losses must be means
            over examples, or weights and losses of them; weights stay those of the whole batch, and
            the result the same. Every mode then computes a forward pass again, as ``lean`` does.
            All arrays of a batch are cut, and must be of one length: close over what is shared.

    Returns:
        f(psi, params, opt_state, batch, meta_batch, carry=None) → :class:`MetaStep`. ψ is any
        pytree. If carry is given, both losses take it as their last argument, train_loss's aux is
        the next one, and the meta loss reads the last: batch statistics, say, differentiated too.
        In parts it goes from one micro-batch to the next, and is a constant to ψ.

    Raises:
        ValueError: if the mode is unknown or does not suit the train loss, K or the carry, K or
            parts are no whole numbers above 0, K > 1 and an array of batch has no leading axis of
            K, K > 1 in parts, an array cannot be cut into the parts or is not as long as the others
            of its batch, ψ is not floating point, ψ or the parameters (for ``ghost_product`` the
            losses too) are float16, or weights and losses are not one of each for every example.
        CoupledExamplesError: a ValueError of ``ghost_product``, naming what couples examples.

    Example:
        >>> import optax, jax.numpy as jnp
        >>> def train_loss(w, psi, x): return jnp.mean(psi * (w - x) ** 2), None
        >>> def meta_loss(w, x): return jnp.mean((w - x) ** 2), None
        >>> step = value_and_meta_grad(train_loss, meta_loss, optax.sgd(0.5))
        >>> w, psi, x = jnp.array(0.0), jnp.ones(2), jnp.array([1.0, -1.0])
        >>> out = step(psi, w, optax.sgd(0.5).init(w), x, jnp.array([1.0]))
        >>> print(out.params, out.psi_grad)  # More of the first example, less of the second.
        0.0 [-1.  1.]

        The learning rate's own gradient:

        >>> step = value_and_meta_grad(train_loss, meta_loss, lambda psi: optax.sgd(psi.mean()))
        >>> out = step(psi, w, optax.sgd(0.5).init(w), x[:1], jnp.array([1.0]))

    Note:
        Where an entry of g is exactly 0, as a dead unit's is, the derivative of some updates
        (Adam's root, a norm) reads 0/0 as written. It is taken beside 0, where it has its limit.

    References:
        BALMS (arXiv 2007.10740), Algorithm 1; Eqn. 10.
    """
    chosen = _mode(mode)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f'steps: got {steps!r}, wanted a whole number of at least 1')
    if steps > 1 and chosen.one_step:
        raise ValueError(
            f'mode: got {mode!r} for {steps} steps, wanted one of '
            f'{", ".join(n for n, m in MODES.items() if not m.one_step)}'
        )
    if segment is not None and not 0 <= segment <= steps:
        raise ValueError(f'segment: got {segment}, wanted 0 to the {steps} steps, or None')
    if not isinstance(parts, int) or parts < 1 or (parts > 1 and steps > 1):
        raise ValueError(
            f'parts: got {parts!r} for {steps} steps, wanted a whole number of at least 1, and 1 '
            'for several steps'
        )
    update = differentiable_update(optimizer)
    if steps == 1:
        one = _one_step(train_loss, meta_loss, update, chosen, reads_psi(optimizer), parts)
    train = train_steps(train_loss, update, chosen, steps, segment, scan)

    def step(
        psi: PyTree,
        params: PyTree,
        opt_state: PyTree,
        batch: PyTree,
        meta_batch: PyTree,
        carry: PyTree = None,
    ) -> MetaStep:
        _check_types(psi, params)
        if parts > 1 or (steps == 1 and carry is None):
            return one(psi, params, opt_state, batch, meta_batch, carry)
        if chosen.one_step:
            raise ValueError(f'carry: got one for mode {mode!r}, wanted a mode that takes several')
        if steps == 1:
            batch = jax.tree.map(lambda leaf: leaf[None], batch)
        check_batches(batch, steps)
        extra = () if carry is None else (carry,)
        (new_params, new_carry), pull_back, (new_state, losses, aux) = jax.vjp(
            lambda psi: _outcome(train(psi, (params, opt_state, extra), batch)), psi, has_aux=True
        )
        (loss, meta_aux), cotangents = jax.value_and_grad(
            lambda at: meta_loss(at[0], meta_batch, *at[1]), has_aux=True
        )((new_params, new_carry))
        (psi_grad,) = pull_back(cotangents)
        if carry is not None:
            (aux,) = new_carry
            losses = losses[0] if steps == 1 else losses
        return MetaStep(loss, psi_grad, losses, new_params, new_state, aux, meta_aux)

    return step


def _one_step(
    train_loss: TrainLoss,
    meta_loss: MetaLoss,
    update: Update,
    mode: Mode,
    update_reads_psi: bool,
    parts: int,
) -> Callable[..., MetaStep]:
    def step(
        psi: PyTree,
        params: PyTree,
        opt_state: PyTree,
        batch: PyTree,
        meta_batch: PyTree,
        carry: PyTree,
    ) -> MetaStep:
        extra = () if carry is None else (carry,)
        taken = mode if parts == 1 else mode_in_parts(mode, parts, extra)
        inner = taken.inner_gradient(train_loss, params, psi, batch)

        new_params, update_vjp, new_state = jax.vjp(
            lambda grads, psi: update(grads, opt_state, params, psi),
            inner.grads,
            psi,
            has_aux=True,
        )
        if parts == 1:
            (loss, meta_aux), meta_grads = jax.value_and_grad(meta_loss, has_aux=True)(
                new_params, meta_batch
            )
        else:
            last = (inner.aux,) if extra else ()
            (loss, meta_aux), meta_grads = meta_gradient(
                meta_loss, new_params, meta_batch, parts, last
            )
        u, direct = update_vjp(meta_grads)
        product = inner.mixed_product(u)
        psi_grad = product.psi
        if update_reads_psi:
            psi_grad = optax.tree.add(psi_grad, direct)
        return MetaStep(
            loss,
            psi_grad,
            inner.loss,
            new_params,
            new_state,
            inner.aux,
            meta_aux,
            product.examples,
        )

    return step


def _check_types(psi: PyTree, params: PyTree) -> None:
    for path, leaf in jax.tree.leaves_with_path(psi):
        kind = jnp.result_type(leaf)
        if not jnp.issubdtype(kind, jnp.floating):
            raise ValueError(
                f'psi{jax.tree_util.keystr(path)}: got {kind}, wanted a floating type: it is '
                'differentiated'
            )
    for name, tree in (('psi', psi), ('params', params)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            kind = jnp.result_type(leaf)
            if jnp.issubdtype(kind, jnp.floating):
                check_range(name + jax.tree_util.keystr(path), kind)


def _outcome(trained: Any) -> tuple[Any, Any]:
    """What the meta loss reads, and the rest."""
    (params, opt_state, carry), (losses, aux) = trained
    return (params, carry), (opt_state, losses, aux)


def _mode(mode: str | Mode) -> Mode:
    if isinstance(mode, Mode):
        return mode
    if mode not in MODES:
        raise ValueError(f'mode: got {mode!r}, wanted one of {", ".join(MODES)}')
    return MODES[mode]
