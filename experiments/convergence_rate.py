"""Which τ does the measured rate of convergence call for? R1Q1 and R4Q1 of the reply.

With a bound that shrinks as n^(−r), the margins that minimise it give CE(η + τ log π), τ = r/2: ¼
for the bound of the paper, r = ½, and 1, Balanced Softmax, for r = 2. Here r is measured.

Command   python -m experiments.convergence_rate --data_dir data [--scale cpu]
Scales    smoke  digits, one imbalance factor, two sizes
          cpu    ResNet-8 of width 8, CIFAR-10-LT, factors 10, 100 and 200, and the subset of factor
                 100 at a half and a quarter of its size
          paper  the same with the paper's recipe
Cost      cpu: five first stages of 3,600 steps a seed, and seconds for each τ; smoke: a minute
Ends in   experiments/results/convergence_rate/page.html
Measures  the generalisation gap of every class, its mean loss on the test set less that on its
          training images, without augmentation, under plain softmax and under Balanced Softmax on
          the same features; r, by least squares from gap = A_j n_j^−r with an A_j for each class,
          so that a class is compared with itself at other sizes; intervals by resampling classes,
          of which there are ten: they may be somewhat narrow.
          Not of log gap: gaps near 0, or below, would decide.
          Smaller subsets are passed over as often; at the other factors there are as many steps,
          11 to 21 passes. n_j is not told apart from the size of the whole set, nor could it be.
          Beside it top-1 accuracy over a sweep of τ, the classifier retrained on softmax features
Expected  r between ½ and 2; the best τ near 1, above r/2, as in the paper
Found     r of 0.28 (0.19 to 0.50) under softmax and 0.34 (0.22 to 0.54) under Balanced Softmax:
          τ of 0.14 and 0.17, and intervals that exclude the best of the sweep, which is 1 at all
          three factors: not told from 0.75 and 1.25 at factor 10, from 1.25 at factor 200 (cpu,
          seeds 0 to 2)
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from balms_jax import bounds
from balms_jax.models import Network
from balms_jax.report import Run
from balms_jax.report.comparison import (
    format_statistic,
    group_runs,
    paired_differences,
    undecided,
)
from balms_jax.report.figure_style import COUNT_COLORS, WIDE, new_figure, styled
from balms_jax.report.html import embedded
from balms_jax.training.inputs import feature_extractor
from balms_jax.training.measures import classified
from balms_jax.training.stage_states import load_trained
from experiments import numbers, whole_runs
from experiments.whole_runs import Question, Variant

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
MEASURED = {'softmax_decoupled': 'softmax', 'balanced_softmax_decoupled': 'Balanced Softmax'}
LARGEST_DIGITS = 128  # images of a class of digits, about
RESAMPLES = 2000
RATES = np.linspace(-1, 4, 1001)


def _of_tau(tau: float, config: ConfigDict) -> None:
    config.stage_2.loss.tau = tau


def _of_size(divisor: int, config: ConfigDict) -> None:
    """A smaller subset, and as many passes over it."""
    config.data.head_count = (config.data.head_count or LARGEST_DIGITS) // divisor
    for stage in (config.stage_1, config.stage_2):
        stage.steps //= divisor
        stage.optimizer.warmup_steps //= divisor


SWEEP = {
    f'tau_{tau:g}': Variant('balanced_softmax_decoupled', functools.partial(_of_tau, tau))
    for tau in TAUS
}
SIZES = {
    f'{method}_{name}': Variant(method, functools.partial(_of_size, divisor))
    for name, divisor in (('half', 2), ('quarter', 4))
    for method in MEASURED
}
VARIANTS = SWEEP | SIZES
FEW = (*MEASURED, *list(SIZES)[:2], 'tau_0', 'tau_1')
FACTORS = (10.0, 100.0, 200.0)
QUESTION = Question(
    __doc__,
    'convergence_rate',
    'Which τ does the rate of convergence call for?',
    ('softmax', *MEASURED, *SIZES, *SWEEP),
    FEW,
    needed=(*MEASURED, 'tau_0', 'tau_1'),
    variants=VARIANTS,
    factors={'cpu': FACTORS, 'paper': FACTORS},
    several=True,
)
OF_SIZES = dataclasses.replace(QUESTION, needed=())


class Gaps(NamedTuple):
    """Generalisation gaps; each ``[measurements]``, one a class of a run."""

    classes: np.ndarray
    counts: np.ndarray  # n
    gaps: np.ndarray  # nats


class Rate(NamedTuple):
    """r with its interval of 95 %."""

    value: float
    low: float
    high: float


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    sized = [name for name in options.methods if name in SIZES]
    options.methods = [name for name in options.methods if name not in SIZES]
    runs = whole_runs.train(options, QUESTION)
    middle = sorted(options.imbalance_factors)[len(options.imbalance_factors) // 2]
    smaller = argparse.Namespace(
        **{**vars(options), 'imbalance_factors': [middle], 'methods': sized}
    )
    if sized:
        runs += whole_runs.train(smaller, OF_SIZES)
    measured = {
        words: gaps_of([run for run in runs if _measures(run, method)])
        for method, words in MEASURED.items()
    }
    rates = {words: rate_of(gaps) for words, gaps in measured.items()}
    swept = [run for run in runs if whole_runs.name_of(run).startswith('tau_')]
    rows = [row(words, gaps, rates[words]) for words, gaps in measured.items()]
    rows += sweep_rows(swept)
    caption = (
        'The gap of every class against its number of training images, a dot a class and run, and '
        'the fit of each class, from dark (largest) to light (smallest); gaps not above 0 are in '
        'the fit and not in sight. Right: a τ of the sweep against accuracy, a line an imbalance '
        'factor; upright and shaded, r / 2 by either loss with its 95 % interval.'
    )
    drawn = [embedded(figure(measured, rates, swept), caption, 'Gaps and the sweep of τ')]
    whole_runs.write_page(options, QUESTION, answer(rates, swept), rows, drawn, runs)
    whole_runs.keep(smaller)


def _measures(run: Run, method: str) -> bool:
    name = whole_runs.name_of(run)
    return name == method or name in {f'{method}_half', f'{method}_quarter'}


def gaps_of(runs: Sequence[Run]) -> Gaps:
    """The gap of every class of every run; measured once."""
    parts = []
    for run in runs:
        measure = functools.partial(class_gaps, run)
        gaps = np.array(whole_runs.measured(run, 'generalisation_gaps', measure))
        parts.append((np.arange(gaps.size), run.class_counts, gaps))
    return Gaps(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def class_gaps(run: Run) -> list[float]:
    """Test loss less training loss of every class, ``[classes]``, nats, by plain softmax."""
    recipe, material, network, state = load_trained(run.path)
    source = material.source
    features = feature_extractor(network, state, recipe, source)
    counts = np.asarray(material.class_counts)
    of_train = _class_losses(
        network,
        state.params,
        features(material.train_images),
        np.repeat(np.arange(counts.size), counts),
    )
    of_test = _class_losses(network, state.params, features(source.test_images), source.test_labels)
    return [float(gap) for gap in of_test - of_train]


def _class_losses(
    network: Network, params: dict, features: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    logits = classified(network, params, jnp.asarray(features))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
    sums = jax.ops.segment_sum(losses, jnp.asarray(labels), logits.shape[-1])
    return np.asarray(sums) / np.bincount(labels, minlength=logits.shape[-1])


def misfits(gaps: Gaps) -> np.ndarray:
    """Squared errors of every class at every rate of ``RATES``, ``[classes, rates]``, nats².

    Of gap = A_j n^−r, with the A_j that fits the class best at that r. A class of one size fits at
    any rate. A gap that is not above 0 counts as any other.
    """
    found = []
    for j in np.unique(gaps.classes):
        own = gaps.classes == j
        powers = (gaps.counts[own] / gaps.counts[own].mean()) ** -RATES[:, None]
        fitted = (powers @ gaps.gaps[own]) ** 2 / np.sum(powers**2, axis=1)
        found.append(np.sum(gaps.gaps[own] ** 2) - fitted)
    return np.stack(found)


def rate_of(gaps: Gaps) -> Rate:
    """R by least squares, and what it is over resampled classes; NaN without two sizes."""
    squares = misfits(gaps)
    if np.ptp(squares) < 1e-12:
        return Rate(math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(len(squares), size=(RESAMPLES, len(squares)))
    resampled = RATES[np.argmin(squares[drawn].sum(1), axis=-1)]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Rate(float(RATES[np.argmin(squares.sum(0))]), float(low), float(high))


def levels_of(gaps: Gaps, rate: float) -> dict[int, float]:
    """The A_j of every class at a rate, nats."""
    found = {}
    for j in np.unique(gaps.classes):
        own = gaps.classes == j
        powers = gaps.counts[own] ** -rate
        found[int(j)] = float(powers @ gaps.gaps[own] / (powers @ powers))
    return found


def row(words: str, gaps: Gaps, rate: Rate) -> dict[str, str]:
    """A loss: its rate and the τ that it calls for."""
    return {
        'what': f'rate under {words}',
        'r (95 %)': _with_interval(rate),
        'τ = r / 2 (95 %)': _with_interval(taus_of(rate)),
        'gaps': f'{gaps.gaps.size}',
        'best τ': '',
        'top-1 %': '',
    }


def taus_of(rate: Rate) -> Rate:
    """The τ that a rate and its interval call for."""
    return Rate(*(float(bounds.optimal_tau(r)) for r in rate))


def _with_interval(rate: Rate) -> str:
    value, low, high = map(numbers.number, rate)
    return f'{value} ({low} to {high})'


def sweep_rows(swept: Sequence[Run]) -> list[dict[str, str]]:
    """Each imbalance factor's best τ of the sweep, and its accuracy."""
    rows = []
    for factor, by_tau in _by_factor(swept).items():
        tau = best_tau(by_tau)
        (group,) = group_runs(by_tau[tau])
        near = ', '.join(f'{other:g}' for other in not_told_from(tau, by_tau))
        rows.append(
            {
                'what': f'sweep at imbalance factor {factor:g}',
                'r (95 %)': '',
                'τ = r / 2 (95 %)': '',
                'gaps': '',
                'best τ': f'{tau:g}' + (f', not told from {near}' if near else ''),
                'top-1 %': format_statistic(group, 'top1'),
            }
        )
    return rows


def tau_of(run: Run) -> float:
    """The τ of a run of the sweep."""
    return float(run.config['stage_2']['loss']['tau'])


def _by_factor(swept: Sequence[Run]) -> dict[float, dict[float, list[Run]]]:
    found: dict[float, dict[float, list[Run]]] = {}
    for run in swept:
        of_factor = found.setdefault(run.facts['imbalance_factor'], {})
        of_factor.setdefault(tau_of(run), []).append(run)
    return found


def _accuracy(runs: Sequence[Run]) -> float:
    return 100 * float(np.mean([run.final['top1'] for run in runs]))


def best_tau(by_tau: dict[float, list[Run]]) -> float:
    """The τ of highest accuracy on the test set: a description, nothing is chosen by it."""
    return max(by_tau, key=lambda tau: _accuracy(by_tau[tau]))


def not_told_from(best: float, by_tau: dict[float, list[Run]]) -> list[float]:
    """The other τ that seeds do not tell from the best, of several seeds."""
    others = (tau for tau in sorted(by_tau) if tau != best)
    return [t for t in others if undecided(paired_differences(by_tau[best], by_tau[t], 'top1'))]


def answer(rates: dict[str, Rate], swept: Sequence[Run]) -> str:
    """In words: the τ that the rates call for, the ones that are best, and whether they agree."""
    found = _by_factor(swept)
    best = {factor: best_tau(by_tau) for factor, by_tau in found.items()}
    told = []
    for words, rate in rates.items():
        tau = taus_of(rate)
        inside = [f'{b:g}' for b in dict.fromkeys(best.values()) if tau.low <= b <= tau.high]
        agrees = f'does not exclude {" and ".join(inside)}' if inside else 'excludes those'
        told.append(
            f'Under {words} the gap shrinks as n to the −{_with_interval(rate)}, which calls for '
            f'τ = {_with_interval(tau)} and {agrees}.'
        )
    of_factors = []
    for factor, b in best.items():
        near = ' and '.join(f'{other:g}' for other in not_told_from(b, found[factor]))
        of_factors.append(
            f'{b:g} at imbalance factor {factor:g}' + (f' (not told from {near})' if near else '')
        )
    return f'Best in the sweep is τ = {", ".join(of_factors)}. {" ".join(told)}'


@styled
def figure(measured: dict[str, Gaps], rates: dict[str, Rate], swept: Sequence[Run]) -> Figure:
    """Gaps by class size for each loss, and the sweep of τ."""
    drawing = new_figure((WIDE[0], WIDE[1] + 0.3))
    panels = drawing.subplots(1, len(measured) + 1)
    for axes, (words, gaps) in zip(panels, measured.items(), strict=False):
        r, classes = rates[words].value, gaps.classes.max() + 1
        for j, level in levels_of(gaps, r).items():
            own, color = gaps.classes == j, COUNT_COLORS(1 - j / max(classes - 1, 1))
            axes.loglog(gaps.counts[own], gaps.gaps[own], '.', ms=4, color=color)
            ends = np.array([gaps.counts[own].min(), gaps.counts[own].max()], float)
            axes.loglog(ends, level * ends**-r, lw=0.7, color=color)
        axes.set(title=words, xlabel='training images n of a class', ylabel='gap, nats')
    axes = panels[-1]
    for shade, (factor, by_tau) in enumerate(_by_factor(swept).items()):
        taus = sorted(by_tau)
        means = [_accuracy(by_tau[tau]) for tau in taus]
        color = ('#0072b2', '#d55e00', '#009e73')[shade % 3]
        axes.plot(taus, means, 'o-', ms=3.5, lw=1.2, color=color, label=f'factor {factor:g}')
    for color, (words, rate) in zip(('#7a7a7a', '#56b4e9'), rates.items(), strict=False):
        tau = taus_of(rate)
        axes.axvspan(tau.low, tau.high, color=color, alpha=0.15, lw=0)
        axes.axvline(tau.value, color=color, lw=1, label=f'r / 2, {words}')
    axes.set(xlabel='τ', ylabel='top-1 accuracy, %')
    axes.legend()
    return drawing


if __name__ == '__main__':
    main()
