"""What is made of a trained network without training: another classifier, a calibrated one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import diagnostics, losses, priors
from balms_jax.data.image_files import Images
from balms_jax.models import Network
from balms_jax.models.classifiers import nearest_mean, tau_normalized
from balms_jax.training.inputs import feature_extractor
from balms_jax.training.material import Material
from balms_jax.training.measures import classified
from balms_jax.training.recipe import Recipe
from balms_jax.training.state import TrainState

PyTree = Any

TAUS = np.linspace(0, 2, 41)  # of the τ-normalised classifier
TEMPERATURES = np.geomspace(0.1, 10, 231)  # of calibration, 2 % apart


class Examples(NamedTuple):
    """Features of images, and what they are."""

    features: jax.Array  # [examples, features]
    labels: jax.Array  # [examples]
    weights: jax.Array  # every class weighs alike, [examples]


def with_test_classifier(
    recipe: Recipe, material: Material, network: Network, final: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Puts the classifier that is tested in place of the trained one.

    Args:
        recipe: ``evaluation.classifier`` names it.
        material: the data; τ is chosen on what was held out.
        network: the trained network.
        final: its state.

    Returns:
        The state to test, and what was chosen for it, for the record.
    """
    name = recipe.evaluation.classifier
    if name == 'trained':
        return final, {}
    trained = final.params['classifier']
    if name == 'nearest_mean':
        seen = _examples(
            recipe, material, network, final, material.train_images, material.class_counts
        )
        return _with_classifier(final, nearest_mean(trained, seen.features, seen.labels)), {}
    apart = _held_out(recipe, material, network, final)

    def accuracy(tau: jax.Array) -> jax.Array:
        params = {'classifier': tau_normalized(trained, tau)}
        predicted = _at_test(recipe, material, network, params, apart.features).argmax(-1)
        return apart.weights @ (predicted == apart.labels)

    accuracies = np.asarray(jax.lax.map(accuracy, jnp.asarray(TAUS, jnp.float32)))
    tau = float(TAUS[accuracies.argmax()])
    chosen = {'tau_of_normalization': tau, 'held_out_accuracy': float(accuracies.max())}
    return _with_classifier(final, tau_normalized(trained, tau)), chosen


def calibration_temperature(
    recipe: Recipe, material: Material, network: Network, final: TrainState
) -> float | None:
    """The T that the logits are to be divided by, chosen on what was held out; None without it."""
    if not recipe.data.held_out:
        return None
    apart = _held_out(recipe, material, network, final)
    logits = _at_test(recipe, material, network, final.params, apart.features)
    return diagnostics.calibration_temperature(logits, apart.labels, apart.weights, TEMPERATURES)


def _at_test(
    recipe: Recipe, material: Material, network: Network, params: PyTree, features: jax.Array
) -> jax.Array:
    """Logits as they are tested: with the post-hoc adjustment, where there is one."""
    logits = classified(network, params, features)
    if not recipe.evaluation.post_hoc_tau:
        return logits
    log_prior = priors.log_prior(np.asarray(material.class_counts))
    return losses.change_prior(
        logits, trained_log_prior=log_prior, tau=recipe.evaluation.post_hoc_tau
    )


def _held_out(recipe: Recipe, material: Material, network: Network, final: TrainState) -> Examples:
    images, counts = material.held_out_images, material.held_out_counts
    return _examples(recipe, material, network, final, images, counts)


def _examples(
    recipe: Recipe,
    material: Material,
    network: Network,
    final: TrainState,
    images: Images,
    counts: tuple[int, ...],
) -> Examples:
    features = feature_extractor(network, final, recipe, material.source)(images)
    n = np.asarray(counts)
    return Examples(
        jnp.asarray(features),
        jnp.asarray(np.repeat(np.arange(n.size), n), jnp.int32),
        jnp.asarray(np.repeat(1 / (n.size * n), n), jnp.float32),
    )


def _with_classifier(final: TrainState, classifier: PyTree) -> TrainState:
    """The state with another classifier, without the scales that were learned for its own."""

    def put(params: PyTree) -> PyTree:
        kept = {name: part for name, part in params.items() if name != 'scales'}
        return {**kept, 'classifier': classifier} if 'classifier' in kept else kept

    return dataclasses.replace(final, trained=put(final.trained), frozen=put(final.frozen))
