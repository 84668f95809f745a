"""The SQL of metrics: appending reported points, merging them as they pile up, reading live ones.

Chunks are merged like the runs of a log-structured tree. A chunk's level tells its size: level 0
below 32 points, level 1 below 1024, level 2 the rest. When a series of an attempt has 32 chunks of
one level they become one of the next; level 2 rests. So a point is rewritten at most twice, a
merged chunk never exceeds 32 * 1023 points (512 KiB), and a series of a million points is at most
about a thousand rows. Only one rank reports a series, and its reports are applied one at a time.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from roadless.service.contract.reports.events import StepMetrics, Usage
from roadless.service.db.deletion import delete_some
from roadless.service.db.tables import MetricChunkRow
from roadless.service.metrics import chunks
from roadless.service.metrics.chunks import Points

#: This many chunks of one level are merged into one of the next.
FAN_IN = 32
FINAL_LEVEL = 2
#: Chunks that one transaction deletes: up to 32 MiB.
CHUNKS_TOGETHER = 64

#: Fence of an attempt -> the last step up to which its points are live; None: all of them.
Cutoffs = Mapping[int, int | None]

#: Series that serve as other x axes of a chart; users' metrics cannot have their names.
PROGRESS_PREFIX = "progress."
#: Prefix of a rank's number, in series of what each rank reports about itself.
RANK_PREFIX = "rank."

_READ_ROWS = 64
_LARGEST_STEP = 2**63 - 1


@dataclass(frozen=True)
class Summary:
    """One series: its live points, and its last and smallest finite value, if any."""

    name: str
    count: int
    last: float | None
    min: float | None
    #: The step of ``last``; -1 before any finite value.
    last_step: int = -1


def level_of(count: int) -> int:
    """Level of a chunk of ``count`` points; 32 chunks of a level always merge into the next one."""
    return sum(count >= FAN_IN**level for level in range(1, FINAL_LEVEL + 1))


def append_steps(
    session: Session, *, job_id: str, fence: int, events: Sequence[StepMetrics]
) -> None:
    """Store the values of all events, and the progress at each, one chunk per series."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for event in events:
        for name, value in (event.values | _progress(event)).items():
            steps, values = series[name]
            steps.append(event.step)
            values.append(value)
    append(session, job_id=job_id, fence=fence, series=series)


def append_usage(
    session: Session, *, job_id: str, fence: int, rank: int, events: Sequence[Usage]
) -> None:
    """Store what one rank uses of its machine; its number is part of its series' names."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for event in events:
        for name, value in event.values.items():
            steps, values = series[f"{RANK_PREFIX}{rank}.{name}"]
            steps.append(event.step)
            values.append(value)
    append(session, job_id=job_id, fence=fence, series=series)


def _progress(event: StepMetrics) -> dict[str, float]:
    axes = ("samples", "tokens", "wall_seconds", "gpu_seconds")
    return {f"{PROGRESS_PREFIX}{axis}": float(getattr(event, axis)) for axis in axes}


def append(
    session: Session,
    *,
    job_id: str,
    fence: int,
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
) -> None:
    """Store new points of one attempt, name -> (steps, values), and merge what has piled up."""
    rows = [
        _row(chunks.points(steps, values), job_id=job_id, fence=fence, name=name)
        for name, (steps, values) in series.items()
        if len(steps)
    ]
    if rows:
        session.execute(insert(MetricChunkRow), rows)
        _compact(session, job_id=job_id, fence=fence, names=list(series))


def _row(made: Points, *, job_id: str, fence: int, name: str) -> dict[str, object]:
    return {
        "job_id": job_id,
        "fence": fence,
        "name": name,
        "level": level_of(made.steps.size),
        "first_step": int(made.steps.min()),
        "last_step": int(made.steps.max()),
        "count": made.steps.size,
        "data": chunks.pack(made.steps, made.values),
    }


def _compact(session: Session, *, job_id: str, fence: int, names: list[str]) -> None:
    """Merge every full level of these series, lowest first, since a merge may fill the next."""
    for level in range(FINAL_LEVEL):
        full = (
            select(MetricChunkRow.name)
            .where(
                MetricChunkRow.job_id == job_id,
                MetricChunkRow.name.in_(names),
                MetricChunkRow.fence == fence,
                MetricChunkRow.level == level,
            )
            .group_by(MetricChunkRow.name)
            .having(func.count() >= FAN_IN)
        )
        for name in session.scalars(full).all():
            _merge(session, job_id=job_id, fence=fence, name=name, level=level)


def _merge(session: Session, *, job_id: str, fence: int, name: str, level: int) -> None:
    oldest = (
        select(MetricChunkRow.id, MetricChunkRow.data)
        .where(
            MetricChunkRow.job_id == job_id,
            MetricChunkRow.name == name,
            MetricChunkRow.fence == fence,
            MetricChunkRow.level == level,
        )
        .order_by(MetricChunkRow.first_step, MetricChunkRow.id)
        .limit(FAN_IN)
    )
    found = session.execute(oldest).all()
    merged = chunks.merge([chunks.unpack(data) for _, data in found])
    ids = [row_id for row_id, _ in found]
    session.execute(delete(MetricChunkRow).where(MetricChunkRow.id.in_(ids)))
    session.execute(insert(MetricChunkRow), [_row(merged, job_id=job_id, fence=fence, name=name)])


def names(session: Session, job_id: str) -> list[str]:
    """Names of all series of a job but the progress ones, sorted."""
    query = select(MetricChunkRow.name).where(MetricChunkRow.job_id == job_id).distinct()
    return sorted(name for name in session.scalars(query) if not name.startswith(PROGRESS_PREFIX))


def series(
    session: Session,
    *,
    job_id: str,
    name: str,
    cutoffs: Cutoffs,
    x_min: float | None = None,
    x_max: float | None = None,
) -> Points:
    """Return the live points of one series by ascending step, with x_min <= step <= x_max."""
    query = select(MetricChunkRow.first_step, MetricChunkRow.fence, MetricChunkRow.data).where(
        MetricChunkRow.job_id == job_id, MetricChunkRow.name == name
    )
    if x_min is not None:
        query = query.where(MetricChunkRow.last_step >= _as_step(math.ceil(x_min)))
    if x_max is not None:
        query = query.where(MetricChunkRow.first_step <= _as_step(math.floor(x_max)))
    # Sorted here: a database would carry the blobs through its sort.
    rows = sorted(session.execute(query), key=itemgetter(0, 1))
    live = chunks.merge([_live(data, fence, cutoffs) for _, fence, data in rows])
    return chunks.select(
        live,
        first=-np.inf if x_min is None else x_min,
        last=np.inf if x_max is None else x_max,
    )


def _as_step(limit: int) -> int:
    """Steps are BIGINT; PostgreSQL refuses to compare one with anything larger."""
    return max(-_LARGEST_STEP, min(limit, _LARGEST_STEP))


def _live(blob: bytes, fence: int, cutoffs: Cutoffs) -> Points:
    if fence not in cutoffs:
        return chunks.EMPTY
    found, limit = chunks.unpack(blob), cutoffs[fence]
    if limit is None:
        return found
    kept = found.steps <= limit
    return Points(found.steps[kept], found.values[kept])


def summaries(session: Session, *, job_id: str, cutoffs: Cutoffs) -> list[Summary]:
    """Return every series of a job but the progress ones, by name, even without live points."""
    query = (
        select(MetricChunkRow.name, MetricChunkRow.fence, MetricChunkRow.data)
        .where(
            MetricChunkRow.job_id == job_id,
            MetricChunkRow.name.not_like(f"{PROGRESS_PREFIX}%"),
        )
        .execution_options(yield_per=_READ_ROWS)
    )
    found: dict[str, Summary] = {}
    for name, fence, data in session.execute(query):
        before = found.get(name, Summary(name, 0, None, None))
        found[name] = _extended(before, _live(data, fence, cutoffs))
    return [found[name] for name in sorted(found)]


def _extended(before: Summary, part: Points) -> Summary:
    """Chunks come in any order: the last value is that of the highest step so far."""
    count = before.count + part.steps.size
    finite = np.isfinite(part.values)
    if not finite.any():
        return replace(before, count=count)
    steps, values = part.steps[finite], part.values[finite]
    smallest = float(values.min())
    is_later = int(steps[-1]) > before.last_step
    return Summary(
        name=before.name,
        count=count,
        last=float(values[-1]) if is_later else before.last,
        min=smallest if before.min is None else min(before.min, smallest),
        last_step=max(before.last_step, int(steps[-1])),
    )


def delete_some_of_job(session: Session, job_id: str) -> bool:
    """Delete some of the job's series; return whether there may be more."""
    mine = MetricChunkRow.job_id == job_id
    return delete_some(session, MetricChunkRow, mine, limit=CHUNKS_TOGETHER) == CHUNKS_TOGETHER
