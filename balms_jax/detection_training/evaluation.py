"""How well does a detector do, and how much did each category's foreground weigh in training?"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from balms_jax import diagnostics
from balms_jax.detection import evaluation, networks
from balms_jax.detection.evaluation import AveragePrecision
from balms_jax.detection.gradient_weights import relative_gradients
from balms_jax.detection.inference import Detections
from balms_jax.detection.rebalancing import Regions
from balms_jax.detection.steps import Batch
from balms_jax.detection.targets import NO_CATEGORY
from balms_jax.detection_training.material import Material
from balms_jax.detection_training.recipe import Loss, Recipe, Stage
from balms_jax.detection_training.steps import (
    architecture_of,
    category_loss_of,
    inference_of,
    normalised,
    reader_of,
)
from balms_jax.training import mesh
from balms_jax.training.batches import batches
from balms_jax.training.state import TrainState

PyTree = Any
MEASURES = {
    'AP': 'all',
    'AP50': 'at_50',
    'AP75': 'at_75',
    'AP_r': 'rare',
    'AP_c': 'common',
    'AP_f': 'frequent',
}
"""What is recorded → the field of ``AveragePrecision``"""


class Found(NamedTuple):
    """What a detector finds in the test images."""

    results: list[dict[str, Any]]
    """In the format of COCO's results."""
    pictures: list[tuple[int, Detections]]
    """Of the first test images: the place, and what is found in it, on the host."""


class Compiled(NamedTuple):
    """Functions of a detector's parameters and statistics, compiled once for a run."""

    infer: Callable[[PyTree, PyTree, jax.Array, jax.Array], Detections]
    """(params, batch_stats, uint8 images, their sizes) → what is found"""
    read: Callable[[PyTree, PyTree, Batch, jax.Array], Regions]
    """(params, batch_stats, batch of uint8 images, key) → regions of the whole batch"""


def compiled(recipe: Recipe, categories: int, devices: Mesh) -> Compiled:
    """Ties the functions to a recipe.

    Args:
        recipe: the recipe.
        categories: C.
        devices: the mesh that batches are cut over.

    Returns:
        The functions.
    """
    infer = inference_of(recipe, categories, devices)
    read = reader_of(recipe, categories, devices)

    def found_in(
        params: PyTree, batch_stats: PyTree, images: jax.Array, sizes: jax.Array
    ) -> Detections:
        return infer(params, batch_stats, networks.normalise(images, sizes), sizes)

    def regions_of(params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array) -> Regions:
        found = read(params, batch_stats, normalised(batch), key[None])
        regions: Regions = jax.tree.map(lambda array: array[0], found)
        return regions

    return Compiled(jax.jit(found_in), jax.jit(regions_of))


def find(
    recipe: Recipe,
    material: Material,
    devices: Mesh,
    functions: Compiled,
    params: PyTree,
    batch_stats: PyTree,
) -> Found:
    """Finds the objects of all test images.

    Args:
        recipe: the recipe.
        material: with the test images.
        devices: the mesh that batches are cut over.
        functions: of the detector.
        params: of the detector.
        batch_stats: of its backbone.

    Returns:
        What is found, the same in every process.
    """
    test, ids = material.test, [category.id for category in material.categories]
    sizes, scales = test.sizes()
    size = recipe.evaluation.batch_size
    found = Found([], [])
    for batch in batches(test, size, devices):
        of_batch = np.ones((size, 2), np.float32)
        of_batch[: batch.real] = sizes[batch.start : batch.start + batch.real]
        laid = mesh.lay_out_rows(devices, of_batch.shape, of_batch.__getitem__)
        output = mesh.gathered(functions.infer(params, batch_stats, batch.inputs, laid))
        for row in range(batch.real):
            place = batch.start + row
            of_image = jax.tree.map(lambda leaf, row=row: leaf[row], output)
            if place < recipe.evaluation.pictures:
                found.pictures.append((place, of_image))
            annotated = test.annotations.images[place]
            found.results.extend(
                evaluation.as_results(of_image, annotated, ids, float(scales[place]))
            )
    return found


def precision(recipe: Recipe, material: Material, found: Found) -> dict[str, AveragePrecision]:
    """The average precision of masks and of boxes.

    Args:
        recipe: the recipe.
        material: with the ground truth.
        found: in the test images.

    Returns:
        ``'masks'``, where objects have any, and ``'boxes'``.
    """
    has_masks = any(a.get('segmentation') for a in material.test_content['annotations'])
    kinds = {'masks': 'segm', 'boxes': 'bbox'} if has_masks else {'boxes': 'bbox'}
    return {
        name: evaluation.average_precision(
            material.test_content,
            found.results,
            kind,
            lvis=recipe.data.lvis,
            most=recipe.evaluation.detections,
        )
        for name, kind in kinds.items()
    }


def scalars(of_kinds: dict[str, AveragePrecision]) -> dict[str, dict[str, float | None]]:
    """The measures of each kind, in 0..1; None where a group has no object."""
    return {
        kind: {name: getattr(found, field) for name, field in MEASURES.items()}
        for kind, found in of_kinds.items()
    }


def final_evaluation(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    devices: Mesh,
    functions: Compiled,
    state: TrainState,
) -> tuple[dict[str, Any], list[tuple[int, Detections]]]:
    """What stands in evaluation.json, and what is found in the first test images.

    Args:
        recipe: the recipe.
        stage: the last one.
        material: the data.
        devices: the mesh.
        functions: of the detector.
        state: after the last step.

    Returns:
        The measures of masks and boxes, of every category, and the gradient weights; pictures.
    """
    found = find(recipe, material, devices, functions, state.params, state.batch_stats)
    of_kinds = precision(recipe, material, found)
    weights = gradient_weights(recipe, stage, material, devices, functions, state)
    exponent = diagnostics.gradient_weight_exponent(weights, material.object_counts)
    result: dict[str, Any] = {
        **scalars(of_kinds),
        'of_categories': {kind: _numbers(each.of_categories) for kind, each in of_kinds.items()},
        'gradient_weights': _numbers(weights),
        'gradient_weight_exponent': exponent if np.isfinite(exponent) else None,
        'weights': None if state.psi is None else _numbers(jax.nn.sigmoid(state.psi)),
    }
    return result, found.pictures


def gradient_weights(
    recipe: Recipe,
    stage: Stage,
    material: Material,
    devices: Mesh,
    functions: Compiled,
    state: TrainState,
) -> NDArray[np.float64]:
    """The effective gradient weight of every category, over regions of training images.

    Args:
        recipe: with the number of images.
        stage: whose loss, and whose ψ, the class layer was trained with.
        material: the data.
        devices: the mesh.
        functions: of the detector.
        state: after the last step.

    Returns:
        ω, ``[categories]``; NaN for one without a region. Weights of a rebalancer are taken
        relative to one another: over the foreground of all images their mean is 1.
    """
    categories, size = len(material.categories), recipe.evaluation.batch_size
    detector = networks.build(architecture_of(recipe, categories))
    plain = Loss('softmax' if recipe.has_background else 'sigmoid')
    sums = relative_gradients(
        categories, category_loss_of(stage.loss, material), category_loss_of(plain, material)
    )

    @jax.jit
    def of_batch(state: TrainState, regions: Regions) -> tuple[jax.Array, jax.Array]:
        of_regions = jnp.where(regions.where, regions.categories, NO_CATEGORY)
        logits = detector.logits(state.params, regions.features)
        weights = None if state.psi is None else jax.nn.sigmoid(state.psi)
        number = jax.ops.segment_sum(
            jnp.where(of_regions >= 0, 1.0, 0.0), jnp.maximum(of_regions, 0), categories
        )
        return sums(logits, of_regions, weights), number

    total, number = np.zeros((2, categories)), np.zeros(categories)
    for place, batch in enumerate(_rarest_first(recipe, material, size, devices)):
        key = jax.random.fold_in(jax.random.key(recipe.seed), place)
        regions = functions.read(state.params, state.batch_stats, batch, key)
        both, of_categories = mesh.gathered(of_batch(state, regions))
        total, number = total + both, number + of_categories
    with np.errstate(divide='ignore', invalid='ignore'):
        weights = total[0] / total[1]
    if state.psi is not None and number.sum():
        rates = np.asarray(jax.nn.sigmoid(state.psi), np.float64)
        weights = weights / ((number * rates).sum() / number.sum())
    return np.where(number > 0, weights, np.nan)


def unvaried(material: Material) -> Material:
    """The material with training images as they are at test: neither mirrored nor jittered."""
    view = material.train.view
    still = dataclasses.replace(view, shortest=(max(view.shortest),), mirrored=0.0)
    return dataclasses.replace(material, train=dataclasses.replace(material.train, view=still))


def train_batches(
    material: Material, places: NDArray[np.int64], size: int, devices: Mesh, seed: int
) -> Iterator[tuple[Batch, NDArray[np.bool_]]]:
    """Rows of training images, batch by batch, cut over the devices.

    Args:
        material: whose training set it is.
        places: of the images.
        size: of a batch.
        devices: the mesh.
        seed: of how images are varied.

    Yields:
        A batch, the last one filled up by the first images, and which rows are no filling.
    """
    decoder = material.train.decoder(seed)
    for start in range(0, len(places), size):
        rows = np.arange(start, start + size)
        chosen = places[rows % len(places)]

        def of(part: slice, chosen: NDArray[np.int64] = chosen, start: int = start) -> Batch:
            read = [
                decoder.read(0, start + row, int(chosen[row]))[0]
                for row in range(part.start, part.stop)
            ]
            stacked: Batch = jax.tree.map(lambda *leaves: np.stack(leaves), *read)
            return stacked

        yield laid_out(devices, size, of), rows < len(places)


def laid_out(devices: Mesh, size: int, read: Callable[[slice], Batch]) -> Batch:
    """Cuts a batch over the devices; each process reads its own rows."""
    even = size % devices.shape['data'] == 0
    own = mesh.own_rows(devices, size) if even else slice(0, size)

    def over_devices(leaf: Any) -> jax.Array:
        def rows(part: slice) -> np.ndarray:
            held: np.ndarray = leaf[part.start - own.start : part.stop - own.start]
            return held

        return mesh.lay_out_rows(devices, (size, *leaf.shape[1:]), rows)

    laid: Batch = jax.tree.map(over_devices, read(own))
    return laid


def _rarest_first(recipe: Recipe, material: Material, size: int, devices: Mesh) -> Iterator[Batch]:
    """The training images with the rarest categories, so that each of them is seen."""
    most = recipe.evaluation.gradient_images
    order = np.argsort(-material.meta_factors, kind='stable')
    # Half of them are the rarest, half are spread over all, where the frequent categories are.
    spread = order[len(order) // 2 :: max(len(order) // max(most, 1), 1)]
    chosen = np.unique(np.concatenate([order[: most // 2], spread]))[:most]
    if len(chosen):
        still = unvaried(material)
        batches_of = train_batches(still, chosen, size, devices, recipe.seed)
        yield from (batch for batch, _ in batches_of)


def _numbers(values: Any) -> list[float | None]:
    """As JSON has them: None where a number is not finite."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, np.float64)]
