"""Sends a rank's events in order, and hears what the service wants; a thread of its own.

The loop leaves each event in a queue (``event_queue.py``), which is all that a step waits for.
"""

import logging
import math
import threading
import time
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
    Usage,
)
from roadless.service.contract.states import Desired
from roadless.worker import retry
from roadless.worker.api import Away, EventsMissing, Fenced, Refused
from roadless.worker.errors import MESSAGE_LENGTH
from roadless.worker.reporting.event_queue import (
    BOUNDS,
    Bounds,
    EventQueue,
    Unheard,
    as_it_is,
)
from roadless.worker.reporting.refusals import Refusals
from roadless.worker.reporting.spool import Spool

log = logging.getLogger(__name__)

#: How long step points gather before they are sent together.
GATHER_SECONDS = 0.5
#: Refused events in a file for whoever looks for the cause; the notices go on beyond it.
SET_ASIDE_BYTES = 16 << 20
#: The longest silence of a rank that has nothing to report; also how soon it learns of a stop.
HEARTBEAT_SECONDS = 1.0
#: The answers to an event that is refused for what it says: sent again, it would be again.
_ABOUT_CONTENT = frozenset({413, 422})
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def ignore(message: str) -> None:
    """Do nothing beside being silent."""


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
        self._on_unheard = on_unheard
        self._rank = rank
        spool = Spool(folder / f"spool-{rank}", kept_bytes=bounds.kept_bytes)
        self._queue = EventQueue(spool, bounds=bounds, redact=redact)
        self._refusals = Refusals(time.monotonic)
        self._patience_seconds = math.inf
        self._dead_letters = folder / f"refused-{rank}.jsonl"
        #: By a service of an older release, which would refuse every one.
        self._is_usage_refused = False
        self._is_closing = False
        self._urgent = threading.Event()
        self.changed = threading.Condition()
        self.heard = Heard()
        self._thread = threading.Thread(target=self._send_forever, name="report", daemon=True)
        self._thread.start()

    @property
    def is_empty(self) -> bool:
        """Whether everything said is acknowledged."""
        return not len(self._queue)

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
        if isinstance(event, Usage) and self._is_usage_refused:
            return
        with self.changed:
            is_urgent = self._queue.add(event)
        if is_urgent:
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
            self._queue.close()

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
                log.warning("the service is away, %d events wait: %s", len(self._queue), error)
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
            return len(self._queue) >= MAX_EVENTS_PER_REPORT

    def _send_once(self) -> None:
        with self.changed:
            lines = self._queue.first()
        try:
            self._send(lines)
        except EventsMissing as error:
            with self.changed:
                num_new = self._queue.agree_on(error.applied_seq)
            if num_new >= 0:
                raise  # it has all that was before these
            self.hurry()

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
            if self._queue.agree_on(reply.ack_seq) < 0:
                self.hurry()
            # The other thread may have been fenced by now.
            self.heard = replace(
                self.heard,
                desired=reply.desired,
                evaluations_requested=reply.evaluations_requested,
                budget=reply.budget,
                resize=reply.resize,
            )
            self.changed.notify_all()
