r"""How far estimates of a gradient are from the exact one: bias, spread, direction.

With μ the mean of an estimate, Σ its covariance and g the exact gradient,

.. math:: \text{bias} = \frac{\|\mu - g\|}{\|g\|}, \quad
    \text{scale} = \frac{\langle \mu, g \rangle}{\|g\|^2}, \quad
    \cos = \frac{\langle \mu, g \rangle}{\|\mu\| \|g\|}, \quad
    \text{spread} = \frac{\sqrt{\operatorname{tr} \Sigma}}{\|g\|}, \quad
    \text{noise} = \frac{\sqrt{\operatorname{tr} \Sigma}}{\|\mu\|}

Adam's steps do not know the scale: to it an estimate is as bad as its noise and its direction,
:math:`\sqrt{1 - \cos^2}`.
"""

from collections.abc import Callable

import numpy as np

GROUPS = 20


def of_moments(mean: np.ndarray, covariance: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The measures of an estimate whose moments are known.

    Args:
        mean: μ, ``[classes]``.
        covariance: Σ, ``[classes, classes]``.
        exact: g, ``[classes]``.

    Returns:
        Each measure by its name.
    """
    return _measures(mean @ mean, np.trace(covariance), mean @ exact, exact @ exact)


def of_samples(samples: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The measures of an estimate of which there are draws, with standard errors.

    What the finite number of draws adds to ‖μ‖² is taken off again. A standard error is the
    jackknife's over GROUPS groups of draws.

    Args:
        samples: ``[draws, classes]``.
        exact: g, ``[classes]``.

    Returns:
        Each measure by its name, its standard error by ``name_error``, and ``'one_cosine'``, the
        mean cosine of a single draw with g.
    """
    samples, exact = np.asarray(samples, np.float64), np.asarray(exact, np.float64)
    count = len(samples)

    def measures(draws: np.ndarray) -> dict[str, float]:
        mean, spread = draws.mean(0), draws.var(0, ddof=1).sum()
        squared = max(mean @ mean - spread / len(draws), 1e-300)
        return _measures(squared, spread, mean @ exact, exact @ exact)

    norms = np.linalg.norm(samples, axis=1) * np.linalg.norm(exact)
    cosines = samples @ exact / np.where(norms > 0, norms, 1)
    result = measures(samples)
    if count >= 2 * GROUPS:
        result |= _errors(samples, measures)
    result |= {'one_cosine': float(cosines.mean()), 'draws': float(count)}
    return result


def _measures(squared: float, spread: float, product: float, exact: float) -> dict[str, float]:
    # ‖μ − g‖² = ‖μ‖² − 2⟨μ, g⟩ + ‖g‖²
    bias = max(squared - 2 * product + exact, 0.0)
    cosine = np.clip(product / np.sqrt(squared * exact), -1, 1)
    return {
        'bias': float(np.sqrt(bias / exact)),
        'scale': float(product / exact),
        'cosine': float(cosine),
        'direction': float(np.sqrt(1 - cosine**2)),
        'spread': float(np.sqrt(spread / exact)),
        'noise': float(np.sqrt(spread / squared)),
    }


def _errors(
    samples: np.ndarray, measures: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, float]:
    groups = np.array_split(samples, GROUPS)
    left_out = [measures(np.concatenate(groups[:i] + groups[i + 1 :])) for i in range(GROUPS)]
    return {
        f'{name}_error': float(
            np.sqrt((GROUPS - 1) * np.var([values[name] for values in left_out]))
        )
        for name in left_out[0]
    }
