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
Found     −1.19 with both, −0.18 with Balanced Softmax alone, whose loss stays large, and −0.18 with
          the learned sampler (cpu, seeds 0 to 2)
"""

import math

from balms_jax.report.comparison import format_statistic
from experiments import whole_runs

METHODS = (
    'softmax_decoupled',
    'softmax_decoupled_cbs',
    'balanced_softmax_decoupled',
    'balanced_softmax_decoupled_cbs',
    'balms',
)
FEW = ('balanced_softmax_decoupled_cbs', 'balms')
FIELD = 'gradient_weight_exponent'


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(__doc__, 'over_balance', METHODS, FEW)
    runs = whole_runs.train(options)
    groups, figures = whole_runs.figures_of(runs)
    exponents = {g.first.facts['method']: g.statistics(FIELD) for g in groups}
    rows = [
        {
            'method': group.label,
            'exponent k': whole_runs.number(*exponents[group.first.facts['method']]),
            'distance from −1': whole_runs.number(
                exponents[group.first.facts['method']][0] + 1, sign=True
            ),
            'top-1 %': format_statistic(group, 'top1'),
        }
        for group in groups
    ]
    title = 'Over-balance: how often is the imbalance counted?'
    whole_runs.write_page(
        options, 'over_balance', title, answer(exponents), rows, figures.balance()[1:], runs
    )


def answer(exponents: dict[str, tuple[float, float]]) -> str:
    """In words: the exponents of loss and sampler together, fixed and learned."""
    fixed, learned = (
        exponents[name] for name in ('balanced_softmax_decoupled_cbs', 'balms') if name in exponents
    )
    told = [
        'Balanced Softmax with class-balanced sampling ends with weights that go as n to the '
        f'{whole_runs.number(fixed[0])}; with the learned sampler, to the '
        f'{whole_runs.number(learned[0])}.'
    ]
    if 'balanced_softmax_decoupled' in exponents:
        alone = exponents['balanced_softmax_decoupled'][0]
        told.append(f'The loss alone reaches {whole_runs.number(alone)}.')
    closer = abs(learned[0] + 1) < abs(fixed[0] + 1)
    spread = math.hypot(*(0 if math.isnan(s) else s for _, s in (fixed, learned)))
    gap = abs(abs(learned[0] + 1) - abs(fixed[0] + 1))
    told.append(
        'One balance, −1, is '
        + ('nearer' if closer else 'farther')
        + ' with the learned sampler than with the fixed one'
        + (
            ', by more than two standard deviations over seeds.'
            if gap > 2 * spread > 0
            else '; seeds do not tell the two distances apart.'
            if spread
            else ' (one seed).'
        )
    )
    return ' '.join(told)


if __name__ == '__main__':
    main()
