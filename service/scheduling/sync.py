"""Compare a runner's view with what the service wants: what to start and stop. Repeatable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from roadless.service.attempts import store as attempts
from roadless.service.attempts.leases import LeasePolicy
from roadless.service.auth.tokens import Audience, digest, mint
from roadless.service.checkpoints import store as checkpoints
from roadless.service.contract.ids import new_id
from roadless.service.contract.job.training import ParallelismSpec, gang_sizes
from roadless.service.contract.reports.cluster import Assignment, Node, Sync, SyncReply
from roadless.service.contract.states import Reason, Signal
from roadless.service.db.tables import AttemptRow, CheckpointRow, JobRow
from roadless.service.events import store as events
from roadless.service.jobs import store as jobs
from roadless.service.jobs.transitions import Transition, end_attempt, move, settle
from roadless.service.scheduling import store
from roadless.service.scheduling.policy import Ask, Capacity, choose, grow, seat
from roadless.service.scheduling.registration import require_current
from roadless.service.wheels import store as wheels
from roadless.service.wheels.views import assigned_wheel

#: Shapes of jobs that one query leaves out; jobs of further ones that do not fit are read and
#: passed over.
SHAPES_LEFT_OUT = 100
#: Ranks that have stood still for longer are said to have done so for this long: a day and an hour,
#: longer than any step may take.
LONGEST_STILL_SECONDS = 90_000.0


@dataclass(frozen=True)
class Tick(Transition):
    """One check of the state against the clock and a runner's report: leases may expire in it."""

    lease: LeasePolicy


@dataclass(frozen=True)
class View:
    """One call of a runner: what it reported, and when the service last checked this same call."""

    runner_id: str
    session: str
    nodes: list[Node]
    alive: frozenset[str]
    held: frozenset[str]
    released: frozenset[str]
    still_seconds: Mapping[str, float]
    looked_at: datetime | None

    @classmethod
    def of(cls, runner_id: str, said: Sync, *, looked_at: datetime | None = None) -> "View":
        """The view of a runner that reported this."""
        return cls(
            runner_id=runner_id,
            session=said.session,
            nodes=said.nodes,
            alive=frozenset(said.alive),
            held=frozenset(said.alive) | frozenset(said.held),
            released=frozenset(said.released),
            still_seconds=said.still_seconds,
            looked_at=looked_at,
        )

    def is_released(self, attempt: AttemptRow) -> bool:
        """Whether an attempt that has ended no longer holds anything."""
        return attempt.ended_at is not None and attempt.id in self.released

    def is_lost(self, attempt: AttemptRow) -> bool:
        """Whether an attempt that was once seen no longer is."""
        is_absent = attempt.seen_alive and attempt.id not in self.alive
        return attempt.ended_at is None and is_absent


def sync(tick: Tick, view: View) -> SyncReply | None:
    """Record what the runner reported and return what it must do.

    None if the runner has called again since: what this call saw is out of date. Otherwise the old
    call of a runner that was killed in a long poll would revert what the new one reports. Raises
    Replaced when another process has registered for its cluster.
    """
    runner = store.locked_runner(tick.session, view.runner_id)
    require_current(runner, view.session)
    if view.looked_at is not None and runner.last_seen_at != view.looked_at:
        return None
    store.touch(runner, nodes=view.nodes, now=tick.now)
    _end_and_release(tick, view)
    held = attempts.held_by(tick.session, view.runner_id)
    again = _renew(tick, view, held)
    fresh = _claim(tick, view, held)
    wanted = {attempt.id for attempt in held if attempt.ended_at is None}
    known = view.held | {attempt.id for attempt in held}
    return SyncReply(start=[*again, *fresh], stop=sorted(known - wanted))


def _end_and_release(tick: Tick, view: View) -> None:
    """Settle the jobs whose attempts are lost or released."""
    candidates = [
        one
        for one in attempts.held_by(tick.session, view.runner_id)
        if view.is_lost(one) or view.is_released(one)
    ]
    if not candidates:
        return
    rows = jobs.locked(tick.session, {attempt.job_id for attempt in candidates})
    # Checked again, since another transaction may have ended them while we waited.
    for attempt in attempts.held_by(tick.session, view.runner_id):
        if (job := rows.get(attempt.job_id)) is None:
            continue
        if view.is_released(attempt):
            attempt.released_at = tick.now
            settle(tick, job)
        elif view.is_lost(attempt):
            _lose(tick, job, attempt)


def _lose(tick: Tick, job: JobRow, attempt: AttemptRow) -> None:
    end_attempt(
        tick,
        job,
        attempt,
        reason=Reason.RANK_DIED,
        message="the runner no longer sees any ranks of this attempt",
    )


def _renew(tick: Tick, view: View, held: Sequence[AttemptRow]) -> list[Assignment]:
    """Renew the leases of what starts or moves; hand out again what the runner does not know of.

    What a report works on has its lease from it, and is looked at again by the next sync.
    """
    again = []
    free = attempts.unlocked(tick.session, [one.id for one in held if one.ended_at is None])
    still_open = [attempt for attempt in held if attempt.id in free and attempt.ended_at is None]
    for attempt in still_open:
        attempt.seen_alive |= attempt.id in view.alive
        _note_movement(tick, view, attempt)
        if attempt.heard_at is None and _may_be_starting(tick, attempt):
            attempt.lease_until = tick.lease.until(tick.now)
        if not attempt.seen_alive:
            again.append(_hand_out_again(tick, attempt))
    _renew_unheard(tick, still_open)
    return again


def _may_be_starting(tick: Tick, attempt: AttemptRow) -> bool:
    """Whether ranks that have not reported yet are given time to, in whatever phase the job is."""
    return tick.now - attempt.created_at <= timedelta(seconds=tick.deadlines.start_seconds)


def _note_movement(tick: Tick, view: View, attempt: AttemptRow) -> None:
    still_seconds = view.still_seconds.get(attempt.id)
    if still_seconds is None:
        return
    moved_at = tick.now - timedelta(seconds=min(still_seconds, LONGEST_STILL_SECONDS))
    attempt.moved_at = moved_at if attempt.moved_at is None else max(attempt.moved_at, moved_at)


def _renew_unheard(tick: Tick, still_open: Sequence[AttemptRow]) -> None:
    """Renew, for as long as a step may take, the leases of ranks that move but do not report."""
    quiet_since = tick.now - timedelta(seconds=tick.lease.seconds / 2)
    quiet = [
        (attempt, attempt.heard_at, attempt.moved_at)
        for attempt in still_open
        if attempt.heard_at is not None and attempt.heard_at < quiet_since
    ]
    if not quiet:
        return
    hang_seconds = attempts.hang_seconds(tick.session, {one.job_id for one, _, _ in quiet})
    for attempt, heard_at, moved_at in quiet:
        if moved_at is not None:
            attempt.lease_until = tick.lease.until_moved(
                attempt.lease_until,
                moved_at=moved_at,
                heard_at=heard_at,
                hang_seconds=hang_seconds[attempt.job_id],
            )


def _free_capacity(nodes: Sequence[Node], held: Sequence[AttemptRow]) -> list[Capacity]:
    """Free capacity minus what was handed out and the runner does not count yet."""
    free: Sequence[Capacity] = [Capacity(node.free_cpus, node.free_gpus) for node in nodes]
    for attempt in held:
        if attempt.ended_at is None and not attempt.seen_alive:
            ask = Ask(
                attempt.job_id,
                attempt.world_size,
                attempt.cpus_per_worker,
                attempt.gpus_per_worker,
            )
            free = seat(ask, free) or []
    return list(free)


def _claim(tick: Tick, view: View, held: Sequence[AttemptRow]) -> list[Assignment]:
    """Start what fits, best first, from the queue read a page at a time.

    What does not fit never fits later in one claim, as capacity only shrinks. So the pages that
    follow leave out its whole shape, and any number of such jobs hides none behind them.
    """
    silent_since, last = tick.lease.silent_since(tick.now), None
    free: Sequence[Capacity] = _free_capacity(view.nodes, held)
    chosen: list[tuple[JobRow, Ask]] = []
    unfit: dict[tuple[int | None, ...], JobRow] = {}
    is_over = False
    while _has_room(free) and not is_over:
        page = store.claimable(
            tick.session,
            now=tick.now,
            silent_since=silent_since,
            after=last,
            without=list(islice(unfit.values(), SHAPES_LEFT_OUT)),
        )
        fitting, free = choose([_ask(job) for job in page], free)
        asks = {ask.job_id: ask for ask in fitting}
        chosen += [(job, asks[job.id]) for job in page if job.id in asks]
        unfit |= {store.shape_of(job): job for job in page if job.id not in asks}
        is_over, last = len(page) < store.QUEUE_PAGE, page[-1] if page else None
    _let_grow(tick, held, free)
    return [_start_attempt(tick, job, ask, view.runner_id) for job, ask in chosen]


def _has_room(free: Sequence[Capacity]) -> bool:
    """Whether any rank at all may fit: each needs a core."""
    return any(node.cpus >= 1 for node in free)


def _ask(job: JobRow) -> Ask:
    parallelism = ParallelismSpec.model_validate(job.spec["parallelism"])
    largest, *fewer = gang_sizes(parallelism, batch_size=job.spec["training"]["batch_size"])
    return Ask(
        job.id, largest, parallelism.cpus_per_worker, parallelism.gpus_per_worker, tuple(fewer)
    )


def _let_grow(tick: Tick, held: Sequence[AttemptRow], free: Sequence[Capacity]) -> None:
    """Ask elastic jobs below full size to grow into capacity that no other job waits for."""
    settled = {one.job_id: one for one in held if _may_grow(tick, one)}
    if not settled or not _has_room(free):
        return
    for job in store.running(tick.session, settled.keys()):
        attempt = settled[job.id]
        size, free = grow(_ask(job), attempt.world_size, free)
        if size > attempt.world_size:
            attempt.grow_to = size
            _note_growth(tick, job, attempt)


def _may_grow(tick: Tick, attempt: AttemptRow) -> bool:
    """Whether the attempt has kept its size for long enough, and was not asked before."""
    wait, since = tick.deadlines.grow_seconds, attempt.first_step_at
    if wait is None or since is None or attempt.grow_to is not None:
        return False
    return attempt.ended_at is None and tick.now - since >= timedelta(seconds=wait)


def _note_growth(tick: Tick, job: JobRow, attempt: AttemptRow) -> None:
    events.add(
        tick.session,
        job,
        code="attempt.grows",
        message=f"capacity for {attempt.grow_to} ranks is free; the job grows from "
        f"{attempt.world_size} at its next training state",
        at=tick.now,
        attempt_id=attempt.id,
    )


def _start_attempt(tick: Tick, job: JobRow, ask: Ask, runner_id: str) -> Assignment:
    token = mint(Audience.ATTEMPT)
    resume = checkpoints.newest_state(tick.session, job.id)
    _note_other_state(tick, job, resume)
    attempt = attempts.insert(
        tick.session,
        job,
        attempt_id=new_id("att"),
        token=token,
        runner_id=runner_id,
        seats={
            "world_size": ask.workers,
            "cpus_per_worker": ask.cpus,
            "gpus_per_worker": ask.gpus,
        },
        resume=resume,
        lease_until=tick.lease.until(tick.now),
        now=tick.now,
    )
    move(tick, job, Signal.CLAIM)
    return _assignment(tick, attempt, token)


def _note_other_state(tick: Tick, job: JobRow, resume: CheckpointRow | None) -> None:
    """Record it if an older training state replaces one that failed to load."""
    before = attempts.newest(tick.session, job.id)
    if before is None or before.reason != Reason.CHECKPOINT_UNREADABLE:
        return
    if resume is None or resume.id == before.resume_checkpoint_id:
        return
    events.add(
        tick.session,
        job,
        code="checkpoint.set_aside",
        message=f"training state {before.resume_checkpoint_id} of step {before.resumed_step} "
        f"failed to load; the job resumes from {resume.id} of step {resume.step}",
        at=tick.now,
    )


def _hand_out_again(tick: Tick, attempt: AttemptRow) -> Assignment:
    """An answer was lost: the runner never reported that it has this attempt."""
    token = mint(Audience.ATTEMPT)
    attempt.token_sha256 = digest(token)
    return _assignment(tick, attempt, token)


def _assignment(tick: Tick, attempt: AttemptRow, token: str) -> Assignment:
    wheel = wheels.of_job(tick.session, attempt.job_id)
    return Assignment(
        attempt_id=attempt.id,
        job_id=attempt.job_id,
        fence=attempt.fence,
        token=token,
        num_workers=attempt.world_size,
        cpus_per_worker=attempt.cpus_per_worker,
        gpus_per_worker=attempt.gpus_per_worker,
        wheel=wheel and assigned_wheel(wheel),
    )
