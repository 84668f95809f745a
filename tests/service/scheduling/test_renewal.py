"""A sync waits for no report, and so never for one that waits for it."""

import time

import pytest
from sqlalchemy import select
from stage import staged

from roadless.service.db.tables import AttemptRow


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        yield stage


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_a_report_works_on_is_left_to_it(stage, digits_spec):
    """Syncs that wrote to the attempts of reports in another order deadlocked with two of them."""
    runner_id = stage.register()
    spec = {**digits_spec, "parallelism": {"num_workers": 1}}
    busy, idle = (stage.submit(spec) for _ in range(2))
    reply = stage.sync(runner_id)
    ids = {one.job_id: one.attempt_id for one in reply.start}
    with stage.db.write() as report:
        query = select(AttemptRow).where(AttemptRow.id == ids[busy])
        report.scalars(query.with_for_update()).one()
        began = time.monotonic()
        stage.sync(runner_id, alive=ids.values())
        assert time.monotonic() - began < 4, "a lock is waited for for 5 s"
    assert {row.job_id: row.seen_alive for row in stage.attempts()} == {busy: False, idle: True}
    stage.sync(runner_id, alive=ids.values())
    assert all(row.seen_alive for row in stage.attempts())
