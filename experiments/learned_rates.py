"""Which sampling rates are learned beside softmax, and which beside Balanced Softmax? Figure 3.

Command   python -m experiments.learned_rates --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/learned_rates/page.html
Measures  σ(ψ) of every class at the last step, scaled to mean 1, and its variance over classes
Expected  rates rise towards the tail beside softmax, whose loss leaves the imbalance; beside
          Balanced Softmax they stay nearly equal. Published variances (CIFAR-100-LT, imbalance
          factor 200): 0.13 and 0.03
Found     variance 0.66 beside softmax, 0.013 beside Balanced Softmax (cpu, seeds 0 to 2)
"""

import numpy as np

from balms_jax.report.comparison import Replicates, format_statistic
from experiments import whole_runs
from experiments.whole_runs import Question

METHODS = ('softmax_decoupled_meta_sampler', 'balms')
QUESTION = Question(
    __doc__,
    'learned_rates',
    'Learned sampling rates',
    METHODS,
    METHODS,
    needed=METHODS,
    factors={'paper': (200.0,)},
    datasets={'paper': ('cifar100',)},
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    runs = whole_runs.train(options, QUESTION)
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, figures.learned(), runs)


def final_rates(group: Replicates) -> np.ndarray:
    """σ(ψ) at the last step, scaled to mean 1, ``[seeds, classes]``."""
    last = np.stack([run.series('rates', 'sampling_rates')[1][-1] for run in group.runs])
    return last / last.mean(1, keepdims=True)


def row(group: Replicates) -> dict[str, str]:
    """A method in numbers."""
    rates = final_rates(group)
    return {
        'method': group.label,
        'seeds': whole_runs.seeds_of(group),
        'variance over classes': whole_runs.number(*whole_runs.over_seeds(rates.var(1)), digits=3),
        'rate of the largest class (mean 1)': whole_runs.number(
            *whole_runs.over_seeds(rates[:, 0])
        ),
        'rate of the smallest class (mean 1)': whole_runs.number(
            *whole_runs.over_seeds(rates[:, -1])
        ),
        'top-1 %': format_statistic(group, 'top1'),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: the two variances, and which way the rates lean."""
    told = []
    for group in groups:
        rates = final_rates(group)
        told.append(
            f'{group.label}: variance {rates.var(1).mean():.3f}, the smallest class at '
            f'{rates[:, -1].mean() / rates[:, 0].mean():.2f} times the rate of the largest.'
        )
    if len(groups) == 2:
        ratio = final_rates(groups[0]).var(1).mean() / final_rates(groups[1]).var(1).mean()
        told.append(
            f'Beside softmax the variance is {ratio:.1f} times that beside Balanced Softmax.'
        )
    return ' '.join(told)


if __name__ == '__main__':
    main()
