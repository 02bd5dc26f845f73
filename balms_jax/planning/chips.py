"""What a chip can do, and the least time that a step takes on it: the roofline.

The peak is that of bfloat16, of float32 arrays too: by JAX's default precision a TPU rounds both
factors of a product to bfloat16 and adds up in float32. For a product of two 4096 × 4096 matrices
on a v5e the compiler itself estimates 1.11 million cycles in float32 and 1.08 in bfloat16; 3.34 and
6.39 with ``jax_default_matmul_precision`` of ``'high'`` and ``'highest'``, in three and six passes
over the same FLOPs. Whoever sets those has that much more to compute than is said here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from balms_jax.planning.collectives import BETWEEN_SLICES, Collective

GIB = 2**30


class Chip(NamedTuple):
    """A TPU chip, by its published figures."""

    name: str
    flops: float  # peak, bfloat16, FLOP/s
    hbm: float  # bytes that libtpu 0.0.52 leaves to a program: a little under the published ones
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s out of a chip over all its links: half the published two-way sum
    dcn_bandwidth: float  # bytes/s out of a chip between slices; 0: none is published

    def share(self, devices: float) -> 'Chip':
        """What each of so many devices has of a chip."""
        return Chip(self.name, *(value / devices for value in self[1:]))


# Published for each chip (HBM 32, 16, 95 and 32 GB) at https://cloud.google.com/tpu/docs/v4, /v5e,
# /v5p, /v6e. v4's links: 2400 Gbit/s, of the announcement of v5p, which has twice as much:
# https://cloud.google.com/blog/products/ai-machine-learning/introducing-cloud-tpu-v5p-and-ai-hypercomputer
# Between slices: v5e 6.4 Tbit/s and v6e 25.6 Tbit/s for a pod of 256, v5p 50 Gbit/s a chip.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 275e12, 30.5 * GIB, 1200e9, 300e9, 0.0),
        Chip('v5e', 197e12, 15.75 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256),
        Chip('v5p', 459e12, 95.73 * GIB, 2765e9, 600e9, 50e9 / 8),
        Chip('v6e', 918e12, 31.24 * GIB, 1640e9, 400e9, 25.6e12 / 8 / 256),
    )
}

# How often each byte of the array crosses a link of a ring, in units of (n − 1) / n.
_TRIPS = {'all-reduce': 2, 'all-gather': 1, 'reduce-scatter': 1, 'all-to-all': 1}


class Roofline(NamedTuple):
    """The least time of a step by each of its bounds, in seconds."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def step(self) -> float:
        """The largest bound: the time if all three overlap wholly."""
        return max(self)

    @property
    def serial(self) -> float:
        """Their sum: the time if nothing overlaps."""
        return sum(self)


def roofline(
    chip: Chip,
    flops: float,
    bytes_accessed: float,
    collectives: Sequence[Collective],
    devices: int,
    slices: int = 1,
) -> Roofline:
    r"""The least time that a step can take.

    .. math:: t_{compute} = F / F_{peak}, \quad t_{hbm} = A / B_{hbm}, \quad
        t_{ici} = \sum_c k_c \frac{n_c - 1}{n_c} \, b_c / B_{ici}

    k is 2 for an all-reduce, in a ring a reduce-scatter and an all-gather, and 1 for the others.
    What is reduced between slices goes at the network's bandwidth; where none is published, it is
    left out.

    Args:
        chip: its figures.
        flops: F, of one chip in a step.
        bytes_accessed: A, of one chip in a step, bytes.
        collectives: of the step; b in bytes.
        devices: how many take part where a collective does not say.
        slices: how many the devices lie on.

    Returns:
        The three bounds, in seconds. They are an estimate: no latency, no stall, every link busy.

    Example:
        >>> chip = Chip('a', flops=100.0, hbm=1.0, hbm_bandwidth=10.0, ici_bandwidth=5.0,
        ...     dcn_bandwidth=1.0)
        >>> roofline(chip, 50.0, 20.0, [Collective('all-reduce', 20, 0)], devices=4)
        Roofline(compute=0.5, hbm=2.0, interconnect=6.0)

    References:
        Williams et al., Roofline (Communications of the ACM 52:4, 2009); rings: Patarasuk and
        Yuan, Bandwidth optimal all-reduce algorithms (JPDC 69:2, 2009).
    """
    seconds = 0.0
    for each in collectives:
        if each.kind == BETWEEN_SLICES:
            if chip.dcn_bandwidth:
                seconds += 2 * (slices - 1) / slices * each.bytes / chip.dcn_bandwidth
        elif each.kind in _TRIPS:
            group = each.group or devices
            seconds += _TRIPS[each.kind] * (group - 1) / group * each.bytes / chip.ici_bandwidth
        else:  # A permutation: every byte crosses once.
            seconds += each.bytes / chip.ici_bandwidth
    return Roofline(flops / chip.flops, bytes_accessed / chip.hbm_bandwidth, seconds)


def mfu(chip: Chip, flops: float, seconds: float) -> float:
    """Model FLOPs utilisation, 0 to 1: the FLOPs of a step over what its time would allow.

    The peak is bfloat16's, whatever the arrays are.

    Args:
        chip: its figures.
        flops: of one chip in a step, as the compiler counts them.
        seconds: of the step.

    Returns:
        The share of the peak.

    Example:
        >>> chip = Chip('a', flops=100.0, hbm=1.0, hbm_bandwidth=10.0, ici_bandwidth=5.0,
        ...     dcn_bandwidth=1.0)
        >>> mfu(chip, flops=50.0, seconds=2.0)
        0.25

    References:
        Chowdhery et al., PaLM (arXiv 2204.02311), Appendix B.
    """
    return flops / (chip.flops * seconds) if seconds else 0.0


def largest_batch(
    memory: tuple[tuple[int, float], tuple[int, float]], hbm: float, devices: int
) -> int:
    """The largest batch whose step fits, on the line through two compiled ones.

    Args:
        memory: (global batch size, bytes of a chip), twice, of different sizes.
        hbm: bytes of a chip.
        devices: which the batch is a multiple of.

    Returns:
        The global batch size, in examples; 0 if none fits. An estimate: the compiler may choose
        other layouts, or compute again what it has no room for.

    Raises:
        ValueError: if memory does not grow with the batch.

    Example:
        >>> largest_batch(((64, 300.0), (128, 500.0)), hbm=1000.0, devices=16)
        288
    """
    (size, held), (other, other_held) = sorted(memory)
    growth = (other_held - held) / (other - size)
    if growth <= 0:
        raise ValueError(
            f'memory: got {held:g} bytes for {size} and {other_held:g} for {other} examples, '
            'wanted growth'
        )
    most = int(size + (hbm - held) / growth)
    return max(0, most // devices * devices)
