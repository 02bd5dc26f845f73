"""A plan as rows of text, which the terminal and the page share."""

from collections.abc import Mapping
from typing import Any

from balms_jax.planning.plan import MEMORY_GOAL, REDUCTIONS_GOAL

MEMORY_KINDS = ('arguments', 'outputs', 'aliased', 'temporaries', 'code')
GLOBAL_BATCH = 'largest batch, all'  # of all devices, where the rest of the table is of one
Row = dict[str, str]


def label(target: Mapping[str, Any]) -> str:
    """What a target is called.

    Example:
        >>> label({'topology': 'v5e:4x4', 'slices': 2})
        '2 × v5e:4x4'
    """
    several = f'{target["slices"]} × ' if target['slices'] > 1 else ''
    return several + str(target['topology'])


def size(count: float) -> str:
    """Bytes in a unit that suits them.

    Example:
        >>> size(1536), size(3 * 2**30)
        ('1.50 KiB', '3.00 GiB')
    """
    for unit in ('B', 'KiB', 'MiB'):
        if abs(count) < 1024:
            return f'{count:.0f} B' if unit == 'B' else f'{count:.2f} {unit}'
        count /= 1024
    return f'{count:,.2f} GiB'


def memory_rows(plan: Mapping[str, Any]) -> list[Row]:
    """Memory of one device by kind, and what it leaves."""
    rows = []
    for target, kind, step in _steps(plan):
        row = {'topology': label(target), 'chips': str(target['chips']), 'step': kind}
        if 'does_not_fit' in step:
            blank = dict.fromkeys((*MEMORY_KINDS, 'peak', 'of HBM', GLOBAL_BATCH), '—')
            rows.append(row | blank | {'of HBM': 'does not fit'})
            continue
        kinds = {name: size(step['memory'][name]) for name in MEMORY_KINDS}
        device, largest = target['device'], step.get('largest_batch', {}).get('examples')
        share = step['memory']['peak'] / device['hbm'] if device else None
        rows.append(
            row
            | kinds
            | {
                'peak': size(step['memory']['peak']),
                'of HBM': '—' if share is None else f'{share:.1%}',
                GLOBAL_BATCH: '—' if largest is None else f'{largest:,}',
            }
        )
    return rows


def time_rows(plan: Mapping[str, Any]) -> list[Row]:
    """FLOPs, bytes and the roofline's bounds of one device."""
    rows = []
    for target, kind, step in _steps(plan):
        if 'does_not_fit' in step:
            continue
        bounds = step.get('estimate')
        row = {
            'topology': label(target),
            'step': kind,
            'GFLOP': f'{step["flops"] / 1e9:,.4g}',
            'bytes accessed': size(step['bytes_accessed']),
        }
        names = ('compute', 'hbm', 'interconnect', 'step', 'serial')
        heads = ('compute ms', 'HBM ms', 'links ms', 'step ms (estimate)', 'ms without overlap')
        for name, head in zip(names, heads, strict=True):
            row[head] = '—' if bounds is None else f'{1e3 * bounds[name]:,.3f}'
        row['MFU'] = '—' if bounds is None else f'{bounds["mfu"]:.1%}'
        row['images/s, all'] = '—' if bounds is None else f'{bounds["images_per_second"]:,.0f}'
        rows.append(row)
    return rows


def collective_rows(plan: Mapping[str, Any]) -> list[Row]:
    """Every kind of collective of every step."""
    gradient = plan['gradient_bytes']
    return [
        {
            'topology': label(target),
            'step': kind,
            'collective': name,
            'count': str(each['number']),
            'bytes': size(each['bytes']),
            'gradients': f'{each["bytes"] / gradient:.3f}',
        }
        for target, kind, step in _steps(plan)
        for name, each in step.get('collectives', {}).items()
    ]


def meta_rows(plan: Mapping[str, Any]) -> list[Row]:
    """What the meta step adds to the plain one, against the goals."""
    rows = []
    for target in plan['targets']:
        added = target['meta_over_plain']
        if added is None:
            continue
        flops = '—' if added['flops'] is None else f'{added["flops"]:.2f} ×'
        rows.append(
            {
                'topology': label(target),
                f'memory (goal: {MEMORY_GOAL} ×)': f'{added["memory"]:.2f} ×',
                'FLOPs': flops,
                f'gradients all-reduced more (goal: {REDUCTIONS_GOAL:g})': (
                    f'{added["reductions"]:.3f}'
                ),
                'within the goals': 'yes' if added['within_goals'] else 'no',
            }
        )
    return rows


def headline(plan: Mapping[str, Any]) -> str:
    """The plan in a sentence or two."""
    parts = []
    for target in plan['targets']:
        for kind in ('plain', 'meta'):
            step = target['steps'].get(kind)
            if step is None:
                continue
            if 'does_not_fit' in step or not step.get('fits', True):
                parts.append(f'the {kind} step does not fit {label(target)}')
                continue
            held = f'the {kind} step needs {size(step["memory"]["peak"])} a device'
            if target['device']:
                held += f' of {size(target["device"]["hbm"])}'
            held += f' on {label(target)}'
            parts.append(held)
    text = '; '.join(parts)
    return f'{text[:1].upper()}{text[1:]}.' if text else 'Only the evaluation was planned.'


def _steps(plan: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    return [
        (target, kind, step) for target in plan['targets'] for kind, step in target['steps'].items()
    ]
