"""/internal/v1/runners: register, and the long-polled sync."""

import time
from datetime import datetime

import anyio
from fastapi import APIRouter, Depends
from sqlalchemy.exc import IntegrityError

from roadless.service.attempts.access import Leases
from roadless.service.attempts.leases import LeasePolicy
from roadless.service.auth.dependencies import require_runner
from roadless.service.clock import utc_now
from roadless.service.contract.reports.cluster import Registered, RegisterRunner, Sync, SyncReply
from roadless.service.db.session import Database
from roadless.service.http.dependencies import AppSettings, Bell, Db, ReportLimiter
from roadless.service.http.openapi import may_refuse
from roadless.service.http.routing import GuardedRoute
from roadless.service.jobs.transitions import Deadlines
from roadless.service.scheduling.registration import register
from roadless.service.scheduling.sync import Tick, View, sync
from roadless.service.wakeups import heard_within

router = APIRouter(
    route_class=GuardedRoute,
    prefix="/internal/v1/runners",
    tags=["runners"],
    dependencies=[Depends(require_runner)],
)

#: How long a poll trusts the bell before it checks again: another replica may have rung its own.
LOOK_AGAIN_SECONDS = 1.0


@router.post("", responses=may_refuse(409))
def register_runner(
    message: RegisterRunner, db: Db, settings: AppSettings, leases: Leases
) -> Registered:
    """Get the id of this cluster's runner; whoever had it before is listened to no longer."""
    try:
        runner_id = _register(db, message, leases.policy)
    except IntegrityError:  # another call with this name was first, so now there is one
        runner_id = _register(db, message, leases.policy)
    return Registered(runner_id=runner_id, lease_seconds=settings.lease_seconds)


def _register(db: Database, message: RegisterRunner, lease: LeasePolicy) -> str:
    with db.write() as session:
        return register(session, message, lease=lease, now=utc_now()).id


@router.post("/{runner_id}/sync", responses=may_refuse(409))
async def sync_runner(
    runner_id: str,
    message: Sync,
    db: Db,
    settings: AppSettings,
    leases: Leases,
    bell: Bell,
    limiter: ReportLimiter,
) -> SyncReply:
    """Return what to start and stop, as soon as there is something or the wait is over."""
    deadlines = Deadlines.from_settings(settings)
    give_up = time.monotonic() + message.wait_seconds

    def look(looked_at: datetime | None) -> tuple[SyncReply | None, datetime]:
        with db.write() as session:
            tick = Tick(session, utc_now(), deadlines, leases.policy)
            return sync(tick, View.of(runner_id, message, looked_at=looked_at)), tick.now

    looked_at = None
    while True:
        ring = bell.next_ring()
        reply, looked_at = await anyio.to_thread.run_sync(look, looked_at, limiter=limiter)
        left = give_up - time.monotonic()
        if reply is None or reply.start or reply.stop or left <= 0 or bell.is_closed:
            return reply or SyncReply()
        await heard_within(ring, min(left, LOOK_AGAIN_SECONDS))
