"""Does a search find the adjustment that the derivation gives, ξ_j = n_j? R2Q1 of the reply.

Command   python -m experiments.learned_adjustment --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/learned_adjustment/page.html
Measures  log ξ, learned by the meta-gradient from 0 (plain softmax) beside a fresh classifier, on
          its way to log n: the slope of log ξ against log n (1 is the derived answer), the
          correlation of the two, and the accuracy. Beside it CoSen, whose ξ is a row for each label
          (the mean slope of its rows), and the landscape along log n: a classifier retrained with
          each τ of a sweep, τ log n told from the start
Expected  the search moves towards log n and is not there when training ends: a rate of 0.01 and
          Adam bound how far it can go; accuracy between softmax and Balanced Softmax
Found     the search ends at ξ = n: slope 0.99 ± 0.01, correlation 1.00, accuracy 57.0 ± 2.1 beside
          57.4 ± 1.9 of Balanced Softmax, and the sweep of τ is highest at 1. CoSen's costs stay
          nearly equal, between 0.43 and 0.77: slope 0.02 ± 0.01. Its accuracy, 41.1 ± 2.0, is
          beside 42.9 ± 1.5 of plain softmax end to end, of a tenth more images (cpu, seeds 0 to 2)
"""

import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from balms_jax.report import Run
from balms_jax.report.comparison import Replicates
from balms_jax.report.figure_style import COUNT_COLORS, FAINT, WIDE, new_figure, styled
from balms_jax.report.html import embedded
from balms_jax.training.stage_states import load_trained
from experiments import numbers, whole_runs
from experiments.convergence_rate import SWEEP, tau_of
from experiments.whole_runs import Question

FOUND = ('learned_adjustment', 'cost_sensitive')
METHODS = ('softmax', 'softmax_decoupled', 'balanced_softmax_decoupled', *FOUND, *SWEEP)
FEW = ('balanced_softmax_decoupled', *FOUND, 'tau_0', 'tau_1')
QUESTION = Question(
    __doc__,
    'learned_adjustment',
    'Is the derived adjustment found by a search?',
    METHODS,
    FEW,
    needed=('learned_adjustment',),
    variants=SWEEP,
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    trained = whole_runs.train(options, QUESTION)
    swept = [run for run in trained if whole_runs.name_of(run) in SWEEP]
    runs = [run for run in trained if whole_runs.name_of(run) not in SWEEP]
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    caption = (
        'Left: log ξ of every class over training, less its mean, coloured by its number of '
        'training images; dotted, where the derived log n would have it. Middle: log ξ at the end '
        'against log n, a dot a class and seed; dashed, ξ = n. Right: the landscape along log n, '
        'accuracy with τ log n told; crosses, where the searches end, a cross a seed.'
    )
    learned = next(g for g in groups if g.first.facts['method'] == 'learned_adjustment')
    searched = {g.label: g for g in groups if g.first.facts['method'] in FOUND}
    drawn = [
        embedded(adjustments(learned, searched, swept), caption, 'Learned log adjustment'),
        *figures.accuracy(),
    ]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def final_adjustment(run: Run) -> np.ndarray:
    """Log ξ at the last step, less its mean, ``[classes]``; of CoSen the mean over the labels."""
    if run.facts['method'] == 'cost_sensitive':
        rows = np.log(costs_of(run))
        return (rows - rows.mean(1, keepdims=True)).mean(0)
    return run.series('rates', 'log_adjustment')[1][-1]


def costs_of(run: Run) -> np.ndarray:
    """CoSen's ξ at the last step, ``[classes, classes]``; measured once."""
    return np.asarray(whole_runs.measured(run, 'costs', functools.partial(final_costs, run)))


def final_costs(run: Run) -> list[list[float]]:
    """CoSen's ξ at the last step, ``[classes, classes]``."""
    costs = np.asarray(load_trained(run.path).state.psi.costs)
    return [[float(cost) for cost in row] for row in costs]


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
    told, correlation = '–', '–'
    if group.first.facts['method'] in FOUND:
        told = numbers.number(*numbers.over_seeds([slope(run) for run in group.runs]))
        correlation = numbers.number(
            *numbers.over_seeds(
                [
                    float(np.corrcoef(final_adjustment(run), derived_adjustment(run))[0, 1])
                    for run in group.runs
                ]
            )
        )
    return {
        'method': group.label,
        'images trained on': f'{sum(group.first.facts["class_counts"]):,}',
        'slope of log ξ against log n': told,
        'correlation': correlation,
        **numbers.accuracies(group),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: how far the search went, and what that is worth."""
    by_method = {group.first.facts['method']: group for group in groups}
    learned = by_method['learned_adjustment']
    slopes = numbers.number(*numbers.over_seeds([slope(run) for run in learned.runs]))
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
    told = f'{told} %, beside {" and ".join(others)}.'
    if 'cost_sensitive' in by_method:
        runs = by_method['cost_sensitive'].runs
        slopes = numbers.number(*numbers.over_seeds([slope(run) for run in runs]))
        costs = [costs_of(run) for run in runs]
        told += (
            f' CoSen ends at a slope of {slopes}, its costs between {np.min(costs):.2f} and '
            f'{np.max(costs):.2f}, with {accuracy["cost_sensitive"]:.1f} %. It is trained end to '
            'end, and holds images out for its costs'
        )
        told += (
            f': beside it is softmax, end to end on all of them, {accuracy["softmax"]:.1f} %.'
            if 'softmax' in accuracy
            else '.'
        )
    return told


@styled
def adjustments(group: Replicates, searched: dict[str, Replicates], swept: Sequence[Run]) -> Figure:
    """Log ξ on its way, where it ends, and the landscape that it moves in."""
    drawing = new_figure(WIDE)
    left, right, last = drawing.subplots(1, 3)
    run, counts = group.first, group.first.class_counts
    derived = derived_adjustment(run)
    steps, values = run.series('rates', 'log_adjustment')
    shade = (np.log(counts) - np.log(counts.min())) / max(np.log(counts.max() / counts.min()), 1e-9)
    for j in range(counts.size):
        color = COUNT_COLORS(shade[j])
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
    taus = sorted({tau_of(run) for run in swept})
    means = [100 * np.mean([run.final['top1'] for run in swept if tau_of(run) == t]) for t in taus]
    last.plot(taus, means, 'o-', ms=3.5, lw=1.2, color=FAINT, label='τ log n told')
    for color, (label, found) in zip(('#0072b2', '#d55e00'), searched.items(), strict=False):
        found_slopes = [slope(each) for each in found.runs]
        accuracies = [100 * each.final['top1'] for each in found.runs]
        last.plot(found_slopes, accuracies, 'x', ms=6, mew=1.6, color=color, label=label)
    last.set_xlabel('slope of log ξ against log n')
    last.set_ylabel('top-1 accuracy, %')
    last.legend()
    return drawing


if __name__ == '__main__':
    main()
