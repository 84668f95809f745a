"""The service without HTTP, on a clock that the test moves: for races, deadlines and long walks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from sqlalchemy import select
from sqlalchemy.orm import Session

from roadless.service.attempts.leases import LeaseKeeper
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import (
    Assignment,
    Node,
    RegisterRunner,
    Sync,
    SyncReply,
)
from roadless.service.contract.reports.events import Report, ReportReply
from roadless.service.contract.requests import Extend, Pause
from roadless.service.contract.states import Reason
from roadless.service.db.migrate import alone, migrate
from roadless.service.db.session import Database
from roadless.service.db.tables import AttemptRow, EventRow, JobRow, Table
from roadless.service.ingest.apply import apply_report, lock_open_attempt
from roadless.service.jobs import actions, deletion, store
from roadless.service.jobs.transitions import Deadlines, Transition, end_attempt
from roadless.service.scheduling.loop import tick
from roadless.service.scheduling.registration import register
from roadless.service.scheduling.sync import Tick, View, sync

LEASE_SECONDS = 30.0
DEADLINES = Deadlines(start_seconds=120, stop_seconds=600, pause_seconds=None, forget_seconds=None)
START = datetime(2030, 1, 1, tzinfo=UTC)


class Stage:
    """Every act is one transaction at ``now``. Leases are frozen at first, as after any start."""

    def __init__(self, db: Database, *, tick_seconds: float = 1.0) -> None:
        self.db = db
        self.deadlines = DEADLINES
        self.now = START
        self._sessions: dict[str, str] = {}  #: of the runners that registered, by id
        self._tokens: dict[str, str] = {}  #: of the attempts that were handed out, by id
        self.keeper = LeaseKeeper.starting(
            START, seconds=LEASE_SECONDS, look_every_seconds=tick_seconds
        )

    def begin_again(self, deadlines: Deadlines, *, tick_seconds: float) -> None:
        """A service that starts on an empty database, as at first."""
        self.empty()
        self.deadlines, self.now = deadlines, START
        self.keeper = LeaseKeeper.starting(
            START, seconds=LEASE_SECONDS, look_every_seconds=tick_seconds
        )

    # ---- time --------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let time pass unseen, as it does for a service that is suspended."""
        self.now += timedelta(seconds=seconds)

    def tick(self) -> int:
        with mock.patch("roadless.service.scheduling.loop.utc_now", return_value=self.now):
            return tick(self.db, self.keeper, self.deadlines)

    def live(self, seconds: float) -> None:
        """Let time pass with the service looking every second, beginning now."""
        for _ in range(int(seconds)):
            self.tick()
            self.pass_time(1)
        self.tick()

    def thaw(self) -> None:
        """Get over the first lease, in which nothing expires."""
        self.live(LEASE_SECONDS + 1)

    # ---- users -------------------------------------------------------------------------------

    def submit(self, spec: dict[str, Any]) -> str:
        parsed = JobSpec.model_validate(spec)
        clock = mock.patch("roadless.service.jobs.actions.utc_now", return_value=self.now)
        with clock, self.db.write() as session:
            return actions.submit(session, parsed, project="default").id

    def stop(self, job_id: str) -> None:
        self._do(job_id, actions.stop)

    def cancel(self, job_id: str) -> None:
        self._do(job_id, actions.cancel)

    def pause(self, job_id: str, checkpoint: Literal["save", "latest"] = "save") -> None:
        self._do(job_id, lambda to, job: actions.pause(to, job, Pause(checkpoint=checkpoint)))

    def resume(self, job_id: str) -> None:
        self._do(job_id, actions.resume)

    def retry(self, job_id: str) -> None:
        self._do(job_id, actions.retry)

    def extend(self, job_id: str, **amounts: int) -> None:
        asked = Extend.model_validate(amounts)
        self._do(job_id, lambda to, job: actions.extend(to, job, asked))

    def delete(self, job_id: str) -> None:
        self._do(job_id, lambda to, job: actions.delete(to.session, job))
        assert deletion.remove_rows(self.db, job_id)

    def _do(self, job_id: str, action: Callable[[Transition, JobRow], None]) -> None:
        with self.db.write() as session:
            job = store.get(session, job_id, "default", lock=True)
            action(self._transition(session), job)

    # ---- runners and ranks -------------------------------------------------------------------

    def register(self, name: str = "here", *, cluster: str = "", session: str = "") -> str:
        """A runner process; unless told otherwise the same name is the same cluster."""
        said = RegisterRunner(name=name, cluster=cluster or f"of {name}", session=session)
        with self.db.write() as transaction:
            row = register(transaction, said, lease=self.keeper.policy, now=self.now)
            self._sessions[row.id] = session
            return row.id

    def sync(
        self,
        runner_id: str,
        *,
        alive: Any = (),
        held: Any = (),
        released: Any = (),
        still_seconds: Mapping[str, float] | None = None,
        free_cpus: float = 4,
        looked_at: datetime | None = None,
        session: str | None = None,
    ) -> SyncReply | None:
        """One call of the runner; unless told otherwise what is alive has just moved."""
        node = Node(node_id="n", cpus=64, gpus=0, free_cpus=free_cpus, free_gpus=0)
        said = Sync(
            session=self._sessions.get(runner_id, "") if session is None else session,
            nodes=[node],
            alive=list(alive),
            held=list(held),
            released=list(released),
            still_seconds=dict.fromkeys(alive, 0.0) if still_seconds is None else still_seconds,
        )
        with self.db.write() as transaction:
            view = View.of(runner_id, said, looked_at=looked_at)
            reply = sync(self.facts(transaction), view)
        self._tokens |= {one.attempt_id: one.token for one in (reply.start if reply else ())}
        return reply

    def claim(self, runner_id: str, **said: Any) -> Assignment:
        reply = self.sync(runner_id, **said)
        assert reply is not None
        (assignment,) = reply.start
        return assignment

    def heartbeats(self) -> None:
        """Every rank of an attempt that has not ended reports, with nothing to say."""
        for row in self.attempts():
            if row.ended_at is None:
                self.report(self._tokens[row.id])

    def report(self, token: str, *events: dict[str, Any], rank: int = 0) -> ReportReply:
        report = Report.model_validate({"rank": rank, "events": list(events)})
        with self.db.write() as session:
            reply, _ = apply_report(
                self._transition(session), report, token=token, lease=self.keeper.policy
            )
        return reply

    def ended(self, token: str, reason: Reason) -> None:
        """An agent or a runner tells that the attempt is over."""
        with self.db.write() as session:
            job, attempt = lock_open_attempt(session, token)
            end_attempt(
                self._transition(session), job, attempt, reason=reason, message="it is over"
            )

    def facts(self, session: Session) -> Tick:
        return Tick(session, self.now, self.deadlines, self.keeper.policy)

    def _transition(self, session: Session) -> Transition:
        return Transition(session, self.now, self.deadlines)

    # ---- what is stored ----------------------------------------------------------------------

    def job(self, job_id: str) -> JobRow:
        with self.db.read() as session:
            return store.get(session, job_id, "default")

    def jobs(self) -> list[JobRow]:
        return self._all(JobRow)

    def attempts(self) -> list[AttemptRow]:
        return self._all(AttemptRow)

    def codes(self, job_id: str) -> list[str]:
        return [row.code for row in self._all(EventRow) if row.job_id == job_id]

    def _all(self, table: type[Any]) -> list[Any]:
        (key, *_) = table.__table__.primary_key.columns
        with self.db.read() as session:
            return list(session.scalars(select(table).order_by(key)))

    def empty(self) -> None:
        """Delete every row, so that one database serves many examples."""
        with self.db.write() as session:
            for table in reversed(Table.metadata.sorted_tables):
                session.execute(table.delete())


@contextmanager
def staged(url: str, home: Path) -> Iterator[Stage]:
    """A stage on a migrated database."""
    db = Database(url)
    with alone(db, home):
        migrate(db)
    try:
        yield Stage(db)
    finally:
        db.close()
