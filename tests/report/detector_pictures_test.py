"""Pictures show the confident detections and the truth, legibly and in the right place."""

import itertools

import numpy as np

from balms_jax.report import figure_style
from balms_jax.report.detector_pictures import (
    FINEST,
    label_places,
    pictures_figure,
    shown,
    true,
)
from balms_jax.report.detector_runs import Picture, PicturedObject

NAMES = ['disc', 'square', 'ring']
LEFT, RIGHT = (2.0, 2.0, 12.0, 12.0), (18.0, 4.0, 28.0, 14.0)


def an_object(category, score, frame):
    return PicturedObject(category, score, np.ones((28, 28), np.float32), np.array(frame))


def a_picture(*found, there=None):
    return Picture(0, np.full((16, 32, 3), 90, np.uint8), found, there)


def test_only_confident_detections_are_shown_best_first():
    picture = a_picture(an_object(0, 0.4, LEFT), an_object(1, 0.6, LEFT), an_object(2, 0.9, RIGHT))
    assert [each.text for each in shown(picture, NAMES)] == ['ring 0.90', 'square 0.60']


def test_of_several_categories_in_one_place_the_best_is_shown():
    # A sigmoid a category finds one region as many: drawn over one another none could be read.
    picture = a_picture(an_object(0, 0.9, LEFT), an_object(1, 0.8, LEFT), an_object(1, 0.7, RIGHT))
    assert [each.text for each in shown(picture, NAMES)] == ['disc 0.90', 'square 0.70']


def test_a_mask_lies_where_it_is_in_the_image():
    # Drawn finer than the pixels are: in the same proportions of the image.
    picture = a_picture(there=(an_object(0, 1.0, LEFT),))
    (each,) = true(picture, NAMES)
    assert each.mask.shape == (FINEST // 2, FINEST)
    rows, columns = np.nonzero(each.mask)
    pixel = FINEST / 32
    # From the centre of pixel 2 to that of pixel 12.
    np.testing.assert_allclose([columns.min(), columns.max()], [2.5 * pixel, 12.5 * pixel], atol=1)
    np.testing.assert_allclose([rows.min(), rows.max()], [2.5 * pixel, 12.5 * pixel], atol=1)


def test_labels_stay_within_the_panel_and_apart():
    rng = np.random.default_rng(0)
    wanted = [tuple(place) for place in rng.uniform(-10, 110, (8, 2))]
    sizes = [(40.0, 10.0)] * 8
    places = np.array(list(label_places(wanted, sizes, (100.0, 100.0))))
    assert (places >= 0).all()
    assert (places <= [60, 90]).all()
    for one, other in itertools.combinations(places, 2):
        apart = np.abs(one - other) >= np.array([40, 10]) - 1e-6
        assert apart.any()


def test_a_category_has_one_colour_in_all_panels_of_an_image():
    # A confusion then shows as a change of colour.
    there = (an_object(0, 1.0, LEFT), an_object(1, 1.0, RIGHT))
    one = a_picture(an_object(1, 0.9, RIGHT), an_object(0, 0.8, LEFT), there=there)
    other = a_picture(an_object(2, 0.9, RIGHT), there=there)
    figure = pictures_figure({'a': [one], 'b': [other]}, NAMES)
    assert figure_style.svg(figure).startswith(b'<?xml')
    panels = [
        {t.get_text().split()[0]: t.get_bbox_patch().get_facecolor() for t in axes.texts}
        for axes in figure.axes
        if axes.texts
    ]
    assert [set(panel) for panel in panels] == [{'disc', 'square'}, {'disc', 'square'}, {'ring'}]
    assert panels[0] == panels[1]
    assert panels[2]['ring'] not in panels[0].values()


def test_names_of_files_are_no_mathematics_and_many_pictures_fit():
    # A $ begins a formula in matplotlib, which would fail; and a page has an end.
    picture = a_picture(an_object(0, 0.9, LEFT))
    figure = pictures_figure({'$x^$': [picture] * 60}, ['$x^$', 'b', 'c'])
    assert figure_style.svg(figure).startswith(b'<?xml')
    assert figure.get_size_inches()[1] < 12
