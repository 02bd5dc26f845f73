"""What was measured of the meta-gradient's cost, read from its rows, and what it was to be."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from experiments.costs.steps import (
    CACHED,
    CACHED_META,
    DECOUPLED,
    FORWARD_DIFFERENCE,
    PLAIN,
    TORCH_HIGHER,
    TORCH_PLAIN,
    WRITTEN_OUT,
)

Record: TypeAlias = dict[str, Any]
"""A setting, its section, and all that was measured of it."""
Measured: TypeAlias = list[tuple[str, float]]  # of what, and the number

EVERY_FOURTH = 'every_fourth'
NAMES = {
    PLAIN: 'plain step',
    'reverse': 'reverse',
    'forward_over_reverse': 'forward over reverse',
    'per_example': 'per example',
    'lean': 'lean',
    'ghost_product': 'ghost product',
    'finite_difference': 'central difference',
    FORWARD_DIFFERENCE: 'forward difference',
    WRITTEN_OUT: 'official order, written out',
    EVERY_FOURTH: 'meta step every 4th step',
    TORCH_PLAIN: 'plain step in PyTorch',
    TORCH_HIGHER: 'official order in PyTorch',
    'classes': 'over classes',
    'examples': 'over examples',
}
COLUMNS = {'FLOPs': 'flops_ratio', 'time': 'time', 'memory': 'memory_ratio'}  # temporary memory
FAST = ('reverse', 'forward_over_reverse', 'per_example')


class Goal(NamedTuple):
    """A number that a cost is to stay below, and what was measured."""

    what: str
    column: str
    limit: float
    measured: Measured
    floor: str = ''  # by counting passes

    @property
    def worst(self) -> tuple[str, float] | None:
        """What costs most of all that was measured."""
        return max(self.measured, key=lambda pair: pair[1], default=None)

    @property
    def verdict(self) -> str:
        """Whether all that was measured stays below."""
        if self.worst is None:
            return 'not measured'
        return 'met' if self.worst[1] <= self.limit else 'missed'


def records_of(rows: Iterable[dict[str, Any]]) -> list[Record]:
    """One record a setting, with its compiled counts and its times; and what follows from them.

    Args:
        rows: of the ledger, ``{'key': {'measure': …, 'section': …, …}, …}``.

    Returns:
        The records, in the order of the rows.
    """
    records: dict[tuple, Record] = {}
    for row in rows:
        key = {name: value for name, value in row['key'].items() if name != 'measure'}
        if row['key']['measure'] != 'machine':
            record = records.setdefault(tuple(key.items()), key)
            record.update({name: value for name, value in row.items() if name != 'key'})
    found = list(records.values())
    # A meta step every k = 4 steps is not run: k − 1 plain steps and a meta step are averaged.
    for one in select(found, 'end_to_end', 'forward_over_reverse'):
        if is_quarter(one) or 'flops_ratio' not in one:
            continue
        average: Record = {
            name: (3 + one[name]) / 4 for name in ('flops_ratio', 'time') if name in one
        }
        kept = {name: one[name] for name in ('section', 'place', 'network', 'memory_ratio')}
        sizes = {name: one[name] for name in ('batch_size', 'meta_batch_size', 'classes')}
        found.append({'step': EVERY_FOURTH, **kept, **sizes, **average, 'computed': True})
    return found


def facts_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The machine, and the commits that the rows were measured at."""
    machines = [row for row in rows if row['key']['measure'] == 'machine']
    facts = {name: value for name, value in machines[0].items() if name != 'key'}
    return facts | {'commits': [row['key']['commit'] for row in machines]}


def select(records: Iterable[Record], section: str, *steps: str, **wanted: Any) -> list[Record]:
    """The records of a section, of some steps (all if none is named), with the values wanted."""
    return [
        record
        for record in records
        if record['section'] == section
        and (not steps or record['step'] in steps)
        and all(record.get(name) == value for name, value in wanted.items())
    ]


def is_quarter(record: Record) -> bool:
    """Whether its meta batch is smaller than its batch."""
    return record.get('meta_batch_size', record['batch_size']) < record['batch_size']


def name_of(record: Record) -> str:
    """A step in words."""
    return 'quarter meta batch' if is_quarter(record) else NAMES[record['step']]


def goals_of(records: Sequence[Record]) -> list[Goal]:
    """The goals beside what was measured."""
    goals = []

    def add(
        what: str, limits: dict[str, float], floor: str, section: str, *steps: str, **wanted: Any
    ) -> None:
        found = [r for r in select(records, section, *steps, **wanted) if not is_quarter(r)]
        for column, limit in limits.items():
            measured = [
                (f'{name_of(record)}, batch {record["batch_size"]}', record[COLUMNS[column]])
                for record in found
                if COLUMNS[column] in record
            ]
            goals.append(Goal(what, column, limit, measured, floor if column == 'FLOPs' else ''))

    add('Fast modes, end to end', {'FLOPs': 2.67, 'time': 2.4}, '8/3', 'end_to_end', *FAST)
    lean = {'FLOPs': 3.0, 'memory': 1.05}
    add('Lean mode, end to end', lean | {'time': 2.5}, '3', 'end_to_end', 'lean')
    ghost = {'FLOPs': 2.34, 'time': 2.2}
    add('Ghost product, statistics frozen', ghost, '7/3', 'frozen_statistics', 'ghost_product')
    add('Fast modes, ResNet-50 at 224', {'FLOPs': 2.67}, '8/3', 'imagenet', *FAST)
    add('Lean mode, ResNet-50 at 224', lean, '3', 'imagenet', 'lean')
    for place, what, limit, floor in (
        (DECOUPLED, 'Decoupled, features computed', 2.02, '2'),
        (CACHED_META, 'Decoupled, meta features cached', 1.03, '1'),
        (CACHED, 'Decoupled, all features cached', 0.002, '0'),
    ):
        limits = {'FLOPs': limit, 'time': limit}
        add(what, limits, floor, 'decoupled', 'forward_over_reverse', place=place)
    return [*goals, *_goals_of_inner_steps(records)]


def _goals_of_inner_steps(records: Sequence[Record]) -> list[Goal]:
    """Of K inner steps: how memory grows, and the time of one."""
    lean = sorted(select(records, 'steps', 'lean'), key=lambda record: record['inner_steps'])
    segments = [record for record in lean if record['segment'] is None]
    all_kept = [record for record in lean if record['segment'] == 0]
    memory: Measured = []
    growth: Measured = []
    seconds: Measured = []
    if len(segments) > 1:
        increase = segments[-1]['temp_bytes'] / segments[0]['temp_bytes']
        memory.append(('segments of √K', increase))
    if len(all_kept) > 1:
        fewer, more = all_kept[-2:]
        steps = more['inner_steps'] - fewer['inner_steps']
        bytes_a_step = (more['temp_bytes'] - fewer['temp_bytes']) / steps
        between = f'every state kept, K = {fewer["inner_steps"]} to {more["inner_steps"]}'
        growth.append((between, bytes_a_step / more['state_bytes']))
    most = lean[-1]['inner_steps'] if lean else 16
    for record in lean:
        if record['inner_steps'] == most and 'time' in record:
            kept = 'segments of √K' if record['segment'] is None else 'every state kept'
            seconds.append((kept, record['time'] / most))
    return [
        Goal(f'K = {most} inner steps, against K = 1', 'memory', 1.5, memory),
        Goal('One inner step more, against θ and its state', 'memory', 1.2, growth),
        Goal(f'K = {most}, an inner step against a plain one', 'time', 4.3, seconds),
    ]
