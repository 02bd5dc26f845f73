"""What does the meta-gradient cost, in every mode, beside the plain step? R4Q2 of the reply.

Command   python -m experiments.meta_cost [--scale smoke] [--torch_python PATH] [--page_only]
Cost      more than an hour on two CPU cores, mostly to compile; --scale smoke four
          minutes
Ends in   experiments/results/meta_cost/: figures.json and page.html. Every measured row is kept in
          --folder, and the same command goes on from there
Measures  time: steps by turns in one process, medians of the ratio to the plain step of the same
          round; FLOPs and temporary memory as the compiler counts them; the time to compile.
          Beside the modes: the official order written out, in which nothing is shared; with
          --torch_python the official algorithm in PyTorch, by turns with ours
          (experiments/costs/torch_higher.py says what that Python needs)
Expected  in forward passes, of which a plain step takes 3: 8 in a mode that keeps its first pass,
          9 in the lean mode, 7 by the ghost product, 11 in the official order; so ratios of 2.67,
          3, 2.33 and 3.67. With a frozen backbone, as many as it is computed for: 2, 1 or 0
Found     on two busy cores: end to end 1.98 times the time of a plain step, 2.66 the FLOPs;
          lean 1.04 the memory; the ghost product 2.11 and 2.33; the official order 2.70 and 3.66,
          in PyTorch 5.7 times its own plain step; with a frozen backbone 1.79, 0.94, 0.0014. The
          lean mode misses its memory on a ResNet-50 (1.19), and K = 16 steps take 1.93 times the
          memory of one, which needs no Hessian-vector product; an inner step of them takes 2.9 to
          3.6 times a plain one
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from balms_jax import meta_gradients
from experiments import kept
from experiments.costs import page
from experiments.costs.measure import Group, Ledger, console, measure
from experiments.costs.steps import (
    CACHED,
    CACHED_META,
    DECOUPLED,
    FORWARD_DIFFERENCE,
    FROZEN_STATISTICS,
    PLAIN,
    WRITTEN_OUT,
    Drawing,
    Setting,
)

LEARNING = (*meta_gradients.MODES, FORWARD_DIFFERENCE, WRITTEN_OUT)
ALIKE = ('forward_over_reverse', 'lean', 'per_example', 'ghost_product', WRITTEN_OUT)
GROWING = (PLAIN, 'forward_over_reverse', 'lean')


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--scale', choices=('cpu', 'smoke'), default='cpu')
    parser.add_argument('--repetitions', type=int, default=0, help='rounds; 0: 11, or 5 for growth')
    parser.add_argument('--time_large', action='store_true', help='time batch 512 too')
    parser.add_argument('--torch_python', default='', help='a Python that has torch and higher')
    parser.add_argument(
        '--folder', type=Path, help='of the rows; runs/meta_cost/SCALE if not given'
    )
    parser.add_argument('--output', type=Path, help=kept.HELP)
    parser.add_argument(
        '--page_only', action='store_true', help='write the page of the rows so far'
    )
    options = parser.parse_args()
    folder = options.folder or Path('runs') / 'meta_cost' / options.scale
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / 'rows.jsonl')
    if not options.page_only:
        _note_machine(ledger, options.scale)
        plan = smoke_plan if options.scale == 'smoke' else full_plan
        for group in plan(options.repetitions, options.time_large):
            if options.torch_python or not group.torch:
                measure(group, ledger, options.torch_python)
    if not ledger.rows:
        raise SystemExit(f'meta_cost: no rows in {folder}; they are measured without --page_only')
    output = kept.page_folder('meta_cost', options.scale, options.output)
    page.write(ledger.rows, output)
    console.print(f'page: {output / "page.html"}')


def full_plan(repetitions: int = 0, time_large: bool = False) -> list[Group]:
    """What is measured, in order."""
    rounds, fewer = repetitions or 11, repetitions or 5
    base, steps = Setting(PLAIN), (PLAIN, *LEARNING)
    large = replace(base, batch_size=512, meta_batch_size=512)
    small = replace(base, network='resnet8', batch_size=64, meta_batch_size=64)
    imagenet = Setting(PLAIN, network='resnet50', classes=1000, batch_size=32, meta_batch_size=32)
    decoupled = (
        *each(base, steps, place=DECOUPLED),
        *each(base, ALIKE, place=CACHED_META),
        *each(base, (PLAIN, *ALIKE), place=CACHED),
    )
    groups = [
        Group('end_to_end', (*each(base, steps), _quarter(base)), rounds),
        Group('pytorch', each(base, (*GROWING, WRITTEN_OUT)), rounds, torch=True),
        Group('frozen_statistics', each(base, steps, place=FROZEN_STATISTICS), rounds),
        Group('decoupled', decoupled, rounds),
        Group(
            'end_to_end',
            each(large, steps),
            rounds if time_large else 0,
            quick=not time_large,
        ),
        Group('imagenet', each(imagenet, (*GROWING, 'reverse')), 0),
    ]
    for classes in (10, 100, 1000, 10_000, 100_000):
        heads = each(base, (*GROWING, 'ghost_product'), place=CACHED, classes=classes)
        groups.append(Group('classes', heads, fewer))
    for examples in (1000, 10_000, 100_000, 1_000_000):
        groups.append(Group('examples', _draws(base, examples), fewer))
    for size in (16, 32, 64, 128, 256, 512):
        sized = each(small, GROWING, batch_size=size, meta_batch_size=size)
        groups.append(Group('batch', sized, fewer))
    for network in ('resnet8', 'resnet14', 'resnet20', 'resnet32'):
        groups.append(Group('depth', each(small, GROWING, network=network), fewer))
    for width in (8, 0, 32, 64):  # 0 is the usual one, 16.
        groups.append(Group('width', each(small, GROWING, width=width), fewer))
    for count in (1, 2, 4, 8, 16):
        groups.append(Group('steps', _inner_steps(small, count), fewer))
    return groups


def smoke_plan(repetitions: int = 0, time_large: bool = False) -> list[Group]:
    """The same sections in miniature."""
    del time_large
    rounds = repetitions or 2
    base = Setting(PLAIN, network='resnet8', classes=10, batch_size=16, meta_batch_size=16)
    few = ('forward_over_reverse', 'ghost_product')
    growing = (PLAIN, 'forward_over_reverse')
    decoupled = (
        *each(base, (PLAIN, *few), place=DECOUPLED),
        *each(base, few, place=CACHED_META),
        *each(base, (PLAIN, *few), place=CACHED),
    )
    sections: list[tuple[str, tuple[Setting | Drawing, ...]]] = [
        ('end_to_end', (*each(base, (PLAIN, *LEARNING)), _quarter(base))),
        ('pytorch', each(base, growing)),
        ('frozen_statistics', each(base, (PLAIN, *few), place=FROZEN_STATISTICS)),
        ('decoupled', decoupled),
        ('classes', each(base, growing, place=CACHED)),
        ('classes', each(base, growing, place=CACHED, classes=100)),
        ('examples', _draws(base, 1000)),
        ('examples', _draws(base, 10_000)),
        ('batch', each(base, growing, batch_size=8, meta_batch_size=8)),
        ('batch', each(base, growing)),
        ('depth', each(base, growing)),
        ('width', each(base, growing)),
        ('steps', _inner_steps(base, 1)),
        ('steps', _inner_steps(base, 2)),
    ]
    return [
        Group(section, settings, rounds, quick=True, torch=section == 'pytorch')
        for section, settings in sections
    ]


def each(base: Setting, steps: Sequence[str], **changes: Any) -> tuple[Setting, ...]:
    """The same setting with one step after another."""
    return tuple(replace(base, step=step, **changes) for step in steps)


def _quarter(base: Setting) -> Setting:
    return replace(base, step='forward_over_reverse', meta_batch_size=base.batch_size // 4)


def _draws(base: Setting, examples: int) -> tuple[Drawing, ...]:
    sizes = {'examples': examples, 'classes': base.classes, 'batch_size': base.batch_size}
    return tuple(Drawing(estimator, **sizes) for estimator in ('classes', 'examples'))


def _inner_steps(base: Setting, count: int) -> tuple[Setting, ...]:
    """K inner steps in the lean mode: of segments, and with every step's state kept."""
    segments = (None, 0) if count > 1 else (None,)
    lean = (replace(base, step='lean', inner_steps=count, segment=s) for s in segments)
    return (base, *lean)


def _note_machine(ledger: Ledger, scale: str) -> None:
    """The first row; rows of another machine are not mixed with it."""
    here = {
        'device': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'cores': os.cpu_count(),
        'jax': jax.__version__,
        'scale': scale,
    }
    before = next((row for row in ledger.rows if row['key']['measure'] == 'machine'), None)
    for name, value in here.items():
        if before and before[name] != value:
            raise SystemExit(
                f'{ledger.file}: measured with {name} {before[name]}, here it is {value}; '
                'choose another --folder'
            )
    git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
    try:
        told = subprocess.run(git, capture_output=True, text=True, check=True)
        commit = told.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = 'not known'
    ledger.add({'measure': 'machine', 'commit': commit}, here)


if __name__ == '__main__':
    main()
