"""Regions read of images are stage 1's, those of a cache are drawn as often as asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax.detection import (
    anchors,
    annotations,
    losses,
    networks,
    padding,
    proposals,
    rebalancing,
    region_sources,
    scenes,
    steps,
    targets,
)
from balms_jax.detection.rebalancing import MetaRegions, Regions
from balms_jax.detection.region_sources import CachedRegions

pytestmark = pytest.mark.usefixtures('standard_promotion')

SIDE, BATCH = 64, 2
LAYOUT = anchors.Layout((SIDE, SIDE), (4, 8, 16, 32, 64), (12.0, 18.0, 26.0, 40.0, 60.0))
# Foreground slots for every object, so that no draw leaves a category out.
DRAWS = steps.Draws(16, 0.5, 16, 0.5, proposals.Selection(8, 12))
TINY = networks.Architecture(
    36,
    depth=10,
    width=4,
    channels=8,
    box_features=16,
    agnostic_boxes=True,
    agnostic_masks=True,
)
KEY = jax.random.key(5)


@pytest.fixture(scope='module')
def batch():
    drawn = scenes.scenes(0, scenes.long_tailed_counts(400))
    some = [next(drawn) for _ in range(BATCH)]
    known = annotations.parse(annotations.as_lvis(some, scenes.CATEGORIES))
    padded = [padding.padded_objects(image, 6, 28) for image in known.images]
    sizes = jnp.full((BATCH, 2), float(SIDE))
    objects = targets.Objects(*map(jnp.asarray, map(np.stack, zip(*padded, strict=True))))
    images = jnp.asarray(np.stack([scene.image for scene in some]))
    return steps.Batch(networks.normalise(images, sizes), sizes, objects)


@pytest.fixture(scope='module')
def frozen():
    """Parameters and batch statistics of a network; its class layer is not at its start."""
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        init = jax.jit(networks.build(TINY).init)
        params, batch_stats = init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    (dense,) = params['classifier'].values()
    dense['kernel'] = jax.random.normal(KEY, dense['kernel'].shape)
    return params, batch_stats


@pytest.fixture(scope='module')
def read():
    return jax.jit(region_sources.make_reader(TINY, LAYOUT, DRAWS))


def test_the_regions_have_the_category_loss_of_stage_1(frozen, batch, read):
    # Of the same key the same regions are drawn, and their features go into the same class layer.
    params, batch_stats = frozen
    found = jax.tree.map(lambda array: array[0], read(params, batch_stats, batch, KEY[None]))
    logits = networks.build(TINY).logits(params, found.features)
    ours = losses.sigmoid_loss(logits, found.categories)[found.where].mean()
    theirs, _ = jax.jit(steps.make_losses(TINY, LAYOUT, draws=DRAWS))(
        params, batch_stats, batch, KEY
    )
    np.testing.assert_allclose(ours, theirs.categories, rtol=1e-5)
    assert set(found.categories.tolist()) > set(
        batch.objects.categories[batch.objects.where].tolist()
    )


def test_a_meta_step_reads_new_regions_of_the_same_images(frozen, batch, read):
    # The meta batch is the same images in another order: its categories are told apart by place.
    params, batch_stats = frozen
    other = jax.tree.map(lambda array: array[::-1], batch)
    found = region_sources.read_for_meta_step(read, KEY, params, batch_stats, batch, other)

    def held(regions, image):
        of_image = regions.categories.reshape(BATCH, -1)[image]
        return set(of_image.tolist()) - {targets.NO_CATEGORY}

    for image in range(BATCH):
        assert held(found.trial, image) == held(found.real, image)
        assert held(found.trial, image) == held(found.meta, BATCH - 1 - image)
    assert held(found.trial, 0) != held(found.trial, 1)
    assert (found.trial.features != found.real.features).any()


def fake_read(params, batch_stats, batch, keys):
    """Two slots an image; the second is padding where the image's first pixel says so."""
    flag = batch.images[:, 0] > 0
    features = jnp.repeat(batch.images, 2, axis=0)
    where = jnp.stack([jnp.ones_like(flag), flag], 1).reshape(-1)
    return Regions(features[None], jnp.arange(len(where))[None], where[None])


def fake_batch(*images):
    images = jnp.array(images)
    return steps.Batch(images, jnp.ones((len(images), 2)), None)


def test_the_cache_keeps_all_regions_but_padding_image_by_image():
    batches = [fake_batch([1.0, 10.0], [0.0, 20.0]), fake_batch([1.0, 30.0])]
    found = region_sources.cache(fake_read, KEY, {}, {}, batches)
    assert found.numbers.tolist() == [2, 1, 2]
    assert found.first.tolist() == [0, 2, 3]
    assert found.regions.features[:, 1].tolist() == [10, 10, 20, 30, 30]
    assert found.regions.categories.tolist() == [0, 1, 2, 0, 1]
    assert found.regions.where.all()


CACHED = CachedRegions(
    Regions(jnp.eye(5), jnp.arange(5), jnp.ones(5, bool)),
    jnp.array([0, 2, 2]),
    jnp.array([2, 0, 3]),
)


def test_draws_follow_the_images_factors_and_not_their_numbers_of_regions():
    # 3 : 1 between images, and alike within each: 3/8 twice and 1/12 three times, within four
    # standard errors of at most √(0.375 · 0.625 / 8,000). The image without regions is skipped.
    drawn = region_sources.draw(KEY, CACHED, jnp.array([3.0, 50.0, 1.0]), 8_000)
    shares = np.bincount(drawn.categories, minlength=5) / 8_000
    np.testing.assert_allclose(shares, [3 / 8] * 2 + [1 / 12] * 3, atol=4 * 0.0054)
    np.testing.assert_array_equal(drawn.features.argmax(1), drawn.categories)


def test_a_meta_step_draws_its_meta_set_by_its_own_factors():
    factors, meta_factors = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
    drawn = region_sources.draw_for_meta_step(KEY, CACHED, factors, meta_factors, 40)
    assert set(drawn.trial.categories.tolist()) == {0, 1}
    assert set(drawn.meta.categories.tolist()) == {2, 3, 4}
    assert set(drawn.real.categories.tolist()) == {0, 1}
    assert drawn.trial.categories.tolist() != drawn.real.categories.tolist()


def meta_step():
    def logits(layer, features):
        return features @ layer

    optimizer, adam = optax.sgd(0.5, 0.9), optax.adam(0.1)
    step = rebalancing.make_meta_step(logits, losses.sigmoid_loss, optimizer, adam)
    start = rebalancing.init_state(KEY, jnp.zeros((5, 5)), optimizer, jnp.zeros(5), adam)
    return step, start


def test_many_steps_are_one_after_another():
    # The key of a step depends on its number alone, not on the call that it was in.
    step, state = meta_step()

    def regions_of(key, source):
        return region_sources.draw_for_meta_step(key, *source, 8)

    run = region_sources.make_run(step, regions_of)
    source = CACHED, jnp.array([3.0, 0.0, 1.0]), jnp.array([1.0, 0.0, 1.0])
    at_once, metrics = run(state, source, 4)
    for k in range(4):
        state, one = run(state, source, 1)
        np.testing.assert_allclose(one.loss[0], metrics.loss[k], rtol=1e-6)
    np.testing.assert_allclose(state.classifier, at_once.classifier, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.psi, at_once.psi, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 4


def test_regions_of_a_cache_and_of_images_go_into_the_same_step(frozen, batch, read):
    # The source is all that differs: given the same regions the step does the same.
    params, batch_stats = frozen
    optimizer, adam = optax.sgd(0.1), optax.adam(0.1)
    step = rebalancing.make_meta_step(
        lambda layer, features: networks.build(TINY).logits({'classifier': layer}, features),
        losses.sigmoid_loss,
        optimizer,
        adam,
    )
    state = rebalancing.init_state(KEY, params['classifier'], optimizer, jnp.zeros(36), adam)
    fresh = region_sources.make_run(
        step, lambda key, source: region_sources.read_for_meta_step(read, key, *source)
    )
    after, metrics = fresh(state, (params, batch_stats, batch, batch), 1)
    key = jax.random.fold_in(KEY, 0)
    same = region_sources.read_for_meta_step(read, key, params, batch_stats, batch, batch)
    kept = MetaRegions(*(jax.tree.map(lambda a, w=r.where: a[w], r) for r in same))
    resident = region_sources.make_run(step, lambda key, source: source)
    other, other_metrics = resident(state, kept, 1)
    both = jax.tree.leaves((after, metrics)), jax.tree.leaves((other, other_metrics))
    for a, b in zip(*both, strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match='batches: got none'):
        region_sources.cache(fake_read, KEY, {}, {}, [])
    with pytest.raises(ValueError, match=r'factors: got shape \(2,\)'):
        region_sources.draw(KEY, CACHED, jnp.ones(2), 4)
