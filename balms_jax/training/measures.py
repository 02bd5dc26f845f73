"""What is measured of a run: the test set during training and at the end, and gradient weights."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from balms_jax import diagnostics, priors
from balms_jax.models import Network
from balms_jax.rebalancers import Rebalancer
from balms_jax.training import evaluation, steps
from balms_jax.training.inputs import StageInputs, normalised
from balms_jax.training.material import Material
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any


def stage_evaluation(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    logits: steps.Logits,
    inputs: StageInputs,
    rebalancer: Rebalancer | None,
) -> Callable[[TrainState], dict[str, Any]]:
    """What is recorded during training: the test set, and the classes' gradient weights."""
    counts, source = np.asarray(material.class_counts), material.source
    places, labels = _probe(counts, recipe.evaluation.gradient_examples)
    evaluator = _evaluator(recipe, material, logits)
    log_prior = priors.log_prior(counts)

    @jax.jit
    def probe_logits(current: TrainState, inputs: jax.Array) -> jax.Array:
        variables = current.params, current.batch_stats
        return logits(*variables, normalised(inputs, source), False)[0]

    def evaluate(current: TrainState) -> dict[str, Any]:
        variables = (current.params, current.batch_stats)
        learned = learned_log_prior(stage, counts, rebalancer, current)
        result = evaluator(variables, inputs.test, source.test_labels, learned)['uniform']
        del result['confusion_matrix'], result['reliability']
        weights = np.asarray(
            diagnostics.effective_gradient_weights(
                probe_logits(current, inputs.probe[places]),
                labels,
                log_prior,
                tau=stage.tau,
                class_weights=_class_weights(stage, counts, rebalancer, current),
            )
        )
        exponent = diagnostics.gradient_weight_exponent(weights, counts)
        return {
            **result,
            'gradient_weights': evaluation.plain(weights),
            'gradient_weight_exponent': exponent if np.isfinite(exponent) else None,
        }

    return evaluate


def final_evaluation(
    recipe: Recipe, material: Material, network: Network, final: TrainState
) -> dict[str, Any]:
    """The test set at the end, by test prior: what stands in evaluation.json."""
    evaluator = _evaluator(recipe, material, whole_network(network))
    source, stage = material.source, list(recipe.stages.values())[-1]
    rebalancer = steps.make_rebalancer(stage.meta, material.class_counts)
    counts = np.asarray(material.class_counts)
    return evaluator(
        (final.params, final.batch_stats),
        source.test_images,
        source.test_labels,
        learned_log_prior(stage, counts, rebalancer, final),
    )


def _evaluator(
    recipe: Recipe, material: Material, logits: steps.Logits
) -> Callable[..., dict[str, dict[str, Any]]]:
    settings, source = recipe.evaluation, material.source
    return evaluation.make_evaluator(
        lambda variables, inputs: logits(
            variables[0], variables[1], normalised(inputs, source), False
        )[0],
        material.class_counts,
        settings.test_priors,
        settings.post_hoc_tau,
        settings.batch_size,
    )


def whole_network(network: Network) -> steps.Logits:
    """Logits of images."""

    def logits(
        params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        features, batch_stats = network.features(params['backbone'], batch_stats, images, train)
        return network.logits(params['classifier'], features), batch_stats

    return logits


def learned_log_prior(
    stage: Stage, counts: np.ndarray, rebalancer: Rebalancer | None, current: TrainState
) -> np.ndarray:
    """The prior that plain logits follow: log of what the classes weighed, less τ log π."""
    held = np.maximum(counts, 1)  # An empty class has nothing to learn from.
    share = held / held.sum()
    weighed = np.log(share * _class_weights(stage, counts, rebalancer, current))
    return weighed - stage.tau * np.log(share)


def _class_weights(
    stage: Stage, counts: np.ndarray, rebalancer: Rebalancer | None, current: TrainState
) -> np.ndarray:
    """How much more often than instance-balanced a class is drawn, or its losses weigh."""
    if rebalancer is None:
        probabilities = steps.draw_probabilities(stage, tuple(counts.tolist()), current.step)
        summary: dict[str, Any] = {'class_probabilities': probabilities}
    else:
        summary = rebalancer.summary(current.psi)
    weights = np.asarray(summary.get('loss_weights', np.ones(counts.size)))
    share = counts / counts.sum()
    drawn = np.asarray(summary.get('class_probabilities', share))
    return weights * drawn / np.where(share > 0, share, 1)


def _probe(counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of every class, up to ``most``: their places and labels."""
    starts, taken = np.cumsum(counts) - counts, np.minimum(counts, most)
    places = np.concatenate([s + np.arange(n) for s, n in zip(starts, taken, strict=True)])
    return places, np.repeat(np.arange(len(counts)), taken)
