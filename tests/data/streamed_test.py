"""A stream's batches depend on the seed, the step and the rates alone, and nothing goes unsaid."""

import json

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from balms_jax import sampling, shuffling
from balms_jax.data import stream_draws
from balms_jax.data.decoding import CentreCrop, Decoder, RandomResizedCrop, Task, random_window
from balms_jax.data.list_files import read_folders
from balms_jax.data.stream_batches import CorruptImageError, StreamOptions
from balms_jax.data.stream_draws import RatesBoard, StaleRatesError
from balms_jax.data.streamed import Stream
from balms_jax.training import draws

COUNTS = np.array([7, 4, 1])


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
    return read_folders(root)


def options(**changes):
    return StreamOptions(
        **{'batch_size': 4, 'transform': RandomResizedCrop(8), 'seed': 3} | changes
    )


def take(stream, count):
    return [next(stream) for _ in range(count)]


def check_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.examples, b.examples)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.images, b.images)
        assert (a.step, a.rates_version) == (b.step, b.rates_version)


def test_batches_are_decoded_images_of_their_labels(images):
    # What a training step takes: fixed types, and a label that is that of the example.
    with Stream(images, 'shuffled', options()) as stream:
        batch = next(stream)
    assert batch.images.shape == (4, 8, 8, 3)
    assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(batch.labels, images.labels[batch.examples])
    assert (batch.step, batch.rates_version, batch.staleness, batch.faults) == (0, None, 0, ())


# Draws: pure functions of the seed and the step.


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    batch_size=st.sampled_from([5, 12]),  # Each is compiled.
    epochs=st.integers(1, 3),
)
def test_every_epoch_visits_each_example_exactly_once(seed, batch_size, epochs):
    # Otherwise "epoch" would mean something else than in the papers.
    n = 12
    steps = -(-epochs * n // batch_size)
    drawn = np.concatenate(
        [stream_draws.shuffled_examples(seed, step, batch_size, n) for step in range(steps)]
    )
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(drawn[epoch * n : (epoch + 1) * n]), np.arange(n))


@settings(max_examples=30, deadline=None)
@given(shares=st.integers(1, 6), count=st.integers(1, 8))
def test_slices_of_the_processes_make_the_global_batch(shares, count):
    # No example of a global batch may be taken twice, or by no process.
    batch = np.arange(shares * count)
    parts = [batch[stream_draws.local_slice(batch.size, p, count)] for p in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)


@pytest.mark.parametrize('kind', ['shuffled', 'class_balanced'])
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_decode_the_parts_of_one_global_batch(images, kind, processes):
    # Pixels too: a crop's randomness goes by the place in the global batch.
    with Stream(images, kind, options()) as stream:
        whole = take(stream, 3)
    parts = []
    for p in range(processes):
        local = options(process_index=p, process_count=processes)
        with Stream(images, kind, local) as stream:
            parts.append(take(stream, 3))
    for step, batch in enumerate(whole):
        for name in ('images', 'labels', 'examples'):
            joined = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_draws_are_those_of_resident_data():
    # The two ways of the data must be one experiment: bit for bit, for the same key.
    q = np.array([0.5, 0.2, 0.3], np.float32)
    key = jax.random.fold_in(jax.random.key(3), 5)
    resident = jax.jit(lambda key, q: draws.independent(key, q, COUNTS, 64))(key, q)
    ours = stream_draws.examples_by_probabilities(3, 5, 64, COUNTS, q)
    np.testing.assert_array_equal(ours, resident.examples)
    epoch = shuffling.epoch_shuffle(jax.random.key(3), 5, 4, 12)
    np.testing.assert_array_equal(stream_draws.shuffled_examples(3, 5, 4, 12), epoch)


def test_streamed_draws_follow_the_rates(images):
    # The distribution of the resident path's draw at the same ψ: q_j ∝ n_j σ(ψ_j), then uniform
    # within the class. Seeds are fixed, so the test cannot fail by chance.
    psi = jax.numpy.array([-1.0, 0.5, 2.0])
    q = sampling.rated_class_probabilities(psi, COUNTS)
    board = RatesBoard(3)
    board.publish(q, version=0)
    examples = []
    stream_options = options(batch_size=64, prefetch=0, max_staleness=40)
    with Stream(images, board, stream_options) as stream:
        for _ in range(30):
            examples.extend(next(stream).examples)
    expected = np.repeat(np.asarray(q) / COUNTS, COUNTS) * len(examples)
    expected *= len(examples) / expected.sum()  # float32 to the sum that scipy wants.
    observed = np.bincount(examples, minlength=COUNTS.sum())
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.01


def test_class_balanced_draws_are_balanced(images):
    # The class with one image comes as often as that with seven.
    with Stream(images, 'class_balanced', options(batch_size=64, prefetch=0)) as stream:
        labels = np.concatenate([batch.labels for batch in take(stream, 20)])
    assert scipy.stats.chisquare(np.bincount(labels)).pvalue > 0.01


# Workers and state.


def test_worker_processes_change_nothing(with_corrupt):
    # Two workers: the same bytes, the same versions, the same faults, in the same order.
    batches = []
    for workers in (0, 2):
        board = RatesBoard(2)
        settings_ = options(workers=workers, max_staleness=2, corrupt='skip')
        with Stream(with_corrupt, board, settings_) as stream:
            taken = []
            for step in range(4):
                board.publish(np.eye(2)[step % 2], version=step)
                taken.append(next(stream))
        batches.append(taken)
    check_equal(*batches)
    assert [batch.faults for batch in batches[0]] == [batch.faults for batch in batches[1]]
    assert any(batch.faults for batch in batches[0])


@settings(max_examples=8, deadline=None)
@given(
    before=st.integers(0, 4),
    prefetch=st.integers(0, 3),
    kind=st.sampled_from(['shuffled', 'class_balanced', 'board']),
)
def test_a_restored_stream_goes_on_as_if_nothing_had_happened(images, before, prefetch, kind):
    # Batches ahead were drawn with the rates of before, which the state must bring along.
    settings_ = options(prefetch=prefetch, max_staleness=2)

    def rates(step):
        q = np.arange(1, 4) + step
        return (q / q.sum()).astype(np.float32)

    def run(stream, board, steps):
        taken = []
        for step in steps:
            board.publish(rates(step), version=step)
            taken.append(next(stream))
        return taken

    board = RatesBoard(3)
    with Stream(images, board if kind == 'board' else kind, settings_) as stream:
        run(stream, board, range(before))
        state = json.dumps(stream.get_state())
        expected = run(stream, board, range(before, before + 4))
    again = RatesBoard(3)
    with Stream(images, again if kind == 'board' else kind, settings_) as stream:
        stream.set_state(json.loads(state))
        check_equal(run(stream, again, range(before, before + 4)), expected)


def test_a_state_of_another_stream_is_refused(images):
    # It would go on silently with other batches.
    with Stream(images, 'shuffled', options()) as stream:
        state = stream.get_state()
    with pytest.raises(ValueError, match='got seed 3, wanted 4'):
        Stream(images, 'shuffled', options(seed=4)).set_state(state)
    with pytest.raises(ValueError, match='got draws'):
        Stream(images, 'class_balanced', options()).set_state(state)


# Staleness.


@settings(max_examples=10, deadline=None)
@given(bound=st.integers(0, 4), prefetch=st.integers(0, 4), lag=st.integers(0, 3))
def test_staleness_never_exceeds_the_bound(images, bound, prefetch, lag):
    # Whatever is prefetched, and however late the rates are published: a batch beyond the bound is
    # refused, and can be had once newer rates are there.
    board = RatesBoard(3)
    with Stream(images, board, options(prefetch=prefetch, max_staleness=bound)) as stream:
        board.publish(np.full(3, 1 / 3), version=0)
        for step in range(6):
            if step - lag >= board.version:
                board.publish(np.full(3, 1 / 3), version=step - lag)
            try:
                batch = next(stream)
            except StaleRatesError:
                assert step - board.version > bound
                board.publish(np.full(3, 1 / 3), version=step)
                batch = next(stream)
            assert batch.step == step
            assert 0 <= batch.staleness <= bound
            np.testing.assert_allclose(batch.class_probabilities, 1 / 3, rtol=1e-6)


def test_staleness_zero_draws_with_the_rates_of_the_very_step(images):
    # Then streamed training is resident training, though more is prefetched where it may be.
    board = RatesBoard(3)
    with Stream(images, board, options(prefetch=3, max_staleness=0)) as stream:
        for step in range(5):
            board.publish(np.eye(3)[step % 3], version=step)
            batch = next(stream)
            assert batch.staleness == 0
            assert set(batch.labels) == {step % 3}


def test_prefetched_batches_carry_the_version_they_were_drawn_with(images):
    # At bound 2 the first three batches are drawn with the first rates; then each lags by two.
    board = RatesBoard(3)
    versions = []
    with Stream(images, board, options(prefetch=2, max_staleness=2)) as stream:
        for step in range(5):
            board.publish(np.full(3, 1 / 3), version=step)
            versions.append(next(stream).rates_version)
    assert versions == [0, 0, 0, 1, 2]


def test_importance_weights_correct_the_expectation():
    # Σ_j q′_j w_j f_j = Σ_j q_j f_j: a batch that was drawn too early estimates today's loss.
    current, drawn, f = (np.array(x) for x in ([0.2, 0.3, 0.5], [0.5, 0.25, 0.25], [3.0, -1, 7]))
    w = stream_draws.importance_weights(current, drawn, np.arange(3))
    np.testing.assert_allclose(drawn @ (w * f), current @ f, rtol=1e-6)


def test_a_board_refuses_rates_that_go_back_or_do_not_fit(images):
    # Older rates under a newer name would make the bound a lie.
    board = RatesBoard(3)
    with (
        Stream(images, board, options()) as stream,
        pytest.raises(StaleRatesError, match='no rates were published'),
    ):
        next(stream)
    with pytest.raises(ValueError, match='shape'):
        board.publish(np.ones(2) / 2, version=0)
    board.publish(np.ones(3), version=2)
    with pytest.raises(ValueError, match='version: got 1'):
        board.publish(np.ones(3) / 3, version=1)
    with pytest.raises(ValueError, match='wanted sum 1'):
        board.read()


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
    return read_folders(tmp_path)


def test_a_corrupt_image_ends_the_stream_by_name(with_corrupt):
    # The default: nobody trains on less than the data set without having said so.
    with (
        Stream(with_corrupt, 'shuffled', options(batch_size=6)) as stream,
        pytest.raises(CorruptImageError, match=r'class_0/[01]\.jpg: '),
    ):
        next(stream)


def test_a_corrupt_image_is_replaced_by_one_of_its_class_and_reported(with_corrupt):
    # The same replacement in every run, and a record in the batch and the state.
    taken = []
    for _ in range(2):
        skipping = options(batch_size=6, corrupt='skip')
        with Stream(with_corrupt, 'shuffled', skipping) as stream:
            batches = take(stream, 2)
            assert stream.get_state()['skipped'] == dict(stream.skipped)
            assert set(stream.skipped) == set(with_corrupt.paths[:2])
        for batch in batches:
            np.testing.assert_array_equal(with_corrupt.labels[batch.examples], batch.labels)
            assert not set(batch.examples) & {0, 1}
            assert {fault.path for fault in batch.faults} == set(with_corrupt.paths[:2])
            assert all(fault.replacement == 2 for fault in batch.faults)
        taken.append(batches)
    check_equal(*taken)


def test_a_class_without_any_whole_image_is_an_error_under_either_policy(tmp_path):
    # There is nothing to take its place.
    (tmp_path / 'class_0').mkdir()
    (tmp_path / 'class_0' / 'only.jpg').write_text('no image')
    with (
        Stream(read_folders(tmp_path), 'shuffled', options(batch_size=1, corrupt='skip')) as stream,
        pytest.raises(CorruptImageError, match=r'only\.jpg'),
    ):
        next(stream)


def test_a_corrupt_neighbour_does_not_move_an_image(with_corrupt):
    # Each example's randomness goes by its own place in the batch.
    def decode(examples):
        decoder = Decoder(
            with_corrupt.paths, with_corrupt.class_counts, RandomResizedCrop(8), 0, True
        )
        return decoder(Task(step=1, position=4, examples=examples)).images[1]

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
    [
        ({'process_count': 3}, 'wanted a multiple of 3'),
        ({'process_index': 2, 'process_count': 2}, 'process_index'),
        ({'corrupt': 'ignore'}, 'corrupt'),
        ({'max_staleness': -1}, 'max_staleness'),
        ({'seed': -1}, 'seed'),
    ],
)
def test_options_that_cannot_be_met_are_refused(changes, message):
    # Before any image is read.
    with pytest.raises(ValueError, match=message):
        options(**changes)
