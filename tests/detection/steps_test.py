"""Training lowers the losses until the objects are found; a step is pure and stays finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax.detection import (
    anchors,
    annotations,
    evaluation,
    inference,
    networks,
    padding,
    proposals,
    scenes,
    steps,
    targets,
)

pytestmark = pytest.mark.usefixtures('standard_promotion')

SIDE, BATCH, STEPS = 64, 2, 70
LAYOUT = anchors.Layout((SIDE, SIDE), (4, 8, 16, 32, 64), (12.0, 18.0, 26.0, 40.0, 60.0))
DRAWS = steps.Draws(32, 0.5, 16, 0.5, proposals.Selection(40, 24))
TINY = networks.Architecture(
    36,
    depth=10,
    width=8,
    channels=16,
    box_features=32,
    agnostic_boxes=True,
    agnostic_masks=True,
    frozen_norm=False,
    frozen_groups=0,
)


@pytest.fixture(scope='module')
def content():
    """Two scenes, annotated."""
    drawn = scenes.scenes(0, scenes.long_tailed_counts(400))
    return annotations.as_lvis([next(drawn) for _ in range(BATCH)], scenes.CATEGORIES)


@pytest.fixture(scope='module')
def batch(content):
    drawn = scenes.scenes(0, scenes.long_tailed_counts(400))
    images = np.stack([next(drawn).image for _ in range(BATCH)])
    padded = [padding.padded_objects(i, 6, 28) for i in annotations.parse(content).images]
    sizes = jnp.full((BATCH, 2), float(SIDE))
    objects = targets.Objects(*map(jnp.asarray, map(np.stack, zip(*padded, strict=True))))
    return steps.Batch(networks.normalise(jnp.asarray(images), sizes), sizes, objects)


@pytest.fixture(scope='module')
def step_and_state():
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(5e-3))
    step = jax.jit(steps.make_train_step(steps.make_losses(TINY, LAYOUT, draws=DRAWS), optimizer))
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        state = steps.init_state(jax.random.key(0), TINY, optimizer, (SIDE, SIDE))
    return step, state


@pytest.fixture(scope='module')
def trained(step_and_state, batch):
    """The state after training on the scenes, and the losses of every step."""
    step, state = step_and_state
    every = []
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        for _ in range(STEPS):
            state, parts = step(state, batch)
            every.append(parts)
    return state, steps.Losses(*map(np.array, zip(*every, strict=True)))


def test_losses_fall(trained):
    state, parts = trained
    assert int(state.step) == STEPS
    for part in (parts.objectness, parts.categories, parts.masks, sum(parts)):
        assert part[-10:].mean() < 0.5 * part[:2].mean()
    # Deltas begin near 0, at few foreground anchors and regions, which become more and better.
    assert parts.boxes[-10:].mean() < parts.boxes.max()


def test_the_trained_detector_finds_its_objects(trained, content, batch):
    state, _ = trained
    infer = jax.jit(
        inference.make_inference(
            TINY,
            LAYOUT,
            limits=inference.Limits(30, 1e-3, 300),
            selection=DRAWS.selection,
        )
    )
    found = infer(state.params, state.batch_stats, batch.images, batch.sizes)
    known = annotations.parse(content)
    ids = [category.id for category in known.categories]
    results = []
    for k, image in enumerate(known.images):
        of_image = jax.tree.map(lambda array, k=k: np.array(array[k]), found)
        results += evaluation.as_results(of_image, image, ids)
    for kind in evaluation.KINDS:
        assert evaluation.average_precision(content, results, kind).at_50 > 0.5


def test_a_step_is_a_function_of_its_arguments(step_and_state, batch):
    # The key in the state is folded with the step: the same step draws the same, the next another.
    step, state = step_and_state
    (_, first), (_, again) = step(state, batch), step(state, batch)
    _, later = step(state._replace(step=state.step + 1), batch)
    assert [float(x) for x in first] == [float(x) for x in again]
    assert float(first.objectness) != float(later.objectness)


def test_images_without_objects_train_background_alone(step_and_state, batch):
    # Many images of LVIS hold few or no annotated objects: nothing may be divided by 0.
    step, state = step_and_state
    empty = batch._replace(objects=batch.objects._replace(where=jnp.zeros((BATCH, 6), bool)))
    after, parts = step(state, empty)
    assert (float(parts.proposals), float(parts.boxes), float(parts.masks)) == (0, 0, 0)
    assert parts.objectness > 0
    assert parts.categories > 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)
    assert not any(jax.tree.leaves(moved['masks']))
    assert any(jax.tree.leaves(moved['classifier']))


@pytest.mark.parametrize(
    ('setting', 'tolerance'), [({'dtype': 'bfloat16'}, 0.05), ({'remat': True}, 1e-4)]
)
def test_options_of_memory_change_the_losses_by_rounding_alone(setting, tolerance, trained, batch):
    """Bfloat16 has 8 bits of mantissa; a block computed twice is the same block.

    Trained weights, for those at the start give every region the same loss.
    """
    state, _ = trained
    optimizer = optax.sgd(1e-3)
    state = state._replace(opt_state=optimizer.init(state.params))

    def after_a_step(architecture):
        losses_of = steps.make_losses(architecture, LAYOUT, draws=DRAWS)
        return jax.jit(steps.make_train_step(losses_of, optimizer))(state, batch)

    wanted, of_wanted = after_a_step(TINY)
    got, of_got = after_a_step(dataclasses.replace(TINY, **setting))
    np.testing.assert_allclose(sum(of_got), sum(of_wanted), rtol=tolerance)
    for before, a, b in zip(
        *(jax.tree.leaves(s.params) for s in (state, wanted, got)), strict=True
    ):
        assert b.dtype == jnp.float32
        moved, difference = jnp.linalg.norm(a - before), jnp.linalg.norm(a - b)
        assert difference <= 10 * tolerance * moved + 1e-6
