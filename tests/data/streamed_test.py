"""A stream's batches depend on the seed, the step and the rates alone, and nothing goes unsaid."""

import concurrent.futures

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from balms_jax import sampling, shuffling
from balms_jax.data import stream_draws
from balms_jax.data.decoding import (
    CentreCrop,
    CorruptImageError,
    RandomResizedCrop,
    Task,
    generator,
    random_window,
)
from balms_jax.data.image_files import ImageFiles
from balms_jax.data.list_files import read_folders
from balms_jax.data.streamed import Stream

COUNTS = np.array([7, 4, 1])


def files(root, **changes):
    varied = RandomResizedCrop(8)
    return ImageFiles(read_folders(root), CentreCrop(8, resize=8), varied, **changes)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Twelve small JPEGs of noise, in three classes with a tail."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for j, count in enumerate(COUNTS):
        (root / f'class_{j}').mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (12 + i, 20 - j, 3), np.uint8)
            Image.fromarray(pixels).save(root / f'class_{j}' / f'{i:02d}.jpg')
    return files(root)


SHUFFLED = stream_draws.shuffled(3, 4, 12)
BALANCED = stream_draws.by_probabilities(3, 4, COUNTS, np.full(3, 1 / 3))


def take(stream, count):
    return [next(stream) for _ in range(count)]


def check_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.examples, b.examples)
        np.testing.assert_array_equal(a.images, b.images)
        assert (a.step, a.faults) == (b.step, b.faults)


def test_batches_are_decoded_images_of_what_was_drawn(images):
    """What a training step takes: fixed types, and images of the very examples."""
    with Stream(images, SHUFFLED) as stream:
        batch = next(stream)
    assert batch.images.shape == (4, 8, 8, 3)
    assert batch.images.dtype == np.uint8
    np.testing.assert_array_equal(batch.examples, SHUFFLED(0))
    assert (batch.step, batch.faults) == (0, ())
    plain = ImageFiles(images.files, images.crop)
    with Stream(plain, SHUFFLED) as stream:  # Nothing random is left.
        np.testing.assert_array_equal(next(stream).images, plain[SHUFFLED(0)])


# Draws: pure functions of the seed and the step.


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    batch_size=st.sampled_from([5, 12]),  # Each is compiled.
    epochs=st.integers(1, 3),
)
def test_every_epoch_visits_each_example_exactly_once(seed, batch_size, epochs):
    """Otherwise "epoch" would mean something else than in the papers."""
    n = 12
    draws = stream_draws.shuffled(seed, batch_size, n)
    drawn = np.concatenate([draws(step) for step in range(-(-epochs * n // batch_size))])
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(drawn[epoch * n : (epoch + 1) * n]), np.arange(n))


@settings(max_examples=30, deadline=None)
@given(shares=st.integers(1, 6), count=st.integers(1, 8))
def test_rows_of_the_processes_make_the_global_batch(shares, count):
    """No example of a global batch may be taken twice, or by no process."""
    batch = np.arange(shares * count)
    parts = [batch[stream_draws.local_rows(batch.size, p, count)] for p in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)


@pytest.mark.parametrize('draws', [SHUFFLED, BALANCED])
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_decode_the_parts_of_one_global_batch(images, draws, processes):
    """Pixels too: a crop's randomness goes by the place in the global batch."""
    with Stream(images, draws) as stream:
        whole = take(stream, 3)
    parts = []
    for p in range(processes):
        with Stream(images, draws, rows=stream_draws.local_rows(4, p, processes)) as stream:
            parts.append(take(stream, 3))
    for step, batch in enumerate(whole):
        for name in ('images', 'examples'):
            joined = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_draws_are_those_of_resident_data():
    """The two ways of the data must be one experiment: bit for bit, for the same key."""
    q = np.array([0.5, 0.2, 0.3], np.float32)
    key = jax.random.fold_in(jax.random.key(3), 5)
    resident, _ = jax.jit(lambda key, q: sampling.draw_examples(key, q, COUNTS, 64))(key, q)
    ours = stream_draws.by_probabilities(3, 64, COUNTS, q)(5)
    np.testing.assert_array_equal(ours, resident)
    epoch = shuffling.epoch_shuffle(jax.random.key(3), 5, 4, 12)
    np.testing.assert_array_equal(SHUFFLED(5), epoch)


def test_draws_follow_the_probabilities(images):
    """q_j of a class, then uniform within it. The seed is fixed: it cannot fail by chance."""
    q = np.asarray(sampling.rated_class_probabilities(jax.numpy.array([-1.0, 0.5, 2.0]), COUNTS))
    draws = stream_draws.by_probabilities(3, 64, COUNTS, q)
    with Stream(images, draws, prefetch=0) as stream:
        examples = np.concatenate([batch.examples for batch in take(stream, 30)])
    expected = np.repeat(q / COUNTS, COUNTS) * len(examples)
    expected *= len(examples) / expected.sum()  # float32 to the sum that scipy wants.
    observed = np.bincount(examples, minlength=COUNTS.sum())
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.01


# Workers, and going on.


@pytest.mark.filterwarnings('ignore:.*takes its place')
def test_worker_processes_change_nothing(with_corrupt):
    """Two workers: the same bytes and the same faults, in the same order."""
    draws = stream_draws.shuffled(3, 4, 6)
    batches = []
    for workers in (0, 2):
        with Stream(with_corrupt('skip'), draws, workers=workers) as stream:
            batches.append(take(stream, 4))
    check_equal(*batches)
    assert any(batch.faults for batch in batches[0])


@settings(max_examples=8, deadline=None)
@given(
    before=st.integers(0, 4),
    prefetch=st.integers(0, 3),
    draws=st.sampled_from([SHUFFLED, BALANCED]),
)
def test_a_stream_that_starts_at_a_step_goes_on_as_if_nothing_had_happened(
    images, before, prefetch, draws
):
    """A checkpoint holds the step alone, and whatever was prefetched is read again."""
    with Stream(images, draws, prefetch=prefetch) as stream:
        take(stream, before)
        expected = take(stream, 3)
    with Stream(images, draws, prefetch=prefetch, step=before) as stream:
        check_equal(take(stream, 3), expected)


@settings(max_examples=10, deadline=None)
@given(ahead=st.integers(0, 4), prefetch=st.integers(0, 4))
def test_no_batch_is_drawn_before_it_can_be(images, ahead, prefetch):
    """Draws that follow training come when they come; until then nothing stands in for them."""
    asked = []

    def draws(step):
        asked.append(step)
        return SHUFFLED(step) if step <= known + ahead else None

    with Stream(images, draws, prefetch=prefetch) as stream:
        for known in range(4):
            assert next(stream).step == known
            assert max(asked) <= known + min(prefetch, ahead + 1)
        known = 3 - ahead - 1
        if ahead <= prefetch:
            asked.clear()
            stream.draws = lambda step: None
            take(stream, min(prefetch, ahead))  # What is drawn already can be had.
            with pytest.raises(ValueError, match='got None for step'):
                next(stream)


def test_draws_that_are_no_places_of_the_files_are_refused(images):
    """They would end in a worker, far from their cause."""
    with (
        Stream(images, lambda step: np.array([0, 12])) as stream,
        pytest.raises(ValueError, match='wanted places below 12'),
    ):
        next(stream)


# Corrupt images.


@pytest.fixture
def with_corrupt(tmp_path):
    """Two classes of three; of the first one image is cut off and one is text."""
    for j in range(2):
        (tmp_path / f'class_{j}').mkdir()
        for i in range(3):
            pixels = np.full((30, 30, 3), 100 * j + 10 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'class_{j}' / f'{i}.jpg')
    whole = (tmp_path / 'class_0' / '0.jpg').read_bytes()
    (tmp_path / 'class_0' / '0.jpg').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'class_0' / '1.jpg').write_text('no image')
    return lambda policy: files(tmp_path, corrupt=policy)


ALL_SIX = stream_draws.shuffled(3, 6, 6)


def test_a_corrupt_image_ends_the_stream_by_name(with_corrupt):
    """The default: nobody trains on less than the data set without having said so."""
    with (
        Stream(with_corrupt('error'), ALL_SIX) as stream,
        pytest.raises(CorruptImageError, match=r'class_0/[01]\.jpg: '),
    ):
        next(stream)


@pytest.mark.filterwarnings('ignore:.*takes its place')
def test_a_corrupt_image_is_replaced_by_one_of_its_class_and_reported(with_corrupt):
    """The same replacement in every run, and a record in the batch."""
    images, taken = with_corrupt('skip'), []
    for _ in range(2):
        with Stream(images, ALL_SIX) as stream:
            batches = take(stream, 2)
        for batch in batches:
            labels = images.files.labels
            np.testing.assert_array_equal(labels[batch.examples], labels[ALL_SIX(batch.step)])
            assert not set(batch.examples) & {0, 1}
            assert {fault.path for fault in batch.faults} == set(images.files.paths[:2])
            assert all(fault.replacement == 2 for fault in batch.faults)
        taken.append(batches)
    check_equal(*taken)


def test_a_replaced_image_is_warned_of_by_name(with_corrupt):
    """Never silent, even where it is allowed."""
    with (
        Stream(with_corrupt('skip'), ALL_SIX) as stream,
        pytest.warns(UserWarning, match='takes its place') as warned,
    ):
        next(stream)
    told = [str(warning.message) for warning in warned]
    for name in ('class_0/0.jpg: ', 'class_0/1.jpg: '):
        assert any(name in line and 'takes its place' in line for line in told)


def test_a_class_without_any_whole_image_is_an_error_under_either_policy(tmp_path):
    """There is nothing to take its place."""
    (tmp_path / 'class_0').mkdir()
    (tmp_path / 'class_0' / 'only.jpg').write_text('no image')
    with (
        Stream(files(tmp_path, corrupt='skip'), stream_draws.shuffled(0, 1, 1)) as stream,
        pytest.raises(CorruptImageError, match=r'only\.jpg'),
    ):
        next(stream)


def test_a_corrupt_neighbour_does_not_move_an_image(with_corrupt):
    """Each example's randomness goes by its own place in the batch."""
    decoder = with_corrupt('skip').decoder(seed=0)

    def decode(examples):
        return decoder(Task(step=1, position=4, examples=examples)).rows[1]

    np.testing.assert_array_equal(decode((0, 4)), decode((5, 4)))


# Crops.


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 99))
def test_windows_lie_within_the_image_and_their_ranges(width, height, seed):
    # Up to the rounding of sides to whole pixels, and but for the central window of odd shapes.
    left, top, right, bottom = random_window(
        (width, height), (0.25, 1.0), (0.5, 2.0), np.random.default_rng(seed)
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if 0.5 <= width / height <= 2:
        area = (right - left) * (bottom - top)
        slack = (right - left) + (bottom - top)
        assert area >= 0.25 * width * height - slack


def test_centre_crop_takes_the_middle():
    # An image 8 × 4 whose columns count: the shorter side stays 4, the middle 4 columns are taken.
    columns = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, :, None], (4, 8, 3))
    cropped = CentreCrop(4, resize=4)(Image.fromarray(columns), np.random.default_rng(0))
    np.testing.assert_array_equal(cropped[0, :, 0], [2, 3, 4, 5])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'step': -1}, 'step'), ({'workers': -1}, 'workers'), ({'seed': -1}, 'seed')],
)
def test_options_that_cannot_be_met_are_refused(images, changes, message):
    """Before any image is read."""
    with pytest.raises(ValueError, match=message):
        Stream(images, SHUFFLED, **changes)
    with pytest.raises(ValueError, match='corrupt'):
        ImageFiles(images.files, images.crop, corrupt='ignore')
    with pytest.raises(ValueError, match='wanted a multiple of 3'):
        stream_draws.local_rows(4, 0, 3)


def test_every_try_draws_its_own_numbers():
    # A batch is the same for any number of workers and threads: what is drawn follows the place
    # alone. Two places with the same numbers would be cropped alike.
    def drawn(place):
        rng = generator(*place)
        return rng.random(3).tolist() + rng.integers(0, 2**31, 3).tolist()

    places = [
        (seed, step, position, k)
        for seed in (0, 1)
        for step in (0, 1)
        for position in (0, 1)
        for k in (0, 1)
    ]
    alone = [drawn(place) for place in places]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, places)) == alone
    assert len({tuple(each) for each in alone}) == len(places)
    generator(0, 0, 0, 0).integers(0, 2, dtype=np.uint32)  # Leaves half a word, and half a buffer.
    assert drawn(places[3]) == alone[3]
    # A long draw of one does not run into the next one's.
    many = generator(0, 0, 0, 0).random(1000)
    assert not set(many.tolist()) & set(generator(0, 0, 0, 1).random(1000).tolist())
