"""P3, P2 and P4 on any walk: clusters that fail, delay, repeat and forget, users who change mind.

Whatever happens, a terminal job holds nothing, at most one attempt of a job may write, no job is
left with nobody to move it, and every job ends once its user asks for it and the clusters behave.
"""

import contextlib
from dataclasses import dataclass, field
from datetime import datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from played import state_event, step_event
from stage import LEASE_SECONDS, Stage, staged

from roadless.service.contract.reports.cluster import Assignment
from roadless.service.contract.states import RETRYABLE, TERMINAL, Phase
from roadless.service.errors import Conflict, Fenced, Invalid
from roadless.service.scheduling.registration import NameTaken, Replaced

SPEC = {
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "sgd_schedulefree"},
    "retry": {"max_attempts": 3},
}
MAX_JOBS = 4
ROUNDS = 60
FAILURES = sorted([*RETRYABLE, "non_finite_loss", "data_not_found"])


@dataclass
class Gang:
    """What one attempt holds on a cluster, and what its rank would say."""

    assignment: Assignment
    #: Ranks run; without them the seats are still held.
    is_up: bool = True
    frozen_at: datetime | None = None  #: since when they neither speak nor use the processor
    seq: int = 0
    step: int = 0
    heard: str = "run"

    @property
    def id(self):
        return self.assignment.attempt_id


@dataclass
class Cluster:
    """A cluster and its runner, who may be killed: then only what is detached stays."""

    key: str
    runner_id: str = ""
    session: int = 0
    gangs: dict[str, Gang] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)  #: attempts whose seats do not come free now


@pytest.fixture(scope="module", autouse=True)
def _database(tmp_path_factory):
    home = tmp_path_factory.mktemp("walk")
    with staged(f"sqlite:///{home / 'walk.db'}", home) as stage:
        Walk.db = stage.db
        yield


class Walk(RuleBasedStateMachine):
    db = None  #: one for all walks, emptied before each

    def __init__(self):
        super().__init__()
        self.stage = Stage(self.db)
        self.stage.empty()
        self.clusters = [Cluster("a"), Cluster("b")]
        for cluster in self.clusters:
            self._register(cluster)
        self.ended: dict[str, str] = {}
        self.former: list[Gang] = []

    # ---- users -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.stage.jobs()) < MAX_JOBS)
    @rule()
    def submit(self):
        self.stage.submit(SPEC)

    @precondition(lambda self: self.stage.jobs())
    @rule(data=st.data(), action=st.sampled_from(["stop", "cancel"]))
    def change_mind(self, data, action):
        job = data.draw(st.sampled_from(self.stage.jobs()))
        self._act(action, job.id)

    @precondition(lambda self: self.stage.jobs())
    @rule(data=st.data(), checkpoint=st.sampled_from(["save", "latest"]))
    def pause(self, data, checkpoint):
        job = data.draw(st.sampled_from(self.stage.jobs()))
        self._act("pause", job.id, checkpoint)

    @precondition(lambda self: self.stage.jobs())
    @rule(data=st.data(), action=st.sampled_from(["resume", "retry", "extend"]))
    def let_it_go_on(self, data, action):
        job = data.draw(st.sampled_from(self.stage.jobs()))
        if self._act(action, job.id, **({"steps": 7} if action == "extend" else {})):
            self.ended.pop(job.id, None)

    @precondition(lambda self: self.stage.jobs())
    @rule(data=st.data())
    def delete(self, data):
        job = data.draw(st.sampled_from(self.stage.jobs()))
        if self._act("delete", job.id):
            del self.ended[job.id]

    def _act(self, action, job_id, *arguments, **amounts):
        with contextlib.suppress(Conflict, Invalid):
            getattr(self.stage, action)(job_id, *arguments, **amounts)
            return True
        return False

    # ---- runners ---------------------------------------------------------------------------------

    @rule(index=st.integers(0, 1), is_lost=st.booleans(), room=st.integers(0, 2))
    def sync(self, index, is_lost, room):
        self._sync(self.clusters[index], room=room, is_lost=is_lost)

    def _sync(self, cluster, *, room=2, is_lost=False):
        told, ranks = set(cluster.released), [g for g in cluster.gangs.values() if g.is_up]
        reply = self.stage.sync(
            cluster.runner_id,
            session=str(cluster.session),
            alive=[gang.id for gang in ranks],
            held=list(cluster.gangs),
            released=told,
            still_seconds={gang.id: self._still_seconds(gang) for gang in ranks},
            free_cpus=room,
        )
        if is_lost:
            return
        cluster.released -= told
        for assignment in reply.start:
            cluster.gangs[assignment.attempt_id] = Gang(assignment)
        for attempt_id in reply.stop:
            self._release(cluster, attempt_id)

    def _still_seconds(self, gang):
        return (self.stage.now - (gang.frozen_at or self.stage.now)).total_seconds()

    def _register(self, cluster, name=None):
        """A new process of the runner, under a new name if another cluster has the old one."""
        cluster.session += 1
        said = {"cluster": cluster.key, "session": str(cluster.session)}
        try:
            runner_id = self.stage.register(name or cluster.key, **said)
        except NameTaken:
            runner_id = self.stage.register(f"{cluster.key} again", **said)
        assert cluster.runner_id in ("", runner_id), "the same cluster is the same runner"
        cluster.runner_id = runner_id

    def _release(self, cluster, attempt_id):
        if attempt_id in cluster.stuck:
            return
        if gang := cluster.gangs.pop(attempt_id, None):
            self.former.append(gang)
        cluster.released.add(attempt_id)

    @rule(index=st.integers(0, 1))
    def kill_the_runner(self, index):
        """Its successor finds the gangs, and does not know what was released but not yet told."""
        cluster = self.clusters[index]
        cluster.released.clear()
        self._register(cluster)

    @rule(index=st.integers(0, 1))
    def the_runner_before_speaks(self, index):
        """It was frozen, say, and was replaced meanwhile: nothing that it says may count."""
        cluster = self.clusters[index]
        ids = [row.id for row in self.stage.attempts()]
        with pytest.raises(Replaced):
            self.stage.sync(cluster.runner_id, session=str(cluster.session - 1), released=ids)

    @rule(name=st.sampled_from(["a", "b", "a again"]))
    def a_stranger_wants_the_name_and_says_that_everything_is_released(self, name):
        """Whether it gets the name or not, nobody's seats are free on its word."""
        try:
            runner_id = self.stage.register(name, cluster="stranger", session="stranger")
        except NameTaken:
            return
        ids = [row.id for row in self.stage.attempts()]
        self.stage.sync(runner_id, session="stranger", released=ids, held=ids, free_cpus=0)

    @precondition(lambda self: self._gangs())
    @rule(data=st.data())
    def seats_get_stuck(self, data):
        cluster, gang = data.draw(st.sampled_from(self._gangs()))
        cluster.stuck.add(gang.id)

    @rule(index=st.integers(0, 1))
    def seats_come_loose(self, index):
        self.clusters[index].stuck.clear()

    # ---- ranks -----------------------------------------------------------------------------------

    def _gangs(self):
        return [(cluster, gang) for cluster in self.clusters for gang in cluster.gangs.values()]

    def _running(self):
        return [gang for _, gang in self._gangs() if gang.is_up and gang.frozen_at is None]

    def _say(self, gang, *events):
        numbered = [{**event, "seq": gang.seq + i} for i, event in enumerate(events, 1)]
        try:
            gang.heard = self.stage.report(gang.assignment.token, *numbered).desired
            gang.seq += len(events)
        except Fenced:
            gang.is_up = False

    @precondition(lambda self: self._running())
    @rule(data=st.data(), with_start=st.booleans(), with_state=st.booleans())
    def step(self, data, with_start, with_state):
        self._step(data.draw(st.sampled_from(self._running())), with_start, with_state)

    def _step(self, gang, with_start=False, with_state=False):
        gang.step += 1
        events = [{"kind": "started", "world_size": 1}] if with_start else []
        events.append(step_event(gang.step))
        if with_state:
            events.append(state_event(gang.assignment, gang.step))
        self._say(gang, *events)

    @precondition(lambda self: self._running())
    @rule(
        data=st.data(),
        reason=st.sampled_from(["budget_reached", "stopped_by_user", "paused_by_user"]),
    )
    def finish(self, data, reason):
        gang = data.draw(st.sampled_from(self._running()))
        self._say(gang, step_event(gang.step + 1), self._finished(gang, reason))
        gang.is_up = False

    def _finished(self, gang, reason):
        return {"kind": "finished", "reason": reason, "step": gang.step + 1}

    @precondition(lambda self: self._running())
    @rule(data=st.data(), reason=st.sampled_from(FAILURES))
    def fail(self, data, reason):
        gang = data.draw(st.sampled_from(self._running()))
        self._say(gang, {"kind": "failed", "reason": reason, "message": "it broke"})
        gang.is_up = False

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def die_without_a_word(self, data):
        data.draw(st.sampled_from(self._running())).is_up = False

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def freeze(self, data):
        data.draw(st.sampled_from(self._running())).frozen_at = self.stage.now

    @precondition(lambda self: self.former)
    @rule(data=st.data())
    def a_zombie_speaks(self, data):
        """What was released may have been frozen, and thaws: it must not be listened to."""
        gang = data.draw(st.sampled_from(self.former))
        try:
            self.stage.report(gang.assignment.token, {**step_event(99), "seq": gang.seq + 1})
        except Fenced:
            return
        raise AssertionError(f"{gang.id} was released and still writes")

    # ---- time ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 5, 31, 125, 700]), is_suspended=st.booleans())
    def time_passes(self, seconds, is_suspended):
        if is_suspended:
            self.stage.pass_time(seconds)
            self.stage.tick()
            return
        for _ in range(0, seconds, 5):
            self.stage.pass_time(min(5, seconds))
            self.stage.tick()

    @rule()
    def the_database_is_away(self):
        self.stage.keeper.freeze(self.stage.now)

    # ---- what holds at any time ------------------------------------------------------------------

    @invariant()
    def terminal_means_nothing_is_held(self):
        """And paused as well."""
        idle = TERMINAL | {Phase.PAUSED}
        terminal = {job.id for job in self.stage.jobs() if Phase(job.phase) in idle}
        held = {gang.assignment.job_id for _, gang in self._gangs()}
        assert not terminal & held

    @invariant()
    def an_end_is_an_end_until_a_user_opens_it_again(self):
        for job in self.stage.jobs():
            if Phase(job.phase) in TERMINAL:
                assert self.ended.setdefault(job.id, job.phase) == job.phase
            else:
                assert job.id not in self.ended

    @invariant()
    def at_most_one_attempt_may_write_and_it_is_the_newest(self):
        rows = self.stage.attempts()
        for job in self.stage.jobs():
            open_fences = [row.fence for row in rows if row.job_id == job.id and not row.ended_at]
            assert open_fences in ([], [job.fence])

    @invariant()
    def somebody_can_move_every_job(self):
        """STARTING and RUNNING have an attempt with a lease; releasing phases hold seats."""
        rows = self.stage.attempts()
        for job in self.stage.jobs():
            mine = [row for row in rows if row.job_id == job.id]
            if job.phase in ("STARTING", "RUNNING"):
                assert [row for row in mine if row.ended_at is None]
            if job.phase in ("PAUSING", "STOPPING", "FINISHING", "FAILING", "CANCELLING"):
                assert [row for row in mine if row.released_at is None]
            if job.phase in ("QUEUED", "RECOVERING", "PAUSED"):
                assert not [row for row in mine if row.ended_at is None]
            if job.phase in ("QUEUED", "PAUSED"):
                assert not [row for row in mine if row.released_at is None]

    # ---- and what comes of it --------------------------------------------------------------------

    def teardown(self):
        for index, job in enumerate(self.stage.jobs()):
            self._act("cancel" if index % 2 else "stop", job.id)
        for _ in range(ROUNDS):
            if self._is_over():
                break
            self._a_fair_round()
        assert self._is_over(), {job.id: job.phase for job in self.stage.jobs()}
        self.an_end_is_an_end_until_a_user_opens_it_again()

    def _is_over(self):
        phases = {Phase(job.phase) for job in self.stage.jobs()}
        return phases <= TERMINAL and not self._gangs()

    def _a_fair_round(self):
        """Clusters do what they are told, and ranks train on or stop as they hear."""
        for cluster in self.clusters:
            cluster.stuck.clear()
            self._sync(cluster)
        for gang in self._running():
            self._step(gang, with_start=True)
            if gang.is_up and gang.heard in ("stop", "pause"):
                reason = "stopped_by_user" if gang.heard == "stop" else "paused_by_user"
                self._say(gang, self._finished(gang, reason))
                gang.is_up = False
        self.stage.pass_time(LEASE_SECONDS / 10)
        self.stage.tick()


Walk.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestWalk = Walk.TestCase
