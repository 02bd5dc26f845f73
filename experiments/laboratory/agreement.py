"""Parts A and B: do the modes agree, and how good is a finite difference?"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax.meta_gradients import MODES, Mode, finite_difference
from balms_jax.meta_gradients.modes import balanced_step
from balms_jax.meta_gradients.update import differentiable_update
from experiments.laboratory.ledger import Ledger
from experiments.laboratory.networks import PRECISIONS, Subject, cast

PyTree = Any
Gradient = Callable[..., tuple[PyTree, jax.Array, PyTree]]
OPTIMIZERS = {
    'SGD': optax.sgd(0.1),
    'Nesterov, decay': optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9, nesterov=True)
    ),
    'AdamW': optax.adamw(1e-3),
    'clip, SGD': optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
}
WARM = OPTIMIZERS['Nesterov, decay']
REFERENCE = ('reverse', 'float64')


class Place(NamedTuple):
    """Where the gradient is taken: θ, statistics, and the gradients of the steps before."""

    params: PyTree
    stats: PyTree
    earlier: list[tuple[PyTree, PyTree]]  # (θ, g) of every warm step


class Programs:
    """The compiled programs of one network: few, for each takes half a minute."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._made: dict[Any, Any] = {}

    def inner(self, mode: str, precision: str) -> Gradient:
        """(θ, ψ, batch, statistics, u) → (g, ∂_ψ⟨u, g⟩, new statistics)."""
        compute = PRECISIONS[precision][1]
        chosen = MODES[mode]
        if mode == 'finite_difference':
            chosen = finite_difference(precision=compute)
        return self._once(('inner', mode, precision), lambda: self._inner(chosen, compute))

    def meta(self, precision: str) -> Callable[..., PyTree]:
        """(θ, meta batch, statistics) → ∇L_meta."""
        compute = PRECISIONS[precision][1]

        def meta_gradient(params: PyTree, batch: Any, stats: PyTree) -> PyTree:
            return jax.grad(self.subject.meta_loss)(params, stats, batch, compute)

        return self._once(('meta', precision), lambda: jax.jit(meta_gradient))

    def update(self, optimizer: str) -> tuple[Callable[..., PyTree], Callable[..., PyTree]]:
        """(g, optimizer state, θ) → θ̃; and with a cotangent of θ̃ → that of g."""
        update = differentiable_update(OPTIMIZERS[optimizer])

        @jax.jit
        def after(grads: PyTree, opt_state: PyTree, params: PyTree) -> PyTree:
            return update(grads, opt_state, params, None)[0]

        @jax.jit
        def pull_back(
            grads: PyTree, opt_state: PyTree, params: PyTree, cotangent: PyTree
        ) -> PyTree:
            return jax.vjp(lambda g: update(g, opt_state, params, None)[0], grads)[1](cotangent)[0]

        return self._once(('update', optimizer), lambda: (after, pull_back))

    def difference(self, scheme: str, precision: str) -> Callable[..., jax.Array]:
        """(θ, ψ, batch, statistics, u, ρ) → the difference in place of ∂_ψ⟨u, g⟩."""
        compute = PRECISIONS[precision][1]

        def product(
            params: PyTree, psi: jax.Array, batch: Any, stats: PyTree, u: PyTree, rho: jax.Array
        ) -> jax.Array:
            mode = finite_difference(scheme, step=rho)
            inner = mode.inner_gradient(self.subject.train_loss(stats, compute), params, psi, batch)
            return inner.mixed_product(u).psi

        return self._once(('difference', scheme, precision), lambda: jax.jit(product))

    def data(self, precision: str, place: Place, batch: int = 0) -> tuple[Any, ...]:
        """Parameters, ψ, batch and statistics in a precision; the meta batch."""
        wide = PRECISIONS[precision][0]
        subject = self.subject
        values = (place.params, subject.psi, subject.batches[batch], place.stats)
        return (*cast(values, wide), cast(subject.meta_batch, wide))

    def _inner(self, mode: Mode, compute: Any) -> Gradient:
        def run(
            params: PyTree, psi: jax.Array, batch: Any, stats: PyTree, u: PyTree
        ) -> tuple[PyTree, jax.Array, PyTree]:
            train_loss = self.subject.train_loss(stats, compute)
            inner = mode.inner_gradient(train_loss, params, psi, batch)
            return inner.grads, inner.mixed_product(u).psi, inner.aux

        return jax.jit(run)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def places(programs: Programs, warm_steps: int) -> dict[str, Place]:
    """At initialisation and after some steps, taken in float32: every precision can hold that θ."""
    subject = programs.subject
    found = {'initial': Place(subject.params, subject.stats, [])}
    run, place = programs.inner('reverse', 'float32'), found['initial']
    params, psi, _, stats, _ = programs.data('float32', place)
    # Without batch statistics nothing holds a deep network's first steps back.
    warm = optax.chain(optax.clip_by_global_norm(1.0), WARM) if subject.independent else WARM
    opt_state, earlier = warm.init(params), []
    for step in range(warm_steps):
        batch = programs.data('float32', place, 1 + step % (len(subject.batches) - 1))[2]
        grads, _, stats = run(params, psi, batch, stats, _zeros(params))
        earlier.append((params, grads))
        updates, opt_state = warm.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    params, stats = cast((params, stats), jnp.float64)
    found['warm'] = Place(params, stats, earlier)
    return found


def state_of(optimizer: str, params: PyTree, place: Place) -> PyTree:
    """The optimizer's state, had it seen the gradients of the warm steps."""
    dtype = jax.tree.leaves(params)[0].dtype
    state = OPTIMIZERS[optimizer].init(params)
    update = jax.jit(OPTIMIZERS[optimizer].update)
    for earlier, grads in place.earlier:
        state = update(cast(grads, dtype), state, cast(earlier, dtype))[1]
    return state


def measure_agreement(
    ledger: Ledger,
    programs: Programs,
    warm_steps: int,
    precisions: Sequence[str] = tuple(PRECISIONS),
) -> None:
    """ψ-gradients of every mode and precision, and the product alone along the exact u."""
    subject = programs.subject
    known: dict[Any, Any] = {}

    def reference(where: str, optimizer: str) -> dict[str, Any]:
        if 'places' not in known:
            known['places'] = places(programs, warm_steps)
        key = where, optimizer
        if key not in known:
            known[key] = _meta_gradient(programs, *REFERENCE, known['places'][where], optimizer)
        return known[key]

    for precision in precisions:
        for mode in MODES:
            if mode == 'ghost_product' and not subject.independent:
                continue

            def row(mode: str = mode, precision: str = precision) -> dict[str, Any]:
                found = {}
                for where in ('initial', 'warm'):
                    for optimizer in OPTIMIZERS:
                        exact = reference(where, optimizer)
                        place = known['places'][where]
                        got = _meta_gradient(
                            programs, mode, precision, place, optimizer, exact['u']
                        )
                        found[f'{where}, {optimizer}'] = {
                            **_against(got['psi'], exact['psi']),
                            'product': _against(got['product'], exact['psi'])['error'],
                            'u': _error_of_direction(got['u'], exact),
                        }
                return found

            ledger.row(f'{subject.name}/{precision}/{mode}', row)


def _meta_gradient(
    programs: Programs,
    mode: str,
    precision: str,
    place: Place,
    optimizer: str,
    exact_u: PyTree = None,
) -> dict[str, Any]:
    """The ψ-gradient as ``value_and_meta_grad`` makes it, from programs compiled once."""
    params, psi, batch, stats, meta_batch = programs.data(precision, place)
    run = programs.inner(mode, precision)
    after, pull_back = programs.update(optimizer)
    grads, _, _ = run(params, psi, batch, stats, _zeros(params))
    opt_state = state_of(optimizer, params, place)
    cotangent = programs.meta(precision)(after(grads, opt_state, params), meta_batch, stats)
    u = pull_back(grads, opt_state, params, cotangent)
    found = {'u': u, 'grads': grads, 'psi': run(params, psi, batch, stats, u)[1]}
    if exact_u is not None:
        wide = PRECISIONS[precision][0]
        found['product'] = run(params, psi, batch, stats, cast(exact_u, wide))[1]
    return found


def measure_differences(
    ledger: Ledger, programs: Programs, warm_steps: int, steps: np.ndarray
) -> None:
    """The error of differences along the exact u of SGD, against their relative step."""
    subject = programs.subject
    known: dict[str, Any] = {}
    for precision in PRECISIONS:
        for scheme in ('central', 'forward'):

            def row(precision: str = precision, scheme: str = scheme) -> dict[str, Any]:
                if not known:
                    place = places(programs, warm_steps)['warm']
                    known.update(place=place, **_meta_gradient(programs, *REFERENCE, place, 'SGD'))
                wide, compute = PRECISIONS[precision]
                *data, _ = programs.data(precision, known['place'])
                u, run = cast(known['u'], wide), programs.difference(scheme, precision)
                errors = [
                    _against(run(*data, u, jnp.asarray(rho, wide)), known['psi'])['error']
                    for rho in steps
                ]
                default = balanced_step(compute)
                at_default = run(*data, u, jnp.asarray(default, wide))
                return {
                    'steps': steps.tolist(),
                    'errors': errors,
                    'default': default,
                    'error_at_default': _against(at_default, known['psi'])['error'],
                }

            ledger.row(f'{subject.name}/{precision}/{scheme}', row)


def _against(gradient: Any, exact: Any) -> dict[str, float]:
    """The relative error, and the cosine; an error that is no number is told as 1e9."""
    a, b = np.asarray(gradient, np.float64), np.asarray(exact, np.float64)
    error = float(np.linalg.norm(a - b)) / float(np.linalg.norm(b))
    cosine = float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300)
    finite = bool(np.isfinite(error))
    return {'error': error if finite else 1e9, 'cosine': cosine if finite else 0.0}


def _error_of_direction(u: PyTree, exact: dict[str, Any]) -> float:
    """Relative, without entries where g is 0: Adam's are huge there, and multiplied by 0."""
    alive = _flat(exact['grads']) != 0
    return _against(_flat(u)[alive], _flat(exact['u'])[alive])['error']


def _flat(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)
