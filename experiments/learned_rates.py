"""Which sampling rates are learned beside softmax, and which beside Balanced Softmax? Figure 3.

Command   python -m experiments.learned_rates --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/learned_rates/page.html
Measures  σ(ψ) of every class at the last step, and its variance over classes, as it is and scaled
          to mean 1; the paper does not say which of the two it gives
Expected  rates rise towards the tail beside softmax, whose loss leaves the imbalance; beside
          Balanced Softmax they stay nearly equal. Published variances (CIFAR-100-LT, imbalance
          factor 200): 0.13 and 0.03
Found     variance 0.158 beside softmax, 0.003 beside Balanced Softmax; scaled to mean 1 0.66 and
          0.013 (cpu, seeds 0 to 2)
"""

import numpy as np

from balms_jax.report.comparison import Replicates, format_statistic
from experiments import numbers, whole_runs
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
    """σ(ψ) at the last step, ``[seeds, classes]``."""
    return np.stack([run.series('rates', 'sampling_rates')[1][-1] for run in group.runs])


def scaled(rates: np.ndarray) -> np.ndarray:
    """The rates with mean 1 over the classes: only their ratios matter to the draws."""
    return rates / rates.mean(1, keepdims=True)


def row(group: Replicates) -> dict[str, str]:
    """A method in numbers."""
    raw = final_rates(group)
    rates = scaled(raw)
    return {
        'method': group.label,
        'seeds': numbers.seeds_of(group),
        'variance over classes': numbers.number(*numbers.over_seeds(raw.var(1)), digits=3),
        'variance (mean 1)': numbers.number(*numbers.over_seeds(rates.var(1)), digits=3),
        'rate of the largest class (mean 1)': numbers.number(*numbers.over_seeds(rates[:, 0])),
        'rate of the smallest class (mean 1)': numbers.number(*numbers.over_seeds(rates[:, -1])),
        'top-1 %': format_statistic(group, 'top1'),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: the two variances, and which way the rates lean."""
    told = []
    for group in groups:
        rates = final_rates(group)
        told.append(
            f'{group.label}: variance {rates.var(1).mean():.3f} '
            f'({scaled(rates).var(1).mean():.3f} of rates with mean 1), the smallest class at '
            f'{rates[:, -1].mean() / rates[:, 0].mean():.2f} times the rate of the largest.'
        )
    variances = {g.first.facts['method']: final_rates(g).var(1).mean() for g in groups}
    ratio = variances[METHODS[0]] / variances[METHODS[1]]
    told.append(f'Beside softmax the variance is {ratio:.1f} times that beside Balanced Softmax.')
    return ' '.join(told)


if __name__ == '__main__':
    main()
