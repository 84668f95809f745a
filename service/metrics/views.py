"""Answers of the metrics package: summaries, and one series in buckets along any axis.

Samples, tokens and seconds are separate series; another axis is a join on the step.
"""

from typing import Literal, NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from roadless.service.contract.resources import MetricBuckets, MetricSummary, Page
from roadless.service.errors import NotFound
from roadless.service.metrics import chunks, store
from roadless.service.metrics.chunks import Points
from roadless.service.metrics.rollup import Buckets, Floats, rollup
from roadless.service.metrics.store import Cutoffs

Axis = Literal["step", "samples", "tokens", "wall_seconds", "gpu_seconds"]


class Window(NamedTuple):
    """Which part of a series is requested: ``low <= x <= high`` on ``axis``; None: no limit."""

    axis: Axis
    low: float | None
    high: float | None


def summaries(session: Session, job_id: str, *, cutoffs: Cutoffs) -> Page[MetricSummary]:
    """Every series of the job in one page; a job has tens of them."""
    found = store.summaries(session, job_id=job_id, cutoffs=cutoffs)
    data = [
        MetricSummary(name=one.name, count=one.count, last=one.last, min=one.min) for one in found
    ]
    return Page[MetricSummary](
        data=data,
        first_id=data[0].name if data else None,
        last_id=data[-1].name if data else None,
    )


def buckets(
    session: Session,
    job_id: str,
    *,
    name: str,
    cutoffs: Cutoffs,
    window: Window,
    buckets: int,
) -> MetricBuckets:
    """One series in at most ``buckets`` buckets.

    For a job that has not reported anything yet, the series is empty.

    Raises:
        NotFound: the job has other series, but none of this name.
    """
    x, values = _points(session, job_id, name=name, cutoffs=cutoffs, window=window)
    if not x.size:
        _refuse_unknown(store.names(session, job_id), name)
    return _view(rollup(x, values, buckets=buckets), name=name, axis=window.axis)


def _points(
    session: Session, job_id: str, *, name: str, cutoffs: Cutoffs, window: Window
) -> tuple[Floats, Floats]:
    axis, low, high = window
    if axis == "step":
        points = store.series(
            session, job_id=job_id, name=name, cutoffs=cutoffs, x_min=low, x_max=high
        )
        return points.steps.astype(np.float64), points.values
    points = store.series(session, job_id=job_id, name=name, cutoffs=cutoffs)
    along = store.series(
        session, job_id=job_id, name=f"{store.PROGRESS_PREFIX}{axis}", cutoffs=cutoffs
    )
    return _clipped(*aligned(points, along), low=low, high=high)


def aligned(points: Points, axis: Points) -> tuple[Floats, Floats]:
    """Return (x, values): the axis's value at each point's step, by ascending step.

    Points whose step the axis does not know, or knows no finite value for, are left out.
    """
    if not axis.steps.size:
        return chunks.EMPTY.values, chunks.EMPTY.values
    place = np.minimum(np.searchsorted(axis.steps, points.steps), axis.steps.size - 1)
    x = axis.values[place]
    known = (axis.steps[place] == points.steps) & np.isfinite(x)
    return x[known], points.values[known]


def _clipped(
    x: Floats, values: Floats, *, low: float | None, high: float | None
) -> tuple[Floats, Floats]:
    kept = (x >= (-np.inf if low is None else low)) & (x <= (np.inf if high is None else high))
    return x[kept], values[kept]


def _refuse_unknown(known: list[str], name: str) -> None:
    if known and name not in known:
        raise NotFound(f"expected one of the job's metrics {', '.join(known)}; saw {name!r}")


def _view(made: Buckets, *, name: str, axis: Axis) -> MetricBuckets:
    return MetricBuckets(
        name=name,
        axis=axis,
        x=made.x.tolist(),
        last=_finite_or_none(made.last),
        min=_finite_or_none(made.min),
        max=_finite_or_none(made.max),
        count=made.count.tolist(),
        non_finite_count=made.non_finite.tolist(),
    )


def _finite_or_none(values: Floats) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
