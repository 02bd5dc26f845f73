"""Does the method work at all? Softmax, Balanced Softmax and BALMS on digits with a long tail.

Command   python -m experiments.digits_lt [--folder runs/digits_lt]
Cost      about two minutes on two CPU cores
Expected  few-shot classes gain, many-shot classes lose little, from softmax to Balanced Softmax
"""

import argparse
from pathlib import Path

import rich.box
import rich.table

from balms_jax.report import comparison_table, markdown_table, read_run, write_report
from configs import digits_lt
from experiments.comparison import console, exit_on_failure, train_all

METHODS = ('softmax', 'balanced_softmax', 'balms')
SEEDS = (0, 1, 2)
# The page has more columns than a terminal.
SHOWN = ('method', 'seeds', 'top-1 %', 'many %', 'medium %', 'few %', 'ECE %')


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--folder', type=Path, default=Path('runs/digits_lt'))
    folder = parser.parse_args().folder
    with exit_on_failure():
        runs = train_all(
            lambda method: digits_lt.get_config(f'method={method}'), METHODS, SEEDS, folder
        )
    rows = comparison_table([read_run(run) for run in runs])
    shown = [name for name in rows[0] if name in SHOWN]
    table = rich.table.Table(*shown, box=rich.box.SIMPLE)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table)
    (folder / 'table.md').write_text(markdown_table(rows) + '\n')
    page = write_report(runs, folder / 'report.html')
    console.print(f'page: {page}', markup=False)


if __name__ == '__main__':
    main()
