"""CoSen's costs ξ: moved between two epochs to what sizes, distances and confusions ask."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax import cost_sensitivity
from balms_jax.data.image_files import subset
from balms_jax.models import Network
from balms_jax.training import mesh
from balms_jax.training.batches import over_batches
from balms_jax.training.inputs import normalised
from balms_jax.training.material import Material
from balms_jax.training.measures import classified, probe
from balms_jax.training.recipe import Stage
from balms_jax.training.state import TrainState

PyTree = Any

PROBES = 50  # training examples of a class whose distances are measured


class Costs(NamedTuple):
    """What the state holds of the schedule, as its ψ."""

    costs: jax.Array  # ξ, [classes, classes]
    rate: jax.Array  # γ_ξ, []
    error: jax.Array  # on the held-out examples, class by class, at the last epoch's end, []


def first_costs(stage: Stage, num_classes: int) -> Costs:
    """All costs alike, which is plain softmax."""
    ones = jnp.ones((num_classes, num_classes))
    return Costs(ones, jnp.asarray(stage.loss.cost_rate), jnp.ones([]))


def make_schedule(material: Material, network: Network) -> Callable[[TrainState], TrainState]:
    """Makes the function that moves the costs at the end of an epoch.

    Distances are those of the features of some training examples, confusions and the error those
    of the held-out ones. γ_ξ is halved where the error has not fallen.

    Args:
        material: the data, with some held out.
        network: the network.

    Returns:
        state → the state with other costs.

    References:
        Khan et al. (arXiv 1508.03422), algorithm 1. What it takes from cross-validation is the mean
        and the deviation of each matrix here, and how much its γ_ξ decays is ours.
    """
    counts, source = np.asarray(material.class_counts), material.source
    probes, probe_labels = probe(counts, PROBES)
    held_out = np.asarray(material.held_out_counts)
    held_out_labels = np.repeat(np.arange(held_out.size), held_out)

    @jax.jit
    def forward(current: TrainState, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        backbone, stats = current.params['backbone'], current.batch_stats
        features = network.features(backbone, stats, normalised(images, source), False)[0]
        return features, classified(network, current.params, features).argmax(-1)

    def moved(current: TrainState) -> TrainState:
        before: Costs = current.psi

        devices = mesh.of(current.params)

        def of_batch(batch: jax.Array, start: int) -> tuple[jax.Array, jax.Array]:
            return forward(current, batch)

        features, _ = over_batches(of_batch, subset(material.train_images, probes), devices)
        _, predicted = over_batches(of_batch, material.held_out_images, devices)
        confusion = cost_sensitivity.confusion_rates(predicted, held_out_labels, counts.size)
        error = 1 - jnp.diag(confusion).mean()
        rate = jnp.where(error < before.error, before.rate, before.rate / 2)
        target = cost_sensitivity.target_costs(
            counts,
            cost_sensitivity.class_separability(features, probe_labels, counts.size),
            confusion,
        )
        after = Costs(cost_sensitivity.moved_costs(before.costs, target, rate), rate, error)
        placed = jax.tree.map(
            lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding), after, before
        )
        return dataclasses.replace(current, psi=placed)

    return moved
