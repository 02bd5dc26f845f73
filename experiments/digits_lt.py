"""Does the method work at all? Softmax, Balanced Softmax and BALMS on digits with a long tail.

Command   python -m experiments.digits_lt [--folder runs/digits_lt]
Cost      about two minutes on two CPU cores
Expected  few-shot classes gain, many-shot classes lose little, from softmax to Balanced Softmax
"""

import argparse
from pathlib import Path

from configs import digits_lt
from experiments.comparison import compare

METHODS = ('softmax', 'balanced_softmax', 'balms')
SEEDS = (0, 1, 2)


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--folder', type=Path, default=Path('runs/digits_lt'))
    arguments = parser.parse_args()
    compare(
        lambda method: digits_lt.get_config(f'method={method}'), METHODS, SEEDS, arguments.folder
    )


if __name__ == '__main__':
    main()
