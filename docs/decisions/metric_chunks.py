"""Measures record 0009: writing a million points of one series as reports do, and reading them.

Run ``.venv/bin/python docs/decisions/metric_chunks.py``; takes a few seconds.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlalchemy import func, select

from roadless.service.auth.tokens import Audience, mint
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.events import MAX_EVENTS_PER_REPORT
from roadless.service.db.migrate import migrate
from roadless.service.db.session import Database
from roadless.service.db.tables import MetricChunkRow
from roadless.service.jobs import actions
from roadless.service.metrics import store
from roadless.service.metrics.rollup import rollup

_POINTS = 1_000_000
_BUCKETS = 1250
_SPEC = JobSpec.model_validate(
    {
        "model": {"kind": "preset", "name": "mlp"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "sgd_schedulefree"},
    }
)


def main() -> None:
    """Fill a database of its own, and say how long writing and reading took."""
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/measured.db")
        migrate(db, Path(folder))
        job, _ = actions.submit(db, _SPEC, project="default", key=mint(Audience.USER))
        writing = _timed(lambda: _write(db, job["id"]))
        reading = min(_timed(lambda: _read(db, job["id"])) for _ in range(5))
        with db.read() as session:
            num_rows = session.scalar(select(func.count()).select_from(MetricChunkRow))
        db.close()
    said = f"{_POINTS} points: written in {writing:.1f} s, {num_rows} rows; "
    sys.stdout.write(f"{said}read in {_BUCKETS} buckets in {1000 * reading:.0f} ms\n")


def _write(db: Database, job_id: str) -> None:
    for first in range(0, _POINTS, MAX_EVENTS_PER_REPORT):
        steps = range(first, first + MAX_EVENTS_PER_REPORT)
        with db.write() as session:
            series = {
                "train.loss": (steps, np.random.default_rng(first).random(len(steps)).tolist())
            }
            store.append(session, job_id=job_id, fence=1, series=series)


def _read(db: Database, job_id: str) -> None:
    with db.read() as session:
        points = store.series(session, job_id=job_id, name="train.loss", cutoffs={1: None})
    rollup(points.steps.astype(np.float64), points.values, buckets=_BUCKETS)


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
