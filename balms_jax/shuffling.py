"""Epochs without a permutation: in which order every example is visited once."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def epoch_shuffle(key: jax.Array, step: ArrayLike, batch_size: int, num_examples: int) -> jax.Array:
    """The examples of one step when every epoch visits each example once, in its own order.

    A function of the key and the step alone, so that a resumed run goes on with the same batches.
    A batch may run from one epoch into the next. Each place is shuffled by itself, by a keyed
    bijection, so that a step costs the batch and not the epoch.

    Args:
        key: a PRNG key, the same at every step.
        step: the number of steps before this one, a scalar integer.
        batch_size: B, at most N.
        num_examples: N.

    Returns:
        Examples, ``[batch]``, int32, in 0..N − 1.

    Raises:
        ValueError: if the batch is larger than an epoch, or that is 2²⁶ examples or more.

    Example:
        >>> batches = [epoch_shuffle(jax.random.key(0), step, 2, 4) for step in range(2)]
        >>> print(jnp.sort(jnp.concatenate(batches)))
        [0 1 2 3]
    """
    if batch_size > num_examples:
        raise ValueError(
            f'batch_size: got {batch_size}, wanted at most the {num_examples} examples'
        )
    if num_examples >= 2**26:
        raise ValueError(f'num_examples: got {num_examples}, wanted less than 2^26')
    # step × B = epoch × N + place by long division, four bits a time: the product need not fit.
    step = jnp.asarray(step).astype(jnp.int32)
    epoch = place = jnp.zeros((), jnp.int32)
    for bits in range(28, -1, -4):
        place = 16 * place + ((step >> bits) & 15) * batch_size
        epoch, place = 16 * epoch + place // num_examples, place % num_examples
    places = place + jnp.arange(batch_size, dtype=jnp.int32)
    following = places >= num_examples
    subkeys = jnp.stack([_shuffle_keys(jax.random.fold_in(key, epoch + i)) for i in (0, 1)])
    return _shuffled(places % num_examples, subkeys[following.astype(jnp.int32)], num_examples)


def _shuffle_keys(key: jax.Array) -> jax.Array:
    """The subkeys of one epoch's bijection, ``[rounds]``, uint32."""
    return jax.random.bits(key, (8,), jnp.uint32)


def _shuffled(places: jax.Array, subkeys: jax.Array, num_examples: int) -> jax.Array:
    """Where a bijection of 0..N − 1 takes each place; ``[batch]`` and ``[batch, rounds]``.

    A Feistel network shuffles 0..2ᵏ − 1, where 2ᵏ is the next power of two; what falls outside is
    shuffled on until it falls inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains).
    """
    bits = max(2, (num_examples - 1).bit_length())
    low = bits // 2
    low_mask, high_mask = jnp.uint32(2**low - 1), jnp.uint32(2 ** (bits - low) - 1)

    def network(x: jax.Array) -> jax.Array:
        left, right = x >> jnp.uint32(low), x & low_mask
        for k in range(0, subkeys.shape[1], 2):
            left ^= _mixed(right ^ subkeys[:, k]) & high_mask
            right ^= _mixed(left ^ subkeys[:, k + 1]) & low_mask
        return (left << jnp.uint32(low)) | right

    limit = jnp.uint32(num_examples)
    shuffled = jax.lax.while_loop(
        lambda x: jnp.any(x >= limit),
        lambda x: jnp.where(x >= limit, network(x), x),
        network(places.astype(jnp.uint32)),
    )
    return shuffled.astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: every bit of the result depends on every bit of x, uint32."""
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> jnp.uint32(16))
