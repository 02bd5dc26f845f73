"""Whom does each method favour? p(y) on the balanced test set, class by class: Figures 1 and 2.

Command   python -m experiments.marginal_likelihood --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/marginal_likelihood/page.html
Measures  the mean predicted probability of each class over the test set, times C: 1 is ideal
Expected  softmax favours the head, EQL less so; Balanced Softmax is level; with class-balanced
          sampling on top the tail is favoured; with the learned sampler it is level again
Found     softmax gives the largest class 2.54 ± 0.11 of its due, EQL, whose λ leaves one class of
          ten in its tail, 2.50 ± 0.07, Balanced Softmax and CBS the smallest 2.14 ± 0.11; Balanced
          Softmax, decoupled or not, cRT and BALMS are within an rms distance of 0.1 from level;
          cRT, 1.13 and 0.85 at the two ends, leans to the head a little (cpu, seeds 0 to 2)
"""

import numpy as np

from balms_jax.report.comparison import Replicates, format_statistic
from experiments import numbers, whole_runs
from experiments.numbers import number, over_seeds
from experiments.whole_runs import Question

METHODS = (
    'softmax',
    'equalization',
    'balanced_softmax',
    'softmax_decoupled_cbs',
    'balanced_softmax_decoupled',
    'balanced_softmax_decoupled_cbs',
    'balms',
)
FEW = ('softmax', 'balanced_softmax')
LEVEL = 0.1  # of a class's due
QUESTION = Question(
    __doc__,
    'marginal_likelihood',
    'Marginal likelihood: whom does each method favour?',
    METHODS,
    FEW,
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    runs = whole_runs.train(options, QUESTION)
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    drawn = figures.balance()[:1]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def relative(group: Replicates) -> np.ndarray:
    """C p(y), ``[seeds, classes]``."""
    values = np.stack([np.asarray(run.final['marginal_likelihood']) for run in group.runs])
    return values.shape[1] * values


def distances(group: Replicates) -> np.ndarray:
    """The root mean square of C p(y) − 1 over the classes, ``[seeds]``."""
    return np.sqrt(np.mean((relative(group) - 1) ** 2, axis=1))


def row(group: Replicates) -> dict[str, str]:
    """A method in numbers."""
    ratios = relative(group)
    return {
        'method': group.label,
        'seeds': numbers.seeds_of(group),
        'largest class, C p(y)': number(*over_seeds(ratios[:, 0])),
        'smallest class, C p(y)': number(*over_seeds(ratios[:, -1])),
        'distance from level (rms)': number(*over_seeds(distances(group))),
        'of the class farthest from it': number(*over_seeds(np.abs(ratios - 1).max(1))),
        'top-1 %': format_statistic(group, 'top1'),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: who is level, and who favours which end."""
    level, told = [], []
    for group in groups:
        distance, ends = distances(group).mean(), relative(group).mean(0)[[0, -1]]
        if distance < LEVEL:
            level.append(f'{group.label} ({distance:.2f}; ends {ends[0]:.2f}, {ends[1]:.2f})')
            continue
        end = 'largest' if ends[0] > ends[1] else 'smallest'
        told.append(
            f'{group.label} favours the {end} class ({ends[0]:.2f} of the due of the largest, '
            f'{ends[1]:.2f} of that of the smallest).'
        )
    if level:
        told.append(
            f'Level, with an rms distance from it of {LEVEL} at most over the classes: '
            f'{"; ".join(level)}.'
        )
    return ' '.join(told)


if __name__ == '__main__':
    main()
