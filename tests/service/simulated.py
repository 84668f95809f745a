"""A world around the service, by seed and on a virtual clock: clusters, ranks, users, misfortunes.

Only the service is real. The rest does in rounds what it does in ``worker/``: ranks report, runners
sync, agents tell of deaths. What goes wrong and when is drawn from the seed.
"""

import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from played import state_event, step_event
from stage import LEASE_SECONDS, Stage

from roadless.service.attempts.leases import LeaseKeeper
from roadless.service.contract.reports.cluster import Assignment
from roadless.service.contract.states import TERMINAL, Phase, Reason
from roadless.service.db.tables import JobRow
from roadless.service.errors import Conflict, EventsMissing, Fenced, Invalid, NotFound
from roadless.service.jobs.transitions import Deadlines
from roadless.service.scheduling.registration import NameTaken, Replaced

ROUND_SECONDS = 10.0
HANG_SECONDS = 60.0
RETRY_DELAY_SECONDS = 20.0
DEADLINES = Deadlines(
    start_seconds=60,
    stop_seconds=60,
    pause_seconds=None,
    forget_seconds=None,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
)
MAX_JOBS, MAX_STEPS, CPUS = 3, 12, 1
#: Events that a rank can send once more when the service has lost them.
KEPT_EVENTS = 4
SPEC = {
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "sgd_schedulefree"},
    "retry": {"max_attempts": 4, "hang_seconds": HANG_SECONDS},
}


class Away(Exception):
    """A call that does not reach the service."""


@dataclass(eq=False)
class Gang:
    """What one attempt holds on its cluster, and its rank, if that lives."""

    assignment: Assignment
    is_up: bool = True
    is_frozen: bool = False  #: neither speaks nor uses the processor
    is_mute: bool = False  #: trains on, but nothing that it says arrives
    is_deaf: bool = False  #: trains on, whatever it is told
    is_stuck: bool = False  #: its seats cannot be released
    still_seconds: float = 0.0  #: since it was last seen to use the processor
    quiet_seconds: float = 0.0  #: since it was last heard by a service that listens
    said: list[dict[str, Any]] = field(default_factory=list)
    num_acknowledged: int = 0
    step: int = 0
    heard: str = "run"
    death: Reason | None = None  #: what its agent is to tell

    @property
    def id(self) -> str:
        return self.assignment.attempt_id

    @property
    def is_training(self) -> bool:
        return self.is_up and not self.is_frozen

    @property
    def has_said_last(self) -> bool:
        return bool(self.said) and self.said[-1]["kind"] in {"finished", "failed"}

    def say(self, *events: dict[str, Any]) -> None:
        for event in events:
            self.said.append({**event, "seq": len(self.said) + 1})

    def die(self, reason: Reason = Reason.RANK_DIED) -> None:
        self.is_up, self.death = False, reason


@dataclass(eq=False)
class Cluster:
    """A Ray cluster with its runner and its one agent."""

    name: str
    runner_id: str = ""
    session: str = ""
    gangs: dict[str, Gang] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    is_runner_up: bool = True
    is_runner_frozen: bool = False
    is_agent_up: bool = True
    is_agent_frozen: bool = False  #: what it last said counts, and nothing can be released
    is_cut_off: bool = False  #: nothing here reaches the service
    is_answer_lost: bool = False  #: of the next sync

    @property
    def is_agent_awake(self) -> bool:
        return self.is_agent_up and not self.is_agent_frozen


class World:
    """All of it; ``round`` lets ten seconds pass."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.draw = random.Random(seed)
        self.clusters = [Cluster("a"), Cluster("b")]
        self.is_service_up = True
        self.is_service_frozen = False
        self.is_database_up = True
        self.is_restored = False  #: the database came back older in this round
        self._frozen_at = stage.now  #: when the service last could not look
        self.heard: set[str] = set()  #: jobs whose ranks were heard in this round
        self.ended: set[str] = set()  #: attempts that the service was seen to have ended
        self.runner_heard_at = stage.now  #: the last call of any
        self.touched: dict[str, datetime] = {}  #: when a user last wanted something of a job
        self.log: list[str] = []
        self._backup: sqlite3.Connection | None = None
        for cluster in self.clusters:
            self._register(cluster)
            self._submit()

    def round(self, *, has_misfortunes: bool) -> None:
        self.heard, self.is_restored = set(), False
        self.stage.pass_time(ROUND_SECONDS)
        if has_misfortunes:
            self._happen()
        for cluster in self.clusters:
            with contextlib.suppress(Away):
                self._work(cluster)
        if not self.is_service_up or self.is_service_frozen:
            return
        if self.is_database_up:
            self.stage.tick()
        else:
            self._frozen_at = self.stage.now
            self.stage.keeper.freeze(self.stage.now)

    @property
    def is_answering(self) -> bool:
        return self.is_service_up and self.is_database_up and not self.is_service_frozen

    def is_without_runner(self) -> bool:
        """Whether no runner has called for a lease."""
        silence = self.stage.now - self.runner_heard_at
        return self.is_lease_running() and silence > timedelta(seconds=LEASE_SECONDS)

    def is_lease_running(self) -> bool:
        """Whether the service has been able to look for a whole lease: now leases may expire."""
        return self.stage.now - self._frozen_at > timedelta(seconds=LEASE_SECONDS)

    def gangs(self, *, is_up: bool | None = None) -> list[tuple[Cluster, Gang]]:
        return [
            (cluster, gang)
            for cluster in self.clusters
            for gang in cluster.gangs.values()
            if is_up is None or gang.is_up == is_up
        ]

    # ---- clusters --------------------------------------------------------------------------------

    def _work(self, cluster: Cluster) -> None:
        for gang in cluster.gangs.values():
            is_seen = gang.is_training and cluster.is_agent_awake
            gang.still_seconds = 0.0 if is_seen else gang.still_seconds + ROUND_SECONDS
            if gang.is_training:
                self._train(cluster, gang)
            elif gang.death is not None and cluster.is_agent_awake:
                self._tell_death(cluster, gang)
        if cluster.is_runner_up and not cluster.is_runner_frozen:
            self._sync(cluster)

    def _reach(self, cluster: Cluster) -> None:
        if cluster.is_cut_off or not self.is_answering:
            raise Away

    def _train(self, cluster: Cluster, gang: Gang) -> None:
        if not gang.has_said_last:
            _step(gang)
        with contextlib.suppress(Away):
            self._report(cluster, gang)
        if gang.has_said_last and gang.num_acknowledged == len(gang.said):
            gang.is_up = False

    def _report(self, cluster: Cluster, gang: Gang) -> None:
        if self.is_answering:
            gang.quiet_seconds += ROUND_SECONDS
        self._reach(cluster)
        if gang.is_mute:
            raise Away
        try:
            reply = self.stage.report(gang.assignment.token, *gang.said[gang.num_acknowledged :])
        except Fenced:
            gang.is_up = False
        except EventsMissing as error:
            _rewind(gang, error.extensions["applied_seq"])
        else:
            assert gang.id not in self.ended, "an attempt that has ended is still listened to"
            gang.num_acknowledged, gang.heard = reply.ack_seq, str(reply.desired)
            gang.quiet_seconds = 0.0
            self.heard.add(gang.assignment.job_id)

    def _tell_death(self, cluster: Cluster, gang: Gang) -> None:
        with contextlib.suppress(Away, Fenced):
            self._reach(cluster)
            assert gang.death is not None
            self.stage.ended(gang.assignment.token, gang.death)
            gang.death = None

    def _register(self, cluster: Cluster) -> None:
        """Start a new process of its runner; it registers with its next call, if it must wait."""
        cluster.session = f"{cluster.name} at {self.stage.now}, {self.draw.random()}"
        cluster.runner_id, cluster.is_runner_up = "", True
        self.runner_heard_at = self.stage.now
        with contextlib.suppress(NameTaken):
            cluster.runner_id = self.stage.register(cluster.name, session=cluster.session)

    def _sync(self, cluster: Cluster) -> None:
        self._reach(cluster)
        if not cluster.runner_id:
            self._register(cluster)
            return
        told = set(cluster.released)
        live = [one for one in cluster.gangs.values() if one.is_up or cluster.is_agent_frozen]
        try:
            reply = self.stage.sync(
                cluster.runner_id,
                session=cluster.session,
                alive=[gang.id for gang in live],
                held=cluster.gangs.keys(),
                released=told,
                still_seconds={gang.id: gang.still_seconds for gang in live},
                free_cpus=max(0, CPUS - len(cluster.gangs)),
            )
            self.runner_heard_at = self.stage.now
        except (NotFound, Replaced):  # the database came back without its last registration
            self._register(cluster)
            return
        if cluster.is_answer_lost or reply is None:
            cluster.is_answer_lost = False
            return
        cluster.released -= told
        for assignment in reply.start:
            gang = Gang(assignment, step=self._resumed_step(assignment.attempt_id))
            cluster.gangs.setdefault(gang.id, gang)
        for attempt_id in reply.stop:
            self._release(cluster, attempt_id)

    def _resumed_step(self, attempt_id: str) -> int:
        return next(row.resumed_step for row in self.stage.attempts() if row.id == attempt_id)

    def _release(self, cluster: Cluster, attempt_id: str) -> None:
        gang = cluster.gangs.get(attempt_id)
        if not cluster.is_agent_awake or (gang is not None and gang.is_stuck):
            return
        cluster.gangs.pop(attempt_id, None)
        cluster.released.add(attempt_id)

    # ---- what happens ----------------------------------------------------------------------------

    def _happen(self) -> None:
        for _ in range(self.draw.choice((0, 1, 1, 2))):
            act = self.draw.choice(_ACTS)
            with contextlib.suppress(Away, Conflict, Invalid):
                act(self)
                self.log.append(f"{self.stage.now:%H:%M:%S} {act.__name__.removeprefix('_')}")

    def _a_job(self) -> JobRow:
        if not self.is_answering:
            raise Away
        jobs = self.stage.jobs()
        if not jobs:
            raise Away
        job = self.draw.choice(jobs)
        self.touched[job.id] = self.stage.now
        return job

    def _a_gang(self, *, is_up: bool | None = True) -> tuple[Cluster, Gang]:
        gangs = self.gangs(is_up=is_up)
        if not gangs:
            raise Away
        return self.draw.choice(gangs)

    def _submit(self) -> None:
        if not self.is_answering or len(self.stage.jobs()) >= MAX_JOBS:
            raise Away
        self.stage.submit(SPEC)

    def _stop(self) -> None:
        self.stage.stop(self._a_job().id)

    def _cancel(self) -> None:
        self.stage.cancel(self._a_job().id)

    def _pause(self) -> None:
        self.stage.pause(self._a_job().id, self.draw.choice(("save", "latest")))

    def _resume(self) -> None:
        self.stage.resume(self._a_job().id)

    def _retry(self) -> None:
        self.stage.retry(self._a_job().id)

    def _rank_dies(self) -> None:
        self._a_gang()[1].die()

    def _rank_fails(self) -> None:
        gang = self._a_gang()[1]
        if not gang.has_said_last:
            gang.say({"kind": "failed", "reason": "worker_error", "message": "it broke"})

    def _rank_freezes(self) -> None:
        self._a_gang()[1].is_frozen = True

    def _rank_thaws(self) -> None:
        self._a_gang()[1].is_frozen = False

    def _rank_falls_mute(self) -> None:
        self._a_gang()[1].is_mute = True

    def _stop_is_not_heard(self) -> None:
        gang = self._a_gang()[1]
        if not self.is_answering:
            raise Away
        gang.is_deaf = True
        self.stage.stop(gang.assignment.job_id)
        self.touched[gang.assignment.job_id] = self.stage.now

    def _seats_get_stuck(self) -> None:
        self._a_gang(is_up=None)[1].is_stuck = True

    def _agent_dies(self) -> None:
        cluster = self.draw.choice(self.clusters)
        cluster.is_agent_up = False
        for gang in cluster.gangs.values():
            gang.is_up = False  # and nobody is left to tell why

    def _agent_returns(self) -> None:
        cluster = self.draw.choice(self.clusters)
        cluster.is_agent_up, cluster.is_agent_frozen = True, False

    def _agent_freezes(self) -> None:
        self.draw.choice(self.clusters).is_agent_frozen = True

    def _runner_dies(self) -> None:
        """Its successor finds the gangs, but not what was released and not yet told."""
        cluster = self.draw.choice(self.clusters)
        cluster.is_runner_up = False
        cluster.released.clear()

    def _runner_freezes(self) -> None:
        self.draw.choice(self.clusters).is_runner_frozen = True

    def _runner_thaws(self) -> None:
        self.draw.choice(self.clusters).is_runner_frozen = False

    def _runner_returns(self) -> None:
        cluster = self.draw.choice(self.clusters)
        if not self.is_answering:
            raise Away
        self._register(cluster)

    def _second_runner_starts(self) -> None:
        """On the same cluster: the first one is not listened to any longer, and leaves."""
        cluster = self.draw.choice(self.clusters)
        self._reach(cluster)
        before, runner_id = cluster.session, cluster.runner_id
        cluster.released.clear()
        self._register(cluster)
        if cluster.runner_id == runner_id:  # its name was free, then and now
            try:
                self.stage.sync(runner_id, session=before)
            except Replaced:
                return
            raise AssertionError("the runner that was replaced is still listened to")

    def _namesake_starts(self) -> None:
        """The runner of another cluster, without a name of its own: it takes nobody's attempts."""
        name = self.draw.choice(self.clusters).name
        if not self.is_answering:
            raise Away
        runner_id = self.stage.register(name, cluster="another", session="another")
        reply = self.stage.sync(runner_id, session="another", free_cpus=0)
        self.runner_heard_at = self.stage.now
        assert reply is not None
        assert not reply.stop, "told to stop what is not its own"

    def _start_fails(self) -> None:
        self._a_gang()[1].die(Reason.START_FAILED)

    def _answer_is_lost(self) -> None:
        self.draw.choice(self.clusters).is_answer_lost = True

    def _cluster_is_cut_off(self) -> None:
        self.draw.choice(self.clusters).is_cut_off = True

    def _cluster_is_reached_again(self) -> None:
        self.draw.choice(self.clusters).is_cut_off = False

    def _service_dies(self) -> None:
        self.is_service_up = False

    def _service_returns(self) -> None:
        if not self.is_service_up:
            self.is_service_up, self.is_service_frozen = True, False
            self._frozen_at = self.stage.now
            self.stage.keeper = LeaseKeeper.starting(
                self.stage.now, seconds=LEASE_SECONDS, look_every_seconds=ROUND_SECONDS
            )

    def _service_freezes(self) -> None:
        self.is_service_frozen = True

    def _service_thaws(self) -> None:
        """It finds by its clock that it was away; until then its leases look expired."""
        if self.is_service_frozen:
            self.is_service_frozen, self._frozen_at = False, self.stage.now

    def _database_leaves(self) -> None:
        self.is_database_up = False

    def _database_returns(self) -> None:
        self.is_database_up = True

    def _backup_is_made(self) -> None:
        self._backup = sqlite3.connect(":memory:")
        with self._raw() as raw:
            raw.backup(self._backup)

    def _database_comes_back_older(self) -> None:
        """The service restarts with it, as the runbook has it."""
        if self._backup is None:
            raise Away
        with self._raw() as raw:
            self._backup.backup(raw)
        self.is_restored, self.is_service_up = True, False
        self._service_returns()

    @contextlib.contextmanager
    def _raw(self) -> Iterator[sqlite3.Connection]:
        connection = self.stage.db.engine.raw_connection()
        try:
            yield connection.driver_connection  # type: ignore[misc]
        finally:
            connection.close()

    # ---- fair weather ----------------------------------------------------------------------------

    def clear_up(self) -> None:
        """Nothing more goes wrong. What is frozen, mute or lost stays so: it must be mended."""
        self._service_returns()
        self._service_thaws()
        self.is_database_up = True
        for cluster in self.clusters:
            cluster.is_cut_off = cluster.is_answer_lost = False
            cluster.is_agent_up = True
            cluster.is_agent_frozen = cluster.is_runner_frozen = False
            if not cluster.is_runner_up:
                self._register(cluster)
            for gang in cluster.gangs.values():
                gang.is_stuck = False
        for job in self.stage.jobs():
            if Phase(job.phase) is Phase.PAUSED:
                self.stage.resume(job.id)
                self.touched[job.id] = self.stage.now

    def is_over(self) -> bool:
        phases = {Phase(job.phase) for job in self.stage.jobs()}
        return phases <= TERMINAL | {Phase.PAUSED} and not self.gangs()


def _rewind(gang: Gang, applied_seq: int) -> None:
    """The database came back older: say again what it has lost, or leave."""
    if applied_seq >= gang.num_acknowledged - KEPT_EVENTS:
        gang.num_acknowledged = applied_seq
    else:
        gang.die(Reason.WORKER_ERROR)


def _step(gang: Gang) -> None:
    if not gang.said:
        gang.say({"kind": "started", "world_size": 1})
    gang.step += 1
    if gang.step % 2:  # otherwise a heartbeat will do
        gang.say(step_event(gang.step))
    if gang.step % 3 == 0:
        gang.say(state_event(gang.assignment, gang.step))
    if (reason := _reason_to_leave(gang)) is not None:
        gang.say({"kind": "finished", "reason": reason, "step": gang.step})


def _reason_to_leave(gang: Gang) -> str | None:
    if gang.step >= MAX_STEPS:
        return "budget_reached"
    if gang.is_deaf:
        return None
    return {"stop": "stopped_by_user", "pause": "paused_by_user"}.get(gang.heard)


#: What may happen, as often as it stands here.
_ACTS: tuple[Callable[[World], None], ...] = (
    *[World._submit] * 3,
    World._stop,
    World._cancel,
    World._pause,
    World._resume,
    World._retry,
    *[World._rank_dies] * 2,
    World._rank_fails,
    *[World._rank_freezes] * 2,
    World._rank_thaws,
    World._rank_falls_mute,
    World._stop_is_not_heard,
    World._seats_get_stuck,
    World._agent_dies,
    World._agent_freezes,
    *[World._agent_returns] * 2,
    World._runner_dies,
    World._runner_freezes,
    *[World._runner_thaws] * 2,
    *[World._runner_returns] * 2,
    World._second_runner_starts,
    World._namesake_starts,
    World._start_fails,
    World._answer_is_lost,
    World._cluster_is_cut_off,
    *[World._cluster_is_reached_again] * 2,
    World._service_dies,
    World._service_freezes,
    *[World._service_thaws] * 2,
    *[World._service_returns] * 2,
    World._database_leaves,
    *[World._database_returns] * 2,
    World._backup_is_made,
    World._database_comes_back_older,
)
