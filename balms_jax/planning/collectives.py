"""Which collectives a compiled program holds: kind, count and bytes, read from its HLO text."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

XLA_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# libtpu's own: a chip's share of an array is handed to its host, and reduced over the network.
BETWEEN_SLICES = 'between-slices'
KINDS = (*XLA_KINDS, BETWEEN_SLICES)

# `%name = SHAPE KIND(…)`; an operand would begin with %, a piece of metadata with a quote.
_COLLECTIVE = re.compile(
    r'^\s*(?:ROOT\s+)?%?[\w.\-]+ = (?P<shape>[^%"]+?) '
    rf'(?P<kind>{"|".join(XLA_KINDS)}|send)(?P<start>-start)?\('
)
_COMMENT = re.compile(r'/\*.*?\*/')
_LAYOUT = re.compile(r'\{[^{}]*\}')
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([\d,<=]*)\]')
_BITS = re.compile(r'[a-z]+(\d+)')


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    bytes: int  # of the whole array that a chip gives or gets, whichever is larger
    group: int  # how many chips take part; 0: all of them


class Sum(NamedTuple):
    """The collectives of one kind."""

    number: int
    bytes: int


def parse(hlo: str) -> list[Collective]:
    """Reads the collectives of a compiled program.

    An asynchronous one counts once, at its start. One inside a loop counts once, however often the
    loop runs. The bytes are those of the result; of a reduce-scatter, whose result is the smaller
    side, those of what is scattered.

    Args:
        hlo: the text of the optimised program, ``compiled.as_text()``.

    Returns:
        One entry for each instruction, in the order of the text.

    Example:
        >>> parse('%g = f32[8,4]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add')
        [Collective(kind='all-reduce', bytes=128, group=2)]

    References:
        XLA operation semantics, https://openxla.org/xla/operation_semantics
    """
    found = []
    for raw in hlo.splitlines():
        line = _COMMENT.sub('', raw)
        match = _COLLECTIVE.match(line)
        if match is None:
            continue
        kind, group = match['kind'], _group(line)
        if kind == 'send':
            if 'xla_megascale_runtime' in line:
                sent = _split(_LAYOUT.sub('', match['shape']).strip()[1:-1])[0]
                found.append(Collective(BETWEEN_SLICES, _bytes(sent), 0))
            continue
        shape = _LAYOUT.sub('', match['shape']).strip()
        size = _bytes(_payload(shape, kind, started=bool(match['start'])))
        if kind == 'reduce-scatter' and not match['start']:
            size *= max(group, 1)
        found.append(Collective(kind, size, group))
    return found


def summed(collectives: Sequence[Collective]) -> dict[str, Sum]:
    """Number and bytes of each kind that there is, in the order of :data:`KINDS`.

    Example:
        >>> summed([Collective('all-reduce', 8, 0), Collective('all-reduce', 4, 0)])
        {'all-reduce': Sum(number=2, bytes=12)}
    """
    sums = {}
    for kind in KINDS:
        sizes = [each.bytes for each in collectives if each.kind == kind]
        if sizes:
            sums[kind] = Sum(len(sizes), sum(sizes))
    return sums


def all_reduced(collectives: Sequence[Collective]) -> float:
    """The bytes that are reduced over all chips, however it is done.

    A reduce-scatter and an all-gather make up an all-reduce, so each counts half.

    Example:
        >>> all_reduced([Collective('reduce-scatter', 8, 0), Collective('all-gather', 8, 0)])
        8.0
    """
    shares = {'all-reduce': 1.0, 'reduce-scatter': 0.5, 'all-gather': 0.5}
    return sum(shares.get(each.kind, 0.0) * each.bytes for each in collectives)


def _payload(shape: str, kind: str, *, started: bool) -> str:
    """The part of a shape that is sent: of most starts it holds operands, results and contexts."""
    if not started or kind == 'all-reduce' or not shape.startswith('('):
        return shape
    parts = _split(shape[1:-1])
    return parts[0] if kind == 'reduce-scatter' else parts[1]


def _split(text: str) -> list[str]:
    """The elements of a tuple's inside; nested tuples and dimensions stay whole."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in '([') - (letter in ')]')
        if letter == ',' and not depth:
            parts.append(text[begin:place])
            begin = place + 1
    return [part.strip() for part in [*parts, text[begin:]]]


def _bytes(shape: str) -> int:
    """The bytes of an array, or of all arrays of a tuple; of tokens and keys none."""
    total = 0
    for dtype, dimensions in _ARRAY.findall(shape):
        bits = _BITS.match(dtype)
        width = 8 if dtype == 'pred' else int(bits[1]) if bits else 0
        sizes = [int(size.removeprefix('<=')) for size in dimensions.split(',') if size]
        total += -(-math.prod(sizes) * width // 8)
    return total


def _group(line: str) -> int:
    """How many take part, in any of the ways that HLO writes it; 0 where it does not say."""
    if match := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return len(match[1].split(','))
    if match := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
        return int(match[1])
    if match := re.search(r'replica_groups=\w*mesh\[(.*?)\].*?\{(.*?)\}', line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", match[2]))
    return 0
