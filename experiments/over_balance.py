"""Does the learned sampler keep Balanced Softmax from over-balancing? R3Q1 of the reply, Eqn. 12.

Command   python -m experiments.over_balance --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/over_balance/page.html
Measures  k, where the effective gradient weight of class j goes as n_j^k: the slope of a log-log
          fit over the classes, during and at the end of training
Expected  0 without rebalancing; towards −1 with Balanced Softmax or class-balanced sampling alone;
          below −1 with both; back near −1 where the sampler is learned
Found     −1.22 with both, −0.18 with Balanced Softmax alone, whose loss stays large, and −0.16 with
          the learned sampler (cpu, seeds 0 to 2)
"""

import math
from collections.abc import Mapping

from balms_jax.report.comparison import Replicates, format_statistic
from experiments import whole_runs
from experiments.whole_runs import Question, mean_and_error, number, over_seeds

METHODS = (
    'softmax_decoupled',
    'softmax_decoupled_cbs',
    'balanced_softmax_decoupled',
    'balanced_softmax_decoupled_cbs',
    'balms',
)
FEW = NEEDED = ('balanced_softmax_decoupled_cbs', 'balms')
FIELD = 'gradient_weight_exponent'
QUESTION = Question(
    'over_balance',
    'Over-balance: how often is the imbalance counted?',
    METHODS,
    FEW,
    needed=NEEDED,
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(__doc__, QUESTION)
    runs = whole_runs.train(options, QUESTION)
    groups, figures = whole_runs.figures_of(runs)
    exponents = {
        group.first.facts['method']: {r.facts['seed']: float(r.final[FIELD]) for r in group.runs}
        for group in groups
    }
    rows = [row(group, exponents[group.first.facts['method']]) for group in groups]
    whole_runs.write_page(options, QUESTION, answer(exponents), rows, figures.balance()[1:], runs)


def row(group: Replicates, exponents: Mapping[int, float]) -> dict[str, str]:
    """A method: its exponents over seeds, and how far from balance."""
    mean, spread = over_seeds([*exponents.values()])
    return {
        'method': group.label,
        'seeds': whole_runs.seeds_of(group),
        'exponent k': number(mean, spread),
        'distance from −1': number(mean + 1, sign=True),
        'top-1 %': format_statistic(group, 'top1'),
    }


def answer(exponents: Mapping[str, Mapping[int, float]]) -> str:
    """In words: the exponents of loss and sampler together, fixed and learned.

    Args:
        exponents: by method and seed.
    """
    fixed, learned = (exponents[name] for name in NEEDED)
    of_fixed, of_learned = (over_seeds([*each.values()])[0] for each in (fixed, learned))
    told = [
        'Balanced Softmax with class-balanced sampling ends with weights that go as n to the '
        f'{number(of_fixed)}; with the learned sampler, to the {number(of_learned)}.'
    ]
    if 'balanced_softmax_decoupled' in exponents:
        alone, _ = over_seeds([*exponents['balanced_softmax_decoupled'].values()])
        told.append(f'The loss alone reaches {number(alone)}.')
    seeds = sorted(fixed.keys() & learned.keys())
    nearer, error = mean_and_error([abs(fixed[s] + 1) - abs(learned[s] + 1) for s in seeds])
    told.append(
        f'One balance, −1, is {number(abs(nearer), error)} '
        + ('nearer' if nearer > 0 else 'farther')
        + ' with the learned sampler than with the fixed one'
        + (
            ' (one seed).'
            if math.isnan(error)
            else ', more than two standard errors over seeds.'
            if abs(nearer) > 2 * error
            else '; seeds do not tell the two distances apart.'
        )
    )
    return ' '.join(told)


if __name__ == '__main__':
    main()
