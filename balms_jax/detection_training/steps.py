"""A detector's stages as functions of a training state: the parts of ``detection``, by a recipe."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from balms_jax import losses as core_losses
from balms_jax import priors
from balms_jax.detection import (
    anchors,
    inference,
    losses,
    networks,
    proposals,
    rebalancing,
    region_sources,
    steps,
)
from balms_jax.detection.rebalancing import MetaRegions, Regions
from balms_jax.detection.steps import Batch, CategoryLoss
from balms_jax.detection_training.material import Material
from balms_jax.detection_training.recipe import Loss, Optimizer, Recipe, Stage
from balms_jax.training import learners, mesh
from balms_jax.training import state as states
from balms_jax.training.state import TrainState
from balms_jax.training.steps import Step

PyTree = Any


def architecture_of(recipe: Recipe, categories: int) -> networks.Architecture:
    """What the detector of a recipe consists of.

    Args:
        recipe: the recipe.
        categories: C.

    Returns:
        The architecture.
    """
    detector = recipe.detector
    return networks.Architecture(
        categories,
        depth=detector.depth,
        width=detector.width,
        channels=detector.channels,
        box_features=detector.box_features,
        background=recipe.has_background,
        prior=detector.prior,
        agnostic_boxes=detector.agnostic_boxes,
        agnostic_masks=detector.agnostic_masks,
        frozen_norm=detector.frozen_norm,
        frozen_groups=detector.frozen_groups,
        dtype=detector.dtype,
        remat=detector.remat,
    )


def layout_of(recipe: Recipe) -> anchors.Layout:
    """Where the recipe's anchors are."""
    return anchors.Layout(
        (recipe.data.height, recipe.data.width), sizes=recipe.detector.anchor_sizes
    )


def draws_of(recipe: Recipe) -> steps.Draws:
    """Which anchors and regions of an image a step of the recipe learns from."""
    draws = recipe.draws
    return steps.Draws(
        draws.anchors,
        draws.anchor_fraction,
        draws.regions,
        draws.region_fraction,
        proposals.Selection(draws.proposals_per_level, draws.proposals),
    )


def inference_of(recipe: Recipe, categories: int, devices: Mesh) -> inference.Infer:
    """What finds the objects of test images."""
    evaluation, draws = recipe.evaluation, recipe.draws
    return inference.make_inference(
        architecture_of(recipe, categories),
        layout_of(recipe),
        limits=inference.Limits(evaluation.detections, evaluation.score, evaluation.candidates),
        selection=proposals.Selection(draws.test_proposals_per_level, draws.test_proposals),
        over_images=mesh.by_device(devices),
    )


def reader_of(recipe: Recipe, categories: int, devices: Mesh) -> region_sources.Read:
    """What reads the regions that the class layer alone is trained on."""
    return region_sources.make_reader(
        architecture_of(recipe, categories),
        layout_of(recipe),
        draws_of(recipe),
        mesh.by_device(devices),
    )


def category_loss_of(settings: Loss, material: Material) -> CategoryLoss:
    """The loss of a region's category.

    Args:
        settings: which.
        material: whose counts it goes by.

    Returns:
        (logits ``[regions, categories]``, and the background's last where the loss is a softmax;
        categories ``[regions]``) → losses ``[regions]``, in nats.
    """
    fractions, counts = material.fractions, material.object_counts
    number = len(counts)

    def by_category(logits: jax.Array, categories: jax.Array) -> jax.Array:
        """The targets of one sigmoid a category."""
        return jax.nn.one_hot(categories, number, dtype=logits.dtype)

    if settings.name == 'balanced_sigmoid':
        return lambda logits, y: losses.balanced_sigmoid_loss(logits, y, fractions)
    if settings.name == 'equalization':
        return lambda logits, y: losses.equalization_loss(logits, y, fractions, settings.threshold)
    if settings.name == 'focal':
        return lambda logits, y: core_losses.focal_sigmoid_binary_cross_entropy(
            logits, by_category(logits, y), gamma=settings.gamma
        ).sum(-1)
    if settings.name == 'class_balanced':
        weights = jnp.asarray(priors.class_balanced_weights(counts, settings.beta))

        def weighted(logits: jax.Array, y: jax.Array) -> jax.Array:
            of_foreground = weights[jnp.maximum(y, 0)].astype(logits.dtype)
            return jnp.where(y >= 0, of_foreground, 1) * losses.sigmoid_loss(logits, y)

        return weighted
    if settings.name == 'softmax':
        return lambda logits, y: optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, losses.with_background(y, number)
        )
    if settings.name == 'seesaw':
        # The background is no rare category: none is spared beside it, nor it beside one.
        with_background = np.append(counts, counts.max())
        return lambda logits, y: core_losses.seesaw_cross_entropy_with_integer_labels(
            logits, losses.with_background(y, number), with_background
        )
    return losses.sigmoid_loss


def learning_rate(settings: Optimizer, total: int) -> optax.Schedule:
    """The rate of every step: a linear warm-up, then drops to a tenth, or a cosine to 0.

    Args:
        settings: of the optimizer.
        total: steps.

    Returns:
        Step → rate.

    Example:
        >>> rate = learning_rate(Optimizer(learning_rate=1.0, drops=(2,)), 4)
        >>> print([round(float(rate(step)), 2) for step in range(4)])
        [1.0, 1.0, 0.1, 0.1]
    """
    rate, rising = settings.learning_rate, settings.warmup_steps
    if settings.schedule == 'cosine':
        after = optax.cosine_decay_schedule(rate, max(total - rising, 1))
    else:
        after = learners.dropping(rate, settings.drops, rising)
    return learners.warmed_up(after, settings.warmup_factor * rate, rate, rising)


def make_optimizer(settings: Optimizer, total: int) -> optax.GradientTransformation:
    """The optimizer of what is trained.

    Args:
        settings: of the optimizer.
        total: steps.

    Returns:
        The optimizer: clipped, decayed, then SGD with momentum or Adam.
    """
    rate = learning_rate(settings, total)
    parts = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    parts.append(optax.add_decayed_weights(settings.weight_decay))
    if settings.name == 'adam':
        parts.append(optax.adam(rate))
    else:
        parts.append(optax.sgd(rate, settings.momentum or None))
    return optax.chain(*parts)


def make_psi_optimizer(stage: Stage) -> optax.GradientTransformation:
    """Adam at a constant rate."""
    meta = stage.meta
    return optax.adam(meta.learning_rate, meta.b1, meta.b2)


def stage_optimizer(recipe: Recipe, stage: Stage, categories: int) -> optax.GradientTransformation:
    """The optimizer of a stage, which leaves alone what is frozen."""
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    if stage.trains == 'classifier':
        return optimizer
    return steps.frozen_optimizer(optimizer, architecture_of(recipe, categories))


def first_state(
    recipe: Recipe, stage: Stage, key: jax.Array, params: PyTree, batch_stats: PyTree
) -> TrainState:
    """The state that a stage starts from.

    Args:
        recipe: the recipe.
        stage: which of its stages.
        key: of what its steps draw.
        params: of the whole detector, before the stage; as many categories as its class layer has.
        batch_stats: of its backbone.

    Returns:
        The state. The class layer is what trains, or everything.
    """
    categories = jax.tree.leaves(params['classifier'])[0].shape[-1] - recipe.has_background
    trained, frozen = dict(params), {}
    if stage.trains == 'classifier':
        trained = {'classifier': params['classifier']}
        frozen = {name: part for name, part in params.items() if name != 'classifier'}
    learns = stage.meta.rebalancer != 'none'
    return states.create(
        key,
        trained,
        frozen,
        batch_stats,
        stage_optimizer(recipe, stage, categories),
        jnp.zeros(categories) if learns else None,
        make_psi_optimizer(stage),
    )


def make_step(recipe: Recipe, stage: Stage, material: Material, devices: Mesh) -> Step:
    """Makes the function that takes one step of a stage.

    Args:
        recipe: the recipe.
        stage: which of its stages.
        material: whose counts the losses go by.
        devices: the mesh that batches are cut over.

    Returns:
        (state, training batch, meta batch) → (state, metrics). Batches are of uint8 pixels. Where
        the class layer learns from cached regions, the training batch is (the regions, the images'
        factors), the meta batch their factors in the meta set. Without a rebalancer the meta batch
        is not looked at. Metrics are 'loss' and 'learning_rate', of a whole detector its five
        losses, of a rebalancer 'meta_loss' and its 'weights' ``[categories]``.
    """
    categories = len(material.categories)
    optimizer = stage_optimizer(recipe, stage, categories)
    rate = learning_rate(stage.optimizer, stage.steps)
    loss = category_loss_of(stage.loss, material)
    if stage.trains == 'all':
        losses_of = steps.make_losses(
            architecture_of(recipe, categories),
            layout_of(recipe),
            loss,
            draws_of(recipe),
            mesh.by_device(devices),
        )
        return _whole_step(steps.make_train_step(losses_of, optimizer), rate)
    return _class_layer_step(recipe, stage, categories, optimizer, loss, rate, devices)


def normalised(batch: Batch) -> Batch:
    """The batch with its pixels as the backbone takes them."""
    return batch._replace(images=networks.normalise(batch.images, batch.sizes))


def _whole_step(
    train_step: Callable[[steps.State, Batch], tuple[steps.State, steps.Losses]],
    rate: optax.Schedule,
) -> Step:
    def step(state: TrainState, batch: Batch, _: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        before = steps.State(
            state.trained, state.batch_stats, state.opt_state, state.key, state.step
        )
        after, parts = train_step(before, normalised(batch))
        metrics = {'loss': parts.total(), 'learning_rate': jnp.asarray(rate(state.step))}
        metrics |= parts._asdict()
        return replace(
            state,
            trained=after.params,
            batch_stats=after.batch_stats,
            opt_state=after.opt_state,
            step=after.step,
        ), metrics

    return step


def _class_layer_step(
    recipe: Recipe,
    stage: Stage,
    categories: int,
    optimizer: optax.GradientTransformation,
    loss: CategoryLoss,
    rate: optax.Schedule,
    devices: Mesh,
) -> Step:
    detector = networks.build(architecture_of(recipe, categories))
    read = reader_of(recipe, categories, devices)
    place = mesh.placed_by_example(devices)
    learns, cached = stage.meta.rebalancer != 'none', stage.regions == 'cached'
    number = stage.batch_size * recipe.draws.regions

    def fresh_regions(key: jax.Array, state: TrainState, batch: Batch) -> Regions:
        found = read(state.params, state.batch_stats, normalised(batch), key[None])
        return jax.tree.map(lambda array: array[0], found)

    def regions_of(
        key: jax.Array, state: TrainState, given: Any, meta_given: Any
    ) -> Regions | MetaRegions:
        if cached and learns:
            return region_sources.draw_for_meta_step(key, given[0], given[1], meta_given, number)
        if cached:
            return region_sources.draw(key, given[0], given[1], number)
        if learns:
            return region_sources.read_for_meta_step(
                read,
                key,
                state.params,
                state.batch_stats,
                normalised(given),
                normalised(meta_given),
            )
        return fresh_regions(key, state, given)

    take: Callable[..., tuple[rebalancing.State, rebalancing.Metrics]]
    if learns:
        meta_loss = losses.sigmoid_loss if stage.meta.loss == 'sigmoid' else loss
        take = rebalancing.make_meta_step(
            detector.logits,
            loss,
            optimizer,
            make_psi_optimizer(stage),
            meta_loss=meta_loss,
            mode=stage.meta.mode,
        )
    else:
        take = rebalancing.make_step(detector.logits, loss, optimizer)

    def step(
        state: TrainState, given: Any, meta_given: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        drawn = place(regions_of(key, state, given, meta_given))
        before = rebalancing.State(
            state.trained,
            state.opt_state,
            state.psi,
            state.psi_opt_state,
            state.key,
            state.step,
        )
        after, measured = take(before, drawn)
        metrics = {'loss': measured.loss, 'learning_rate': jnp.asarray(rate(state.step))}
        if measured.meta_loss is not None:
            metrics |= {'meta_loss': measured.meta_loss}
            metrics |= {'weights': jax.nn.sigmoid(jnp.asarray(after.psi))}
        return replace(
            state,
            trained=after.classifier,
            opt_state=after.opt_state,
            psi=after.psi,
            psi_opt_state=after.psi_opt_state,
            step=after.step,
        ), metrics

    return step
