"""Events of a rank that wait for the service: numbered, thinned beyond a bound, on disk.

Most are step points, so these must be cheap: they wait as they are until they are numbered and
written together, as the bytes that are sent. Used under its outbox's lock.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from roadless.service.contract.reports.events import (
    MAX_EVENTS_PER_REPORT,
    Event,
    Notice,
    StepMetrics,
    Usage,
)
from roadless.worker.reporting.spool import Spool

log = logging.getLogger(__name__)

#: Step points in memory before they are written: batches cost less, and rarely delay a step.
FRESH_POINTS = 256
#: Step points and usage in memory while the disk has no room; beyond it they are lost.
MEMORY_BYTES = 16 << 20
#: Acknowledged events that are kept on disk: a database that was restored lacks its last ones.
KEPT_BYTES = 64 << 20
#: Events in one report; a single one may be larger.
REPORT_BYTES = 1 << 20
#: Unacknowledged bytes after which step points are thinned; everything else is always kept.
SPOOL_BYTES = 256 << 20
#: Beyond the bound one step in this many is kept, and beyond twice the bound none.
THINNED_TO_ONE_IN = 16


def as_it_is(event: Event) -> Event:
    """Redact nothing."""
    return event


class Unheard(Exception):
    """The service will not take what this rank says, whatever it does."""


@dataclass(frozen=True)
class Bounds:
    """How many bytes of events wait on disk, wait in memory, and are kept once acknowledged."""

    spool_bytes: int = SPOOL_BYTES
    memory_bytes: int = MEMORY_BYTES
    kept_bytes: int = KEPT_BYTES


BOUNDS = Bounds()


class EventQueue:
    """One rank's events in the order of their numbers, from the first one not acknowledged."""

    def __init__(self, spool: Spool, *, bounds: Bounds, redact: Callable[[Event], Event]) -> None:
        """``redact``: removes secrets from an event before it is kept anywhere."""
        self._spool = spool
        self._bounds = bounds
        self._redact = redact
        #: Step points from the loop that are yet to be written: a step waits for neither JSON nor
        #: disk.
        self._fresh: deque[StepMetrics] = deque()
        self._last_seq = 0
        self._steps_said = 0
        self._is_thinning = False
        self._has_lost_steps = False

    def __len__(self) -> int:
        return len(self._spool) + len(self._fresh)

    def add(self, event: Event) -> bool:
        """Add an event at the end, unless it is thinned out; return whether to send it now.

        Beyond the bound, step points and usage are thinned.
        """
        if isinstance(event, StepMetrics):
            self._add_step(event)
            return self._steps_said == 1
        if isinstance(event, Usage):
            if not self._is_thinned_out():
                self._append(event)
            return False
        self._append(event)
        return True

    def first(self) -> list[bytes]:
        """The events of the next report, each as JSON."""
        self._spool_fresh()
        return self._spool.peek(MAX_EVENTS_PER_REPORT, max_bytes=REPORT_BYTES)

    def agree_on(self, applied_seq: int) -> int:
        """Begin behind what the service has applied; return by how many events.

        Fewer than it once acknowledged: its database was restored and lacks the last ones.
        """
        num_new = applied_seq - (self._last_seq - len(self._spool))
        if num_new > len(self._spool):
            raise Unheard(
                f"expected event {self._last_seq} as the last, which this rank said, saw "
                f"{applied_seq}: another process has reported as this rank"
            )
        if num_new >= 0:
            self._spool.drop(num_new)
        elif not self._spool.take_back(-num_new):
            raise Unheard(
                f"expected events up to {applied_seq - num_new} in the database, saw up to "
                f"{applied_seq}, as in one that was restored; the rank no longer has the "
                "first of those that are missing"
            )
        else:
            log.warning("the service lacks the last %d events; sending them again", -num_new)
        return num_new

    def close(self) -> None:
        """Drop what is left."""
        self._spool.close()

    def _add_step(self, point: StepMetrics) -> None:
        if not self._is_thinned_out():
            self._fresh.append(point)
        if len(self._fresh) == FRESH_POINTS:
            self._spool_fresh()

    def _append(self, event: Event) -> None:
        self._spool_fresh()
        self._spool_one(event)

    def _spool_fresh(self) -> None:
        """Number and write the step points that the loop has left here."""
        if not self._fresh:
            return
        points = list(self._fresh)
        self._fresh.clear()
        lines = [self._line(point, seq=self._last_seq + n) for n, point in enumerate(points, 1)]
        if self._keep(*lines, memory_bytes=self._bounds.memory_bytes) is None:
            return
        for point in points:  # as many as there is room for
            self._spool_one(point)

    def _spool_one(self, event: Event) -> None:
        is_step = isinstance(event, StepMetrics | Usage)
        room = self._bounds.memory_bytes if is_step else math.inf
        error = self._keep(self._line(event, seq=self._last_seq + 1), memory_bytes=room)
        if error is not None:
            self._lose_step(error)

    def _keep(self, *lines: bytes, memory_bytes: float) -> OSError | None:
        """Spool the lines, in memory if the disk fails; return its error if there is no room."""
        try:
            self._spool.append(*lines)
        except OSError as error:
            if self._spool.memory_bytes + sum(map(len, lines)) > memory_bytes:
                return error
            self._spool.append_in_memory(*lines)
        self._last_seq += len(lines)
        return None

    def _line(self, event: Event, *, seq: int) -> bytes:
        numbered = self._redact(event).model_copy(update={"seq": seq})
        return numbered.model_dump_json().encode()

    def _lose_step(self, error: OSError) -> None:
        """There is no room left: say so once, and continue without the step points."""
        if self._has_lost_steps:
            return
        self._has_lost_steps = True
        log.error("the spool cannot hold more step points; some are lost: %s", error)
        self._spool_one(Notice(code="metrics.lost", message=f"step points are lost: {error}"))

    def _is_thinned_out(self) -> bool:
        self._steps_said += 1
        pending = self._spool.pending_bytes
        if pending <= self._bounds.spool_bytes:
            self._is_thinning = False
            return False
        if not self._is_thinning:
            self._is_thinning = True
            message = f"{pending} bytes wait for the service; step points are thinned from here on"
            self._append(Notice(code="metrics.thinned", message=message))
        return pending > 2 * self._bounds.spool_bytes or self._steps_said % THINNED_TO_ONE_IN != 0
