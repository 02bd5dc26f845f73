"""Does a search find the adjustment that the derivation gives, ξ_j = n_j? R2Q1 of the reply.

Command   python -m experiments.learned_adjustment --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: 0.4 s a step of a first stage on two busy CPU cores, 3,600 of them for each that is
          not there yet; smoke: a minute. Not yet run beyond smoke
Ends in   experiments/results/learned_adjustment/page.html
Measures  log ξ, learned by the meta-gradient from 0 (plain softmax) beside a fresh classifier, on
          its way to log n: the slope of log ξ against log n (1 is the derived answer), the
          correlation of the two, and the accuracy beside Balanced Softmax, which is told log n
Expected  the search moves towards log n and is not there when training ends: a rate of 0.01 and
          Adam bound how far it can go; accuracy between softmax and Balanced Softmax
"""

import numpy as np
from matplotlib.figure import Figure

from balms_jax.report import Run
from balms_jax.report.comparison import Replicates, format_statistic
from balms_jax.report.figure_style import COUNT_COLORS, FAINT, WIDE, new_figure, styled
from balms_jax.report.html import embedded
from experiments import whole_runs

METHODS = ('softmax', 'softmax_decoupled', 'learned_adjustment', 'balanced_softmax_decoupled')
FEW = ('learned_adjustment', 'balanced_softmax_decoupled')


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(__doc__, 'learned_adjustment', METHODS, FEW)
    runs = [run for run in whole_runs.train(options) if run.facts['method'] != 'softmax']
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    caption = (
        'Left: log ξ of every class over training, less its mean, coloured by its number of '
        'training images; dotted, where the derived log n would have it. Right: log ξ at the end '
        'against log n, a dot a class and seed; dashed, ξ = n.'
    )
    learned = next(g for g in groups if g.first.facts['method'] == 'learned_adjustment')
    drawn = [embedded(adjustments(learned), caption, 'Learned log adjustment'), *figures.accuracy()]
    title = 'Is the derived adjustment found by a search?'
    whole_runs.write_page(options, 'learned_adjustment', title, answer(groups), rows, drawn, runs)


def final_adjustment(run: Run) -> np.ndarray:
    """Log ξ at the last step, less its mean, ``[classes]``."""
    return run.series('rates', 'log_adjustment')[1][-1]


def derived_adjustment(run: Run) -> np.ndarray:
    """Log n, less its mean, ``[classes]``."""
    log_counts = np.log(run.class_counts)
    return log_counts - log_counts.mean()


def slope(run: Run) -> float:
    """Of log ξ against log n, by least squares: 0 plain softmax, 1 Balanced Softmax."""
    derived = derived_adjustment(run)
    return float(derived @ final_adjustment(run) / (derived @ derived))


def row(group: Replicates) -> dict[str, str]:
    """A method in numbers."""
    learned = group.first.facts['method'] == 'learned_adjustment'
    told, correlation = '–', '–'
    if learned:
        told = whole_runs.number(*whole_runs.over_seeds([slope(run) for run in group.runs]))
        correlation = whole_runs.number(
            *whole_runs.over_seeds(
                [
                    float(np.corrcoef(final_adjustment(run), derived_adjustment(run))[0, 1])
                    for run in group.runs
                ]
            )
        )
    return {
        'method': group.label,
        'slope of log ξ against log n': told,
        'correlation': correlation,
        'top-1 %': format_statistic(group, 'top1'),
        'few %': format_statistic(group, 'few'),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: how far the search went, and what that is worth."""
    by_method = {group.first.facts['method']: group for group in groups}
    learned = by_method['learned_adjustment']
    slopes = whole_runs.number(*whole_runs.over_seeds([slope(run) for run in learned.runs]))
    accuracy = {name: 100 * float(g.statistics('top1')[0]) for name, g in by_method.items()}
    told = (
        f'The search ends at a slope of {slopes} of log ξ against log n, '
        f'where the derivation gives 1; its accuracy is {accuracy["learned_adjustment"]:.1f}'
    )
    others = [
        f'{accuracy[name]:.1f} % of {by_method[name].label}'
        for name in ('softmax_decoupled', 'balanced_softmax_decoupled')
        if name in accuracy
    ]
    return f'{told} %, beside {" and ".join(others)}.'


@styled
def adjustments(group: Replicates) -> Figure:
    """Log ξ on its way, and where it ends."""
    drawing = new_figure(WIDE)
    left, right = drawing.subplots(1, 2)
    run, counts = group.first, group.first.class_counts
    derived = derived_adjustment(run)
    steps, values = run.series('rates', 'log_adjustment')
    shade = (np.log(counts) - np.log(counts.min())) / max(np.log(counts.max() / counts.min()), 1e-9)
    for j in range(counts.size):
        color = COUNT_COLORS(1 - shade[j])
        left.plot(steps, values[:, j], lw=1.2, color=color)
        left.axhline(derived[j], lw=0.6, ls=':', color=color)
    left.set_xlabel('training step')
    left.set_ylabel('log ξ, mean 0')
    ends = np.array([derived.min(), derived.max()])
    right.plot(ends, ends, '--', lw=0.8, color=FAINT)
    for each in group.runs:
        right.plot(derived, final_adjustment(each), 'o', ms=4, alpha=0.6, color='#0072b2')
    right.set_xlabel('log n, mean 0')
    right.set_ylabel('learned log ξ, mean 0')
    return drawing


if __name__ == '__main__':
    main()
