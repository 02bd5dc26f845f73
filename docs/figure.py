"""Draws the README's figure: accuracy of every class, methods beside each other.

Command   make demo, then
          .venv/bin/python docs/figure.py docs/digits_lt.svg runs/digits_lt/softmax-* \
              runs/digits_lt/balanced_softmax-* runs/digits_lt/balms-*
"""

import argparse
from pathlib import Path

from matplotlib.patches import Rectangle

from balms_jax.report import figures, read_run
from balms_jax.report.comparison import group_runs
from balms_jax.report.figure_style import method_colors, svg


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('output', type=Path, help='the figure, SVG')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='run directory')
    options = parser.parse_args()
    groups = group_runs([read_run(run) for run in options.runs])
    statistics = {group.label: group.statistics('per_class_accuracy') for group in groups}
    first = groups[0].first
    figure = figures.accuracy_by_class(
        {label: mean for label, (mean, _) in statistics.items()},
        first.class_counts,
        first.class_names,
        method_colors({group.label: group.first.facts['method'] for group in groups}),
        {label: deviation for label, (_, deviation) in statistics.items()},
    )
    # The page's figures are transparent; this one is also seen on a dark page.
    paper = Rectangle((0, 0), 1, 1, transform=figure.transFigure, color='white', zorder=-10)
    figure.add_artist(paper)
    options.output.write_bytes(svg(figure))


if __name__ == '__main__':
    main()
