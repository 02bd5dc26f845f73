"""The command ``python -m balms_jax.report RUN [RUN …] [--output PAGE.html]``."""

import argparse
import sys
from collections.abc import Sequence

from balms_jax import extras

with extras.needed('plots', 'the page'):
    from balms_jax.report import RunError, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code: 0, or 2 where a run or the output is unusable."""
    parser = argparse.ArgumentParser(
        prog='python -m balms_jax.report',
        description='Writes one self-contained HTML page about one or several training runs.',
    )
    parser.add_argument('runs', nargs='+', metavar='RUN', help='run directory')
    parser.add_argument(
        '--output',
        metavar='PAGE.html',
        help='the page; default: report.html in the run directory, or in the innermost '
        'directory that holds all runs',
    )
    options = parser.parse_args(arguments)
    try:
        output = write_report(options.runs, options.output)
    except RunError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'error: the page cannot be written: {error}', file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
