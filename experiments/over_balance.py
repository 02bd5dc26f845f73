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
Found     FOUND
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from balms_jax.report import Run
from balms_jax.report.comparison import METHOD_NAMES, Replicates, format_statistic
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
FIELD = 'gradient_weight_exponent'
FIFTH = 5
SUFFIX = '_fitted'


def _fitted(config: ConfigDict) -> None:
    """Fewer images, none of them altered: a small network learns them by heart."""
    config.data.augmentation = 'none'
    if config.data.head_count:  # The digits are few as they are.
        config.data.head_count //= FIFTH


FITTED = {method + SUFFIX: Variant(method, _fitted) for method in METHODS}
QUESTION = Question(
    'over_balance',
    'Over-balance: how often is the imbalance counted?',
    (*METHODS, *FITTED),
    (BOTH, LEARNED, BOTH + SUFFIX, LEARNED + SUFFIX),
    needed=(BOTH, LEARNED),
    variants=FITTED,
)
Exponents = Mapping[str, Mapping[int, float]]
"""By method and seed."""


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(__doc__, QUESTION)
    runs = whole_runs.train(options, QUESTION)
    labels = {name + SUFFIX: f'{METHOD_NAMES[name]}, fitted' for name in METHODS}
    answers, rows, drawn = [], [], []
    for words, names in (
        ('At a training loss of {} nats: ', METHODS),
        ('Where the training set is fitted, to {} nats: ', FITTED),
    ):
        part = [run for run in runs if whole_runs.name_of(run) in names]
        if not {BOTH, LEARNED} <= {run.facts['method'] for run in part}:
            continue
        groups, figures = whole_runs.figures_of(part, labels)
        rows += [row(group) for group in groups]
        drawn += figures.balance()[1:]
        loss = np.mean([whole_runs.final_train_loss(run) for run in part])
        answers.append(f'{words.format(f"{loss:.1g}")}{answer(exponents_of(part))}')
    whole_runs.write_page(options, QUESTION, ' '.join(answers), rows, drawn, runs)


def row(group: Replicates) -> dict[str, str]:
    """A method: its exponents over seeds, and how far from balance."""
    exponents = exponents_of(group.runs)[group.first.facts['method']]
    mean, spread = over_seeds([*exponents.values()])
    losses = [whole_runs.final_train_loss(run) for run in group.runs]
    return {
        'method': group.label,
        'seeds': whole_runs.seeds_of(group),
        'exponent k': number(mean, spread),
        'distance from −1': number(mean + 1, sign=True),
        'training loss, nats': number(*over_seeds(losses)),
        'top-1 %': format_statistic(group, 'top1'),
    }


def exponents_of(runs: Sequence[Run]) -> Exponents:
    """The exponent at the end of every run."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        of_method = found.setdefault(run.facts['method'], {})
        of_method[run.facts['seed']] = float(run.final[FIELD])
    return found


def answer(exponents: Exponents) -> str:
    """In words: the exponents of loss and sampler together, fixed and learned.

    Args:
        exponents: by method, of the one and the other at least.
    """
    fixed, learned = exponents[BOTH], exponents[LEARNED]
    of_fixed, of_learned = (over_seeds([*each.values()])[0] for each in (fixed, learned))
    told = [
        'Balanced Softmax with class-balanced sampling ends with weights that go as n to the '
        f'{number(of_fixed)}; with the learned sampler, to the {number(of_learned)}.'
    ]
    if LOSS in exponents:
        alone, _ = over_seeds([*exponents[LOSS].values()])
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
