"""How steps are measured beside each other, and how what was measured is kept."""

import contextlib
import dataclasses
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import rich.console

from balms_jax.meta_gradients import CoupledExamplesError
from experiments.costs.steps import (
    CACHED,
    SCANNED,
    TORCH_HIGHER,
    TORCH_PLAIN,
    Drawing,
    Setting,
    arguments_of,
    compile_scanned,
    compile_step,
)

TORCH_STEPS = Path(__file__).parent / 'torch_higher.py'
LONG_STEP = 0.05  # Seconds; shorter ones on cached features are timed many in a call.
TIMED_BYTES = 4 * 2**30  # A step of more temporary memory is compiled, and not run.

Values: TypeAlias = dict[str, Any]
AnySetting: TypeAlias = Setting | Drawing
console = rich.console.Console(highlight=False, soft_wrap=True, markup=False)


@dataclasses.dataclass(frozen=True)
class Group:
    """Steps that are measured beside each other; ratios are to the first."""

    section: str
    settings: tuple[AnySetting, ...]
    rounds: int  # 0: compiled alone
    quick: bool = False  # compiled without care for speed
    torch: bool = False  # beside the steps of TORCH_STEPS

    def key(self, measure: str, setting: AnySetting) -> Values:
        """What a row is found by."""
        return {'measure': measure, 'section': self.section, **dataclasses.asdict(setting)}


class Ledger:
    """The measured rows, one a line of a file, found by their keys."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        if lines and not lines[-1].endswith('\n'):  # Cut off while it was written.
            file.write_text(''.join(lines[:-1]))
            lines.pop()
        self.rows: list[Values] = [json.loads(line) for line in lines]

    def find(self, key: Values) -> Values | None:
        """The row of a key."""
        return next((row for row in self.rows if row['key'] == key), None)

    def add(self, key: Values, values: Values) -> None:
        """Keeps a row, unless its key has one."""
        if self.find(key) is None:
            self.rows.append({'key': key, **values})
            with self.file.open('a') as file:
                file.write(json.dumps(self.rows[-1]) + '\n')


def measure(group: Group, ledger: Ledger, torch_python: str = '') -> None:
    """Compiles and times the steps of a group, but for what the ledger holds."""
    first = group.settings[0]
    of_torch = [dataclasses.replace(first, step=step) for step in (TORCH_PLAIN, TORCH_HIGHER)]
    counted = {s: ledger.find(group.key('compiled', s)) for s in group.settings}
    wanted = [s for s in group.settings if _can_run(counted[s])] + of_torch * group.torch
    timed = not group.rounds or all(ledger.find(group.key('time', s)) for s in wanted)
    runs: dict[AnySetting, Callable[[], float]] = {}
    for setting, row in counted.items():
        if row is not None and (timed or not _can_run(row)):
            continue
        try:
            compiled, counted_anew = compile_step(setting, group.quick)
        except CoupledExamplesError as error:
            reason = str(error).split('losses: ')[-1].split(';')[0].replace('may be', 'are')
            ledger.add(group.key('compiled', setting), {'refused': reason})
            continue
        counts: Values = dict(counted_anew)
        base = counted[first] or counts
        for ratio, count in {'flops_ratio': 'flops', 'memory_ratio': 'temp_bytes'}.items():
            counts[ratio] = counts[count] / max(base[count], 1)
        counted[setting] = counts
        ledger.add(group.key('compiled', setting), counts)
        console.print(f'{group.section}: {_name(setting)}')
        if not timed and _can_run(counts):
            runs[setting] = _run_of(setting, compiled)
    if not timed:
        _take_times(group, ledger, runs, torch_python)


def _take_times(
    group: Group, ledger: Ledger, runs: dict[AnySetting, Callable[[], float]], torch_python: str
) -> None:
    """Runs the steps beside each other and keeps a row of each."""
    first = group.settings[0]
    torch_facts: Values = {}
    with contextlib.ExitStack() as stack:
        if group.torch:
            torch_facts, more = stack.enter_context(_torch_steps(torch_python, first))
            runs |= more
        seconds_of = interleaved(runs, group.rounds)
    for setting, values in seconds_of.items():
        in_torch = setting.step in (TORCH_PLAIN, TORCH_HIGHER)
        base = dataclasses.replace(first, step=TORCH_PLAIN) if in_torch else first
        ratios = np.divide(values, seconds_of[base])
        times: Values = {
            'time': statistics.median(ratios),
            'time_quartiles': np.quantile(ratios, [0.25, 0.75]).tolist(),
            'seconds': statistics.median(values),
            'rounds': len(values),
        }
        ledger.add(group.key('time', setting), times | (torch_facts if in_torch else {}))
    console.print(f'{group.section}: {len(seconds_of)} steps timed in {group.rounds} rounds')


def interleaved(
    runs: Mapping[AnySetting, Callable[[], float]], rounds: int
) -> dict[AnySetting, list[float]]:
    """The seconds of every run in every round: by turns, for machines drift."""
    seconds: dict[AnySetting, list[float]] = {setting: [] for setting in runs}
    order = list(runs)
    for _ in range(rounds):
        for setting in order:
            seconds[setting].append(runs[setting]())
        order.reverse()  # Each finds the caches as another left them.
    return seconds


def _can_run(row: Values | None) -> bool:
    """Whether a step can be timed, as far as is known of it."""
    return row is None or ('refused' not in row and row['temp_bytes'] <= TIMED_BYTES)


def _run_of(setting: AnySetting, compiled: jax.stages.Compiled) -> Callable[[], float]:
    """Seconds of a step."""
    alone = _timer(compiled, arguments_of(setting))
    if not isinstance(setting, Setting) or setting.place != CACHED or alone() > LONG_STEP:
        return alone
    # A call takes longer than such a step: many are one call, in training as here.
    seconds = _timer(compile_scanned(setting), arguments_of(setting))
    return lambda: seconds() / SCANNED


def _timer(compiled: jax.stages.Compiled, arguments: tuple) -> Callable[[], float]:
    """Seconds of a call: of as many calls as take 20 ms at least."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            outputs = compiled(*arguments)
        jax.block_until_ready(outputs)
        return (time.perf_counter() - start) / calls

    seconds(1)
    calls = max(1, math.ceil(0.02 / seconds(1)))
    return lambda: seconds(calls)


@contextlib.contextmanager
def _torch_steps(
    python: str, setting: AnySetting
) -> Iterator[tuple[Values, dict[AnySetting, Callable[[], float]]]]:
    """A process that takes a step whenever its name is written to it: its facts, its steps."""
    assert isinstance(setting, Setting)
    command = [
        python,
        str(TORCH_STEPS),
        '--serve',
        '--depth',
        setting.network.removeprefix('resnet'),
    ]
    command += ['--batch_size', str(setting.batch_size), '--classes', str(setting.classes)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        facts = process.stdout.readline()
        if not facts:
            raise RuntimeError(f'--torch_python: {python} ended; what it wrote is above')

        def seconds(step: str) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f'{step}\n')
            process.stdin.flush()
            return float(process.stdout.readline())

        steps: dict[AnySetting, Callable[[], float]] = {
            dataclasses.replace(setting, step=TORCH_PLAIN): lambda: seconds('plain'),
            dataclasses.replace(setting, step=TORCH_HIGHER): lambda: seconds('higher'),
        }
        yield json.loads(facts), steps
        process.stdin.close()


def _name(setting: AnySetting) -> str:
    """What tells a setting from its defaults."""
    own = [
        f'{field.name} {value}'
        for field in dataclasses.fields(setting)[1:]
        if (value := getattr(setting, field.name)) != field.default
    ]
    return ', '.join([setting.step, *own])
