"""The state of a training stage: arrays and nothing else."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that the next step depends on, besides the data."""

    step: jax.Array  # steps taken in this stage, int32
    key: jax.Array  # folded with the step for every step's draws
    trained: PyTree  # parameters that this stage trains: {'backbone': …, 'classifier': …}
    frozen: PyTree  # the other parameters
    batch_stats: PyTree
    opt_state: PyTree
    psi: PyTree  # None without a rebalancer
    psi_opt_state: PyTree
    average: PyTree = None  # Of (trained, batch_stats) over the steps; None if none is kept.
    past_psi: PyTree = None  # ψ of the steps before, oldest first, [staleness, ...]; None for 0.

    @property
    def params(self) -> dict[str, PyTree]:
        """All parameters of the network."""
        return {**self.frozen, **self.trained}

    @property
    def drawn_psi(self) -> PyTree:
        """ψ that this step's batch is drawn at: today's, or that of some steps ago."""
        if self.past_psi is None:
            return self.psi
        return jax.tree.map(lambda leaf: leaf[0], self.past_psi)

    @property
    def tested(self) -> 'TrainState':
        """The state with the averages, where they are kept, in place of the last values."""
        if self.average is None:
            return self
        trained, batch_stats = self.average
        return dataclasses.replace(self, trained=trained, batch_stats=batch_stats)


def create(
    key: jax.Array,
    trained: PyTree,
    frozen: PyTree,
    batch_stats: PyTree,
    optimizer: optax.GradientTransformation,
    psi: PyTree,
    psi_optimizer: optax.GradientTransformation,
    *,
    averages: bool = False,
    staleness: int = 0,
) -> TrainState:
    """The state that a stage starts from."""
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        key=key,
        trained=trained,
        frozen=frozen,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trained),
        psi=psi,
        psi_opt_state=psi_optimizer.init(psi),
        average=jax.tree.map(jnp.copy, (trained, batch_stats)) if averages else None,
        past_psi=jax.tree.map(lambda leaf: jnp.stack([leaf] * staleness), psi)
        if staleness
        else None,
    )


def passed(past_psi: PyTree, psi: PyTree) -> PyTree:
    """The ψ of the steps before, one step later."""
    return jax.tree.map(lambda past, now: jnp.concatenate([past[1:], now[None]]), past_psi, psi)


def stack(states: Sequence[TrainState]) -> TrainState:
    """The states of several runs as one, with a leading axis; that of one run as it is."""
    if len(states) == 1:
        return states[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(state: TrainState, runs: int) -> list[TrainState]:
    """The states that were stacked."""
    if runs == 1:
        return [state]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(runs)]
