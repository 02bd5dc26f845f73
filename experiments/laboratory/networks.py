"""What parts A and B differentiate: networks, data and the same values in every precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax import models
from balms_jax.estimators import Draw, gumbel_over_classes
from balms_jax.losses import balanced_softmax_cross_entropy_with_integer_labels
from balms_jax.meta_gradients import WeightedLosses
from experiments.laboratory.features import Tail

PyTree = Any
PRECISIONS = {  # of the computation; parameters and ψ are float32 for the last
    'float64': (jnp.float64, jnp.float64),
    'float32': (jnp.float32, jnp.float32),
    'bfloat16': (jnp.float32, jnp.bfloat16),
}


class Inputs(NamedTuple):
    """Inputs, and how they were drawn."""

    inputs: jax.Array
    draw: Draw


class Subject(NamedTuple):
    """A network and its data, all in float64 of values that float32 holds."""

    name: str
    apply: Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]
    """(params, batch statistics, inputs) → (logits, batch statistics)"""
    params: PyTree
    stats: PyTree
    psi: np.ndarray
    class_counts: np.ndarray
    batches: list[Inputs]  # the first is measured on, all are for the warm steps
    meta_batch: tuple[np.ndarray, np.ndarray]
    independent: bool  # whether no example's loss depends on another

    def train_loss(self, stats: PyTree, compute: Any) -> WeightedLosses:
        """The training loss. Statistics are closed over: in a batch they could look like one."""
        estimator = gumbel_over_classes(self.class_counts)
        log_prior = np.log(self.class_counts / self.class_counts.sum())

        def losses(params: PyTree, batch: Inputs) -> tuple[jax.Array, PyTree]:
            logits, new_stats = self._logits(params, stats, batch.inputs, compute)
            prior = jnp.asarray(log_prior, logits.dtype)
            values = balanced_softmax_cross_entropy_with_integer_labels(
                logits, batch.draw.classes, prior
            )
            return values, new_stats

        def weights(psi: jax.Array, batch: Inputs, losses: jax.Array) -> jax.Array:
            return estimator.weights(psi, batch.draw).astype(losses.dtype)

        return WeightedLosses(losses, weights)

    def meta_loss(self, params: PyTree, stats: PyTree, batch: Any, compute: Any) -> jax.Array:
        """Plain cross-entropy of the meta batch, a scalar."""
        inputs, labels = batch
        logits, _ = self._logits(params, stats, inputs, compute)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def _logits(self, params: PyTree, stats: PyTree, inputs: Any, compute: Any) -> Any:
        wide = jax.tree.leaves(params)[0].dtype
        logits, new_stats = self.apply(cast(params, compute), stats, inputs.astype(compute))
        return logits.astype(wide), new_stats


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """The floating leaves of a tree in another type."""

    def convert(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(convert, tree)


def linear_head(tail: Tail, *, seed: int = 0, batch_size: int = 32, batches: int = 8) -> Subject:
    """A linear classifier of features, its logits of unit size."""
    rng = np.random.default_rng(seed)
    params = {
        'kernel': rng.normal(size=(tail.features.shape[1], tail.counts.size)) / 8,
        'bias': np.zeros(tail.counts.size),
    }

    def apply(params: PyTree, stats: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        return x @ params['kernel'] + params['bias'][None], stats

    return _subject('linear head', apply, params, {}, tail, True, seed, batch_size, batches)


def tanh_network(tail: Tail, *, seed: int = 0, batch_size: int = 32, batches: int = 8) -> Subject:
    """Two smooth layers on features."""
    rng = np.random.default_rng(seed)
    width = tail.features.shape[1]
    params = {
        'first': rng.normal(size=(width, 64)) / 8,
        'second': rng.normal(size=(64, 64)) / 8,
        'last': rng.normal(size=(64, tail.counts.size)) / 8,
    }

    def apply(params: PyTree, stats: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        x = jnp.tanh(jnp.tanh(x @ params['first']) @ params['second'])
        return x @ params['last'], stats

    return _subject('tanh network', apply, params, {}, tail, True, seed, batch_size, batches)


def residual_network(
    name: str,
    images: Tail,
    *,
    frozen: bool,
    seed: int = 0,
    batch_size: int = 32,
    batches: int = 8,
) -> Subject:
    """A network of the library, batch norm with the batch's statistics or with frozen ones.

    Args:
        name: of ``models.NETWORKS``.
        images: normalised, as the features of a tail, ``[examples, height, width, channels]``.
        frozen: whether statistics are held, at those of the first batch.
        seed: of everything.
        batch_size: of the training and the meta batch.
        batches: how many training batches.

    Returns:
        The subject.
    """
    network = models.build(name, images.counts.size)
    first = jnp.asarray(images.features[:1], jnp.float32)
    params, stats = jax.jit(network.init)(jax.random.key(seed), first)

    def apply(params: PyTree, stats: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        features, stats = network.features(params['backbone'], stats, x, not frozen)
        return network.logits(params['classifier'], features), stats

    title = f'{name}, {"frozen" if frozen else "batch"} statistics'
    subject = _subject(title, apply, params, stats, images, frozen, seed, batch_size, batches)
    if not frozen:
        return subject
    # Those of the first batch: the running ones move a tenth of the way to them.
    inputs = jnp.asarray(subject.batches[0].inputs, jnp.float32)
    moved = jax.jit(lambda x: network.features(params['backbone'], stats, x, True)[1])(inputs)
    batch_stats = jax.tree.map(lambda new, old: _single(10 * (new - 0.9 * old)), moved, stats)
    return subject._replace(stats=batch_stats)


def _subject(
    name: str,
    apply: Any,
    params: PyTree,
    stats: PyTree,
    tail: Tail,
    independent: bool,
    seed: int,
    batch_size: int,
    batches: int,
) -> Subject:
    rng = np.random.default_rng(seed + 1)
    psi = _single(rng.normal(scale=0.5, size=tail.counts.size))
    estimator = gumbel_over_classes(tail.counts)

    def drawn(index: int) -> Inputs:
        key = jax.random.fold_in(jax.random.key(seed), index)
        draw = estimator.draw(key, jnp.asarray(psi, jnp.float32), batch_size)
        return Inputs(tail.features[np.asarray(draw.examples)], jax.tree.map(np.asarray, draw))

    starts = np.cumsum(tail.counts) - tail.counts
    labels = (np.arange(batch_size) % tail.counts.size).astype(np.int32)
    places = starts[labels] + rng.integers(tail.counts[labels])
    return Subject(
        name,
        apply,
        jax.tree.map(_single, params),
        jax.tree.map(_single, stats),
        psi,
        tail.counts,
        [drawn(index) for index in range(batches)],
        (tail.features[places], labels),
        independent,
    )


def _single(values: Any) -> np.ndarray:
    """Float64 of values that float32 holds: no precision then starts from other parameters."""
    return np.asarray(values).astype(np.float32).astype(np.float64)
