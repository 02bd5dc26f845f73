"""The tables of the page: rows of numbers in, lines of text out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.laboratory.conclusions import INEXACT, Parts, base_rows
from experiments.laboratory.figures import LOSS_COLORS, named


def agreement_table(parts: Parts) -> list[dict[str, str]]:
    """Errors by network and precision: of the exact modes, and of differences."""
    rows = parts['agreement']['rows']
    table = []
    for start in dict.fromkeys(name.rsplit('/', 1)[0] for name in rows):
        found = named(rows, *start.split('/'))
        exact = [row for (mode,), row in found.items() if mode != INEXACT]
        errors = np.array([[cell['error'] for cell in row.values()] for row in exact])
        adam = [row['initial, AdamW']['error'] for row in exact]
        product = np.median([[cell['product'] for cell in row.values()] for row in exact])
        line = dict(zip(('network', 'precision'), start.split('/'), strict=True))
        line['exact modes, median'] = f'{np.median(errors):.0e}'
        line['their u held exact'] = f'{product:.0e}'
        line['largest, but for AdamW at first'] = f'{_without(exact, "initial, AdamW").max():.0e}'
        line["AdamW's first step"] = f'{np.median(adam):.0e}'
        cosine = min(cell['cosine'] for row in exact for cell in row.values())
        line['lowest cosine'] = f'{cosine:.4f}'
        difference = found.get((INEXACT,))
        if difference:
            values = [cell['error'] for cell in difference.values()]
            line['finite difference, median'] = f'{np.median(values):.0e}'
        table.append(line)
    return table


def _without(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([[cell['error'] for key, cell in r.items() if key != name] for r in rows])


def differences_table(parts: Parts) -> list[dict[str, str]]:
    """Errors of differences at their default step, and at the best one."""
    table = []
    for name, row in parts['v_curve']['rows'].items():
        best = int(np.argmin(row['errors']))
        line = dict(zip(('network', 'precision', 'scheme'), name.split('/'), strict=True))
        line['default step'] = f'{row["default"]:.0e}'
        line['error there'] = f'{row["error_at_default"]:.0e}'
        line['best step'] = f'{row["steps"][best]:.0e}'
        line['error at best'] = f'{row["errors"][best]:.0e}'
        table.append(line)
    return table


def estimator_table(parts: Parts) -> list[dict[str, str]]:
    """The base case in numbers."""

    def cell(row: Mapping[str, Any], name: str) -> str:
        return f'{row[name]:.3f} ± {row.get(f"{name}_error", 0):.3f}'

    tiny = base_rows(parts, 'tiny step')
    return [
        {
            'estimator': name,
            'bias': cell(row, 'bias'),
            'scale': cell(row, 'scale'),
            'error of direction': cell(row, 'direction'),
            'spread / exact': cell(row, 'spread'),
            'noise': cell(row, 'noise'),
            'cosine of one draw': f'{row["one_cosine"]:.3f}',
            'draws': f'{row["draws"]:.0f}',
        }
        | ({'to first order: direction': cell(tiny[name], 'direction')} if tiny else {})
        for name, row in base_rows(parts).items()
    ]


def accuracy_table(parts: Parts) -> list[dict[str, str]]:
    """Accuracies at the last step: mean and deviation over seeds."""
    rows = parts['training']['rows']
    names: Sequence[str] = list(dict.fromkeys(name.split('/')[1] for name in rows))
    table = []
    for name in names:
        line = {'training': name}
        for loss in LOSS_COLORS:
            row = rows[f'{loss}/{name}']
            for measure, title in (('accuracy', 'all'), ('rarest', 'rarest three')):
                values = 100 * np.array(row[measure])
                line[f'{loss}, {title}'] = f'{values.mean():.1f} ± {values.std(ddof=1):.1f}'
            line[f'{loss}, rates'] = (
                f'{np.mean([v[-1] for v in row["rate_largest"]]):.2f} → '
                f'{np.mean([v[-1] for v in row["rate_rarest"]]):.2f}'
            )
        table.append(line)
    return table
