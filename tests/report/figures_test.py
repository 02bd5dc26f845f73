"""A figure shows its arrays: right values, right order, nothing made up, nothing global."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from balms_jax.report import figure_style, figures, figures_over_time

COUNTS = np.array([5, 500, 50])  # On purpose not sorted.
NAMES = ['rare', 'frequent', 'middle']
COLORS = {'BALMS': '#d55e00'}
STAGES = [('stage_1', 100), ('stage_2', 50)]


def test_classes_stand_from_most_to_fewest_images():
    # Every figure by class is read from left to right as from head to tail.
    values = {'BALMS': np.array([0.1, 0.9, 0.5])}
    axes = figures.marginal_likelihood(values, COUNTS, NAMES, COLORS).axes[0]
    line = next(line for line in axes.lines if line.get_label() == 'BALMS')
    assert line.get_ydata().tolist() == [0.9, 0.5, 0.1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['frequent', 'middle', 'rare']


def test_absent_shot_group_has_no_bar_but_a_word():
    # A bar of height 0 would read as an accuracy of 0.
    accuracies = {'BALMS': np.array([0.8, np.nan])}
    axes = figures.accuracy_by_shot(accuracies, ['many', 'few'], COLORS).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.8]
    assert [text.get_text() for text in axes.texts] == ['80.0', 'none']


def test_confusion_rows_are_shares_of_the_true_class():
    counts = np.array([[8.0, 2.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0, 15.0]])
    figure = figures.confusion({'BALMS': counts}, COUNTS, NAMES)
    shares = np.asarray(figure.axes[0].images[0].get_array())
    # Order: frequent (no test image), middle, rare.
    expected = [[0, 0, 0], [0, 0.75, 0.25], [0.2, 0, 0.8]]
    np.testing.assert_allclose(shares, expected)


def test_gradient_weights_are_scaled_to_geometric_mean_one():
    # Only ratios mean anything, so that a common factor must not move a point.
    weights = np.array([[4.0, 1.0, 2.0], [np.nan, 1.0, 4.0]])

    def points(scale):
        series = {'BALMS': (np.array([1, 2]), scale * weights)}
        axes = figures_over_time.gradient_weights(series, COUNTS, COLORS).axes[0]
        return [line.get_ydata() for line in axes.lines if line.get_marker() == 'o']

    first, last = points(1.0)
    np.testing.assert_allclose(first, [2.0, 0.5, 1.0])
    np.testing.assert_allclose(last, [np.nan, 0.5, 2.0])
    np.testing.assert_allclose(points(1000.0), [first, last])


def test_reference_slopes_are_slopes():
    series = {'BALMS': (np.array([1]), np.ones((1, 3)))}
    axes = figures_over_time.gradient_weights(series, COUNTS, COLORS).axes[0]
    dashed = [line for line in axes.lines if line.get_marker() != 'o']
    slopes = [
        np.diff(np.log(line.get_ydata())) / np.diff(np.log(line.get_xdata())) for line in dashed
    ]
    np.testing.assert_allclose(np.ravel(slopes), [0, -1, -2], atol=1e-12)


def test_rates_are_coloured_by_class_count():
    rates = np.array([[0.5, 0.5, 0.5], [0.9, 0.2, 0.6]])
    figure = figures_over_time.rates_over_time(np.array([101, 150]), rates, COUNTS, STAGES)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    shown = {line.get_ydata()[-1]: to_hex(line.get_color()) for line in lines}
    assert shown[0.2] == to_hex(figure_style.COUNT_COLORS(1.0)), 'the most frequent class'
    assert shown[0.9] == to_hex(figure_style.COUNT_COLORS(0.0)), 'the rarest class'


def test_time_starts_with_the_first_stage_that_has_data():
    # Rates learned in stage 2 alone would be squeezed by an empty stage 1.
    rates = np.full((2, 3), 0.5)
    axes = figures_over_time.rates_over_time(np.array([101, 150]), rates, COUNTS, STAGES).axes[0]
    assert axes.get_xlim()[0] == 100
    assert [text.get_text() for text in axes.texts] == ['stage 2']


def test_a_lone_value_of_a_curve_is_a_dot():
    # A line through one point, as of a stage that was evaluated once, would be invisible.
    steps, values = np.array([10, 20, np.nan, 30]), np.array([0.1, 0.2, np.nan, 0.3])
    axes = figures_over_time.accuracy_curves({'BALMS': [(steps, values)]}, COLORS, STAGES).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == 'o'] == [[30]]


@pytest.mark.parametrize('methods', [['softmax', 'balms'], ['balms', 'balms', 'unheard of']])
def test_methods_differ_in_colour_and_keep_their_own(methods):
    colors = figure_style.method_colors({str(i): method for i, method in enumerate(methods)})
    assert len(set(colors.values())) == len(methods)
    assert colors[str(methods.index('balms'))] == figure_style.METHOD_COLORS['balms']


@pytest.mark.parametrize('classes', [2, 30])
def test_classes_without_images_and_equal_counts_are_drawn(classes):
    # Neither log(0) nor an empty colour range may warn (warnings are errors) or fail.
    values = {'BALMS': np.full(classes, 1 / classes)}
    names = [str(index) for index in range(classes)]
    for counts in (np.full(classes, 7), np.append(np.full(classes - 1, 7), 0)):
        steps, rates = np.array([1]), np.full((1, classes), 0.5)
        for figure in (
            figures.accuracy_by_class(values, counts, names, COLORS),
            figures.class_distribution(values, counts, names, COLORS),
            figures_over_time.rates_over_time(steps, rates, counts, STAGES),
            figures_over_time.gradient_weights({'BALMS': (steps, rates)}, counts, COLORS),
        ):
            assert figure_style.svg(figure).startswith(b'<?xml')


def test_svg_is_the_same_twice_and_settings_stay_alone():
    before = dict(matplotlib.rcParams)
    values = {'BALMS': np.array([0.1, 0.9, 0.5])}

    def draw():
        return figure_style.svg(figures.accuracy_by_class(values, COUNTS, NAMES, COLORS))

    first = draw()
    assert draw() == first
    assert b'dc:date' not in first
    assert dict(matplotlib.rcParams) == before
