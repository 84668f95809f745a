"""Which rate is best, read between the points of the grid, and how well that is known.

Near its least a loss changes little with the rate: the best point of a grid jumps with the noise.
A parabola in the logarithm of the rate, through the best point and its neighbours, jumps less.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.studies.evidence.search import Search


def best_octave(search: Search, losses: Mapping[int, float]) -> float:
    """Return the logarithm to base 2 of the best rate.

    On the edge of the grid, or beside a run that diverged, it is that of the best point itself.
    """
    best = min(losses, key=lambda k: (losses[k], k))
    around = [losses.get(best + offset, np.inf) for offset in (-1, 0, 1)]
    return (best + _vertex(*around)) / search.per_octave


def resampled_octaves(
    search: Search, losses_S: Mapping[int, NDArray[np.float64]], *, draws_DS: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the best octave for each draw of seeds, (D,); seeds are drawn with replacement."""
    means = {k: values[draws_DS].mean(1) for k, values in losses_S.items()}
    return np.array(
        [
            best_octave(search, {k: float(mean[draw]) for k, mean in means.items()})
            for draw in range(len(draws_DS))
        ]
    )


def _vertex(left: float, middle: float, right: float) -> float:
    """Return where the parabola through (-1, left), (0, middle), (1, right) has its least."""
    curvature = left - 2 * middle + right
    if not np.isfinite(curvature) or curvature <= 0:
        return 0.0
    return (left - right) / (2 * curvature)
