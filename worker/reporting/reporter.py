"""The Reporter: what a rank reports reaches the service once and in order, or waits on disk.

It never raises into the training loop and never makes it wait: a service that is away costs nothing
but disk, up to a stated bound. Each reply carries what the user wants; the loop reads it from
``heard``.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from roadless.service.contract.reports.events import Event
from roadless.service.contract.states import Desired
from roadless.worker.reporting.checkpoint_uploader import FileApi, Publisher
from roadless.worker.reporting.event_queue import BOUNDS, Bounds, as_it_is
from roadless.worker.reporting.outbox import EventApi, Heard, Outbox, ignore
from roadless.worker.reporting.staged_checkpoint import Staged


class ReportApi(EventApi, FileApi, Protocol):
    """The two calls that a reporter makes (``roadless.worker.api.AttemptApi``)."""


class Reporter:
    """One rank's reports. ``say`` and ``publish`` return immediately; ``close`` waits for the rest.

    Events are sent in the order of their calls. A checkpoint is announced once it is validated and
    uploaded, so after everything said before it; and the event of ``end`` comes after all of them.
    """

    def __init__(
        self,
        api: ReportApi,
        *,
        rank: int,
        folder: Path,
        bounds: Bounds = BOUNDS,
        redact: Callable[[Event], Event] = as_it_is,
        on_unheard: Callable[[str], None] = ignore,
    ) -> None:
        """Start reporting; the arguments are those of the outbox."""
        self._outbox = Outbox(
            api, rank=rank, folder=folder, bounds=bounds, redact=redact, on_unheard=on_unheard
        )
        self._publisher = Publisher(api, self._outbox)

    @property
    def heard(self) -> Heard:
        """What the service wants, as of its last reply."""
        return self._outbox.heard

    @property
    def is_delivered(self) -> bool:
        """Whether all that was said is acknowledged, and all that was published is announced."""
        return self._publisher.is_empty and self._outbox.is_empty

    def set_desired_state(self, desired: Desired) -> None:
        """Start from what the user wanted when this rank fetched its specification."""
        self._outbox.set_desired_state(desired)

    def set_patience(self, seconds: float) -> None:
        """Give up once the service has refused everything for this long; being away is not that."""
        self._outbox.set_patience(seconds)

    def say(self, event: Event) -> None:
        """Queue an event. Never raises; beyond the bound, step points are thinned."""
        self._outbox.say(event)

    def publish(self, staged: Staged) -> None:
        """Upload a checkpoint, then announce it, unless a later one makes it superfluous."""
        self._publisher.publish(staged)

    def end(self, event: Event) -> None:
        """Send the last event, once every checkpoint published before it is announced."""
        self._publisher.end(event)

    def close(self, *, timeout_seconds: float) -> bool:
        """Send what is left; return whether all of it was acknowledged."""
        deadline = time.monotonic() + timeout_seconds
        outbox = self._outbox
        outbox.hurry()
        with outbox.changed:
            outbox.changed.wait_for(lambda: self.is_delivered or outbox.is_over, timeout_seconds)
            is_delivered = self.is_delivered
            outbox.stop()
        self._publisher.join(deadline=deadline)
        outbox.join(deadline=deadline)
        return is_delivered
