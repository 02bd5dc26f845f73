"""Where the regions of stage 2 come from: read of images at every step, or once and kept.

The network is frozen, so that what it makes of a region is the same at every step.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balms_jax.detection import (
    anchors,
    matching,
    networks,
    proposals,
    rebalancing,
    regions,
    repeat_factors,
    targets,
)
from balms_jax.detection.rebalancing import MetaRegions, Regions, State
from balms_jax.detection.steps import Batch, Draws

PyTree = Any
Read = Callable[[PyTree, PyTree, Batch, jax.Array], Regions]
"""(params, batch_stats, batch, keys ``[draws]``) → regions of the whole batch, ``[draws, …]``"""


class CachedRegions(NamedTuple):
    """The regions of all images, one image after another."""

    regions: Regions
    """Without padding, ``[N]`` of all images"""
    first: jax.Array
    """Where each image's regions begin, int32, ``[images]``"""
    numbers: jax.Array
    """How many each image has, int32, ``[images]``"""


def make_reader(
    architecture: networks.Architecture,
    layout: anchors.Layout,
    draws: Draws = Draws(),  # noqa: B008 (an immutable tuple)
    over_images: networks.OverImages = jax.vmap,
) -> Read:
    """Builds the function that reads the regions of a batch of images, by the frozen network.

    They are drawn as in ``steps.make_losses``; batch norm uses its stored statistics.

    Args:
        architecture: of the detector.
        layout: of its levels and anchors.
        draws: how many regions of an image, and which.
        over_images: maps what is done to each image over the batch.

    Returns:
        (params, batch_stats, batch, keys ``[draws]``) → regions, ``[draws, batch · regions]``: for
        every key the images' regions drawn anew, at one pass of the backbone. It is pure.

    Raises:
        ValueError: if a setting is out of its range.

    Example:
        >>> tiny = networks.Architecture(3, depth=10, width=4, channels=8, box_features=16)
        >>> layout = anchors.Layout((64, 64))
        >>> read = make_reader(tiny, layout, Draws(regions=4, selection=proposals.Selection(8, 8)))
        >>> params, stats = jax.eval_shape(
        ...     networks.build(tiny).init, jax.random.key(0), jnp.zeros((2, 64, 64, 3)))
        >>> one = jnp.ones((2, 1), bool)
        >>> objects = targets.Objects(jnp.zeros((2, 1, 4)), jnp.zeros((2, 1), jnp.int32),
        ...     jnp.zeros((2, 1, 8, 8)), jnp.zeros((2, 1, 4)), one, ~one)
        >>> batch = Batch(jnp.zeros((2, 64, 64, 3)), jnp.full((2, 2), 64.0), objects)
        >>> found = jax.eval_shape(read, params, stats, batch, jax.random.split(jax.random.key(1)))
        >>> found.features.shape, found.categories.shape
        ((2, 8, 16), (2, 8))

    References:
        BALMS (arXiv 2007.10740), §4.1: decoupled training on LVIS.
    """
    detector = networks.build(architecture)
    levels_anchors = anchors.pyramid_anchors(*layout)
    read_levels = layout.strides[:-1]  # The coarsest level is for proposals alone.

    def of_image(
        params: PyTree,
        keys: jax.Array,
        levels: tuple[jax.Array, ...],
        outputs: list[tuple[jax.Array, jax.Array]],
        size: jax.Array,
        objects: targets.Objects,
    ) -> Regions:
        objectness, deltas = zip(*outputs, strict=True)
        proposed = proposals.propose(objectness, deltas, levels_anchors, size, draws.selection)

        def drawn(key: jax.Array) -> Regions:
            _, region_key = jax.random.split(key)  # The other is of the anchors, in stage 1.
            wanted = targets.region_targets(
                region_key, proposed, objects, draws.regions, draws.region_fraction
            )
            pooled = regions.region_features(
                levels[:-1], wanted.regions, read_levels, networks.BOX_BINS
            )
            features, _ = detector.boxes(params, pooled)
            return Regions(features, wanted.categories, wanted.labels != matching.IGNORED)

        return jax.vmap(drawn)(keys)

    def read(params: PyTree, batch_stats: PyTree, batch: Batch, keys: jax.Array) -> Regions:
        levels, _ = detector.pyramid(params, batch_stats, batch.images, False)
        outputs = detector.proposals(params, levels)
        images = batch.images.shape[0]
        of_images = jax.vmap(lambda key: jax.random.split(key, images), out_axes=1)(keys)
        found = over_images(of_image, in_axes=(None, 0, 0, 0, 0, 0), out_axes=1)(
            params, of_images, levels, outputs, batch.sizes, batch.objects
        )
        return jax.tree.map(lambda a: a.reshape(a.shape[0], -1, *a.shape[3:]), found)

    return read


def read_for_meta_step(
    read: Read, key: jax.Array, params: PyTree, batch_stats: PyTree, batch: Batch, meta_batch: Batch
) -> MetaRegions:
    """Fresh regions for a step of ``rebalancing.make_meta_step``.

    Args:
        read: as :func:`make_reader` builds it.
        key: a PRNG key.
        params: of the frozen network.
        batch_stats: of the frozen network.
        batch: images to train on. The real step's regions are others than the trial's.
        meta_batch: images drawn by ``repeat_factors.meta_repeat_factors``.

    Returns:
        The regions of the three kinds.
    """
    train_key, meta_key = jax.random.split(key)
    both = read(params, batch_stats, batch, jax.random.split(train_key))
    meta = read(params, batch_stats, meta_batch, meta_key[None])
    trial, real = (jax.tree.map(lambda array, k=k: array[k], both) for k in range(2))
    return MetaRegions(trial, jax.tree.map(lambda array: array[0], meta), real)


def cache(
    read: Read, key: jax.Array, params: PyTree, batch_stats: PyTree, batches: Iterable[Batch]
) -> CachedRegions:
    """Reads the regions of every image once.

    Of N regions of F features 4 N F bytes are kept: for LVIS's 57,000 training images, 512 regions
    each of 1024 features, 120 GB. Smaller draws make it fit.

    Args:
        read: as :func:`make_reader` builds it; ``jax.jit`` compiles it.
        key: a PRNG key.
        params: of the frozen network.
        batch_stats: of the frozen network.
        batches: all images, in their order. Batches of one size compile once.

    Returns:
        The regions.

    Raises:
        ValueError: if there is no batch.

    Example:
        >>> def read(params, batch_stats, batch, keys):  # The second region is padding.
        ...     return Regions(batch.images[None], jnp.array([[2, -1]]), jnp.array([[True, False]]))
        >>> batch = Batch(jnp.ones((2, 3)), jnp.ones((1, 2)), None)
        >>> found = cache(read, jax.random.key(0), {}, {}, [batch])
        >>> found.regions.features.shape, found.numbers
        ((1, 3), Array([1], dtype=int32))
    """
    kept: list[Regions] = []
    numbers: list[int] = []
    for place, batch in enumerate(batches):
        keys = jax.random.fold_in(key, place)[None]
        found = jax.tree.map(lambda a: np.asarray(a)[0], read(params, batch_stats, batch, keys))
        numbers += found.where.reshape(len(batch.sizes), -1).sum(1).tolist()
        kept.append(jax.tree.map(lambda array, where=found.where: array[where], found))
    if not kept:
        raise ValueError('batches: got none, wanted at least one')
    every = jax.tree.map(lambda *arrays: jnp.asarray(np.concatenate(arrays)), *kept)
    first = np.cumsum([0, *numbers[:-1]])
    return CachedRegions(every, jnp.asarray(first, jnp.int32), jnp.asarray(numbers, jnp.int32))


def draw(key: jax.Array, cached: CachedRegions, factors: jax.Array, number: int) -> Regions:
    r"""Regions of the cache, drawn independently: an image by its factor, then a region of it.

    .. math:: \Pr(b) = \frac{r_{i(b)}}{\sum_k r_k} \frac1{N_{i(b)}}

    Args:
        key: a PRNG key.
        cached: the regions of all images.
        factors: r, as of ``repeat_factors.repeat_factors``, ``[images]``, float. An image without
            regions is never drawn.
        number: how many are drawn, with replacement.

    Returns:
        The regions, ``[number]``.

    Raises:
        ValueError: if there is not one factor for every image.

    Example:
        >>> three = Regions(jnp.eye(3), jnp.array([5, 6, 7]), jnp.ones(3, bool))
        >>> cached = CachedRegions(three, jnp.array([0, 1]), jnp.array([1, 2]))
        >>> drawn = draw(jax.random.key(0), cached, jnp.array([0.0, 1.0]), 100)
        >>> sorted(set(drawn.categories.tolist()))
        [6, 7]
    """
    if factors.shape != cached.numbers.shape:
        raise ValueError(
            f'factors: got shape {factors.shape}, wanted [images] = {cached.numbers.shape}'
        )
    image_key, region_key = jax.random.split(key)
    images = repeat_factors.draw_images(
        image_key, jnp.where(cached.numbers > 0, factors, 0), number
    )
    within = jax.random.randint(region_key, (number,), 0, cached.numbers[images])
    places = cached.first[images] + within
    return jax.tree.map(lambda array: array[places], cached.regions)


def draw_for_meta_step(
    key: jax.Array,
    cached: CachedRegions,
    factors: jax.Array,
    meta_factors: jax.Array,
    number: int,
) -> MetaRegions:
    """Regions of the cache for a step of ``rebalancing.make_meta_step``.

    Args:
        key: a PRNG key.
        cached: the regions of all images.
        factors: of trial and real step's images, ``[images]``, float.
        meta_factors: as of ``repeat_factors.meta_repeat_factors``, ``[images]``, float.
        number: of regions of each kind.

    Returns:
        The regions of the three kinds, drawn independently.

    Raises:
        ValueError: if there is not one factor of each kind for every image.
    """
    wanted = (factors, meta_factors, factors)
    keys = jax.random.split(key, 3)
    return MetaRegions(*(draw(k, cached, f, number) for k, f in zip(keys, wanted, strict=True)))


def make_run(
    step: Callable[[State, Any], tuple[State, rebalancing.Metrics]],
    regions_of: Callable[[jax.Array, Any], Any],
) -> Callable[[State, Any, int], tuple[State, rebalancing.Metrics]]:
    """Builds the function that takes a number of steps in one compiled call.

    Args:
        step: as ``rebalancing.make_step`` or ``rebalancing.make_meta_step`` builds it.
        regions_of: (key, source) → what the step takes, where source is whatever it is drawn from:
            a cache and factors, or the frozen network and batches of images.

    Returns:
        (state, source, number of steps) → (the state after them, the metrics of each). The key of a
        step is the state's, folded with the step's number: so many steps at once are the same as
        one after another.

    Example:
        >>> import optax
        >>> from balms_jax.detection import losses
        >>> step = rebalancing.make_step(
        ...     lambda w, features: features @ w, losses.sigmoid_loss, optax.sgd(0.1))
        >>> run = make_run(step, lambda key, source: draw(key, *source, 4))
        >>> state = rebalancing.init_state(jax.random.key(0), jnp.zeros((2, 2)), optax.sgd(0.1))
        >>> two = Regions(jnp.eye(2), jnp.arange(2), jnp.ones(2, bool))
        >>> cached = CachedRegions(two, jnp.array([0]), jnp.array([2]))
        >>> state, metrics = run(state, (cached, jnp.ones(1)), 100)
        >>> metrics.loss.shape, bool(metrics.loss[-1] < metrics.loss[0])
        ((100,), True)
    """

    def run(state: State, source: Any, steps: int) -> tuple[State, rebalancing.Metrics]:
        def one(state: State, _: None) -> tuple[State, rebalancing.Metrics]:
            return step(state, regions_of(jax.random.fold_in(state.key, state.step), source))

        return jax.lax.scan(one, state, length=steps)

    return jax.jit(run, static_argnums=2)
