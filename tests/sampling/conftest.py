"""What all tests of draws ask."""

import numpy as np
import pytest
import scipy.stats

# The chance of a false alarm of a right sampler, at fixed keys: once seen to pass, none.
ALARM = 1e-3


@pytest.fixture(scope='session')
def assert_drawn_by():
    """Asserts that outcomes were drawn with these probabilities, by a chi-square test."""

    def assert_drawn(probabilities, drawn):
        probabilities = np.asarray(probabilities, np.float64)
        seen = np.bincount(np.asarray(drawn), minlength=probabilities.size)
        assert not seen[probabilities == 0].any()
        possible = probabilities > 0
        expected = probabilities[possible] / probabilities.sum() * len(drawn)
        assert scipy.stats.chisquare(seen[possible], expected).pvalue > ALARM

    return assert_drawn
