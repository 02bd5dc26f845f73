"""The parser against HLO text written out by hand, one form after another."""

import pytest

from balms_jax.planning.collectives import Collective, Sum, parse, summed

# Forms that the TPU, CPU and GPU compilers print; sizes worked out by hand.
LINES = {
    # Layouts hold parentheses, which are no tuple.
    '  %all-reduce = f32[256,256]{1,0:T(8,128)S(1)} all-reduce(%fusion.5), channel_id=1, '
    "replica_groups=mesh['axis_0'=16] {'axis_0'}, use_global_device_ids=true, to_apply=%add": (
        Collective('all-reduce', 262_144, 16)
    ),
    # A combined one; the comment holds an equals sign.
    '  ROOT %all-reduce.2 = (f32[3]{0}, bf16[4,2]{1,0}, /*index=2*/pred[5]{0}) '
    'all-reduce(%a, %b, %c), replica_groups={{0,1,2,3}}, to_apply=%sum': (
        Collective('all-reduce', 12 + 16 + 5, 4)
    ),
    '  %ars = (f32[8]{0}, f32[2]{0}) all-reduce-start(%a, %b), replica_groups={}': (
        Collective('all-reduce', 40, 0)
    ),
    '  %ag = f32[16,4]{1,0} all-gather(%x), replica_groups=[2,8]<=[16], dimensions={0}': (
        Collective('all-gather', 256, 8)
    ),
    # Operand and result: the result is what arrives.
    '  %ags = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8]': (
        Collective('all-gather', 256, 8)
    ),
    '  %ags2 = ((f32[2]{0}, f32[1]{0}), (f32[4]{0}, f32[2]{0})) all-gather-start(%x, %y), '
    'replica_groups={{0,1}}': Collective('all-gather', 24, 2),
    # What is scattered is the result times those who share it.
    '  %rs = f32[4]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add': (
        Collective('reduce-scatter', 64, 4)
    ),
    '  %rss = ((f32[16]{0}), f32[4]{0}) reduce-scatter-start(%x), replica_groups={{0,1,2,3}}': (
        Collective('reduce-scatter', 64, 4)
    ),
    '  %a2a = (s8[8]{0}, s8[8]{0}) all-to-all(%x, %y), replica_groups={{0,1}}': (
        Collective('all-to-all', 16, 2)
    ),
    '  %cp = u32[] collective-permute(%x), source_target_pairs={{0,1},{1,0}}': (
        Collective('collective-permute', 4, 0)
    ),
    '  %cps = (bf16[6]{0}, bf16[6]{0}, u32[], u32[]) collective-permute-start(%x), '
    'source_target_pairs={{0,1}}': Collective('collective-permute', 12, 0),
    '  %d = f32[<=8,2]{1,0} all-reduce(%x), replica_groups={}': Collective('all-reduce', 64, 0),
    # Of several slices: what a chip hands to its host for the network.
    '  %send = (f32[4,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%bitcast, %after-all), '
    'channel_id=2, is_host_transfer=true, '
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}': (
        Collective('between-slices', 16_384, 0)
    ),
}

# Lines that name a collective without being one.
OTHERS = (
    '  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start)',
    '  ROOT %f = f32[256]{0} fusion(%param, %all-reduce, /*index=2*/%x), calls=%fused_all-reduce',
    '  %c = f32[2]{0} add(%x, %y), metadata={op_name="jit(f)/psum all-reduce(x)"}',
    'HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}',
    '%all-reduce.clone (x: f32[], y: f32[]) -> f32[] {',
    '  %send.1 = (f32[4]{0}, u32[], token[]) send(%x, %after-all), channel_id=2',
    '',
)


@pytest.mark.parametrize(('line', 'wanted'), LINES.items())
def test_every_form_of_a_collective(line, wanted):
    assert parse(line) == [wanted]


@pytest.mark.parametrize('line', OTHERS)
def test_what_only_names_one_is_not_counted(line):
    # An asynchronous collective would otherwise count twice, and every user of one as another.
    assert parse(line) == []


def test_sums_add_up_to_the_whole():
    # No line may be lost between the parser and the table.
    found = parse('\n'.join([*LINES, *OTHERS]))
    assert len(found) == len(LINES)
    sums = summed(found)
    assert sums['all-reduce'] == Sum(4, 262_144 + 33 + 40 + 64)
    assert sum(each.number for each in sums.values()) == len(found)
    assert sum(each.bytes for each in sums.values()) == sum(each.bytes for each in found)
    assert summed([]) == {}
