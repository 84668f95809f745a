"""The service as one attempt's ranks hear it, in memory, with the network's whims in front of it.

``report`` applies the service's rule of sequence numbers (``service/ingest/apply.py``); ``faults``
says what happens to each call on its way.
"""

import hashlib
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.events import (
    CheckpointSaved,
    EvalPoint,
    Event,
    Failed,
    Finished,
    Report,
    ReportReply,
    StepMetrics,
)
from roadless.service.contract.states import Desired
from roadless.worker.api import Away, EventsMissing, Fenced, Refused
from roadless.worker.reporting.staged_checkpoint import Staged

#: lost: never arrives; noop: applied, but the answer is lost; twice: the network repeats it;
#: broken: something nobody thought of.
Fault = Literal["ok", "lost", "lost_request", "twice", "broken"]

FAULTS: tuple[Fault, ...] = ("ok", "lost", "lost_request", "twice", "broken")


class FakeAttemptService:
    """What was applied, in order, and when."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults = deque(faults)
        self.applied: dict[int, list[Event]] = defaultdict(list)
        self.applied_at: dict[int, list[float]] = defaultdict(list)
        self.reports: list[Report] = []
        self.uploads: list[tuple[str, str]] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self.is_away = False
        self.is_over = False
        self.desired = Desired.RUN
        self.evaluations_requested = 0
        self.refuses: Callable[[Event], bool] = lambda event: False
        #: How every report is refused; None: none is.
        self.refusal: Refused | None = None
        self.detail = "expected something else"
        self.lock = threading.Lock()

    @property
    def said(self) -> list[Event]:
        """What the lead rank said."""
        return self.applied[0]

    def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
        said = [json.loads(event) for event in events]
        return self.answer(Report.model_validate({"rank": rank, "events": said}))

    def answer(self, report: Report) -> ReportReply:
        self.reports.append(report)
        fault = self._next_fault()
        if fault == "lost":
            raise Away("the request got lost")
        if fault == "broken":
            raise RuntimeError("a bug on the way")
        if self.refusal is not None:
            raise self.refusal
        with self.lock:
            reply = self._apply(report)
            if fault == "twice":
                reply = self._apply(report)
        if fault == "lost_request":
            raise Away("the answer got lost")
        return reply

    def upload(self, path: Path, *, checkpoint_id: str, name: str, sha256: str) -> None:
        self.uploads.append((checkpoint_id, name))
        fault = self._next_fault()
        if fault in ("lost", "broken"):
            raise Away("the request got lost")
        self.require_open()
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        self.files[checkpoint_id, name] = content
        if fault == "lost_request":
            raise Away("the answer got lost")

    def _next_fault(self) -> Fault:
        if self.is_away:
            raise Away("the service answered 503")
        return self.faults.popleft() if self.faults else "ok"

    def require_open(self) -> None:
        if self.is_over:
            raise Fenced("this attempt is over")

    def _apply(self, report: Report) -> ReportReply:
        self.require_open()
        known = self.applied[report.rank]
        fresh = [event for event in report.events if event.seq > len(known)]
        if [event.seq for event in fresh] != [len(known) + 1 + i for i in range(len(fresh))]:
            raise EventsMissing("events are missing", status=409, applied_seq=len(known))
        if any(self.refuses(event) or self._lacks_files(event) for event in fresh):
            raise Refused(self.detail, status=422)
        known += fresh
        self.applied_at[report.rank] += [time.monotonic()] * len(fresh)
        self.is_over |= any(isinstance(event, Finished | Failed) for event in fresh)
        return ReportReply(
            ack_seq=len(known),
            desired=self.desired,
            evaluations_requested=self.evaluations_requested,
        )

    def _lacks_files(self, event: Event) -> bool:
        return isinstance(event, CheckpointSaved) and any(
            (event.manifest.checkpoint_id, file.name) not in self.files
            for file in event.manifest.files
        )


def step_point(step: int) -> StepMetrics:
    return StepMetrics(
        step=step,
        samples=step,
        tokens=0,
        wall_seconds=0,
        gpu_seconds=0,
        values={"train.loss": float(step)},
    )


def eval_point(step: int, loss: float = 1.0) -> EvalPoint:
    return EvalPoint(step=step, samples=step, tokens=0, wall_seconds=0, gpu_seconds=0, loss=loss)


def stage(
    folder: Path,
    step: int,
    *,
    content: bytes = b"weights",
    job_id: str = "job_1",
    attempt_id: str = "att_1",
) -> Staged:
    """A checkpoint of two files, as ``roadless.worker.checkpointing.model_files`` leaves it on
    disk."""
    checkpoint_id = new_id("ckpt")
    (folder / checkpoint_id).mkdir(parents=True)
    files = []
    for name in ("a.safetensors", "b.json"):
        (folder / checkpoint_id / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append(CheckpointFile(name=name, size=len(content), sha256=sha256))
    manifest = Manifest(
        checkpoint_id=checkpoint_id,
        job_id=job_id,
        attempt_id=attempt_id,
        kind=CheckpointKind.EVAL,
        step=step,
        samples=step,
        files=tuple(files),
    )
    return Staged(folder / checkpoint_id, manifest)
