"""The Reporter: what a rank says reaches the service once and in order, or waits on disk.

It never raises into the training loop and never makes it wait: a service that is away costs nothing
but disk, up to a stated bound. Each answer carries what the user wants; the loop reads it from
``heard``.
"""

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from service.contract.evaluation import CheckpointsSpec
from service.contract.events import (
    MAX_EVENTS_PER_REPORT,
    BudgetNow,
    CheckpointSaved,
    Event,
    Notice,
    Report,
    ReportReply,
    StepMetrics,
    Usage,
)
from service.contract.manifest import CheckpointFile, CheckpointKind, Manifest
from service.contract.states import Desired
from worker.api import Away, Fenced, Refused
from worker.spool import Spool
from worker.waiting import Waiting, superfluous

log = logging.getLogger(__name__)

#: How long step points gather before they are sent together.
GATHER_SECONDS = 0.25
#: Step points in memory before they are written: many at once cost less, and mostly no step.
FRESH_POINTS = 64
#: The longest silence of a rank that has nothing to say; also how soon it hears of a stop.
HEARTBEAT_SECONDS = 1.0
#: Unacknowledged bytes after which step points are thinned; everything else is always kept.
SPOOL_BYTES = 256 << 20
#: Beyond the bound one step in this many is kept, and beyond twice the bound none.
THINNED_TO_ONE_IN = 16
_BACKOFF_SECONDS = (0.1, 2.0)
#: How often the lead asks whether the others have uploaded their files of a checkpoint.
_PEERS_SECONDS = 0.02
#: How often a wait for a verdict looks whether the attempt is over.
_VERDICT_SECONDS = 0.2
_MESSAGE_LENGTH = 4000

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def _as_it_is(event: Event) -> Event:
    return event


class ReportApi(Protocol):
    """The two calls that a reporter makes (``worker.api.AttemptApi``)."""

    def report(self, report: Report) -> ReportReply:
        """Send events; raises Away, Fenced or Refused."""

    def upload(self, path: Path, *, checkpoint_id: str, name: str, sha256: str) -> None:
        """Send one file; raises Away, Fenced or Refused."""


@dataclass(frozen=True)
class Heard:
    """What the service wants, as last heard. ``is_fenced``: this attempt is over; leave.

    ``budget``: None before the service has said it; then that of the specification holds.
    """

    desired: Desired = Desired.RUN
    evaluations_requested: int = 0
    budget: BudgetNow | None = None
    resize: bool = False
    is_fenced: bool = False


class Peers(Protocol):
    """The other ranks that write files of the same checkpoint (``worker.peers.StorePeers``)."""

    is_lead: bool

    def tell(self, checkpoint_id: str, files: tuple[CheckpointFile, ...] | None) -> None:
        """Say that this rank's files are uploaded, or with None that they never will be."""

    def hear(self, checkpoint_id: str) -> list[tuple[CheckpointFile, ...] | None] | None:
        """Return what each of the others has said; None until all have. For the lead."""


@dataclass(frozen=True)
class Staged:
    """A checkpoint written to local disk, to be uploaded and then announced.

    ``peers``: who else uploads files of it; the lead announces when all have. None: nobody.
    ``verdict``: the manifest to announce it with, once its files were looked at; None from there:
    never. None itself: nobody needs to look. ``keep``: the job's rule of what need not wait.
    """

    folder: Path
    manifest: Manifest
    evaluations_served: int = 0
    peers: Peers | None = None
    verdict: Future[Manifest | None] | None = None
    keep: CheckpointsSpec | None = None

    @property
    def is_state(self) -> bool:
        """Whether a newer one makes it superfluous."""
        return self.manifest.kind is CheckpointKind.RESUME


class Reporter:
    """One rank's voice. ``say`` and ``publish`` return at once; ``close`` waits for the rest.

    Events are said in the order of their calls. A checkpoint is announced once it is looked at and
    uploaded, so behind everything that was said before it; checkpoints in the order in which they
    were published, so that a training state implies the evaluations before it; and ``end`` speaks
    behind all of them. An upload that waits for its service holds back what is behind it, which
    would wait for the same service, and nothing else: neither events nor verdicts.
    """

    def __init__(
        self,
        api: ReportApi,
        *,
        rank: int,
        folder: Path,
        spool_bytes: int = SPOOL_BYTES,
        redact: Callable[[Event], Event] = _as_it_is,
    ) -> None:
        """``redact``: takes out of an event what nobody may read, before it is kept anywhere."""
        self._api = api
        self._redact = redact
        self._rank = rank
        self._spool = Spool(folder / f"spool-{rank}")
        self._dead_letters = folder / f"refused-{rank}.jsonl"
        self._spool_bytes = spool_bytes
        #: Step points that the loop has said, and that the sending thread has yet to write: a step
        #: waits for neither JSON nor disk.
        self._fresh: deque[StepMetrics] = deque()
        self._last_seq = 0
        self._steps_said = 0
        self._is_thinning = False
        #: By a service of an earlier release, which would refuse each in turn.
        self._is_usage_refused = False
        self._has_lost_steps = False
        self._is_closing = False
        self._changed = threading.Condition()
        self._urgent = threading.Event()
        #: Checkpoints whose files are not uploaded yet, and at last the ending; the first of them
        #: stays in line while it is worked on.
        self._line: deque[Staged | Event] = deque()
        self._has_superseded = False
        #: Eval checkpoints announced: as many as decide which of the others are superfluous.
        self._announced: list[Waiting] = []
        self.heard = Heard()
        self._threads = [
            threading.Thread(target=self._send_forever, name="report", daemon=True),
            threading.Thread(target=self._upload_forever, name="upload", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def wish(self, desired: Desired) -> None:
        """Take what the user wanted when this rank fetched its specification as heard."""
        with self._changed:
            self.heard = replace(self.heard, desired=desired)

    def say(self, event: Event) -> None:
        """Put an event in line. Never raises; beyond the bound step points are thinned."""
        with self._changed:
            if isinstance(event, Usage) and self._is_usage_refused:
                return
            if isinstance(event, StepMetrics):
                if not self._is_thinned_out():
                    self._fresh.append(event)
                if len(self._fresh) == FRESH_POINTS:
                    self._spool_fresh()
            elif not isinstance(event, Usage) or not self._is_thinned_out():
                self._append(event)
        if not isinstance(event, StepMetrics | Usage) or self._steps_said == 1:
            self._urgent.set()

    def publish(self, staged: Staged) -> None:
        """Upload a checkpoint, then announce it.

        A training state takes the place of older ones that wait: nobody would resume from them. An
        eval checkpoint takes that of those that retention would not keep beside it.
        """
        with self._changed:
            self._line.append(staged)
            self._changed.notify_all()
        self._thin_out(by=staged)
        if staged.verdict is not None:
            staged.verdict.add_done_callback(
                lambda verdict: None if verdict.cancelled() else self._thin_out(by=staged)
            )

    def end(self, event: Event) -> None:
        """Say the last word, once every checkpoint published before is announced."""
        with self._changed:
            self._line.append(event)
            self._changed.notify_all()

    def close(self, *, timeout_seconds: float) -> bool:
        """Send what is left; return whether all of it was acknowledged."""
        deadline = time.monotonic() + timeout_seconds
        self._urgent.set()
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_delivered() or self.heard.is_fenced, timeout_seconds
            )
            is_delivered = self._is_delivered()
            self._is_closing = True
            self._changed.notify_all()
        self._urgent.set()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()) + _BACKOFF_SECONDS[1])
        with self._changed:
            self._spool.close()
        return is_delivered

    def _thin_out(self, *, by: Staged) -> None:
        """Take those from the line that need not wait any more; the first is worked on."""
        with self._changed:
            waiting = [one for one in list(self._line)[1:] if isinstance(one, Staged)]
            if by.is_state:
                older = [one for one in _before(by, waiting) if one.is_state]
            else:
                older = self._superfluous([one for one in waiting if not one.is_state], by.keep)
            for one in older:
                self._line.remove(one)
        for one in older:
            self._supersede(one, by=by)

    def _superfluous(self, waiting: list[Staged], keep: CheckpointsSpec | None) -> list[Staged]:
        if keep is None:
            return []
        mine = [_waiting(one) for one in waiting if not _is_refused(one)]
        drop = superfluous([*self._announced, *mine], keep)
        return [one for one in waiting if one.manifest.checkpoint_id in drop and _let_go(one)]

    def _is_delivered(self) -> bool:
        return not (self._line or self._fresh or len(self._spool))

    # ---- the spool -----------------------------------------------------------------------------

    def _append(self, event: Event) -> None:
        self._spool_fresh()
        self._spool_one(event)

    def _spool_fresh(self) -> None:
        """Number and write the step points that the loop has left here."""
        while self._fresh:
            self._spool_one(self._fresh.popleft())

    def _spool_one(self, event: Event) -> None:
        numbered = self._redact(event).model_copy(update={"seq": self._last_seq + 1})
        line = numbered.model_dump_json().encode()
        try:
            self._spool.append(line)
        except OSError as error:
            if isinstance(event, StepMetrics | Usage):
                self._lose_step(error)
                return
            self._spool.append_in_memory(line)
        self._last_seq += 1

    def _lose_step(self, error: OSError) -> None:
        """The disk is full: say so once, and go on without the step points it does not take."""
        if self._has_lost_steps:
            return
        self._has_lost_steps = True
        log.error("the spool does not take step points; some are lost: %s", error)
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

    @property
    def _is_over(self) -> bool:
        """Whether nothing more shall be sent."""
        return self._is_closing or self.heard.is_fenced

    def _send_forever(self) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            self._wait_for_something()
            if self._is_over:
                return
            try:
                self._send_once()
                delay = _BACKOFF_SECONDS[0]
            except Away as error:
                log.warning("the service is away, %d events wait: %s", len(self._spool), error)
                time.sleep(delay)
                delay = min(2 * delay, _BACKOFF_SECONDS[1])
            except Fenced:
                self._become_fenced()
            except Exception:
                log.exception("reporting failed; it is tried again")
                time.sleep(_BACKOFF_SECONDS[1])

    def _wait_for_something(self) -> None:
        """Until something urgent, a full report, a little that has gathered, or the heartbeat."""
        heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        while not self._has_full_report() and not self._urgent.wait(GATHER_SECONDS):
            if self._fresh or len(self._spool) or time.monotonic() >= heartbeat_at:
                break
        self._urgent.clear()

    def _has_full_report(self) -> bool:
        with self._changed:
            return self._sendable() + len(self._fresh) >= MAX_EVENTS_PER_REPORT

    def _send_once(self) -> None:
        with self._changed:
            self._spool_fresh()
            events = [_EVENT.validate_json(line) for line in self._spool.peek(self._sendable())]
        try:
            self._hear(self._api.report(Report(rank=self._rank, events=events)))
        except Refused as error:
            self._send_singly(events, error)

    def _sendable(self) -> int:
        return min(len(self._spool), MAX_EVENTS_PER_REPORT)

    def _send_singly(self, events: list[Event], error: Refused) -> None:
        """One of these is refused: find it, keep it aside, and say so in its place."""
        if not events:
            raise error
        for event in events:
            self._send_or_replace(event)

    def _send_or_replace(self, event: Event) -> None:
        try:
            self._hear(self._api.report(Report(rank=self._rank, events=[event])))
        except Refused as error:
            self._is_usage_refused |= isinstance(event, Usage)
            message = f"{event.kind}: {error}"[:_MESSAGE_LENGTH]
            notice = Notice(seq=event.seq, code="report.refused", message=message)
            self._hear(self._api.report(Report(rank=self._rank, events=[notice])))
            self._set_aside(event)

    def _set_aside(self, event: Event) -> None:
        try:
            with self._dead_letters.open("a") as file:
                file.write(event.model_dump_json() + "\n")
        except OSError:
            log.exception("a refused event cannot be kept: %s", event.model_dump_json())

    def _hear(self, reply: ReportReply) -> None:
        with self._changed:
            first_seq = self._last_seq - len(self._spool) + 1
            self._spool.drop(max(0, reply.ack_seq - first_seq + 1))
            # The other thread may have heard of the end by now.
            self.heard = replace(
                self.heard,
                desired=reply.desired,
                evaluations_requested=reply.evaluations_requested,
                budget=reply.budget,
                resize=reply.resize,
            )
            self._changed.notify_all()

    def _become_fenced(self) -> None:
        with self._changed:
            self.heard = replace(self.heard, is_fenced=True)
            self._changed.notify_all()

    # ---- uploading -----------------------------------------------------------------------------

    def _upload_forever(self) -> None:
        while (first := self._first_in_line()) is not None:
            event = self._event_of(first) if isinstance(first, Staged) else first
            with self._changed:
                if self._is_over:
                    return  # perhaps in the midst of it: the checkpoint must not be announced
                self._line.popleft()
                if event is not None:
                    self._append(event)
                    self._remember(first)
                self._changed.notify_all()
            self._urgent.set()

    def _first_in_line(self) -> Staged | Event | None:
        """Wait for something to upload or to end with; None when it is too late for that."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._is_over)
            return None if self._is_over else self._line[0]

    def _remember(self, announced: Staged | Event) -> None:
        if not isinstance(announced, Staged) or announced.is_state or announced.keep is None:
            return
        known = [*self._announced, replace(_waiting(announced), has_verdict=True, is_pinned=False)]
        drop = superfluous(known, announced.keep.model_copy(update={"keep_every_steps": None}))
        self._announced = [one for one in known if one.id not in drop]

    def _event_of(self, staged: Staged) -> Event | None:
        """Upload a checkpoint; return its announcement, if it is good and this rank's to say."""
        manifest = self._verdict_of(staged)
        if manifest is None:
            shutil.rmtree(staged.folder, ignore_errors=True)
            return None
        return self._uploaded(replace(staged, manifest=manifest))

    def _verdict_of(self, staged: Staged) -> Manifest | None:
        """Wait until the checkpoint is looked at; None when it must not be listed."""
        if staged.verdict is None:
            return staged.manifest
        while not self._is_over:
            try:
                return staged.verdict.result(timeout=_VERDICT_SECONDS)
            except TimeoutError:
                continue
            except Exception:
                log.exception("checkpoint %s: no verdict", staged.manifest.checkpoint_id)
                return None
        return None

    def _uploaded(self, staged: Staged) -> Event | None:
        is_uploaded = self._try_to_upload(staged)
        if staged.peers is None:
            files: tuple[CheckpointFile, ...] | None = staged.manifest.files
        elif staged.peers.is_lead:
            files = self._files_of_all(staged, staged.peers)
        else:
            files = None
            said = staged.manifest.files if is_uploaded else None
            staged.peers.tell(staged.manifest.checkpoint_id, said)
        if files is None:
            return None
        manifest = staged.manifest.model_copy(update={"files": files})
        return CheckpointSaved(manifest=manifest, evaluations_served=staged.evaluations_served)

    def _try_to_upload(self, staged: Staged) -> bool:
        try:
            self._upload(staged)
        except Exception:
            # The announcement is then refused too, and kept aside with its reason.
            log.exception("checkpoint %s: upload failed", staged.manifest.checkpoint_id)
            return False
        finally:
            shutil.rmtree(staged.folder, ignore_errors=True)
        self._has_superseded = False
        return True

    def _files_of_all(self, staged: Staged, peers: Peers) -> tuple[CheckpointFile, ...] | None:
        """Wait for the others' files; None when one of them has none to give."""
        while not self._is_over:
            said = peers.hear(staged.manifest.checkpoint_id)
            if said is None:
                time.sleep(_PEERS_SECONDS)
            elif any(files is None for files in said):
                return None
            else:
                theirs = (file for files in said for file in files or ())
                return (*staged.manifest.files, *theirs)
        return None

    def _supersede(self, old: Staged, *, by: Staged) -> None:
        shutil.rmtree(old.folder, ignore_errors=True)
        if old.peers is not None:
            old.peers.tell(old.manifest.checkpoint_id, None)
        if self._has_superseded:
            return
        self._has_superseded = True
        name = "training state" if old.is_state else "checkpoint"
        message = (
            f"the {name} of step {old.manifest.step} was not uploaded before that of step "
            f"{by.manifest.step} was there; until uploads keep up, only what the job keeps waits"
        )
        self.say(Notice(code="checkpoint.superseded", message=message))

    def _upload(self, staged: Staged) -> None:
        for file in staged.manifest.files:
            upload = partial(
                self._api.upload,
                staged.folder / file.name,
                checkpoint_id=staged.manifest.checkpoint_id,
                name=file.name,
                sha256=file.sha256,
            )
            self._persist(upload)

    def _persist(self, call: Callable[[], None]) -> None:
        """Repeat the call while the service is away, unless there is no one left to send for."""
        delay = _BACKOFF_SECONDS[0]
        while not self._is_over:
            try:
                return call()
            except Away:
                time.sleep(delay)
                delay = min(2 * delay, _BACKOFF_SECONDS[1])
            except Fenced:
                self._become_fenced()
        return None


def _before(staged: Staged, waiting: list[Staged]) -> list[Staged]:
    """Those that wait in front of it; none when it waits no more."""
    places = [place for place, one in enumerate(waiting) if one is staged]
    return waiting[: places[0]] if places else []


def _waiting(staged: Staged) -> Waiting:
    evaluation = staged.manifest.evaluation
    return Waiting(
        id=staged.manifest.checkpoint_id,
        step=staged.manifest.step,
        loss=None if evaluation is None else evaluation.loss,
        is_pinned=staged.evaluations_served > 0,
        has_verdict=staged.verdict is None or staged.verdict.done(),
    )


def _is_refused(staged: Staged) -> bool:
    """Whether it was looked at, and will not be listed."""
    verdict = staged.verdict
    if verdict is None or not verdict.done():
        return False
    return verdict.cancelled() or verdict.exception() is not None or verdict.result() is None


def _let_go(staged: Staged) -> bool:
    """Whether nobody looks at its files, nor will; an evaluation that waits is not given up."""
    if staged.verdict is None or staged.verdict.done():
        return True
    return staged.manifest.evaluation is not None and staged.verdict.cancel()
