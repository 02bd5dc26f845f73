"""What is measured of a run: the test set during training and at the end, and gradient weights."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from balms_jax import diagnostics, priors
from balms_jax.data.image_files import subset
from balms_jax.data.sources import Source
from balms_jax.models import Network
from balms_jax.rebalancers import Rebalancer
from balms_jax.training import draws, evaluation, learners, mesh, objectives, step_parts
from balms_jax.training.batches import over_batches
from balms_jax.training.inputs import StageInputs, normalised
from balms_jax.training.material import Material
from balms_jax.training.recipe import Recipe, Stage
from balms_jax.training.state import TrainState

PyTree = Any


def stage_evaluation(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    logits: step_parts.Logits,
    inputs: StageInputs,
    rebalancer: Rebalancer | None,
) -> Callable[[TrainState], dict[str, Any]]:
    """What is recorded during training: the test set, and the classes' gradient weights."""
    counts, source = np.asarray(material.class_counts), material.source
    evaluator = _evaluator(recipe, material, logits)
    weights = _gradient_weights(recipe, stage, counts, at_test(logits, source), inputs, rebalancer)

    def evaluate(current: TrainState) -> dict[str, Any]:
        variables = (current.params, current.batch_stats)
        learned = learned_log_prior(stage, counts, rebalancer, current)
        result = evaluator(variables, inputs.test, source.test_labels, learned)['uniform']
        del result['confusion_matrix'], result['reliability']
        return {**result, **weights(current)}

    return evaluate


def _gradient_weights(
    recipe: Recipe,
    stage: Stage,
    counts: np.ndarray,
    logits: Callable[[tuple[PyTree, PyTree], jax.Array], jax.Array],
    inputs: StageInputs,
    rebalancer: Rebalancer | None,
) -> Callable[[TrainState], dict[str, Any]]:
    """Gives the state → the classes' gradient weights and their exponent, for the record.

    None where they are not known: their formula is that of softmax with adjusted logits and of
    weights by class, with one classifier, and would give 0 as the exponent of every other loss,
    whatever it does.
    """
    by_class = rebalancer is None or rebalancer.real_weights is None
    several = recipe.model.classifier in ('experts', 'bilateral')
    if stage.loss.name != 'balanced_softmax' or not by_class or several:
        return lambda current: {'gradient_weights': None, 'gradient_weight_exponent': None}
    places, labels = probe(counts, recipe.evaluation.gradient_examples)
    probe_inputs = subset(inputs.probe, places)
    probe_logits = jax.jit(logits)

    def weights(current: TrainState) -> dict[str, Any]:
        variables = (current.params, current.batch_stats)
        probed = over_batches(
            lambda batch, start: probe_logits(variables, batch), probe_inputs, mesh.of(variables)
        )
        weights = np.asarray(
            diagnostics.effective_gradient_weights(
                probed,
                labels,
                _adjustment(stage, counts, rebalancer, current),
                class_weights=_class_weights(
                    stage, counts, rebalancer, current, _draw(stage, counts, current.step)
                ),
            )
        )
        exponent = diagnostics.gradient_weight_exponent(weights, counts)
        return {
            'gradient_weights': evaluation.plain(weights),
            'gradient_weight_exponent': exponent if np.isfinite(exponent) else None,
        }

    return weights


def final_evaluation(
    recipe: Recipe,
    material: Material,
    network: Network,
    final: TrainState,
    temperature: float | None,
) -> dict[str, Any]:
    """The test set at the end, by test prior: what stands in evaluation.json.

    Args:
        recipe: how it is read.
        material: the data.
        network: the network.
        final: its state.
        temperature: T of the calibrated prediction, evaluated besides; None for none.

    Returns:
        For each test prior the record of an evaluation; 'calibrated' is the uniform one, which T
        was chosen for, with logits divided by T.
    """
    whole = whole_network(network)
    evaluator = _evaluator(recipe, material, whole)
    source, stage = material.source, list(recipe.stages.values())[-1]
    rebalancer = learners.make_rebalancer(stage.meta, material.class_counts)
    counts = np.asarray(material.class_counts)
    arguments = (
        (final.params, final.batch_stats),
        source.test_images,
        source.test_labels,
        learned_log_prior(stage, counts, rebalancer, final),
    )
    results = evaluator(*arguments)
    if temperature is not None:
        cooled = _evaluator(recipe, material, whole, temperature)(*arguments)['uniform']
        results['calibrated'] = {**cooled, 'temperature': temperature}
    return results


def _evaluator(
    recipe: Recipe, material: Material, logits: step_parts.Logits, temperature: float = 1.0
) -> Callable[..., dict[str, dict[str, Any]]]:
    settings = recipe.evaluation
    return evaluation.make_evaluator(
        at_test(logits, material.source),
        material.class_counts,
        settings.test_priors,
        settings.post_hoc_tau,
        settings.batch_size,
        temperature,
    )


def at_test(
    logits: step_parts.Logits, source: Source
) -> Callable[[tuple[PyTree, PyTree], jax.Array], jax.Array]:
    """Gives ((params, batch_stats), images or features) → logits ``[batch, classes]``, at test."""

    def of_inputs(variables: tuple[PyTree, PyTree], inputs: jax.Array) -> jax.Array:
        return logits(*variables, normalised(inputs, source), False)[0]

    return of_inputs


def stage_logits(
    network: Network, stage: Stage, *, cached: bool, devices: Mesh | None = None
) -> step_parts.Logits:
    """What the stage computes of its inputs: the whole network, or its classifier of features.

    Args:
        network: the network.
        stage: what trains.
        cached: whether the inputs are features.
        devices: the mesh, which cuts the logits where devices share the classes.

    Returns:
        (params, batch_stats, inputs, train) → (logits, batch_stats).
    """
    whole = whole_network(network)

    def logits(
        params: PyTree, batch_stats: PyTree, inputs: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if cached:
            result = classified(network, params, inputs, train)
        else:
            # A frozen backbone is used as at test: its batch statistics do not move.
            trains = train and stage.trains == 'all'
            result, batch_stats = whole(params, batch_stats, inputs, trains)
        if devices is not None and devices.shape['model'] > 1:
            by_class = mesh.by_class(devices, result.ndim)
            result = jax.lax.with_sharding_constraint(result, by_class)
        return result, batch_stats

    return logits


def whole_network(network: Network) -> step_parts.Logits:
    """Logits of images."""

    def logits(
        params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        features, batch_stats = network.features(params['backbone'], batch_stats, images, train)
        return classified(network, params, features, train), batch_stats

    return logits


def classified(
    network: Network, params: PyTree, features: jax.Array, train: bool = False
) -> jax.Array:
    """Logits of features; of scaled ones where a stage has learned a scale for each class.

    Experts are trained apart, ``[batch, experts, classes]``, and tested by their mean.
    """
    logits = network.logits(params['classifier'], features)
    if 'scales' in params:
        logits = logits * params['scales']
    return logits.mean(1) if logits.ndim == 3 and not train else logits


def learned_log_prior(
    stage: Stage, counts: np.ndarray, rebalancer: Rebalancer | None, current: TrainState
) -> np.ndarray:
    """The prior that plain logits follow: log of what the classes weighed, less the adjustment.

    So it is for softmax with adjusted logits and for weights by class; of draws that change during
    training their mean is taken, of two branches, one of which has the reversed prior, the mean of
    both logits: a flat one. What margins, temperatures, costs, spared gradients, focal losses and
    weights of single examples leave has no closed form; they are taken for plain softmax with the
    class weights that they have, if any.
    """
    held = np.maximum(counts, 1)  # An empty class has nothing to learn from.
    if stage.draws == 'bilateral':
        return np.full(held.size, -np.log(held.size))
    share = held / held.sum()
    parts = np.linspace(0, 1, 33) if stage.draws == 'progressive' else (1.0,)
    steps = [float(part) * np.asarray(current.step) for part in parts]
    draw = np.mean([_draw(stage, held, step) for step in steps], axis=0)
    mass = share * _class_weights(stage, held, rebalancer, current, draw)
    if stage.mixup and stage.mixup_partners == 'class_balanced':
        partners = stage.mixup / (stage.mixup + 1)  # The mean of Beta(α, 1).
        mass = (1 - partners) * mass + partners * mass.mean()
    return np.log(objectives.label_mass(stage.loss, mass)) - _adjustment(
        stage, held, rebalancer, current
    )


def _adjustment(
    stage: Stage, counts: np.ndarray, rebalancer: Rebalancer | None, current: TrainState
) -> np.ndarray:
    """What the loss adds to the logits, ``[classes]``; 0 where it is not of that family."""
    known = np.zeros(counts.size)
    if stage.loss.name == 'balanced_softmax' and stage.loss.tau:
        mass = objectives.label_mass(stage.loss, counts)
        known = stage.loss.tau * np.asarray(priors.log_prior(mass))
    if rebalancer is not None and rebalancer.log_adjustment is not None:
        return known + np.asarray(rebalancer.log_adjustment(current.psi))
    return known


def _class_weights(
    stage: Stage,
    counts: np.ndarray,
    rebalancer: Rebalancer | None,
    current: TrainState,
    draw: np.ndarray,
) -> np.ndarray:
    """How much more often than instance-balanced a class is drawn, or its losses weigh.

    ``draw`` is that of a stage without a rebalancer.
    """
    summary = (
        {'class_probabilities': draw} if rebalancer is None else rebalancer.summary(current.psi)
    )
    weights = np.asarray(summary.get('loss_weights', np.ones(counts.size)))
    of_loss = objectives.class_weights(stage.loss, tuple(counts.tolist()))
    weights = weights if of_loss is None else weights * np.asarray(of_loss)
    share = counts / counts.sum()
    drawn = np.asarray(summary.get('class_probabilities', share))
    return weights * drawn / np.where(share > 0, share, 1)


def _draw(stage: Stage, counts: np.ndarray, step: ArrayLike) -> np.ndarray:
    """How often each class is drawn at a step, ``[classes]``."""
    return np.asarray(draws.draw_probabilities(stage, tuple(counts.tolist()), step))


def probe(counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of every class, up to ``most``: their places and labels."""
    starts, taken = np.cumsum(counts) - counts, np.minimum(counts, most)
    places = np.concatenate([s + np.arange(n) for s, n in zip(starts, taken, strict=True)])
    return places, np.repeat(np.arange(len(counts)), taken)
