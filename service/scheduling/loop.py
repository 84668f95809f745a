"""The one background loop of the service: every second it checks leases and deadlines."""

import asyncio
import logging

import anyio

from roadless.service.attempts.leases import LeaseKeeper
from roadless.service.clock import utc_now
from roadless.service.db.session import Database
from roadless.service.errors import Unavailable
from roadless.service.jobs.transitions import Deadlines
from roadless.service.scheduling.deadlines import (
    end_overdue_phases,
    expire_leases,
    explain_waiting,
    forget_runners,
)
from roadless.service.scheduling.sync import Tick
from roadless.service.settings import Settings
from roadless.service.wakeups import Wakeups

log = logging.getLogger(__name__)


def tick(db: Database, keeper: LeaseKeeper, deadlines: Deadlines) -> int:
    """Do once what is due; return how many attempts or phases were ended or released."""
    with db.write() as session:
        now = utc_now()
        facts = Tick(session, now, deadlines, keeper.look(now))
        ended = expire_leases(facts) + end_overdue_phases(facts) + forget_runners(facts)
        explain_waiting(facts)
    return ended


async def run_forever(
    db: Database,
    keeper: LeaseKeeper,
    *,
    settings: Settings,
    bell: Wakeups,
    limiter: anyio.CapacityLimiter,
) -> None:
    """Tick until cancelled. While the database is away, wait with leases frozen."""
    deadlines = Deadlines.from_settings(settings)
    while True:
        await asyncio.sleep(settings.tick_seconds)
        try:
            if await anyio.to_thread.run_sync(tick, db, keeper, deadlines, limiter=limiter):
                bell.ring()
        except Unavailable as error:
            keeper.freeze(utc_now())
            log.warning("tick skipped, leases frozen: %s", error)
        except Exception:
            log.exception("tick failed; the next one tries again")
