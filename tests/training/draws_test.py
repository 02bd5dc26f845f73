"""Draws are of the classes that they say, and of the examples of those classes."""

import jax
import numpy as np
import pytest

from balms_jax.training import draws, recipe

pytestmark = pytest.mark.usefixtures('standard_promotion')

COUNTS = (8, 4, 2)
STEPS = 20


def halfway(name, key):
    """The draw of a stage of the named draws in the middle of it."""
    stage = recipe.Stage(steps=STEPS, batch_size=sum(COUNTS), draws=name)
    return draws.of_training_set(stage, COUNTS, None, key, STEPS // 2)


@pytest.mark.parametrize('name', recipe.DRAWS)
def test_draw_probabilities_are_those_of_the_draws(name):
    """The diagnostics use the probabilities, training the draws: they must not drift apart."""
    stage = recipe.Stage(steps=STEPS, draws=name)
    keys = jax.random.split(jax.random.key(0), 60)
    drawn = jax.vmap(lambda key: halfway(name, key).classes)(keys)
    share = np.bincount(drawn.ravel(), minlength=3) / drawn.size
    np.testing.assert_allclose(
        share, draws.draw_probabilities(stage, COUNTS, STEPS // 2), atol=0.06
    )


@pytest.mark.parametrize('name', recipe.DRAWS)
def test_a_draws_labels_are_its_examples_labels(name):
    """Data are sorted by class; a wrong boundary would train on wrong labels."""
    labels = np.repeat(np.arange(3), COUNTS)
    draw = halfway(name, jax.random.key(5))
    np.testing.assert_array_equal(labels[draw.examples], draw.classes)


@pytest.mark.parametrize('name', ['stratified', 'class_balanced'])
def test_a_meta_batch_is_class_balanced(name):
    """The meta loss stands for a balanced test set, whatever the meta set's own counts."""
    meta = recipe.Meta(draws=name, batch_size=900)
    draw = draws.of_meta_set(meta, COUNTS, jax.random.key(0), 0)
    labels = np.repeat(np.arange(3), COUNTS)
    np.testing.assert_array_equal(labels[draw.examples], draw.classes)
    each = np.bincount(draw.classes, minlength=3)
    np.testing.assert_allclose(each, 300, atol=0 if name == 'stratified' else 75)


@pytest.mark.parametrize('name', ['stratified', 'class_balanced'])
def test_a_meta_batch_has_no_example_of_an_empty_class(name):
    """There is none to draw: its label would stand beside another class's image."""
    counts = (0, 12, 0, 3)
    meta = recipe.Meta(draws=name, batch_size=400)
    draw = draws.of_meta_set(meta, counts, jax.random.key(0), 0)
    labels = np.repeat(np.arange(4), counts)
    np.testing.assert_array_equal(labels[draw.examples], draw.classes)
    np.testing.assert_allclose(
        np.bincount(draw.classes, minlength=4) / 400, [0, 0.5, 0, 0.5], atol=0.1
    )
