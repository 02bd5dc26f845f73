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
          fit over the classes, at the end of training and on the way (on the long tail itself at
          the first and the last step of the second stage); the training loss at the end. Where the
          network fits, the sampler also with a meta set that it has not fitted: a second subset
Expected  0 without rebalancing; towards −1 with Balanced Softmax or class-balanced sampling alone;
          below −1 with both; back near −1 where the sampler is learned
Found     on the long tail, which the network does not fit, −1.22 with both, −0.18 with Balanced
          Softmax alone and −0.16 with the learned sampler, no power laws; there class-balanced
          sampling costs Balanced Softmax 12.7 ± 0.4 points. Where it fits, −1.96 with both, −0.96
          with the loss alone and −0.80 with the learned sampler: it avoids the second balance of
          class-balanced sampling, and is 0.16 ± 0.02 farther from −1 than no sampler. Nor is −1
          what pays there: class-balanced sampling gains 0.7 ± 0.1 points, and a sampler learned
          on images that training never saw goes the same way, to −1.47 (cpu, seeds 0 to 2)
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from balms_jax.report import Run
from balms_jax.report.comparison import METHOD_NAMES, Replicates, format_statistic
from experiments import numbers, whole_runs
from experiments.numbers import caveat, mean_and_error, number, over_seeds
from experiments.whole_runs import Question, Variant

METHODS = (
    'softmax_decoupled',
    'softmax_decoupled_cbs',
    'balanced_softmax_decoupled',
    'balanced_softmax_decoupled_cbs',
    'balms',
)
LOSS, BOTH, LEARNED = METHODS[2:]
UNSEEN = f'{LEARNED}_redraw'  # The learned sampler with a meta set of images never trained on.
WORDS = {
    LOSS: 'the loss alone',
    BOTH: 'class-balanced sampling on top',
    LEARNED: 'the learned sampler',
    UNSEEN: 'a sampler learned on unseen images',
}
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


def _fitted_and_redrawn(config: ConfigDict) -> None:
    _fitted(config)
    config.stage_2.meta.source = 'redraw'


VARIANTS = {method + SUFFIX: Variant(method, _fitted) for method in METHODS}
VARIANTS[UNSEEN + SUFFIX] = Variant(LEARNED, _fitted_and_redrawn)
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
"""By role and seed."""


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    runs = whole_runs.train(options, QUESTION)
    labels = {name + SUFFIX: f'{METHOD_NAMES[name]}, few images' for name in METHODS}
    labels[UNSEEN + SUFFIX] = f'{METHOD_NAMES[LEARNED]}, few images, meta set redrawn'
    told, rows, drawn = [], [], []
    for of_few, names in enumerate((METHODS, VARIANTS)):
        part = [run for run in runs if whole_runs.name_of(run) in names]
        if not {BOTH, LEARNED} <= {role(run) for run in part}:
            continue
        groups, figures = whole_runs.figures_of(part, labels)
        rows += [row(group) for group in groups]
        drawn += figures.balance()[1:]
        told.append(
            f'{setting(part, bool(of_few))} {answer(balances_of(part))}\n{accuracy(groups)}'.strip()
        )
    whole_runs.write_page(options, QUESTION, '\n'.join(told), rows, drawn, runs)


def setting(runs: Sequence[Run], of_few: bool) -> str:
    """Which images the runs were trained on, and how well they are fitted."""
    losses = [whole_runs.final_train_loss(run) for run in runs]
    images = 'fewer images, unaltered' if of_few else 'the long tail itself'
    fits = 'fits' if max(losses) < whole_runs.FITTED else 'does not fit'
    loss = f'training loss {min(losses):.2g} to {max(losses):.2g} nats'
    return f'On {images}, which the network {fits} ({loss}),'


def role(run: Run) -> str:
    """What a run stands for on either set of images: a method, or ``UNSEEN``."""
    return whole_runs.name_of(run).removesuffix(SUFFIX)


def row(group: Replicates) -> dict[str, str]:
    """A method: its exponents over seeds, and how far from balance."""
    found = balances_of(group.runs)[role(group.first)].values()
    mean, spread = over_seeds([each.exponent for each in found])
    losses = [whole_runs.final_train_loss(run) for run in group.runs]
    return {
        'method': group.label,
        'seeds': numbers.seeds_of(group),
        'exponent k': number(mean, spread),
        'R² of the fit': number(*over_seeds([each.r_squared for each in found])),
        'distance from −1': number(mean + 1, sign=True),
        'training loss, nats': number(*over_seeds(losses)),
        'top-1 %': format_statistic(group, 'top1'),
    }


def accuracy(groups: Sequence[Replicates]) -> str:
    """In words: what fixed and learned sampling do to the accuracy of Balanced Softmax."""
    by_role = {role(group.first): group for group in groups}
    if LOSS not in by_role:
        return ''
    gains = '; '.join(
        f'with {WORDS[name]} {numbers.gain(by_role[name], by_role[LOSS])}'
        for name in (BOTH, LEARNED, UNSEEN)
        if name in by_role
    )
    return f'Accuracy beside the loss alone, points: {gains}.'


def balances_of(runs: Sequence[Run]) -> Balances:
    """What the weights of every run ended as."""
    found: dict[str, dict[int, Balance]] = {}
    for run in runs:
        _, weights = run.series('evaluation', 'gradient_weights')
        log_weights = np.log(weights[-1])
        equal = np.ptp(log_weights) < 1e-6
        correlation = np.corrcoef(np.log(run.class_counts), log_weights)[0, 1]
        found.setdefault(role(run), {})[run.facts['seed']] = Balance(
            float(run.final[FIELD]), math.nan if equal else float(correlation**2)
        )
    return found


def answer(balances: Balances) -> str:
    """In words: the exponents, and whether the learned sampler brings them nearer to −1.

    Args:
        balances: by role, of loss and sampler together, fixed and learned, at least.
    """

    def told(name: str) -> str:
        found = balances[name].values()
        exponent, _ = over_seeds([each.exponent for each in found])
        r_squared, _ = over_seeds([each.r_squared for each in found])
        law = '' if r_squared > POWER_LAW else f' (no power law: R² {number(r_squared)})'
        return f'{number(exponent)}{law} with {WORDS[name]}'

    def nearer(name: str, other: str) -> str:
        ours, theirs = balances[name], balances[other]
        differences = [
            abs(theirs[seed].exponent + 1) - abs(ours[seed].exponent + 1)
            for seed in sorted(ours.keys() & theirs.keys())
        ]
        mean, error = mean_and_error(differences)
        return (
            f'{WORDS[name]} is {number(abs(mean), error)} {"nearer" if mean > 0 else "farther"} '
            f'than {WORDS[other]}{caveat(differences, "not told apart")}'
        )

    ends = '; '.join(told(name) for name in WORDS if name in balances)
    pairs = ((LEARNED, BOTH), (LEARNED, LOSS), (UNSEEN, LOSS))
    distances = '; '.join(nearer(*pair) for pair in pairs if balances.keys() >= set(pair))
    return (
        f'the gradient weights of Balanced Softmax end as n to the power of {ends}.\n'
        f'From one balance, −1: {distances}.'
    )


if __name__ == '__main__':
    main()
