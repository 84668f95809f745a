"""Events of a rank that the service has not acknowledged yet: numbered, on disk, sent in order.

Most are step points, so these must be cheap: the loop leaves each here as it is, and a separate
thread numbers, writes and sends them by the hundred, as the bytes that the spool holds.
"""

import logging
import math
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
from roadless.worker.api import Away, EventsMissing, Fenced, Refused
from roadless.worker.errors import MESSAGE_LENGTH
from roadless.worker.reporting.refusals import Refusals
from roadless.worker.reporting.spool import Spool

log = logging.getLogger(__name__)

#: How long step points gather before they are sent together.
GATHER_SECONDS = 0.5
#: Step points in memory before they are written: batches cost less, and rarely delay a step.
FRESH_POINTS = 256
#: Step points and usage in memory while the disk has no room; beyond it they are lost.
MEMORY_BYTES = 16 << 20
#: Acknowledged events that are kept on disk: a database that was restored lacks its last ones.
KEPT_BYTES = 64 << 20
#: Refused events in a file for whoever looks for the cause; the notices go on beyond it.
SET_ASIDE_BYTES = 16 << 20
#: Events in one report; a single one may be larger.
REPORT_BYTES = 1 << 20
#: The longest silence of a rank that has nothing to report; also how soon it learns of a stop.
HEARTBEAT_SECONDS = 1.0
#: Unacknowledged bytes after which step points are thinned; everything else is always kept.
SPOOL_BYTES = 256 << 20
#: Beyond the bound one step in this many is kept, and beyond twice the bound none.
THINNED_TO_ONE_IN = 16

#: The answers to an event that is refused for what it says: sent again, it would be again.
_ABOUT_CONTENT = frozenset({413, 422})
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def as_it_is(event: Event) -> Event:
    """Redact nothing."""
    return event


def ignore(message: str) -> None:
    """Do nothing beside being silent."""


class Unheard(Exception):
    """The service will not take what this rank says, whatever it does."""


class EventApi(Protocol):
    """The call that an outbox makes (``roadless.worker.api.AttemptApi``)."""

    def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
        """Deliver events, each as JSON; raises Away, Fenced, EventsMissing or Refused."""


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


@dataclass(frozen=True)
class Bounds:
    """How many bytes of events wait on disk, wait in memory, and are kept once acknowledged."""

    spool_bytes: int = SPOOL_BYTES
    memory_bytes: int = MEMORY_BYTES
    kept_bytes: int = KEPT_BYTES


BOUNDS = Bounds()


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
        bounds: Bounds = BOUNDS,
        redact: Callable[[Event], Event] = as_it_is,
        on_unheard: Callable[[str], None] = ignore,
    ) -> None:
        """Start sending.

        Args:
            redact: removes secrets from an event before it is kept anywhere.
            on_unheard: called by the sending thread, once, with a message, when the service takes
                nothing of what this rank says; nothing more is sent then.
        """
        self._api = api
        self._redact = redact
        self._on_unheard = on_unheard
        self._rank = rank
        self._bounds = bounds
        self._spool = Spool(folder / f"spool-{rank}", kept_bytes=bounds.kept_bytes)
        self._refusals = Refusals(time.monotonic)
        self._patience_seconds = math.inf
        self._dead_letters = folder / f"refused-{rank}.jsonl"
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

    def set_patience(self, seconds: float) -> None:
        """Give up once the service has refused everything for this long; being away is not that."""
        self._patience_seconds = seconds

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
                self._refusals.pause()
                time.sleep(next(pauses))
            except Fenced:
                self.become_fenced()
            except Unheard as error:
                self._give_up(str(error))
            except Exception as error:
                log.exception("reporting failed; trying again")
                self._note_refusal(error)
                time.sleep(retry.LONGEST_SECONDS)

    def _note_refusal(self, error: Exception) -> None:
        """Give up when nothing was accepted for too long, whatever keeps it from being."""
        seconds = self._refusals.add()
        if seconds >= self._patience_seconds:
            self._give_up(
                f"expected the service to accept a report within {self._patience_seconds:g} s, "
                f"saw each fail for {seconds:.0f} s; the last: {error}"
            )

    def _give_up(self, message: str) -> None:
        log.error("the service takes no more reports of this rank: %s", message)
        with self.changed:
            self._is_closing = True
            self.changed.notify_all()
        self._on_unheard(message)

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
            lines = self._spool.peek(MAX_EVENTS_PER_REPORT, max_bytes=REPORT_BYTES)
        try:
            self._send(lines)
        except EventsMissing as error:
            if self._agree_on(error.applied_seq) >= 0:
                raise  # it has all that was before these

    def _send(self, lines: Sequence[bytes]) -> None:
        try:
            self._hear(self._api.report(self._rank, lines))
        except EventsMissing:
            raise
        except Refused as error:
            if not lines or error.status not in _ABOUT_CONTENT:
                raise
            self._send_in_parts(lines, error)

    def _send_in_parts(self, lines: Sequence[bytes], error: Refused) -> None:
        """One of these is refused: find it, set it aside, and send a notice in its place."""
        if len(lines) == 1:
            self._replace(lines[0], error)
            return
        half = len(lines) // 2
        self._send(lines[:half])
        self._send(lines[half:])

    def _replace(self, line: bytes, error: Refused) -> None:
        event = _EVENT.validate_json(line)
        self._is_usage_refused |= isinstance(event, Usage)
        message = f"{event.kind}: {error}"[:MESSAGE_LENGTH]
        notice = Notice(seq=event.seq, code="report.refused", message=message)
        self._hear(self._api.report(self._rank, [notice.model_dump_json().encode()]))
        self._set_aside(line)

    def _set_aside(self, line: bytes) -> None:
        try:
            self._dead_letters.parent.mkdir(parents=True, exist_ok=True)
            with self._dead_letters.open("ab") as file:
                if file.tell() < SET_ASIDE_BYTES:
                    file.write(line + b"\n")
        except OSError:
            log.exception("cannot write a refused event: %s", line.decode())

    def _hear(self, reply: ReportReply) -> None:
        self._refusals.end()
        with self.changed:
            self._agree_on(reply.ack_seq)
            # The other thread may have been fenced by now.
            self.heard = replace(
                self.heard,
                desired=reply.desired,
                evaluations_requested=reply.evaluations_requested,
                budget=reply.budget,
                resize=reply.resize,
            )
            self.changed.notify_all()

    def _agree_on(self, applied_seq: int) -> int:
        """Have the spool begin behind what the service has applied; return by how many events.

        Fewer than it once acknowledged: its database was restored and lacks the last ones.
        """
        with self.changed:
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
                self.hurry()
        return num_new
