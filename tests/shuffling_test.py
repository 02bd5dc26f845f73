"""Every epoch is a permutation of its own, whatever the batch size."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from balms_jax import shuffling


@pytest.mark.parametrize(
    ('batch_size', 'num_examples'), [(4, 12), (5, 12), (12, 12), (1, 3), (7, 11)]
)
def test_every_epoch_visits_every_example_once(batch_size, num_examples):
    # Over as many steps as make whole epochs, batches cross from one into the next.
    shuffle = jax.jit(
        functools.partial(shuffling.epoch_shuffle, batch_size=batch_size, num_examples=num_examples)
    )
    key = jax.random.key(0)
    visits = jnp.concatenate([shuffle(key, step) for step in range(num_examples)])
    epochs = visits.reshape(batch_size, num_examples)
    np.testing.assert_array_equal(
        np.sort(epochs, 1), np.tile(np.arange(num_examples), (batch_size, 1))
    )
    if num_examples > 10 and batch_size > 1:
        assert np.any(epochs[0] != epochs[1])
        assert np.any(epochs[0] != np.arange(num_examples))
        other = jnp.concatenate([shuffle(jax.random.key(1), step) for step in range(num_examples)])
        assert np.any(visits != other)


def epoch_order(key, epoch, num_examples):
    subkeys = shuffling._shuffle_keys(jax.random.fold_in(key, epoch))
    places = jnp.arange(num_examples, dtype=jnp.int32)
    return shuffling._shuffled(places, jnp.tile(subkeys, (num_examples, 1)), num_examples)


@pytest.mark.parametrize(
    ('step', 'batch_size', 'num_examples'),
    [(2**20, 512, 10_847), (2**20, 4096, 50_000), (99_999, 40_000, 100_003), (2**31 - 1, 300, 301)],
)
def test_large_steps_are_where_exact_arithmetic_puts_them(step, batch_size, num_examples):
    # Their product is beyond an int32.
    epoch, place = divmod(step * batch_size, num_examples)
    key = jax.random.key(0)
    orders = jnp.concatenate([epoch_order(key, epoch + i, num_examples) for i in (0, 1)])
    batch = shuffling.epoch_shuffle(key, step, batch_size, num_examples)
    np.testing.assert_array_equal(batch, orders[place : place + batch_size])
    traced = jax.jit(shuffling.epoch_shuffle, static_argnums=(2, 3))
    np.testing.assert_array_equal(traced(key, jnp.int32(step), batch_size, num_examples), batch)


@pytest.mark.parametrize(
    ('batch_size', 'num_examples', 'message'),
    [(5, 4, 'batch_size: got 5, wanted at most the 4 examples'), (5, 2**26, 'num_examples: got')],
)
def test_epochs_that_cannot_be_are_refused(batch_size, num_examples, message):
    with pytest.raises(ValueError, match=message):
        shuffling.epoch_shuffle(jax.random.key(0), 0, batch_size, num_examples)


@pytest.mark.parametrize('num_examples', [7, 64, 100])
def test_epochs_are_shuffled_uniformly_and_independently(num_examples):
    """Any example may stand anywhere, and neighbours of one epoch are strangers in the next."""
    epochs = 600
    shuffle = jax.vmap(
        lambda epoch: shuffling.epoch_shuffle(jax.random.key(3), epoch, num_examples, num_examples)
    )
    orders = np.asarray(jax.jit(shuffle)(jnp.arange(epochs, dtype=jnp.int32)))
    np.testing.assert_array_equal(np.sort(orders, 1), np.tile(np.arange(num_examples), (epochs, 1)))
    for place in (0, num_examples // 2, num_examples - 1):
        counts = np.bincount(orders[:, place], minlength=num_examples)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    steps = (orders[:, 1:] - orders[:, :-1]) % num_examples
    counts = np.bincount(steps.ravel(), minlength=num_examples)[1:]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(orders)]
    assert abs(np.mean(correlation)) < 4 / np.sqrt(epochs * num_examples)


def test_places_are_int32_in_double_precision_too():
    """A checkpoint of one precision must not be refused by the other."""
    with jax.enable_x64(True):
        assert shuffling.epoch_shuffle(jax.random.key(0), 1, 2, 4).dtype == jnp.int32
