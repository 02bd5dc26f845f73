"""A detector's figures show their arrays: every category where its count is, none made up."""

import numpy as np
import pytest

from balms_jax.report import detector_figures, figure_style, figures_over_time

COUNTS = np.array([5, 500, 50, 8])  # On purpose not sorted.
FREQUENCIES = np.array(['r', 'f', 'c', 'r'])
COLORS = {'BALMS': '#d55e00'}
STAGES = [('stage_1', 100), ('stage_2', 50)]


def draw(values, frequencies=FREQUENCIES, counts=COUNTS):
    figure = detector_figures.by_image_count(
        {'BALMS': np.array(values)}, counts, frequencies, COLORS, 'AP', of_precision=True
    )
    assert figure_style.svg(figure).startswith(b'<?xml')
    return figure.axes[0]


def test_a_category_stands_at_its_count():
    axes = draw([0.1, 0.4, 0.3, 0.2])
    points = next(line for line in axes.lines if line.get_label() == 'BALMS')
    pairs = zip(points.get_xdata(), points.get_ydata(), strict=True)
    assert sorted(pairs) == [(5, 0.1), (8, 0.2), (50, 0.3), (500, 0.4)]


def test_a_category_without_precision_has_no_point():
    # NaN is a category without an object at test; 0 would be one that is never found.
    points = next(line for line in draw([np.nan, 0.4, 0.3, 0.2]).lines if line.get_marker() == 'o')
    assert sorted(points.get_xdata()) == [8, 50, 500]


def test_frequency_groups_are_divided_where_counts_divide_them():
    axes = draw([0.1, 0.4, 0.3, 0.2])
    assert [text.get_text() for text in axes.texts] == ['rare', 'common', 'frequent']
    dotted = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    np.testing.assert_allclose(dotted, [20, np.sqrt(50 * 500)])  # √(8 · 50), √(50 · 500)
    # A part of LVIS has groups that its own counts do not divide: a line would be wrong.
    assert not draw([0.1, 0.4, 0.3, 0.2], np.array(['f', 'r', 'c', 'c'])).texts


@pytest.mark.parametrize('values', [[0.0] * 4, [0.5, np.nan, np.nan, np.nan]])
def test_zeros_and_single_categories_are_drawn(values):
    # Neither an empty range nor log(0) may warn (warnings are errors) or fail.
    draw(values)
    draw(values, counts=np.array([0, 500, 50, 8]))
    draw(values, counts=np.full(4, 7), frequencies=np.full(4, 'r'))


def test_every_part_of_the_loss_has_a_panel_and_the_meta_loss_is_beside_the_total():
    curve = [(np.arange(1, 101), np.geomspace(4, 1, 100))]
    losses = {'total': {'BALMS': curve}, 'masks': {'BALMS': curve}}
    figure = detector_figures.loss_parts(losses, {'BALMS': curve}, COLORS, STAGES)
    total, masks = figure.axes
    assert [axes.get_title('left') for axes in (total, masks)] == ['total', 'masks']
    assert [line.get_linestyle() for line in total.lines] == ['-', '--']
    assert [line.get_linestyle() for line in masks.lines] == ['-']


def test_fitted_slope_is_drawn_with_its_slope():
    # The line must be the table's exponent, not another fit.
    series = {'BALMS': (np.array([1]), 1.0 / COUNTS[None])}
    axes = figures_over_time.gradient_weights(
        series, COUNTS, COLORS, exponents={'BALMS': -0.7}
    ).axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == 'slope −0.70']
    slope = np.diff(np.log(line.get_ydata())) / np.diff(np.log(line.get_xdata()))
    np.testing.assert_allclose(slope, -0.7)


def test_one_category_has_no_slope_to_draw():
    # A set of one category, such as pedestrians, has nothing to be balanced with.
    weights = {'Sigmoid': (np.array([10]), np.array([[1.0]]))}
    figure = figures_over_time.gradient_weights(weights, np.array([308]), {'Sigmoid': '#7a7a7a'})
    assert not [line for line in figure.axes[0].lines if line.get_marker() == 'o']
