"""The roofline and the largest batch by hand numbers."""

import pytest

from balms_jax.planning import chips
from balms_jax.planning.collectives import Collective

CHIP = chips.Chip('a', 100.0, 1000.0, 10.0, 5.0, 2.0)


def test_each_bound_by_hand():
    # 4 chips: an all-reduce of 20 bytes passes 2 · 3/4 · 20 = 30 bytes, an all-gather half as
    # many, a permutation its own bytes; a group of 2 gives 2 · 1/2.
    def of(kind, group=0):
        found = [Collective(kind, 20, group)]
        return chips.roofline(CHIP, 50.0, 20.0, found, devices=4).interconnect

    assert of('all-reduce') == 6.0
    assert of('all-reduce', 2) == 4.0
    assert of('reduce-scatter') == of('all-gather') == of('all-to-all') == 3.0
    assert of('collective-permute') == 4.0
    bounds = chips.roofline(CHIP, 50.0, 20.0, [], devices=4)
    assert bounds == (0.5, 2.0, 0.0)
    assert (bounds.step, bounds.serial) == (2.0, 2.5)
    assert chips.mfu(CHIP, 50.0, bounds.step) == 0.25


def test_one_chip_sends_nothing():
    assert chips.roofline(CHIP, 1.0, 1.0, [Collective('all-reduce', 20, 1)], 1).interconnect == 0


def test_between_slices_goes_over_the_network():
    # 2 slices: 2 · 1/2 · 20 bytes at 2 bytes/s.
    found = [Collective('between-slices', 20, 0)]
    assert chips.roofline(CHIP, 0.0, 0.0, found, devices=8, slices=2).interconnect == 10.0
    unpublished = CHIP._replace(dcn_bandwidth=0.0)
    assert chips.roofline(unpublished, 0.0, 0.0, found, devices=8, slices=2).interconnect == 0.0


def test_links_add_up_to_the_published_pod():
    # Google publishes 51.2 and 102.4 TB/s of all-reduce for pods of 256.
    assert chips.CHIPS['v5e'].ici_bandwidth * 256 == pytest.approx(51.2e12)
    assert chips.CHIPS['v6e'].ici_bandwidth * 256 == pytest.approx(102.4e12)


def test_a_share_of_a_chip():
    half = chips.CHIPS['v4'].share(2)
    assert half.flops == 137.5e12
    assert half.name == 'v4'


def test_largest_batch_is_where_the_line_meets_the_memory():
    # 100 bytes and 3.125 an example: 288 examples fill 1000, and one byte less holds 16 fewer.
    memory = ((64, 300.0), (128, 500.0))
    assert chips.largest_batch(memory, 1000.0, 16) == 288
    assert chips.largest_batch(memory, 999.0, 16) == 272
    assert chips.largest_batch(memory[::-1], 1000.0, 16) == 288
    assert chips.largest_batch(memory, 50.0, 16) == 0
    with pytest.raises(ValueError, match='wanted growth'):
        chips.largest_batch(((64, 300.0), (128, 300.0)), 1000.0, 16)
