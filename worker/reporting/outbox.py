"""Events of a rank that the service has not acknowledged yet: numbered, on disk, sent in order.

Most are step points, so these must be cheap: the loop leaves each here as it is, and a separate
thread numbers, writes and sends them by the hundred, as the bytes that the spool holds.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from roadless.service.contract.reports.events import (
    MAX_EVENTS_PER_REPORT,
    BudgetNow,
    Event,
    Notice,
    ReportReply,
    StepMetrics,
    Usage,
)
from roadless.service.contract.states import Desired
from roadless.worker import retry
from roadless.worker.api import Away, Fenced, Refused
from roadless.worker.errors import MESSAGE_LENGTH
from roadless.worker.reporting.spool import Spool

log = logging.getLogger(__name__)

#: How long step points gather before they are sent together.
GATHER_SECONDS = 0.5
#: Step points in memory before they are written: batches cost less, and rarely delay a step.
FRESH_POINTS = 256
#: The longest silence of a rank that has nothing to report; also how soon it learns of a stop.
HEARTBEAT_SECONDS = 1.0
#: Unacknowledged bytes after which step points are thinned; everything else is always kept.
SPOOL_BYTES = 256 << 20
#: Beyond the bound one step in this many is kept, and beyond twice the bound none.
THINNED_TO_ONE_IN = 16

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def as_it_is(event: Event) -> Event:
    """Redact nothing."""
    return event


class EventApi(Protocol):
    """The call that an outbox makes (``roadless.worker.api.AttemptApi``)."""

    def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
        """Deliver events, each as JSON; raises Away, Fenced or Refused."""


@dataclass(frozen=True)
class Heard:
    """What the service wants, as of its last reply. ``is_fenced``: this attempt is over; leave.

    ``budget``: None until the service has sent one; until then the specification's applies.
    """

    desired: Desired = Desired.RUN
    evaluations_requested: int = 0
    budget: BudgetNow | None = None
    resize: bool = False
    is_fenced: bool = False


class Outbox:
    """One rank's events. ``say`` returns immediately and never raises.

    ``changed``: the lock around everything sent and received, notified whenever something was
    received or delivered; whoever holds it can say several things atomically.
    """

    def __init__(
        self,
        api: EventApi,
        *,
        rank: int,
        folder: Path,
        spool_bytes: int = SPOOL_BYTES,
        redact: Callable[[Event], Event] = as_it_is,
    ) -> None:
        """``redact``: removes secrets from an event before it is kept anywhere."""
        self._api = api
        self._redact = redact
        self._rank = rank
        self._spool = Spool(folder / f"spool-{rank}")
        self._dead_letters = folder / f"refused-{rank}.jsonl"
        self._spool_bytes = spool_bytes
        #: Step points from the loop that the sending thread has yet to write: a step waits for
        #: neither JSON nor disk.
        self._fresh: deque[StepMetrics] = deque()
        self._last_seq = 0
        self._steps_said = 0
        self._is_thinning = False
        #: By a service of an older release, which would refuse every one.
        self._is_usage_refused = False
        self._has_lost_steps = False
        self._is_closing = False
        self._urgent = threading.Event()
        self.changed = threading.Condition()
        self.heard = Heard()
        self._thread = threading.Thread(target=self._send_forever, name="report", daemon=True)
        self._thread.start()

    @property
    def is_empty(self) -> bool:
        """Whether everything said is acknowledged."""
        return not (self._fresh or len(self._spool))

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._is_closing or self.heard.is_fenced

    def set_desired_state(self, desired: Desired) -> None:
        """Start from what the user wanted when this rank fetched its specification."""
        with self.changed:
            self.heard = replace(self.heard, desired=desired)

    def say(self, event: Event) -> None:
        """Queue an event. Beyond the bound, step points and usage are thinned."""
        with self.changed:
            if isinstance(event, StepMetrics):
                self._say_step(event)
            elif isinstance(event, Usage):
                self._say_usage(event)
            else:
                self._append(event)
                self.hurry()

    def hurry(self) -> None:
        """Send what is pending now."""
        self._urgent.set()

    def become_fenced(self) -> None:
        """Treat the attempt as over from now on."""
        with self.changed:
            self.heard = replace(self.heard, is_fenced=True)
            self.changed.notify_all()

    def stop(self) -> None:
        """Send nothing more."""
        with self.changed:
            self._is_closing = True
            self.changed.notify_all()
        self.hurry()

    def join(self, *, deadline: float) -> None:
        """Wait for sending to end, and drop what is left."""
        self._thread.join(max(0.0, deadline - time.monotonic()) + retry.LONGEST_SECONDS)
        with self.changed:
            self._spool.close()

    # ---- the spool -----------------------------------------------------------------------------

    def _say_step(self, point: StepMetrics) -> None:
        if not self._is_thinned_out():
            self._fresh.append(point)
        if len(self._fresh) == FRESH_POINTS:
            self._spool_fresh()
        if self._steps_said == 1:
            self.hurry()

    def _say_usage(self, usage: Usage) -> None:
        if not self._is_usage_refused and not self._is_thinned_out():
            self._append(usage)

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
        try:
            self._spool.append(*lines)
            self._last_seq += len(lines)
        except OSError:  # as many as the disk takes
            for point in points:
                self._spool_one(point)

    def _spool_one(self, event: Event) -> None:
        line = self._line(event, seq=self._last_seq + 1)
        try:
            self._spool.append(line)
        except OSError as error:
            if isinstance(event, StepMetrics | Usage):
                self._lose_step(error)
                return
            self._spool.append_in_memory(line)
        self._last_seq += 1

    def _line(self, event: Event, *, seq: int) -> bytes:
        numbered = self._redact(event).model_copy(update={"seq": seq})
        return numbered.model_dump_json().encode()

    def _lose_step(self, error: OSError) -> None:
        """The disk is full: say so once, and continue without the step points it cannot hold."""
        if self._has_lost_steps:
            return
        self._has_lost_steps = True
        log.error("the spool cannot hold more step points; some are lost: %s", error)
        self._spool_one(Notice(code="metrics.lost", message=f"step points are lost: {error}"))

    def _is_thinned_out(self) -> bool:
        self._steps_said += 1
        pending = self._spool.pending_bytes
        if pending <= self._spool_bytes:
            self._is_thinning = False
            return False
        if not self._is_thinning:
            self._is_thinning = True
            message = f"{pending} bytes wait for the service; step points are thinned from here on"
            self._append(Notice(code="metrics.thinned", message=message))
        return pending > 2 * self._spool_bytes or self._steps_said % THINNED_TO_ONE_IN != 0

    # ---- sending -------------------------------------------------------------------------------

    def _send_forever(self) -> None:
        pauses = retry.pauses()
        while True:
            self._wait_for_something()
            if self.is_over:
                return
            try:
                self._send_once()
                pauses = retry.pauses()
            except Away as error:
                log.warning("the service is away, %d events wait: %s", len(self._spool), error)
                time.sleep(next(pauses))
            except Fenced:
                self.become_fenced()
            except Exception:
                log.exception("reporting failed; trying again")
                time.sleep(retry.LONGEST_SECONDS)

    def _wait_for_something(self) -> None:
        """Wait for something urgent, a full report, a few gathered events, or the heartbeat."""
        heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        while not self._has_full_report() and not self._urgent.wait(GATHER_SECONDS):
            if not self.is_empty or time.monotonic() >= heartbeat_at:
                break
        self._urgent.clear()

    def _has_full_report(self) -> bool:
        with self.changed:
            return len(self._spool) + len(self._fresh) >= MAX_EVENTS_PER_REPORT

    def _send_once(self) -> None:
        with self.changed:
            self._spool_fresh()
            lines = self._spool.peek(MAX_EVENTS_PER_REPORT)
        try:
            self._hear(self._api.report(self._rank, lines))
        except Refused as error:
            self._send_singly(lines, error)

    def _send_singly(self, lines: Sequence[bytes], error: Refused) -> None:
        """One of these is refused: find it, set it aside, and send a notice in its place."""
        if not lines:
            raise error
        for line in lines:
            self._send_or_replace(line)

    def _send_or_replace(self, line: bytes) -> None:
        try:
            self._hear(self._api.report(self._rank, [line]))
        except Refused as error:
            event = _EVENT.validate_json(line)
            self._is_usage_refused |= isinstance(event, Usage)
            message = f"{event.kind}: {error}"[:MESSAGE_LENGTH]
            notice = Notice(seq=event.seq, code="report.refused", message=message)
            self._hear(self._api.report(self._rank, [notice.model_dump_json().encode()]))
            self._set_aside(line)

    def _set_aside(self, line: bytes) -> None:
        try:
            with self._dead_letters.open("ab") as file:
                file.write(line + b"\n")
        except OSError:
            log.exception("cannot write a refused event: %s", line.decode())

    def _hear(self, reply: ReportReply) -> None:
        with self.changed:
            first_seq = self._last_seq - len(self._spool) + 1
            self._spool.drop(max(0, reply.ack_seq - first_seq + 1))
            # The other thread may have been fenced by now.
            self.heard = replace(
                self.heard,
                desired=reply.desired,
                evaluations_requested=reply.evaluations_requested,
                budget=reply.budget,
                resize=reply.resize,
            )
            self.changed.notify_all()
