"""The figures of a detector's page, with captions and alternative texts."""

from collections.abc import Container, Sequence
from typing import cast

import numpy as np

from balms_jax.report import detector_figures, figures, figures_over_time
from balms_jax.report.comparison import Replicates, format_statistic, in_words
from balms_jax.report.detector_pictures import CONFIDENT, pictures_figure
from balms_jax.report.detector_runs import (
    FREQUENCY_GROUPS,
    GROUP_MEASURES,
    LOSS_PARTS,
    DetectorRun,
    Picture,
)
from balms_jax.report.html import embedded
from balms_jax.report.sections import RunFigures

MOST_METHODS = 5  # beside one another in the pictures
COUNTED_IMAGES = 'training images of the category'
PART_NAMES = {
    'objectness': 'objectness of anchors',
    'proposals': 'boxes of proposals',
    'categories': 'categories of regions',
    'boxes': 'boxes of regions',
    'masks': 'masks of regions',
}


def detector_runs(group: Replicates) -> tuple[DetectorRun, ...]:
    """The runs of a group, which are of a detector."""
    return cast(tuple[DetectorRun, ...], group.runs)


class DetectorFigures(RunFigures):
    """The figures of one problem, as HTML, each drawn only where its data was recorded."""

    def __init__(self, groups: Sequence[Replicates], colors: dict[str, str]):
        super().__init__(groups, colors)
        self.run = detector_runs(groups[0])[0]
        finished = [group for group in groups if group.first.finished]
        self.measured = detector_runs((finished or groups)[0])[0].measured

    def pictures(self) -> list[str]:
        """What the methods find in the first test images."""
        found = {group.label: detector_runs(group)[0].pictures for group in self.groups}
        common = _common({label: held for label, held in found.items() if held})
        if not common:
            return []
        methods = dict([*common.items()][:MOST_METHODS])
        has_truth = all(picture.there is not None for picture in next(iter(methods.values())))
        caption = (
            'The first test images with the objects that are found in them by a run of each method '
            f'(first seed): masks with a score of at least {CONFIDENT:g}; where several categories '
            'are found in one place, the best. '
            + ('Left, the true objects. ' if has_truth else '')
            + 'In the panels of an image a category has one colour, so that a confusion shows as '
            + 'another colour.'
        )
        if len(common) > len(methods):
            caption += f' The first {MOST_METHODS} of {len(common)} methods.'
        alt = f'Test images with the masks found by {in_words(methods)}.'
        return [embedded(pictures_figure(methods, self.names), caption, alt)]

    def precision(self) -> list[str]:
        """Average precision by category, by frequency group and over training."""
        items = []
        of_categories, _ = self.finals('of_categories')
        if of_categories:
            figure = detector_figures.by_image_count(
                of_categories,
                self.counts,
                self.run.frequencies,
                self.colors,
                f'AP of {self.measured}',
                of_precision=True,
            )
            width = detector_figures.smoothing_width(len(self.counts))
            caption = (
                f'Average precision (AP) of the {self.measured} of every category against the '
                'training images that hold it (points, means over seeds; lines are running means '
                f'over {width} categories). A method that balances well stays level to the left. '
                'Dotted lines divide rare, common and frequent categories.'
            )
            alt = f'AP by category against image counts for {in_words(of_categories)}.'
            items.append(embedded(figure, caption, alt))
        with_groups = [g for g in self.groups if np.isfinite(g.statistics('AP')[0])]
        if with_groups:
            items.append(self._groups(with_groups))
        curves = self.curves('evaluation', 'AP')
        if any(len(group.first.series('evaluation', 'AP')[0]) > 1 for group in self.groups):
            figure = figures_over_time.accuracy_curves(
                curves, self.colors, self.stages, f'AP of {self.measured}'
            )
            caption = (
                f'AP of {self.measured} on the test set during training, one line a seed. '
                'It is watched only: no step is selected by it. Methods that share a first stage '
                'share its line.'
            )
            items.append(embedded(figure, caption, f'AP curves of {in_words(curves)}.'))
        return items

    def _groups(self, groups: Sequence[Replicates]) -> str:
        fields = ('AP', *GROUP_MEASURES)
        pairs = {g.label: np.array([g.statistics(field) for field in fields]) for g in groups}
        means = {label: pair[:, 0] for label, pair in pairs.items()}
        deviations = {label: pair[:, 1] for label, pair in pairs.items()}
        names = ['all', *(FREQUENCY_GROUPS[f] for f in GROUP_MEASURES.values())]
        sizes = [(self.run.frequencies == f).sum() for f in GROUP_MEASURES.values()]
        ticks = [
            f'{name}\n{size} categor{"y" if size == 1 else "ies"}'
            for name, size in zip(names, [len(self.counts), *sizes], strict=True)
        ]
        highest = max(np.nanmax(means[x] + np.nan_to_num(deviations[x])) for x in means)
        figure = figures.accuracy_by_shot(
            means,
            ticks,
            self.colors,
            deviations,
            ylabel=f'AP of {self.measured}',
            top=max(1.15 * highest, 0.01),
        )
        caption = (
            f'AP of {self.measured} (%) over all categories and by frequency group: how many '
            'training images hold a category decides whether it is frequent, common or rare'
            + _ranges(self.counts, self.run.frequencies)
            + '. '
            + absent_groups(groups[0])
        )
        return embedded(figure, caption.strip(), f'AP by frequency group for {in_words(pairs)}.')

    def learned(self) -> list[str]:
        """The weights that a rebalancer has learned, at the end and over training."""
        items = []
        weights, _ = self.finals('weights')
        if weights:
            figure = detector_figures.by_image_count(
                weights, self.counts, self.run.frequencies, self.colors, 'weight σ(ψ)'
            )
            caption = (
                'Learned weight σ(ψ) of the foreground of every category at the end of training, '
                'against the training images that hold it (points, means over seeds; lines are '
                'running means). It starts at 0.5; equal weights leave the loss as it is.'
            )
            alt = f'Learned weights against image counts for {in_words(weights)}.'
            items.append(embedded(figure, caption, alt))
        for group in self.groups:
            steps, over_time = group.first.series('rates', 'weights')
            if len(steps):
                figure = figures_over_time.rates_over_time(
                    steps, over_time, self.counts, group.first.stages, 'weight σ(ψ)', COUNTED_IMAGES
                )
                caption = (
                    f'{group.label}, seed {group.first.facts["seed"]}: learned weight σ(ψ) of '
                    'every category over training, coloured by the training images that hold it.'
                )
                alt = f'Learned weight of every category over training for {group.label}.'
                items.append(embedded(figure, caption, alt))
        return items

    def balance(self) -> list[str]:
        """The effective gradient weight of every category."""
        weights, exponents = {}, {}
        for group in self.groups:
            final, run = group.first.final, group.first
            # One category has nothing to be balanced with.
            if np.isfinite(final.get('gradient_weights', np.nan)).sum() > 1:
                end = sum(steps for _, steps in run.stages)
                weights[group.label] = (np.array([end]), final['gradient_weights'][None])
                if np.isfinite(exponent := final.get('gradient_weight_exponent', np.nan)):
                    exponents[group.label] = exponent
        if not weights:
            return []
        figure = figures_over_time.gradient_weights(
            weights,
            self.run.object_counts,
            self.colors,
            exponents=exponents,
            counted='training objects of the category, n',
        )
        caption = (
            'Effective gradient weight of the foreground of each category at the end of training '
            'against its training objects n, one seed, scaled to geometric mean 1; the line has '
            'the fitted slope. Dashed slopes: 0 leaves the imbalance, −1 balances it, −2 is '
            f'over-balance. Slopes over seeds: {self._slopes(weights)}.'
        )
        alt = f'Effective gradient weights against object counts for {in_words(weights)}.'
        return [embedded(figure, caption, alt)]

    def _slopes(self, labels: Container[str]) -> str:
        """The exponent of each method."""
        return in_words(
            f'{group.label} {format_statistic(group, "gradient_weight_exponent")}'
            for group in self.groups
            if group.label in labels
        )

    def losses(self) -> list[str]:
        """The training loss and its parts."""
        parts = {'total': self.curves('train', 'loss')}
        parts |= {PART_NAMES[part]: self.curves('train', part) for part in LOSS_PARTS}
        parts = {name: curves for name, curves in parts.items() if curves}
        if not parts:
            return []
        meta = self.curves('train', 'meta_loss')
        figure = detector_figures.loss_parts(parts, meta, self.colors, self.stages)
        caption = (
            'Training loss and the parts that it is the sum of, averaged over short spans, one '
            'line a seed; where the class layer alone is trained, the loss of categories is all'
            + ('. Dashed, the meta loss on images drawn for their rare categories' if meta else '')
            + '. Methods minimise different losses of categories, so compare shapes, not levels.'
        )
        return [embedded(figure, caption, 'Training loss and its five parts over training.')]


def absent_groups(group: Replicates) -> str:
    """Says for which frequency groups there is no precision; empty if for none."""
    absent = [
        FREQUENCY_GROUPS[f] for field, f in GROUP_MEASURES.items() if group.first.lacks(field)
    ]
    words = in_words(absent) if absent else ''
    return f'None of the categories that are tested is {words}.' if absent else ''


def _ranges(counts: np.ndarray, frequencies: np.ndarray) -> str:
    """From how many images to how many each frequency group goes."""
    held = {f: counts[frequencies == f] for f in FREQUENCY_GROUPS if (frequencies == f).any()}
    told = [f'{FREQUENCY_GROUPS[f]} {n.max():,} to {n.min():,}' for f, n in held.items()]
    return f' (here {in_words(told)} images)'


def _common(pictures: dict[str, tuple[Picture, ...]]) -> dict[str, list[Picture]]:
    """Of each method the pictures of the images that all methods have."""
    by_image = {
        label: {(picture.place, picture.pixels.tobytes()): picture for picture in held}
        for label, held in pictures.items()
    }
    shared = [
        key
        for key in next(iter(by_image.values()), {})
        if all(key in held for held in by_image.values())
    ]
    if not shared:
        return {}
    return {label: [held[key] for key in shared] for label, held in by_image.items()}
