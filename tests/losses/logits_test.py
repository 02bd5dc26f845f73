"""Masks and labels fit the logits, or are named; padding that a mask excludes may be no class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balms_jax.losses import logits as arguments

LOGITS = jnp.zeros((4, 3, 2))


@pytest.mark.parametrize(
    ('shape', 'axes', 'whole'),
    [
        ((4, 3, 2), (2,), (4, 3, 2)),
        ((4, 3), (2,), (4, 3, 1)),
        ((4, 2), (1,), (4, 1, 2)),
        ((1, 3, 1), (2,), (1, 3, 1)),
        ((4,), (1, 2), (4, 1, 1)),
        ((1, 3, 2), (1, 2), (1, 3, 2)),
    ],
)
def test_a_mask_comes_to_the_rank_of_the_logits(shape, axes, whole):
    mask = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    for given in (mask, mask.astype(np.int32), jnp.asarray(mask)):
        where = arguments.fitting_where(given, LOGITS, axes)
        assert where.dtype == bool
        np.testing.assert_array_equal(where, mask.reshape(whole))
    # What fits stays as it is, so that it may be fitted again.
    np.testing.assert_array_equal(arguments.fitting_where(where, LOGITS, axes), where)


@pytest.mark.parametrize(
    ('shape', 'axes'),
    [
        ((4, 3, 3), (2,)),
        ((3, 4), (2,)),
        ((4,), (2,)),
        ((), (2,)),
        ((4, 3, 2, 1), (2,)),
        ((2, 3), (1,)),
        ((4, 3, 1), (1, 2)),  # Half of the classes' axes.
    ],
)
def test_a_mask_that_does_not_fit_is_named(shape, axes):
    with pytest.raises(ValueError, match=r'where: got shape .*, wanted the logits\''):
        arguments.fitting_where(np.ones(shape, bool), LOGITS, axes)


@pytest.mark.parametrize('mask', ['examples', 'elements'])
def test_excluded_labels_need_be_no_classes(mask):
    # Padding, which optax accepts: an error would tell known labels from traced ones.
    labels, included = jnp.array([1, -1, 2, 9]), np.array([True, False, True, False])
    logits = jnp.zeros((4, 3))
    where = arguments.fitting_where(
        included if mask == 'examples' else included[:, None] & (np.arange(3) > 0), logits, (1,)
    )
    places = arguments.integer_labels(labels, logits, (1,), where)
    np.testing.assert_array_equal(places[::2], [1, 2])
    assert jnp.all(places[1::2] >= 3)  # Past the end, where a gather fills in.
    traced = jax.jit(lambda *given: arguments.integer_labels(given[0], logits, (1,), given[1]))
    np.testing.assert_array_equal(traced(labels, where), places)


@pytest.mark.parametrize('label', [-1, 3])
def test_included_labels_are_classes(label):
    where = jnp.array([[True, False, False], [False, False, False]])
    with pytest.raises(ValueError, match=f'labels: got values from .*{label}'):
        arguments.integer_labels(jnp.array([label, 0]), jnp.zeros((2, 3)), (1,), where)
