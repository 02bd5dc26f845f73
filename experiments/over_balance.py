"""Does the learned sampler keep Balanced Softmax from over-balancing? R3Q1 of the reply, Eqn. 12.

At zero loss Balanced Softmax alone weighs a class by 1/n, and class-balanced sampling by another
1/n. A network that does not fit its training set is far from that; so the methods are compared a
second time where it does: on a fifth of the images, without augmentation, for as many steps.

Command   python -m experiments.over_balance --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, two a
          seed, and seconds for each second one; smoke: a minute
Ends in   experiments/results/over_balance/page.html
Measures  k, where the effective gradient weight of class j goes as n_j^k: the slope of a log-log
          fit over the classes, during and at the end of training; the training loss at the end
Expected  0 without rebalancing; towards −1 with Balanced Softmax or class-balanced sampling alone;
          below −1 with both; back near −1 where the sampler is learned
Found     on the long tail, which the network does not fit, −1.22 with both, −0.18 with Balanced
          Softmax alone and −0.16 with the learned sampler, no power laws; where it fits, −1.96 with
          both, −0.96 with the loss alone, −0.80 with the learned sampler: it does hold the
          balance. There class-balanced sampling costs Balanced Softmax no accuracy, as in the
          paper; on the long tail 12.7 ± 0.4 points (cpu, seeds 0 to 2)
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from balms_jax.report import Run
from balms_jax.report.comparison import METHOD_NAMES, Replicates, format_statistic, told_apart
from experiments import whole_runs
from experiments.whole_runs import Question, Variant, mean_and_error, number, over_seeds

METHODS = (
    'softmax_decoupled',
    'softmax_decoupled_cbs',
    'balanced_softmax_decoupled',
    'balanced_softmax_decoupled_cbs',
    'balms',
)
LOSS, BOTH, LEARNED = METHODS[2:]
POWER_LAW = 0.5  # R² of the fit below which its slope says little
FIELD = 'gradient_weight_exponent'
SUFFIX = '_fitted'
FIFTH, FEW_DIGITS = 5, 64  # of the images of a class; images of a class of digits


def _fitted(config: ConfigDict) -> None:
    """Fewer images, none of them altered: a small network learns them by heart."""
    config.data.augmentation = 'none'
    head = config.data.head_count
    config.data.head_count = head // FIFTH if head else FEW_DIGITS
    config.evaluation.every = 100


VARIANTS = {method + SUFFIX: Variant(method, _fitted) for method in METHODS}
QUESTION = Question(
    __doc__,
    'over_balance',
    'Over-balance: how often is the imbalance counted?',
    (*METHODS, *VARIANTS),
    (BOTH, LEARNED, BOTH + SUFFIX, LEARNED + SUFFIX),
    needed=(BOTH, LEARNED),
    variants=VARIANTS,
)


class Balance(NamedTuple):
    """Of a run's effective gradient weights at the end of training."""

    exponent: float
    r_squared: float  # of the log-log fit; NaN where all weights are equal


Balances = Mapping[str, Mapping[int, Balance]]
"""By method and seed."""


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    runs = whole_runs.train(options, QUESTION)
    labels = {name + SUFFIX: f'{METHOD_NAMES[name]}, few images' for name in METHODS}
    told, rows, drawn = [], [], []
    for of_few, names in enumerate((METHODS, VARIANTS)):
        part = [run for run in runs if whole_runs.name_of(run) in names]
        if not {BOTH, LEARNED} <= {run.facts['method'] for run in part}:
            continue
        groups, figures = whole_runs.figures_of(part, labels)
        rows += [row(group) for group in groups]
        drawn += figures.balance()[1:]
        told.append(
            f'{setting(part, bool(of_few))} {answer(balances_of(part))} {accuracy(groups)}'.strip()
        )
    whole_runs.write_page(options, QUESTION, '\n'.join(told), rows, drawn, runs)


def setting(runs: Sequence[Run], of_few: bool) -> str:
    """Which images the runs were trained on, and how well they are fitted."""
    losses = [whole_runs.final_train_loss(run) for run in runs]
    images = 'fewer images, unaltered' if of_few else 'the long tail itself'
    fits = 'fitted' if max(losses) < whole_runs.FITTED else 'not fitted'
    loss = f'training loss {min(losses):.2g} to {max(losses):.2g} nats'
    return f'Trained on {images}, {fits} ({loss}):'


def row(group: Replicates) -> dict[str, str]:
    """A method: its exponents over seeds, and how far from balance."""
    found = balances_of(group.runs)[group.first.facts['method']].values()
    mean, spread = over_seeds([each.exponent for each in found])
    losses = [whole_runs.final_train_loss(run) for run in group.runs]
    return {
        'method': group.label,
        'seeds': whole_runs.seeds_of(group),
        'exponent k': number(mean, spread),
        'R² of the fit': number(*over_seeds([each.r_squared for each in found])),
        'distance from −1': number(mean + 1, sign=True),
        'training loss, nats': number(*over_seeds(losses)),
        'top-1 %': format_statistic(group, 'top1'),
    }


def accuracy(groups: Sequence[Replicates]) -> str:
    """In words: what class-balanced sampling does to the accuracy of Balanced Softmax."""
    by_method = {group.first.facts['method']: group for group in groups}
    if LOSS not in by_method:
        return ''
    points = whole_runs.gain(by_method[BOTH], by_method[LOSS])
    return f'Accuracy with both is {points} points from that of the loss alone.'


def balances_of(runs: Sequence[Run]) -> Balances:
    """What the weights of every run ended as."""
    found: dict[str, dict[int, Balance]] = {}
    for run in runs:
        _, weights = run.series('evaluation', 'gradient_weights')
        log_weights = np.log(weights[-1])
        equal = np.ptp(log_weights) < 1e-6
        correlation = np.corrcoef(np.log(run.class_counts), log_weights)[0, 1]
        found.setdefault(run.facts['method'], {})[run.facts['seed']] = Balance(
            float(run.final[FIELD]), math.nan if equal else float(correlation**2)
        )
    return found


def answer(balances: Balances) -> str:
    """In words: the exponents of loss and sampler together, fixed and learned.

    Args:
        balances: by method, of the one and the other at least.
    """

    def told(method: str) -> str:
        found = balances[method].values()
        exponent, _ = over_seeds([each.exponent for each in found])
        r_squared, _ = over_seeds([each.r_squared for each in found])
        law = '' if r_squared > POWER_LAW else f' (no power law: R² {number(r_squared)})'
        return f'{number(exponent)}{law}'

    words = (
        'Balanced Softmax with class-balanced sampling ends with weights that go as n to the '
        f'{told(BOTH)}; with the learned sampler, to the {told(LEARNED)}. '
    )
    if LOSS in balances:
        words += f'The loss alone reaches {told(LOSS)}. '
    fixed, learned = balances[BOTH], balances[LEARNED]
    nearer = [
        abs(fixed[seed].exponent + 1) - abs(learned[seed].exponent + 1)
        for seed in sorted(fixed.keys() & learned.keys())
    ]
    mean, error = mean_and_error(nearer)
    words += (
        f'One balance, −1, is {number(abs(mean), error)} '
        f'{"nearer" if mean > 0 else "farther"} with the learned sampler than with the fixed one'
    )
    if len(nearer) < 2:
        return f'{words} (one seed).'
    return f'{words}{"." if told_apart(nearer) else "; seeds do not tell the two apart."}'


if __name__ == '__main__':
    main()
