"""How often images are drawn for the sake of their rarest category."""

import bisect
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

THRESHOLD = 0.001  # t: categories in fewer images than this part of them are repeated.


def repeat_factors(
    image_categories: Sequence[ArrayLike], image_fractions: ArrayLike, threshold: float = THRESHOLD
) -> NDArray[np.float64]:
    r"""How often each image is repeated in training.

    .. math:: r_i = \max_{c \in i} \max\big(1, \sqrt{t / f_c}\big)

    Args:
        image_categories: of each image the categories of its objects, int, repeated or not; 1 is
            the factor of an image without objects.
        image_fractions: f, the part of the images that holds each category, ``[categories]``, in
            0..1.
        threshold: t, above 0.

    Returns:
        Factors of at least 1, ``[images]``.

    Raises:
        ValueError: if the threshold is not above 0, a fraction lies outside 0..1, or an image holds
            a category that is unknown or whose fraction is 0.

    Example:
        >>> print(repeat_factors([[0], [0, 1], []], [0.5, 0.01], threshold=0.04))
        [1. 2. 1.]

    References:
        Gupta et al., LVIS (arXiv 1908.03195), §4.1; Mahajan et al. (arXiv 1805.00932), §2.2.
    """
    if not threshold > 0:
        raise ValueError(f'threshold: got {threshold}, wanted a number above 0')
    return _largest(image_categories, image_fractions, lambda f: np.sqrt(threshold / f))


def meta_repeat_factors(
    image_categories: Sequence[ArrayLike], image_fractions: ArrayLike
) -> NDArray[np.float64]:
    r"""How often each image is repeated in the meta set: as its rarest category is rare.

    .. math:: r_i = \max_{c \in i} 1 / f_c

    Args:
        image_categories: of each image the categories of its objects, int, repeated or not; 1 is
            the factor of an image without objects.
        image_fractions: f, the part of the images that holds each category, ``[categories]``, in
            0..1.

    Returns:
        Factors of at least 1, ``[images]``.

    Raises:
        ValueError: if a fraction lies outside 0..1, or an image holds a category that is unknown or
            whose fraction is 0.

    Example:
        >>> print(meta_repeat_factors([[0], [0, 1], []], [0.5, 0.01]))
        [  2. 100.   1.]

    References:
        BALMS (arXiv 2007.10740), the meta set of LVIS in its released code.
    """
    return _largest(image_categories, image_fractions, lambda f: 1 / f)


def repeated(random: np.random.Generator, factors: NDArray[np.floating]) -> NDArray[np.int64]:
    r"""The images of an epoch, in random order, each as often as its factor in expectation.

    .. math:: n_i = \lfloor r_i \rfloor + \operatorname{Bernoulli}(r_i - \lfloor r_i \rfloor)

    Args:
        random: what is drawn from.
        factors: r, ``[images]``, of at least 0.

    Returns:
        Places of images, ``[Σ n]``.

    Raises:
        ValueError: if a factor is below 0.

    Example:
        >>> sorted(repeated(np.random.default_rng(0), np.array([1.0, 3.0])).tolist())
        [0, 1, 1, 1]

    References:
        Detectron2's ``RepeatFactorTrainingSampler``.
    """
    factors = np.asarray(factors)
    if factors.min(initial=0) < 0:
        raise ValueError(f'factors: got {factors.min()}, wanted numbers of at least 0')
    whole = np.floor(factors)
    times = whole + (random.random(len(factors)) < factors - whole)
    return random.permutation(np.repeat(np.arange(len(factors)), times.astype(np.int64)))


def epochs_of_repeats(
    seed: int, factors: NDArray[np.floating], batch_size: int
) -> Callable[[int], NDArray[np.int32]]:
    r"""The images of every step, where one epoch of :func:`repeated` follows another.

    Args:
        seed: of everything drawn.
        factors: r, ``[images]``, of at least 0, not all 0.
        batch_size: B.

    Returns:
        Step → places of images, int32, ``[B]``: a function of the arguments alone, whichever step
        is asked for first. Each epoch begins where the one before ended, within a batch or not.

    Raises:
        ValueError: if the factors are all 0, or the batch is empty.

    Example:
        >>> draws = epochs_of_repeats(0, np.array([1.0, 2.0]), batch_size=3)
        >>> sorted(draws(7).tolist())  # Every epoch is three images long.
        [0, 1, 1]
    """
    factors = np.asarray(factors)
    if not factors.max(initial=0) > 0 or batch_size < 1:
        raise ValueError(
            f'factors: got a largest one of {factors.max(initial=0)} for batches of {batch_size}, '
            'wanted some above 0 and at least an image'
        )

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> NDArray[np.int64]:
        return repeated(np.random.default_rng([seed, number]), factors)

    ends: list[int] = []  # Of the epochs, counted in images; known as far as was asked for.

    def draws(step: int) -> NDArray[np.int32]:
        first, last = step * batch_size, (step + 1) * batch_size
        while not ends or ends[-1] < last:
            ends.append((ends[-1] if ends else 0) + len(epoch(len(ends))))
        drawn: list[NDArray[np.int64]] = []
        while first < last:
            number = bisect.bisect_right(ends, first)
            begin = ends[number] - len(epoch(number))
            drawn.append(epoch(number)[first - begin : last - begin])
            first += len(drawn[-1])
        return np.concatenate(drawn).astype(np.int32)

    return draws


def independent_draws(
    seed: int, factors: NDArray[np.floating], batch_size: int
) -> Callable[[int], NDArray[np.int32]]:
    r"""The images of every step, drawn independently with replacement, as often as repeated.

    .. math:: \Pr(i) = r_i / \sum_k r_k

    Args:
        seed: of everything drawn.
        factors: r, ``[images]``, of at least 0, not all 0.
        batch_size: B.

    Returns:
        Step → places of images, int32, ``[B]``: a function of the arguments alone.

    Example:
        >>> independent_draws(0, np.array([0.0, 2.0]), batch_size=3)(5)
        array([1, 1, 1], dtype=int32)
    """
    shares = np.asarray(factors, np.float64) / np.sum(factors)

    def draws(step: int) -> NDArray[np.int32]:
        random = np.random.default_rng([seed, step])
        return random.choice(len(shares), batch_size, p=shares).astype(np.int32)

    return draws


def draw_images(key: jax.Array, factors: ArrayLike, number: int) -> jax.Array:
    r"""Images drawn independently, as often as they are repeated.

    .. math:: \Pr(i) = r_i / \sum_k r_k

    Args:
        key: a PRNG key.
        factors: r, ``[images]``, of at least 0, not all 0.
        number: how many are drawn, with replacement.

    Returns:
        Places of images, int32, ``[number]``.

    Example:
        >>> print(draw_images(jax.random.key(0), jnp.array([0.0, 2.0, 0.0]), 3))
        [1 1 1]
    """
    factors = jnp.asarray(factors)
    drawn = jax.random.choice(key, factors.shape[0], (number,), p=factors / factors.sum())
    return drawn.astype(jnp.int32)


def _largest(
    image_categories: Sequence[ArrayLike],
    image_fractions: ArrayLike,
    factor: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """The largest factor of an image's categories, at least 1."""
    fractions = np.asarray(image_fractions, np.float64)
    if not ((fractions >= 0) & (fractions <= 1)).all():
        raise ValueError(
            f'image_fractions: got {fractions.min()} to {fractions.max()}, wanted numbers in 0..1'
        )
    largest = np.ones(len(image_categories))
    for place, held in enumerate(image_categories):
        categories = np.asarray(held, np.int64)
        unknown = (categories < 0) | (categories >= len(fractions))
        if unknown.any() or not fractions[categories].all():
            raise ValueError(
                f'image_categories: got {categories.tolist()} of image {place}, wanted categories '
                f'of 0 to {len(fractions) - 1} with image fractions above 0'
            )
        largest[place] = factor(fractions[categories]).max(initial=1)
    return largest
