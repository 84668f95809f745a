"""Appending, merging and reading points on SQLite and on PostgreSQL."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from sqlalchemy import event, select
from table_rows import a_job

from roadless.service.clock import utc_now
from roadless.service.contract.reports.events import StepMetrics
from roadless.service.db.session import Database
from roadless.service.db.tables import MetricChunkRow, Table
from roadless.service.metrics import chunks, store
from roadless.service.metrics.store import FAN_IN, Summary

JOB = "job_1"
OPEN = {1: None}


@pytest.fixture
def db(database_url):
    database = Database(database_url)
    Table.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(a_job(JOB, utc_now()))
    yield database
    database.close()


def report(db: Database, steps, values, *, fence: int = 1, name: str = "train.loss") -> None:
    with db.write() as session:
        store.append(session, job_id=JOB, fence=fence, series={name: (steps, values)})


def read(db: Database, *, cutoffs=OPEN, name: str = "train.loss", **limits):
    with db.read() as session:
        found = store.series(session, job_id=JOB, name=name, cutoffs=cutoffs, **limits)
    return list(zip(found.steps.tolist(), found.values.tolist(), strict=True))


def rows(db: Database) -> list[tuple[int, int]]:
    query = select(MetricChunkRow.level, MetricChunkRow.count).order_by(MetricChunkRow.id)
    with db.read() as session:
        return [(level, count) for level, count in session.execute(query)]


def test_reports_of_any_size_read_back_whole_in_few_rows(db):
    chance, step, expected = random.Random(0), 0, []
    for _ in range(150):
        steps = list(range(step + 1, step + 1 + chance.choice([1, 1, 3, 40])))
        report(db, steps, [0.5 * s for s in steps])
        expected += [(s, 0.5 * s) for s in steps]
        step = steps[-1]
    assert read(db) == expected
    per_level = Counter(level for level, _ in rows(db))
    assert all(per_level[level] < FAN_IN for level in range(store.FINAL_LEVEL))


def test_thirty_two_chunks_of_a_level_become_one_of_the_next(db):
    for step in range(1, FAN_IN):
        report(db, [step], [0.0])
    assert rows(db) == [(0, 1)] * (FAN_IN - 1)
    report(db, [FAN_IN], [0.0])
    assert rows(db) == [(1, FAN_IN)]


def test_a_merge_that_fills_the_next_level_goes_on_there(db):
    for i in range(FAN_IN - 1):
        report(db, range(i * FAN_IN, (i + 1) * FAN_IN), np.zeros(FAN_IN))
    for step in range(FAN_IN * (FAN_IN - 1), FAN_IN**2):
        report(db, [step], [0.0])
    assert rows(db) == [(2, FAN_IN**2)]
    assert [step for step, _ in read(db)] == list(range(FAN_IN**2))


def test_chunks_of_the_last_level_rest_however_many_there_are(db):
    size = FAN_IN**store.FINAL_LEVEL
    for i in range(FAN_IN + 1):
        report(db, range(i * size, (i + 1) * size), np.zeros(size))
    assert rows(db) == [(store.FINAL_LEVEL, size)] * (FAN_IN + 1)


@pytest.mark.parametrize("size", [1, FAN_IN - 1, FAN_IN, FAN_IN**2 - 1])
def test_a_full_level_merges_into_exactly_the_next(size):
    assert store.level_of(FAN_IN * size) == store.level_of(size) + 1


def test_attempts_series_and_jobs_are_never_merged_together(db):
    with db.write() as session:
        session.add(a_job("job_2", utc_now()))
    for step in range(1, FAN_IN):
        report(db, [step], [1.0], fence=1)
        report(db, [step], [2.0], fence=2)
        report(db, [step], [3.0], name="grad.norm")
        with db.write() as session:
            store.append(session, job_id="job_2", fence=1, series={"train.loss": ([step], [4.0])})
    assert rows(db) == [(0, 1)] * 4 * (FAN_IN - 1)
    assert read(db, cutoffs={1: None}) == [(step, 1.0) for step in range(1, FAN_IN)]


def test_an_append_costs_three_statements_until_a_level_is_full(db):
    statements = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with db.write() as session:
        series = {f"metric.{i}": ([1], [0.0]) for i in range(20)}
        store.append(session, job_id=JOB, fence=1, series=series)
    assert len([text for text in statements if not text.startswith("BEGIN")]) == 3


def test_points_after_a_cutoff_and_of_unknown_attempts_are_left_out(db):
    report(db, [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], fence=1)
    report(db, [3, 4], [30.0, 40.0], fence=2)
    report(db, [9], [9.0], fence=3)
    assert read(db, cutoffs={1: 2, 2: None}) == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"x_min": 2}, [2, 3, 4]),
        ({"x_max": 2}, [1, 2]),
        ({"x_min": 1.5, "x_max": 3.5}, [2, 3]),
        ({"x_min": -1e300, "x_max": 1e300}, [1, 2, 3, 4]),
        ({"x_min": 5}, []),
    ],
)
def test_limits_of_the_steps_are_inclusive(db, limits, steps):
    report(db, [1, 2], [0.0, 0.0])
    report(db, [3, 4], [0.0, 0.0])
    assert [step for step, _ in read(db, **limits)] == steps


def test_summaries_count_live_points_and_skip_values_that_are_not_finite(db):
    report(db, [1, 2], [5.0, -math.inf], fence=1)
    report(db, [3], [-9.0], fence=1)
    report(db, [2, 3], [4.0, math.nan], fence=2)
    report(db, [1], [math.nan], name="grad.norm")
    report(db, [1], [64.0], name="progress.samples")
    with db.read() as session:
        found = store.summaries(session, job_id=JOB, cutoffs={1: 1, 2: None})
    assert found == [Summary("grad.norm", 1, None, None), Summary("train.loss", 3, 4.0, 4.0, 2)]


def test_the_last_value_is_that_of_the_highest_step_in_whatever_order_chunks_come(db):
    report(db, [5], [0.5])
    report(db, [3, 4], [0.3, 0.4])
    with db.read() as session:
        assert store.summaries(session, job_id=JOB, cutoffs=OPEN)[0].last == 0.5


def test_step_events_fan_out_to_their_metrics_and_the_four_axes(db):
    events = [
        StepMetrics(
            seq=step,
            step=step,
            samples=64 * step,
            tokens=0,
            wall_seconds=0.5 * step,
            gpu_seconds=1.0 * step,
            values={"train.loss": 1.0 / step, "progress.samples": -1.0},
        )
        for step in (1, 2)
    ]
    with db.write() as session:
        store.append_steps(session, job_id=JOB, fence=1, events=events)
    assert read(db) == [(1, 1.0), (2, 0.5)]
    assert read(db, name="progress.samples") == [(1, 64.0), (2, 128.0)]
    assert read(db, name="progress.tokens") == [(1, 0.0), (2, 0.0)]
    assert read(db, name="progress.wall_seconds") == [(1, 0.5), (2, 1.0)]
    assert read(db, name="progress.gpu_seconds") == [(1, 1.0), (2, 2.0)]


def test_no_events_write_nothing(db):
    with db.write() as session:
        store.append_steps(session, job_id=JOB, fence=1, events=[])
    assert rows(db) == []


def test_stored_bytes_are_the_packed_points(db):
    report(db, [7], [0.25])
    with db.read() as session:
        (data,) = session.scalars(select(MetricChunkRow.data))
    assert data == chunks.pack([7], [0.25])
