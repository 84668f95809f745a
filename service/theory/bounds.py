"""The bound of a job's steps at several horizons, split by what the distance D does to it. Pure.

Averaged jobs are bounded at x, the others at their last iterate; ``roadless.optim.theory.bounds``
has the formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from roadless.optim.theory.bounds import BoundTerms, schedule_free_bounds_at, split_bound
from roadless.service.theory.averaging import Averaging
from roadless.service.theory.steps import Blocks, Floats, Ints, Steps

#: A distance at which the terms without D stay as they are.
_NO_DISTANCE = 1e-100


@dataclass(frozen=True)
class Terms:
    """The bound D² * ``distance`` + ``noise`` + ``last`` at each horizon; NaN where none exists.

    ``last`` is the cost of the last iterate, 0 for an average. All of shape (n,).
    """

    distance: Floats
    noise: Floats
    last: Floats

    def __getitem__(self, chosen: slice | Ints) -> Self:
        return replace(
            self,
            distance=self.distance[chosen],
            noise=self.noise[chosen],
            last=self.last[chosen],
        )

    def at(self, distance: float) -> Floats:
        """Return the bounds for a start at ``distance`` from the optimum."""
        return distance**2 * self.distance + self.noise + self.last


def terms_at(
    blocks: Blocks, horizons: Sequence[int] | Ints, *, averaging: Averaging | None
) -> Terms:
    """Return the terms after each of the horizons, 1 to ``blocks.num_steps``."""
    wanted = np.asarray(horizons, np.int64)
    if averaging is None:
        return _terms_of_last_iterate(blocks, wanted)
    return _terms_of_average(blocks, wanted, averaging)


def _terms_of_last_iterate(blocks: Blocks, horizons: Ints) -> Terms:
    split = [_split_until(blocks, int(horizon)) for horizon in horizons]
    rows = np.array([(one.t1, one.t2, one.t3) for one in split]).reshape(-1, 3)
    return Terms(*rows.T)


def _split_until(blocks: Blocks, horizon: int) -> BoundTerms:
    steps = blocks.until(horizon)
    if steps.eta[-1] == 0:  # nothing bounds an iterate after a step that was not taken
        return BoundTerms(kind="refined", t1=np.nan, t2=np.nan, t3=np.nan)
    return split_bound(steps.eta, steps.grad_norms, D=1.0)


def _terms_of_average(blocks: Blocks, horizons: Ints, averaging: Averaging) -> Terms:
    first, steps = _averaged(blocks, averaging)
    if not steps.eta.size:
        nowhere = np.full(horizons.size, np.nan)
        return Terms(nowhere, nowhere, nowhere)
    powers = {"r": averaging.r, "weight_lr_power": averaging.power}
    distance = schedule_free_bounds_at(steps.eta, 0.0, D=1.0, **powers)
    noise = schedule_free_bounds_at(steps.eta, steps.grad_norms, D=_NO_DISTANCE, **powers)
    ends = (first + np.arange(1, steps.eta.size + 1)) * blocks.size
    return Terms(
        distance=_between(horizons, ends, distance),
        noise=_between(horizons, ends, noise),
        last=np.zeros(horizons.size),
    )


def _averaged(blocks: Blocks, averaging: Averaging) -> tuple[int, Steps]:
    """Return the blocks that count, up to the first rate of 0, and the index of their first one."""
    steps = blocks.even()
    moving = steps.eta > 0
    moving[: averaging.skipped // blocks.size] = False
    first = int(np.argmax(moving))
    length = int(np.argmin(np.append(moving[first:], False)))
    return first, Steps(*(row[first : first + length] for row in steps))


def _between(horizons: Ints, ends: Ints, bounds: Floats) -> Floats:
    """Read bounds between the ends of blocks; T * bound is close to a line."""
    products = np.interp(horizons, ends, bounds * ends, left=np.nan, right=np.nan)
    return np.asarray(products / horizons)
