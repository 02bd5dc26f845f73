"""Long-tail profiles, and the seeded subset of a data set that follows one.

A profile says how many examples each class keeps, from n_max in class 0 down to n_max / IF in
the last class, where IF is the imbalance factor.
"""

import operator
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def exponential_profile(
    head_count: int, num_classes: int, imbalance_factor: float
) -> NDArray[np.int64]:
    r"""Class counts that fall geometrically, as in CIFAR-LT.

    .. math:: n_j = \lfloor n_{max} \, IF^{-j / (C - 1)} \rfloor

    Args:
        head_count: n_max, the examples of class 0, at least 1.
        num_classes: C, at least 1.
        imbalance_factor: IF = n_max / n_min, from 1 (balanced) to ``head_count``.

    Returns:
        n, ``[classes]``, in examples, never increasing.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> exponential_profile(5000, num_classes=10, imbalance_factor=100)
        array([5000, 2997, 1796, 1077,  645,  387,  232,  139,   83,   50])

    References:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples (arXiv 1901.05555).
    """
    _check(head_count, num_classes, imbalance_factor)
    depth = np.linspace(0, 1, num_classes)  # j / (C − 1), and 0 for a single class.
    return _whole(head_count * float(imbalance_factor) ** -depth)


def step_profile(
    head_count: int, num_classes: int, imbalance_factor: float, tail_fraction: float = 0.5
) -> NDArray[np.int64]:
    r"""Class counts of two levels: head classes, then tail classes.

    .. math:: n_j = n_{max} \text{ for } j < C - \mathrm{round}(\mu C),
        \text{ else } \lfloor n_{max} / IF \rfloor

    Args:
        head_count: n_max, the examples of a head class, at least 1.
        num_classes: C, at least 2.
        imbalance_factor: IF = n_max / n_min, from 1 (balanced) to ``head_count``.
        tail_fraction: μ, the fraction of the classes that are tail classes.

    Returns:
        n, ``[classes]``, in examples, never increasing.

    Raises:
        ValueError: if an argument is out of its range, or no head or no tail class would be left.

    Example:
        >>> step_profile(500, num_classes=5, imbalance_factor=10, tail_fraction=0.4)
        array([500, 500, 500,  50,  50])

    References:
        Buda et al., A systematic study of the class imbalance problem in convolutional neural
        networks (arXiv 1710.05381), §3.1.
    """
    _check(head_count, num_classes, imbalance_factor)
    if (
        not 0 < tail_fraction < 1
        or not 0 < (tails := round(tail_fraction * num_classes)) < num_classes
    ):
        raise ValueError(
            f'tail_fraction: got {tail_fraction}, wanted a fraction that leaves both head and tail '
            f'classes among {num_classes}'
        )
    counts = np.full(num_classes, float(head_count))
    counts[-tails:] /= imbalance_factor
    return _whole(counts)


def pareto_profile(
    head_count: int, num_classes: int, imbalance_factor: float, power: float = 6.0
) -> NDArray[np.int64]:
    r"""Class counts that are quantiles of a Pareto law, as in ImageNet-LT.

    The class of rank j exceeds all but a fraction (j + 1) / C of the classes, so its size is the
    quantile q_j where the Pareto survival function q^{-α} equals (j + 1) / C. The quantiles run
    from C^{1/α} to 1 and are stretched to run from n_max to n_min = n_max / IF:

    .. math:: q_j = \Big(\frac{C}{j + 1}\Big)^{1/\alpha}, \qquad
        n_j = \Big\lfloor n_{min} + (n_{max} - n_{min}) \frac{q_j - 1}{q_0 - 1} \Big\rfloor

    Args:
        head_count: n_max, the examples of class 0, at least 1.
        num_classes: C, at least 2.
        imbalance_factor: IF = n_max / n_min, from 1 (balanced) to ``head_count``.
        power: α, above 0; the smaller, the fewer classes share the head.

    Returns:
        n, ``[classes]``, in examples, never increasing.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> pareto_profile(1280, num_classes=8, imbalance_factor=256)
        array([1280,  805,  551,  381,  255,  156,   74,    5])

    References:
        Liu et al., Large-Scale Long-Tailed Recognition in an Open World (arXiv 1904.05160), §4:
        ImageNet-LT, 1000 classes of 1280 to 5 images, α = 6. Its list was drawn at random, so
        this profile comes near it and does not repeat it.
    """
    _check(head_count, num_classes, imbalance_factor)
    if num_classes < 2:
        raise ValueError(f'num_classes: got {num_classes}, wanted at least 2')
    if not 0 < power < np.inf:
        raise ValueError(f'power: got {power}, wanted a finite number above 0')
    tail_count = head_count / imbalance_factor
    # q − 1 by expm1, for at a large α every quantile is close to 1.
    excess = np.expm1(np.log(num_classes / np.arange(1, num_classes + 1)) / power)
    return _whole(tail_count + (head_count - tail_count) * excess / excess[0])


PROFILES: dict[str, Callable[..., NDArray[np.int64]]] = {
    'exponential': exponential_profile,
    'step': step_profile,
    'pareto': pareto_profile,
}


def profile(
    name: str, head_count: int, num_classes: int, imbalance_factor: float, **shape: float
) -> NDArray[np.int64]:
    """Class counts of the profile called ``name``, one of :data:`PROFILES`.

    Args:
        name: ``'exponential'``, ``'step'`` or ``'pareto'``.
        head_count: n_max, the examples of class 0.
        num_classes: C.
        imbalance_factor: IF = n_max / n_min.
        **shape: what the profile itself takes: ``tail_fraction`` or ``power``.

    Returns:
        n, ``[classes]``, in examples, never increasing.

    Raises:
        ValueError: if there is no such profile, or an argument is out of its range.

    Example:
        >>> profile('step', 500, num_classes=4, imbalance_factor=10)
        array([500, 500,  50,  50])
    """
    if name not in PROFILES:
        raise ValueError(f'name: got {name!r}, wanted one of {", ".join(PROFILES)}')
    return PROFILES[name](head_count, num_classes, imbalance_factor, **shape)


def long_tailed_subset(
    labels: ArrayLike,
    class_counts: ArrayLike,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Draws the examples of a long-tailed subset, without replacement.

    Every class is shuffled whole, in class order, by one ``numpy.random.default_rng(seed)``, and
    keeps its first n_j. The shuffle knows nothing of the n_j, so with the same seed the subset
    of a smaller profile lies inside that of a larger one.

    Args:
        labels: the class of every example, ``[examples]``, integers of 0 to C − 1.
        class_counts: n, ``[classes]``, the whole number of examples to keep of each class.
        seed: of the shuffle; the same seed draws the same examples.
        class_names: ``[classes]``, for the error message alone.

    Returns:
        Indices into ``labels``, ``[n_0 + … + n_{C−1}]``, sorted by class, then by position.

    Raises:
        ValueError: if a class holds fewer examples than asked for, or an argument is malformed.

    Example:
        >>> long_tailed_subset([1, 0, 0, 1, 0], class_counts=[3, 1], seed=0)
        array([1, 2, 4, 3])
    """
    labels, counts = np.asarray(labels), np.asarray(class_counts)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels: got {labels.dtype} {labels.shape}, wanted integers [examples]')
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or np.any(counts < 0):
        raise ValueError(
            f'class_counts: got {counts}, wanted whole numbers of 0 or more, [classes]'
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < counts.size:
        raise ValueError(
            f'labels: got {labels.min()} to {labels.max()}, wanted 0 to {counts.size - 1}'
        )
    # None would draw another subset every time.
    rng = np.random.default_rng(operator.index(seed))
    kept = []
    for j, wanted in enumerate(counts):
        positions = np.flatnonzero(labels == j)
        if wanted > positions.size:
            called = f' ({class_names[j]!r})' if class_names is not None else ''
            raise ValueError(
                f'class {j}{called} holds {positions.size} examples, the profile asks for '
                f'{wanted}: lower head_count or raise imbalance_factor'
            )
        kept.append(np.sort(rng.permutation(positions)[:wanted]))
    return np.concatenate(kept).astype(np.int64)


def held_out(class_counts: ArrayLike, share: float, seed: int) -> NDArray[np.bool_]:
    """Draws which examples of a long-tailed subset are kept from training, for validation.

    Of a class of n examples, ``share`` × n rounded, but at least one.

    Args:
        class_counts: n, ``[classes]``, of a subset sorted by class.
        share: above 0, below 1.
        seed: of the draw.

    Returns:
        True for what is held out, ``[n_0 + … + n_{C−1}]``.

    Raises:
        ValueError: if the share is out of its range, or a class would have nothing left.

    Example:
        >>> held_out([4, 2], share=0.25, seed=0)
        array([False,  True, False, False, False,  True])
    """
    counts = np.asarray(class_counts)
    if not 0 < share < 1:
        raise ValueError(f'held_out: got {share}, wanted a share above 0 and below 1')
    taken = np.maximum(1, np.rint(share * counts)).astype(np.int64)
    if np.any(taken >= counts):
        j = int(np.flatnonzero(taken >= counts)[0])
        raise ValueError(
            f'held_out: class {j} holds {counts[j]} examples, of which {taken[j]} would be held '
            'out: nothing is left to train on'
        )
    rng = np.random.default_rng(operator.index(seed))
    return np.concatenate(
        [rng.permutation(np.arange(n) < m) for n, m in zip(counts, taken, strict=True)]
    )


def _whole(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rounds down, but 49.99999999999999 is the 50 that float arithmetic missed."""
    return np.floor(counts * (1 + 1e-12)).astype(np.int64)


def _check(head_count: int, num_classes: int, imbalance_factor: float) -> None:
    for name, value in (('head_count', head_count), ('num_classes', num_classes)):
        if operator.index(value) < 1:
            raise ValueError(f'{name}: got {value}, wanted at least 1')
    # NaN fails every comparison.
    if not 1 <= imbalance_factor <= head_count:
        raise ValueError(
            f'imbalance_factor: got {imbalance_factor}, wanted 1 to head_count = {head_count}, so '
            'that the last class keeps an example'
        )
