"""Publishes checkpoints that the loop wrote: validated, uploaded, then announced, in order."""

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from roadless.service.contract.checkpoint.manifest import CheckpointFile, Manifest
from roadless.service.contract.job.evaluation import CheckpointsSpec
from roadless.service.contract.reports.events import CheckpointSaved, Event, Notice
from roadless.worker import retry
from roadless.worker.api import Away, Fenced
from roadless.worker.reporting.outbox import Outbox
from roadless.worker.reporting.staged_checkpoint import Peers, Staged, Waiting, superfluous

log = logging.getLogger(__name__)

#: How often the lead asks whether the others have uploaded their files of a checkpoint.
_PEERS_SECONDS = 0.02
#: How often a wait for a validation checks whether the attempt is over.
_VALIDATION_SECONDS = 0.2


class FileApi(Protocol):
    """The call that a publisher makes (``roadless.worker.api.AttemptApi``)."""

    def upload(self, path: Path, *, checkpoint_id: str, name: str, sha256: str) -> None:
        """Send one file; raises Away, Fenced or Refused."""


class Publisher:
    """One rank's checkpoints. ``publish`` and ``end`` return immediately.

    They are announced in the order in which they were published, so that a training state implies
    the evaluations before it. An upload that waits for the service delays those queued behind it,
    which need the same service, but neither events nor validations.
    """

    def __init__(self, api: FileApi, outbox: Outbox) -> None:
        self._api = api
        self._outbox = outbox
        #: Checkpoints whose files are not uploaded yet, and finally the last event; the head stays
        #: in the queue while it is processed.
        self._line: deque[Staged | Event] = deque()
        self._has_superseded = False
        #: Announced eval checkpoints: those that decide which of the others are superfluous.
        self._announced: list[Waiting] = []
        self._thread = threading.Thread(target=self._upload_forever, name="upload", daemon=True)
        self._thread.start()

    @property
    def is_empty(self) -> bool:
        """Whether everything published is announced, or never will be."""
        return not self._line

    def publish(self, staged: Staged) -> None:
        """Upload a checkpoint, then announce it.

        A training state replaces older ones in the queue: nobody would resume from them. An eval
        checkpoint replaces those that retention would not keep beside it.
        """
        with self._outbox.changed:
            self._line.append(staged)
            self._outbox.changed.notify_all()
        self._thin_out(by=staged)
        if staged.validated is not None:
            staged.validated.add_done_callback(
                lambda future: None if future.cancelled() else self._thin_out(by=staged)
            )

    def end(self, event: Event) -> None:
        """Send the last event, once every checkpoint published before it is announced."""
        with self._outbox.changed:
            self._line.append(event)
            self._outbox.changed.notify_all()

    def join(self, *, deadline: float) -> None:
        """Wait for uploads to end, once the outbox is stopped."""
        self._thread.join(max(0.0, deadline - time.monotonic()) + retry.LONGEST_SECONDS)

    # ---- the queue -----------------------------------------------------------------------------

    def _thin_out(self, *, by: Staged) -> None:
        """Remove what need not wait from the queue; the head is already being processed."""
        with self._outbox.changed:
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
        mine = [one.as_waiting() for one in waiting if not one.is_refused]
        drop = superfluous([*self._announced, *mine], keep)
        return [one for one in waiting if one.manifest.checkpoint_id in drop and one.let_go()]

    # ---- uploading -----------------------------------------------------------------------------

    def _upload_forever(self) -> None:
        while (first := self._first_in_line()) is not None:
            event = self._event_of(first) if isinstance(first, Staged) else first
            with self._outbox.changed:
                if self._outbox.is_over:
                    return  # perhaps mid-upload: the checkpoint must not be announced
                self._line.popleft()
                if event is not None:
                    self._outbox.say(event)
                    self._remember(first)
                self._outbox.changed.notify_all()

    def _first_in_line(self) -> Staged | Event | None:
        """Wait for the next checkpoint or the last event; None when it is too late."""
        with self._outbox.changed:
            self._outbox.changed.wait_for(lambda: self._line or self._outbox.is_over)
            return None if self._outbox.is_over else self._line[0]

    def _remember(self, announced: Staged | Event) -> None:
        if not isinstance(announced, Staged) or announced.is_state or announced.keep is None:
            return
        mine = replace(announced.as_waiting(), is_validated=True, is_pinned=False)
        known = [*self._announced, mine]
        drop = superfluous(known, announced.keep.model_copy(update={"keep_every_steps": None}))
        self._announced = [one for one in known if one.id not in drop]

    def _event_of(self, staged: Staged) -> Event | None:
        """Upload a checkpoint; return its announcement if it is valid and this rank's to send."""
        manifest = self._validated(staged)
        if manifest is None:
            shutil.rmtree(staged.folder, ignore_errors=True)
            return None
        return self._uploaded(replace(staged, manifest=manifest))

    def _validated(self, staged: Staged) -> Manifest | None:
        """Wait until the checkpoint is validated; None when it must not be listed."""
        if staged.validated is None:
            return staged.manifest
        while not self._outbox.is_over:
            try:
                return staged.validated.result(timeout=_VALIDATION_SECONDS)
            except TimeoutError:
                continue
            except Exception:
                log.exception("checkpoint %s: the validation failed", staged.manifest.checkpoint_id)
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
            # The announcement is then refused too, and set aside with the reason.
            log.exception("checkpoint %s: upload failed", staged.manifest.checkpoint_id)
            return False
        finally:
            shutil.rmtree(staged.folder, ignore_errors=True)
        self._has_superseded = False
        return True

    def _files_of_all(self, staged: Staged, peers: Peers) -> tuple[CheckpointFile, ...] | None:
        """Wait for the other ranks' files; None when one of them has none."""
        while not self._outbox.is_over:
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
        self._outbox.say(Notice(code="checkpoint.superseded", message=message))

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
        """Repeat the call while the service is away, unless nothing more is to be sent."""
        for pause in retry.pauses():
            if self._outbox.is_over:
                return
            try:
                call()
                return
            except Away:
                time.sleep(pause)
            except Fenced:
                self._outbox.become_fenced()


def _before(staged: Staged, waiting: list[Staged]) -> list[Staged]:
    """Those queued ahead of it; none when it is no longer queued."""
    places = [place for place, one in enumerate(waiting) if one is staged]
    return waiting[: places[0]] if places else []
