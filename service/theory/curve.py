"""The bound as a column of the eval curve."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from roadless.service.db.session import Database
from roadless.service.theory import reading
from roadless.service.theory.analysis import analyse
from roadless.service.theory.arithmetic import within_doubles
from roadless.service.theory.averaging import averaging_of
from roadless.service.theory.bounds import terms_at
from roadless.service.theory.concurrency import ConcurrencyLimit
from roadless.service.theory.reading import Record, TheoryUnavailable
from roadless.service.theory.views import known


class JobBounds:
    """The bounds of a job after some of its steps: an ``evaluations.routes.CurveBounds``."""

    def __init__(self, db: Database, limit: ConcurrencyLimit) -> None:
        self._db = db
        self._limit = limit

    async def __call__(
        self, job_id: str, project: str, steps: Sequence[int]
    ) -> Mapping[int, float | None]:
        """Return the bound after each of the steps that has one; nothing for a job without any."""
        return await self._limit.run(partial(self._bounds, job_id, project, steps))

    def _bounds(self, job_id: str, project: str, steps: Sequence[int]) -> dict[int, float | None]:
        try:
            with self._db.read() as session:
                record = reading.read(session, job_id, project)
            with within_doubles(TheoryUnavailable):
                return _bounds_at(record, steps)
        except TheoryUnavailable:
            return {}


def _bounds_at(record: Record, steps: Sequence[int]) -> dict[int, float | None]:
    averaging = averaging_of(record.spec.optimizer)
    distance = analyse(record, averaging, distance=None).distance
    reached = np.array([step for step in steps if 1 <= step <= record.blocks.num_steps], np.int64)
    bounds = terms_at(record.blocks, reached, averaging=averaging).at(distance.value)
    return {int(step): known(bound) for step, bound in zip(reached, bounds, strict=True)}
