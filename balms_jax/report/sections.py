"""The figures of a page, with captions and alternative texts."""

import math
from collections.abc import Sequence

import numpy as np

from balms_jax.report import figures, figures_over_time
from balms_jax.report.comparison import Replicates, absent_groups, in_words
from balms_jax.report.html import embedded
from balms_jax.report.runs import SHOT_GROUPS, shot_mask


class RunFigures:
    """What figures of one problem are drawn from."""

    def __init__(self, groups: Sequence[Replicates], colors: dict[str, str]):
        self.groups = groups
        self.colors = colors
        self.counts = groups[0].first.class_counts
        self.names = groups[0].first.class_names
        self.stages = max((group.first.stages for group in groups), key=len)

    def finals(self, field: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Means and deviations over seeds by label, of the groups that have the field."""
        both = {group.label: group.statistics(field) for group in self.groups}
        both = {label: pair for label, pair in both.items() if np.isfinite(pair[0]).any()}
        return (
            {label: mean for label, (mean, _) in both.items()},
            {label: deviation for label, (_, deviation) in both.items()},
        )

    def curves(self, kind: str, field: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """One curve a seed by label, of the groups that have the field."""
        found = {}
        for group in self.groups:
            curves = [_curve(run.series_by_stage(kind, field)) for run in group.runs]
            curves = [(steps, values) for steps, values in curves if np.isfinite(values).any()]
            if curves:
                found[group.label] = curves
        return found


class ProblemFigures(RunFigures):
    """The figures of one problem, as HTML, each drawn only where its data was recorded."""

    def accuracy(self) -> list[str]:
        """Accuracy by class, by shot group and over training."""
        items = []
        accuracies, deviations = self.finals('per_class_accuracy')
        if accuracies:
            many = len(self.counts) > 20
            spread = any(np.isfinite(values).any() for values in deviations.values())
            whiskers = spread and not many
            figure = figures.accuracy_by_class(
                accuracies, self.counts, self.names, self.colors, deviations
            )
            items.append(
                embedded(
                    figure,
                    'Accuracy of every class, from the most to the least training images'
                    + (' (points; lines are running means over 11 classes)' if many else '')
                    + ', before its number of training images (grey steps, log scale). '
                    + 'A method that balances well stays level where the steps fall. Dotted lines '
                    + 'divide many-, medium- and few-shot classes'
                    + ('; whiskers are standard deviations over seeds.' if whiskers else '.'),
                    f'Accuracy by class for {in_words(accuracies)}, with class counts.',
                )
            )
        shots = {group.label: group for group in self.groups if group.label in accuracies}
        if shots:
            items.append(self._shots(list(shots.values())))
        curves = self.curves('evaluation', 'top1')
        if curves:
            figure = figures_over_time.accuracy_curves(curves, self.colors, self.stages)
            caption = (
                'Top-1 accuracy on the test set during training, one line a seed. '
                'It is watched only: no epoch is selected by it.'
            )
            alt = f'Test accuracy curves of {in_words(curves)}.'
            items.append(embedded(figure, caption, alt))
        return items

    def _shots(self, groups: Sequence[Replicates]) -> str:
        fields = ('top1', *SHOT_GROUPS)
        pairs = {g.label: np.array([g.statistics(field) for field in fields]) for g in groups}
        sizes = [int(shot_mask(self.counts, name).sum()) for name in SHOT_GROUPS]
        names = ['all', *SHOT_GROUPS]
        ticks = [
            f'{name}\n{size} class{"" if size == 1 else "es"}'
            for name, size in zip(names, [len(self.counts), *sizes], strict=True)
        ]
        figure = figures.accuracy_by_shot(
            {label: pair[:, 0] for label, pair in pairs.items()},
            ticks,
            self.colors,
            {label: pair[:, 1] for label, pair in pairs.items()},
        )
        caption = (
            'Test accuracy (%) over all classes and by shot group: many (more than 100 training '
            'images), medium (20 to 100), few (fewer than 20). ' + absent_groups(self.counts)
        )
        return embedded(figure, caption, f'Accuracy by shot group for {in_words(pairs)}.')

    def learned(self) -> list[str]:
        """Learned rates or weights over training, and the draw they end in."""
        items = []
        for group in self.groups:
            run = group.first
            whose = f'{group.label}, seed {run.facts["seed"]}'
            for field, ylabel, top, caption in (
                (
                    'sampling_rates',
                    'sampling rate σ(ψ)',
                    1.0,
                    'learned sampling rate σ(ψ) of every class, coloured by its number of '
                    'training images. A class is drawn with probability q ∝ n·σ(ψ); equal '
                    'rates are instance-balanced draws.',
                ),
                (
                    'loss_weights',
                    'loss weight',
                    None,
                    'learned loss weight of every class (mean 1 over a batch), coloured by its '
                    'number of training images; equal weights leave the loss as it is.',
                ),
            ):
                steps, rates = run.series('rates', field)
                if field == 'sampling_rates' and len(run.series('rates', 'loss_weights')[0]):
                    continue  # A reweighter draws nothing by its rates.
                if len(steps):
                    figure = figures_over_time.rates_over_time(
                        steps, rates, self.counts, run.stages, ylabel, top=top
                    )
                    alt = f'{ylabel} of every class over training for {group.label}.'
                    items.append(embedded(figure, f'{whose}: {caption}', alt))
        draws = {}
        for group in self.groups:
            series = [run.series('rates', 'class_probabilities')[1] for run in group.runs]
            if all(len(values) for values in series):
                draws[group.label] = np.mean([values[-1] for values in series], axis=0)
        if draws:
            figure = figures.class_distribution(draws, self.counts, self.names, self.colors)
            caption = (
                'Probability q of drawing each class at the end of training (mean over seeds), '
                'between instance-balanced draws (q ∝ n) and class-balanced draws (q = 1/C).'
            )
            alt = f'Final class draw distribution of {in_words(draws)}.'
            items.append(embedded(figure, caption, alt))
        return items

    def balance(self) -> list[str]:
        """Marginal likelihood and effective gradient weights."""
        items = []
        likelihoods, _ = self.finals('marginal_likelihood')
        if likelihoods:
            items.append(
                embedded(
                    figures.marginal_likelihood(likelihoods, self.counts, self.names, self.colors),
                    'Marginal likelihood p(y): the mean predicted probability of each class on '
                    'the test set, classes weighed equally. Ideal is the level line 1/C; a fall to '
                    'the right means that rare classes are under-predicted, a rise that they are '
                    'over-predicted.',
                    f'Marginal likelihood by class for {in_words(likelihoods)}.',
                )
            )
        exponents = self.curves('evaluation', 'gradient_weight_exponent')
        if exponents:
            figure = figures_over_time.gradient_weight_exponent(exponents, self.colors, self.stages)
            caption = (
                'Exponent k of the effective gradient weight ∝ nᵏ (the slope of a log-log fit) '
                'during training, one line a seed. Balanced Softmax moves from 0 towards −1 as '
                'its loss vanishes; below −1 rare classes are over-balanced.'
            )
            alt = f'Gradient-weight exponent over training for {in_words(exponents)}.'
            items.append(embedded(figure, caption, alt))
        weights = {}
        for group in self.groups:
            steps, values = group.first.series('evaluation', 'gradient_weights')
            if np.isfinite(values).any():
                weights[group.label] = (steps, values)
        if weights:
            figure = figures_over_time.gradient_weights(weights, self.counts, self.colors)
            caption = (
                'Effective gradient weight of each class against its training images n at up to '
                'four times from light (early) to full colour (last), one seed, scaled to '
                'geometric mean 1. Dashed slopes: 0 leaves the imbalance, −1 balances it once, '
                '−2 is over-balance (the loss and the sampler both count 1/n).'
            )
            alt = f'Effective gradient weights against class counts for {in_words(weights)}.'
            items.append(embedded(figure, caption, alt))
        return items

    def training(self) -> list[str]:
        """Losses, calibration and confusions."""
        items = []
        losses = self.curves('train', 'loss')
        meta_losses = self.curves('train', 'meta_loss')
        if losses:
            figure = figures_over_time.loss_curves(losses, meta_losses, self.colors, self.stages)
            caption = (
                'Training loss in nats, averaged over short spans, one line a seed'
                + (
                    '; dashed, the meta loss: plain cross-entropy on the class-balanced meta set'
                    if meta_losses
                    else ''
                )
                + '. Methods minimise different losses, so compare shapes, not levels.'
            )
            alt = f'Training loss curves of {in_words(losses)}.'
            items.append(embedded(figure, caption, alt))
        items += self._reliability()
        confusions, _ = self.finals('confusion_matrix')
        if confusions:
            figure = figures.confusion(confusions, self.counts, self.names)
            caption = (
                'Confusion matrices: the share of each true class (rows, summing to 100 %) that '
                'is predicted as each class (columns), both from the most to the least training '
                'images; colour follows the square root of the share. Mass left of the diagonal '
                'is rare classes taken for frequent ones.'
            )
            alt = f'Confusion matrices of {in_words(confusions)}.'
            items.append(embedded(figure, caption, alt))
        return items

    def _reliability(self) -> list[str]:
        diagrams = {
            group.label: group.first.final['reliability']
            for group in self.groups
            if group.first.final.get('reliability')
        }
        if diagrams:
            figure = figures.reliability(diagrams, self.colors)
            caption = (
                'Reliability: accuracy of the images whose confidence falls into each bin (first '
                'seed), ideal on the diagonal; below, the share of test images in each bin. The '
                'expected calibration error (ECE) is the mean distance from the diagonal, '
                'weighted by these shares.'
            )
            alt = f'Reliability diagram of {in_words(diagrams)}.'
            return [embedded(figure, caption, alt)]
        return []


def _curve(
    stages: Sequence[tuple[np.ndarray, np.ndarray]], spans: int = 120
) -> tuple[np.ndarray, np.ndarray]:
    """Joins the stages' steps and values, with NaN between them so that the line breaks.

    Where there are more values than spans, each span's mean stands for it.
    """
    total = sum(len(steps) for steps, _ in stages)
    joined: tuple[list[float], list[float]] = [], []
    for steps, values in stages:
        number = max(min(round(spans * len(steps) / total), len(steps)), 1)
        for line, array in zip(joined, (steps, values), strict=True):
            pieces = np.array_split(array, number if total > spans else len(array))
            line += [*(piece.mean() for piece in pieces), math.nan]
    return np.array(joined[0]), np.array(joined[1])
