"""A database that comes back without its last seconds: restored from a copy, or a lagging replica.

What ranks have said since is in their spools, and they say it again. What nobody can say again is
trained again. In the end each step is there once, with the bits of a run that nothing disturbed.
"""

import sqlite3
import uuid
from contextlib import closing

import pytest
from sqlalchemy import create_engine, text
from stack import Stack, curve_of, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.states import Phase
from roadless.service.db.tables import Table

STEPS = 300


class SqliteFile:
    """The stack's file, copied as an operator would: while the service writes to it."""

    url = None

    def keep(self, home):
        live, copy = (sqlite3.connect(home / name) for name in ("roadless.db", "copy.db"))
        with closing(live), closing(copy):
            live.backup(copy)

    def put_back(self, home):
        for name in ("roadless.db-wal", "roadless.db-shm"):
            (home / name).unlink(missing_ok=True)
        (home / "copy.db").rename(home / "roadless.db")


class PostgresqlTables:
    """A database of its own; the copy is of one moment, and a schema beside the tables."""

    def __init__(self, server_url):
        name = f"older_{uuid.uuid4().hex}"
        engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
        with closing(engine.connect()) as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        self.url = server_url.replace("/postgres?", f"/{name}?")
        self._tables = [table.name for table in Table.metadata.sorted_tables]

    def keep(self, _home):
        self._run(
            "CREATE SCHEMA copy",
            *(f"CREATE TABLE copy.{name} AS TABLE public.{name}" for name in self._tables),
        )

    def put_back(self, _home):
        self._run(
            f"TRUNCATE {', '.join(self._tables)} CASCADE",
            *(f"INSERT INTO public.{name} SELECT * FROM copy.{name}" for name in self._tables),
        )

    def _run(self, *statements):
        engine = create_engine(self.url, isolation_level="REPEATABLE READ")
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()


@pytest.fixture
def older(request, kind, ray_head, stack, tmp_path):
    """A stack and its database. Two runners on one cluster would stop each other's ranks."""
    if kind == "sqlite":
        yield stack, SqliteFile()
        return
    database = PostgresqlTables(request.getfixturevalue("postgresql"))
    stack.runner.terminate()
    stack.runner.wait(20)
    other = Stack(tmp_path / "older", ray_head, database_url=database.url)
    yield other, database
    other.close()
    stack.start_runner()


def spec_of(steps, *, num_workers=1):
    return {
        "name": f"older {steps}",
        "model": {"kind": "entry_point", "factory": "paced_models:paced"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 20},
        "training": {"batch_size": 48, "seed": 3},
        "parallelism": {"num_workers": num_workers},
        "budget": {"max_steps": steps},
        "evaluation": {"every_steps": 40},
        # So that the one that has ended begins anew: its last states' files are gone by then.
        "checkpoints": {"keep_last": 100, "state_every_steps": 1000},
    }


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_the_database_forgot_is_said_or_trained_again(older):
    """One job trains all the while; one has ended since the copy; one has begun since.

    That one waits for the second one's seats until then, and its second try is a run that nobody
    disturbs: the first one must have its curve.
    """
    stack, database = older
    with stack.client() as client:
        ended = client.submit(spec_of(60, num_workers=2)).id
        through, begun = (client.submit(spec_of(STEPS)).id for _ in range(2))
        wait_for_step(client, through, 5)
        wait_for_step(client, ended, 5)
        database.keep(stack.home)
        assert client.job(begun).phase is Phase.QUEUED
        assert wait_for_end(client, ended).phase is Phase.SUCCEEDED
        expected = curve_of(client, ended)
        wait_for_step(client, begun, 5)
        forgotten = client.job(begun).attempt.id
        stack.service.kill()
        stack.service.wait()
        database.put_back(stack.home)
        stack.start_service()
        jobs = {job_id: wait_for_end(client, job_id) for job_id in (through, ended, begun)}
        assert {job.phase for job in jobs.values()} == {Phase.SUCCEEDED}
        assert [jobs[job_id].attempt.fence for job_id in (through, ended, begun)] == [1, 2, 1]
        assert jobs[begun].attempt.id != forgotten
        wait_until(lambda: not rank_pids(forgotten))
        assert curve_of(client, ended) == expected
        assert curve_of(client, through) == curve_of(client, begun)
        steps = [[one.step for one in client.checkpoints(id)] for id in (through, begun)]
        assert steps[0] == steps[1]
        codes = [event.code for event in client.events(through)]
        assert "report.refused" not in codes
