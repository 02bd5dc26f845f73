"""One training step of a Mask R-CNN: five losses of a batch, and the optimizer's update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax.detection import anchors, losses, matching, networks, proposals, regions, targets

PyTree = Any
CategoryLoss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits ``[regions, categories]``, categories ``[regions]``) → the loss of every region"""


class Batch(NamedTuple):
    """Images and their ground truth, each with an axis of the batch."""

    images: jax.Array
    """As ``networks.normalise`` gives them, ``[batch, height, width, 3]``"""
    sizes: jax.Array
    """Height and width of the images without their padding, ``[batch, 2]``, in pixels"""
    objects: targets.Objects


class State(NamedTuple):
    """What the next step depends on."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key: jax.Array
    """Folded with the step for what a step draws."""
    step: jax.Array
    """int32, a scalar"""


class Losses(NamedTuple):
    """The parts of a batch's loss, scalars. They are added."""

    objectness: jax.Array
    """The mean over the drawn anchors, in nats."""
    proposals: jax.Array
    """Of the foreground's deltas, over the number of drawn anchors."""
    categories: jax.Array
    """The mean over the drawn regions, in nats."""
    boxes: jax.Array
    """Of the foreground's deltas, over the number of drawn regions."""
    masks: jax.Array
    """The mean over the foreground regions, in nats."""

    def total(self) -> jax.Array:
        """Their sum."""
        return sum(self[1:], start=self[0])


class Draws(NamedTuple):
    """Which anchors and regions of an image a step learns from."""

    anchors: int = 256
    anchor_fraction: float = 0.5
    """Of foreground at most."""
    regions: int = 512
    region_fraction: float = 0.25
    """Of foreground at most."""
    selection: proposals.Selection = proposals.TRAINING


def make_losses(
    architecture: networks.Architecture,
    layout: anchors.Layout,
    category_loss: CategoryLoss = losses.sigmoid_loss,
    draws: Draws = Draws(),  # noqa: B008 (an immutable tuple)
    over_images: networks.OverImages = jax.vmap,
) -> Callable[[PyTree, PyTree, Batch, jax.Array], tuple[Losses, PyTree]]:
    r"""Builds the function of a batch's losses.

    .. math:: L = L_{obj} + L_{prop} + L_{cat} + L_{box} + L_{mask}

    Args:
        architecture: of the detector.
        layout: of its levels and anchors.
        category_loss: of a region, such as ``losses.balanced_sigmoid_loss`` with its fractions.
        draws: which anchors and regions are learned from.
        over_images: maps what is done to each image over the batch.

    Returns:
        (params, batch_stats, batch, key) → (losses, batch_stats). It is pure.

    Raises:
        ValueError: if a setting is out of its range.

    References:
        Ren et al., Faster R-CNN (arXiv 1506.01497), §3.2, approximate joint training; He et al.,
        Mask R-CNN (arXiv 1703.06870), §3; means as in torchvision.
    """
    detector = networks.build(architecture)
    levels_anchors = anchors.pyramid_anchors(*layout)
    every_anchor = np.concatenate(levels_anchors)
    read = layout.strides[:-1]  # The coarsest level is for proposals alone.
    slots = matching.foreground_slots(draws.regions, draws.region_fraction)

    def of_proposals(
        key: jax.Array, outputs: list[tuple[jax.Array, jax.Array]], objects: targets.Objects
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sums of the losses of an image's anchors, and how many were drawn."""
        logits, deltas = (jnp.concatenate(part) for part in zip(*outputs, strict=True))
        wanted = targets.anchor_targets(
            key, every_anchor, objects, draws.anchors, draws.anchor_fraction
        )
        objectness = losses.objectness_loss(logits[wanted.indices], wanted.labels)
        moves = losses.box_loss(deltas[wanted.indices], wanted.deltas, wanted.labels)
        return objectness.sum(), moves.sum(), _number(wanted.labels != matching.IGNORED)

    def of_regions(
        params: PyTree,
        levels: tuple[jax.Array, ...],
        wanted: targets.RegionTargets,
        objects: targets.Objects,
    ) -> tuple[jax.Array, ...]:
        """Sums of the losses of an image's regions, how many were drawn, and of the foreground."""
        pooled = regions.region_features(levels[:-1], wanted.regions, read, networks.BOX_BINS)
        features, deltas = detector.boxes(params, pooled)
        drawn = wanted.labels != matching.IGNORED
        category = category_loss(detector.logits(params, features), wanted.categories)
        moves = networks.of_category(deltas, jnp.maximum(wanted.categories, 0))
        box = losses.box_loss(moves, wanted.deltas, wanted.labels)
        # The foreground comes first: masks of the other slots would be thrown away.
        front: targets.RegionTargets = jax.tree.map(lambda array: array[:slots], wanted)
        pooled = regions.region_features(levels[:-1], front.regions, read, networks.MASK_BINS)
        masks = networks.of_category(
            detector.masks(params, pooled), jnp.maximum(front.categories, 0)
        )
        truth = targets.mask_targets(objects, front.objects, front.regions, networks.MASK_SIZE)
        mask = losses.mask_loss(masks, truth, front.labels)
        sums = jnp.where(drawn, category, 0).sum(), box.sum(), mask.sum()
        return *sums, _number(drawn), _number(front.labels == matching.FOREGROUND)

    def of_image(
        params: PyTree,
        key: jax.Array,
        levels: tuple[jax.Array, ...],
        outputs: list[tuple[jax.Array, jax.Array]],
        size: jax.Array,
        objects: targets.Objects,
    ) -> tuple[jax.Array, ...]:
        anchor_key, region_key = jax.random.split(key)
        objectness, deltas = zip(*outputs, strict=True)
        proposed = proposals.propose(objectness, deltas, levels_anchors, size, draws.selection)
        wanted = targets.region_targets(
            region_key, proposed, objects, draws.regions, draws.region_fraction
        )
        return (
            *of_proposals(anchor_key, outputs, objects),
            *of_regions(params, levels, wanted, objects),
        )

    def losses_of(
        params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[Losses, PyTree]:
        levels, batch_stats = detector.pyramid(params, batch_stats, batch.images, True)
        outputs = detector.proposals(params, levels)
        sums = over_images(of_image, in_axes=(None, 0, 0, 0, 0, 0))(
            params,
            jax.random.split(key, batch.images.shape[0]),
            levels,
            outputs,
            batch.sizes,
            batch.objects,
        )
        objectness, moves, of_anchors, category, box, mask, of_regions, foreground = (
            part.sum() for part in sums
        )
        of_anchors, of_regions, foreground = (
            jnp.maximum(number, 1) for number in (of_anchors, of_regions, foreground)
        )
        parts = Losses(
            objectness / of_anchors,
            moves / of_anchors,
            category / of_regions,
            box / of_regions,
            mask / foreground,
        )
        return parts, batch_stats

    return losses_of


def frozen_optimizer(
    optimizer: optax.GradientTransformation, architecture: networks.Architecture
) -> optax.GradientTransformation:
    """An optimizer that leaves alone what ``networks.trainable`` says is frozen.

    Args:
        optimizer: of the rest, weight decay included.
        architecture: of the detector.

    Returns:
        The optimizer.

    Example:
        >>> tiny = networks.Architecture(3, depth=10, width=4, channels=8, box_features=16)
        >>> shapes, _ = jax.eval_shape(
        ...     networks.build(tiny).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        >>> params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
        >>> optimizer = frozen_optimizer(optax.sgd(0.1), tiny)
        >>> updates, _ = optimizer.update(params, optimizer.init(params))
        >>> parts = updates['backbone']['Conv_0'], updates['masks']['logits']
        >>> [bool(part['kernel'].any()) for part in parts]
        [False, True]
    """

    def kinds(params: PyTree) -> PyTree:
        trained = networks.trainable(params, architecture)
        return jax.tree.map(lambda is_trained: 'trained' if is_trained else 'frozen', trained)

    return optax.multi_transform({'trained': optimizer, 'frozen': optax.set_to_zero()}, kinds)


def init_state(
    key: jax.Array,
    architecture: networks.Architecture,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
) -> State:
    """The state before the first step.

    Args:
        key: a PRNG key.
        architecture: of the detector.
        optimizer: as the step gets it.
        image_size: height and width of the padded images, in pixels.

    Returns:
        The state, of fresh parameters.
    """
    init_key, key = jax.random.split(key)
    images = jnp.zeros((1, *image_size, 3))
    params, batch_stats = jax.jit(networks.build(architecture).init)(init_key, images)
    return State(params, batch_stats, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def make_train_step(
    losses_of: Callable[[PyTree, PyTree, Batch, jax.Array], tuple[Losses, PyTree]],
    optimizer: optax.GradientTransformation,
) -> Callable[[State, Batch], tuple[State, Losses]]:
    """Builds one training step.

    Args:
        losses_of: as :func:`make_losses` builds it.
        optimizer: any of optax.

    Returns:
        (state, batch) → (the next state, the losses before the update). It is pure, of fixed shapes
        and without the host: ``jax.jit`` compiles it, and may donate the state.
    """

    def step(state: State, batch: Batch) -> tuple[State, Losses]:
        key = jax.random.fold_in(state.key, state.step)

        def total(params: PyTree) -> tuple[jax.Array, tuple[Losses, PyTree]]:
            parts, batch_stats = losses_of(params, state.batch_stats, batch, key)
            return parts.total(), (parts, batch_stats)

        gradient, (parts, batch_stats) = jax.grad(total, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, opt_state, state.key, state.step + 1), parts

    return step


def _number(mask: jax.Array) -> jax.Array:
    return mask.sum(dtype=jnp.float32)
