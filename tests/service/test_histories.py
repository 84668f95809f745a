"""P4 and P3 over seeded histories: whatever dies, freezes or comes back older, no job hangs unseen.

Every phase lasts as long as it has news, up to a bound; and once nothing more goes wrong, every job
ends and nothing is held. A history that fails prints its seed, and ``ROADLESS_SEED`` replays it.
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from simulated import DEADLINES, HANG_SECONDS, RETRY_DELAY_SECONDS, ROUND_SECONDS, Gang, World
from sqlalchemy.orm import Session
from stage import LEASE_SECONDS, Stage, staged

from roadless.service.attempts import store as attempts
from roadless.service.attempts.leases import LeaseKeeper, LeasePolicy
from roadless.service.contract.reports.cluster import Sync
from roadless.service.contract.states import RETRYABLE, TERMINAL, Phase, Reason
from roadless.service.db.tables import AttemptRow, JobRow
from roadless.service.errors import Fenced
from roadless.service.ingest import apply
from roadless.service.jobs.transitions import RELEASE_SECONDS, Deadlines
from roadless.service.scheduling import deadlines, loop
from roadless.service.scheduling import sync as syncing
from roadless.service.scheduling.sync import Tick, View

NUM_HISTORIES = 1000
ROUNDS, FAIR_ROUNDS = 18, 90
PARTS = 8
#: A broken guard shows in the first of them.
ENOUGH_HISTORIES = 200
#: A change is seen in the round after it.
SLACK_SECONDS = 2 * ROUND_SECONDS

IDLE = TERMINAL | {Phase.PAUSED}
RELEASING = {Phase.FINISHING, Phase.FAILING, Phase.CANCELLING}
#: How long a phase may last without news, while the service can look.
BOUNDS = {
    Phase.STARTING: DEADLINES.start_seconds,
    Phase.RUNNING: max(LEASE_SECONDS, HANG_SECONDS),
    Phase.PAUSING: DEADLINES.stop_seconds,
    Phase.STOPPING: DEADLINES.stop_seconds,
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home: Path = tmp_path_factory.mktemp("histories")
    with staged(f"sqlite:///{home / 'histories.db'}", home) as stage:
        yield stage


@dataclass
class Watched:
    """A job in one state, and for how long it has been in it without news."""

    state: tuple[Phase, int, bool]  #: phase, fence, and whether an attempt of it may write
    seconds: float = 0.0
    is_old: bool = False  #: the service has looked since


class Watch:
    """Knows of each job how long it has had no news that the service could have seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._watched: dict[str, Watched] = {}

    def check(self) -> None:
        world = self._world
        if not world.is_answering:
            return
        if world.is_restored:
            self._watched.clear()
            world.ended.clear()
        rows, jobs = world.stage.attempts(), world.stage.jobs()
        gangs = {gang.id: gang for _, gang in world.gangs()}
        for attempt in rows:
            if attempt.ended_at is not None and attempt.id not in world.ended:
                world.ended.add(attempt.id)
                _require_silence(attempt, gangs.get(attempt.id))
        for job in jobs:
            mine = [one for one in rows if one.job_id == job.id]
            self._age(job, is_open=any(one.ended_at is None for one in mine))
            self._require_news(job, mine)
            _require_delay(mine, touched_at=world.touched.get(job.id))
        self._require_nothing_held(jobs, known={one.id for one in rows})

    def _age(self, job: JobRow, *, is_open: bool) -> None:
        before = self._watched.get(job.id)
        phase = Phase(job.phase)
        state = phase, job.fence, is_open
        if before is None or before.state != state:
            self._watched[job.id] = Watched(state)
            return
        before.is_old = True
        if not self._world.is_lease_running():
            return
        is_news = phase is Phase.RUNNING and job.id in self._world.heard
        before.seconds = 0.0 if is_news else before.seconds + ROUND_SECONDS

    def _require_news(self, job: JobRow, mine: list[AttemptRow]) -> None:
        (phase, _, is_open), seconds = self._watched[job.id].state, self._watched[job.id].seconds
        is_held = any(one.released_at is None for one in mine)
        assert sum(one.ended_at is None for one in mine) <= 1
        if phase in BOUNDS and is_open:
            assert seconds <= BOUNDS[phase] + SLACK_SECONDS, f"{phase} without news"
        elif phase in {Phase.STARTING, Phase.RUNNING}:
            raise AssertionError(f"{phase} without an attempt")
        elif phase in RELEASING | {Phase.RECOVERING, Phase.PAUSING, Phase.STOPPING} and is_held:
            if seconds > RELEASE_SECONDS + SLACK_SECONDS:
                assert "release.overdue" in self._world.stage.codes(job.id), f"{phase} unexplained"
        elif phase in RELEASING | {Phase.PAUSING, Phase.STOPPING}:
            raise AssertionError(f"{phase} although nothing is held")
        if phase in {Phase.QUEUED, Phase.RECOVERING} and self._watched[job.id].is_old:
            assert job.reason is not None, f"{phase} without a reason"
        if phase is Phase.QUEUED and seconds > SLACK_SECONDS and self._world.is_without_runner():
            assert job.reason == Reason.NO_RUNNER, f"QUEUED: {job.reason}"

    def _require_nothing_held(self, jobs: list[JobRow], *, known: set[str]) -> None:
        """Of attempts that a restored database does not know, the next sync tells."""
        idle = {job.id for job in jobs if Phase(job.phase) in IDLE}
        held = {gang.assignment.job_id for _, gang in self._world.gangs() if gang.id in known}
        assert not idle & held, "idle, and something is held"


def _require_silence(attempt: AttemptRow, gang: Gang | None) -> None:
    """Only ranks that could not be heard for a lease are given up as silent."""
    if attempt.reason == Reason.LEASE_EXPIRED and gang is not None and gang.is_training:
        assert gang.quiet_seconds >= LEASE_SECONDS - ROUND_SECONDS, "given up although it was heard"


def _require_delay(mine: list[AttemptRow], *, touched_at: datetime | None) -> None:
    """After two losses in a row without a training state the next attempt waits."""
    *_, first, second, third = [None, None, None, *sorted(mine, key=lambda one: one.fence)]
    if first is None or second is None or third is None or second.ended_at is None:
        return
    are_lost = {first.reason, second.reason} <= RETRYABLE
    is_gained = not first.resumed_step == second.resumed_step == third.resumed_step
    if not are_lost or is_gained or (touched_at is not None and touched_at >= second.ended_at):
        return
    waited = third.created_at - second.ended_at
    assert waited >= timedelta(seconds=RETRY_DELAY_SECONDS), f"tried again after {waited}"


def live(stage: Stage, seed: int) -> None:
    """Live through one history; raises AssertionError with its seed and what happened."""
    stage.begin_again(DEADLINES, tick_seconds=ROUND_SECONDS)
    world = World(stage, seed)
    watch = Watch(world)
    try:
        for _ in range(ROUNDS):
            world.round(has_misfortunes=True)
            watch.check()
        world.clear_up()
        for _ in range(FAIR_ROUNDS):
            if world.is_over():
                break
            world.round(has_misfortunes=False)
            watch.check()
        assert world.is_over(), [(job.phase, job.reason, job.message) for job in stage.jobs()]
    except AssertionError as error:
        story = "\n".join(world.log)
        raise AssertionError(f"ROADLESS_SEED={seed} replays this: {error}\n{story}") from error


def live_through(stage: Stage, seeds: range) -> None:
    for seed in seeds:
        live(stage, seed)


def seeds(part: int) -> range:
    if chosen := os.environ.get("ROADLESS_SEED"):
        return range(int(chosen), int(chosen) + 1)
    return range(part, NUM_HISTORIES, PARTS)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_history_leaves_a_job_without_news_or_a_deadline(stage: Stage, part: int) -> None:
    live_through(stage, seeds(part))


# ---- and each guard is needed -------------------------------------------------------------------


def _nothing(*_arguments: object, **_options: object) -> int:
    return 0


def _always_renewed(tick: Tick, still_open: list[AttemptRow]) -> None:
    for attempt in still_open:
        attempt.lease_until = tick.lease.until(tick.now)


def _deadlines_but_of(phases: Collection[Phase]) -> Callable[..., datetime | None]:
    before = Deadlines.of

    def of(self: Deadlines, phase: Phase, now: datetime) -> datetime | None:
        return None if phase in phases else before(self, phase, now)

    return of


def _any_attempt(session: Session, token: str) -> AttemptRow:
    attempt = attempts.by_token(session, token)
    if attempt is None:
        raise Fenced("it is not known")
    return attempt


def _views_of_live_attempts(runner_id: str, said: Sync, **options: Any) -> View:
    return _VIEW_OF(runner_id, said.model_copy(update={"held": []}), **options)


_VIEW_OF = View.of

#: What is broken, where, and what stands in its place.
GUARDS: dict[str, tuple[object, str, object]] = {
    "leases expire": (loop, "expire_leases", _nothing),
    "phases end at their deadline": (loop, "end_overdue_phases", _nothing),
    "a start has a deadline": (Deadlines, "of", _deadlines_but_of({Phase.STARTING})),
    "leaving has a deadline": (Deadlines, "of", _deadlines_but_of({Phase.STOPPING, Phase.PAUSING})),
    "a lease needs news from ranks": (syncing, "_renew_unheard", _always_renewed),
    "moving alone is not news for ever": (
        LeasePolicy,
        "until_moved",
        lambda self, lease_until, *, moved_at, **_: max(lease_until, self.until(moved_at)),
    ),
    "what no attempt owns is released": (View, "of", _views_of_live_attempts),
    "an overdue release is said": (deadlines, "_note_overdue_release", _nothing),
    "a job that waits says why": (loop, "explain_waiting", _nothing),
    "leases are frozen after a suspension": (LeaseKeeper, "freeze", _nothing),
    "terminal means nothing is held": (attempts, "holds_anything", _nothing),
    "an attempt that has ended may not write": (apply, "open_attempt", _any_attempt),
    "a runner that was replaced is refused": (syncing, "require_current", _nothing),
    "attempts lost in a row wait": (Deadlines, "retry_delay", _nothing),
    "and not for ever": (Deadlines, "retry_delay", lambda *_: 1e6),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_broken_guard_is_caught(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    monkeypatch.setattr(*GUARDS[guard])
    with pytest.raises(AssertionError, match="ROADLESS_SEED"):
        live_through(stage, range(ENOUGH_HISTORIES))
