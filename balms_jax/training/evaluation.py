"""How well a network does under one or more test priors: masked sums, divided once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from balms_jax import diagnostics, losses, priors
from balms_jax.training import mesh
from balms_jax.training.batches import Inputs, batches

PyTree = Any


class Sums(NamedTuple):
    """What adds up over batches, for each test prior."""

    weight: jax.Array  # Σ of the examples' weights, [priors]
    correct: jax.Array  # [priors]
    negative_log_likelihood: jax.Array  # [priors]
    probability: jax.Array  # Σ p(y | x), [priors, classes]
    reliability: diagnostics.Reliability  # each [priors, bins]
    confusion: jax.Array  # examples by true and predicted class, [priors, classes, classes]


def named_log_priors(
    names: tuple[str, ...], class_counts: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Log priors of test sets by name: uniform, train, or reversed (rare classes as frequent)."""
    counts = np.asarray(class_counts, np.float64)
    proportions = {
        'uniform': np.full(counts.size, 1 / counts.size),
        'train': counts / counts.sum(),
        'reversed': _reversed(counts) / counts.sum(),
    }
    with np.errstate(divide='ignore'):
        return {name: np.log(proportions[name]) for name in names}


def make_batch_sums(
    logits: Callable[[PyTree, jax.Array], jax.Array],
    class_counts: tuple[int, ...],
    test_priors: tuple[str, ...],
    temperature: float = 1.0,
) -> Any:
    """Compiles what is computed of one batch.

    Args:
        logits: (variables, inputs) → ``[batch, classes]``.
        class_counts: n of the training set.
        test_priors: names, as in :func:`named_log_priors`.
        temperature: T that the logits are divided by, after any change of prior.

    Returns:
        The compiled function: (variables, inputs, labels ``[batch]``, weights ``[priors, batch]``,
        removed log priors ``[priors, classes]``) → :class:`Sums`.
    """
    stacked = _stacked(test_priors, class_counts)

    @jax.jit
    def batch_sums(
        variables: PyTree,
        inputs: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        removed: jax.Array,
    ) -> Sums:
        raw = logits(variables, inputs)

        def under(log_prior: jax.Array, removed: jax.Array, weights: jax.Array) -> Sums:
            changed = losses.change_prior(
                raw, trained_log_prior=removed, test_log_prior=log_prior - log_prior.max()
            )
            log_probabilities = jax.nn.log_softmax(changed / temperature)
            probabilities, predicted = jnp.exp(log_probabilities), changed.argmax(-1)
            at_label = jnp.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0]
            classes = changed.shape[-1]
            real = (weights > 0).astype(weights.dtype)
            return Sums(
                weights.sum(),
                jnp.sum(jnp.where(predicted == labels, weights, 0)),
                -jnp.sum(jnp.where(weights > 0, weights * at_label, 0)),
                weights @ probabilities,
                diagnostics.reliability(probabilities, labels, weights),
                jnp.zeros((classes, classes)).at[labels, predicted].add(real),
            )

        return jax.vmap(under)(jnp.asarray(stacked, raw.dtype), removed, weights)

    return batch_sums


def make_evaluator(
    logits: Callable[[PyTree, jax.Array], jax.Array],
    class_counts: tuple[int, ...],
    test_priors: tuple[str, ...],
    post_hoc_tau: float,
    batch_size: int,
    temperature: float = 1.0,
) -> Callable[[PyTree, Inputs, np.ndarray, np.ndarray], dict[str, dict[str, Any]]]:
    """Makes the function that evaluates a network.

    Args:
        logits: (variables, inputs) → ``[batch, classes]``.
        class_counts: n of the training set, for the shot groups and the priors.
        test_priors: names, as in :func:`named_log_priors`.
        post_hoc_tau: τ of post-hoc logit adjustment by the training prior; 0 for none.
        batch_size: examples in a compiled call, rounded up to a multiple of the devices; the last
            batch is padded and masked.
        temperature: T that the logits are divided by, after any change of prior.

    Returns:
        (variables, inputs, labels, learned log prior) → for each test prior the record of the final
        evaluation. 'uniform' takes the plain logits (post-hoc adjusted if asked). Any other prior
        replaces the one that the network has learned, ``[classes]``; its classes' examples weigh as
        the prior says.
    """
    stacked = _stacked(test_priors, class_counts)
    trained = np.asarray(priors.log_prior(np.asarray(class_counts)))
    batch_sums = make_batch_sums(logits, class_counts, test_priors, temperature)

    def evaluate(
        variables: PyTree,
        inputs: Inputs,
        labels: np.ndarray,
        learned_log_prior: np.ndarray,
    ) -> dict[str, dict[str, Any]]:
        post_hoc = post_hoc_tau * trained if post_hoc_tau else np.zeros(len(class_counts))
        removed = np.stack(
            [post_hoc if name == 'uniform' else learned_log_prior for name in test_priors]
        ).astype(np.float32)
        test_counts = np.bincount(labels, minlength=len(class_counts))
        # weight of an example = prior of its class / its share of the test set
        shares = np.exp(stacked) * test_counts.sum() / np.maximum(test_counts, 1)
        devices = mesh.of(variables)
        size = whole_batch(batch_size, devices)
        total = None
        for batch in batches(inputs, size, devices):
            batch_labels = labels[batch.start : batch.start + batch.real]
            padding = size - batch.real
            weights = np.pad(shares[:, batch_labels], ((0, 0), (0, padding)))
            sums = batch_sums(
                variables,
                batch.inputs,
                np.pad(batch_labels, (0, padding)),
                weights.astype(np.float32),
                removed,
            )
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        total = mesh.gathered(total)
        return {
            name: summarise(jax.tree.map(lambda x, i=i: x[i], total), class_counts)
            for i, name in enumerate(test_priors)
        }

    return evaluate


def whole_batch(batch_size: int, devices: Mesh | None) -> int:
    """The batch size, rounded up to a multiple of the devices that it is cut over.

    Example:
        >>> whole_batch(3, mesh.data_mesh(2))
        4
    """
    cut = 1 if devices is None else devices.shape['data']
    return -(-batch_size // cut) * cut


def summarise(sums: Sums, class_counts: tuple[int, ...]) -> dict[str, Any]:
    """Divides the sums of one prior into the record of an evaluation.

    Args:
        sums: of one prior.
        class_counts: n of the training set.

    Returns:
        Plain numbers and lists. A shot group or class without examples is None, never 0.
    """
    confusion = np.asarray(sums.confusion, np.float64)
    support, correct = confusion.sum(1), np.diag(confusion)
    accuracy = np.where(support > 0, correct / np.maximum(support, 1), np.nan)
    groups = priors.shot_groups(np.asarray(class_counts))._asdict()
    shots = {name: _mean(accuracy[np.asarray(mask)]) for name, mask in groups.items()}
    bins = sums.reliability
    count = np.asarray(bins.weight, np.float64)
    filled = np.where(count > 0, count, np.nan)
    weight = float(sums.weight)
    return {
        'top1': float(sums.correct) / weight,
        **shots,
        'negative_log_likelihood': float(sums.negative_log_likelihood) / weight,
        'expected_calibration_error': diagnostics.expected_calibration_error(bins),
        'per_class_accuracy': plain(accuracy),
        'marginal_likelihood': plain(np.asarray(sums.probability, np.float64) / weight),
        'confusion_matrix': confusion.astype(int).tolist(),
        'reliability': {
            'confidence': plain(np.asarray(bins.confidence) / filled),
            'accuracy': plain(np.asarray(bins.accuracy) / filled),
            'count': plain(count),
        },
    }


def plain(values: np.ndarray) -> list[float | None]:
    """Numbers for a JSON record; None where there is none."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values)]


def _stacked(test_priors: tuple[str, ...], class_counts: tuple[int, ...]) -> np.ndarray:
    log_priors = named_log_priors(test_priors, class_counts)
    return np.stack([log_priors[name] for name in test_priors])


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _reversed(counts: np.ndarray) -> np.ndarray:
    """The largest count to the rarest class and so on; classes of equal counts in their order."""
    order = np.argsort(-counts, kind='stable')
    result = np.empty_like(counts)
    result[order] = counts[order[::-1]]
    return result
