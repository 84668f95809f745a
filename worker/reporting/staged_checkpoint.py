"""Checkpoints on local disk that wait for upload, and which of them need not wait.

Those are the ones that retention would not keep beside the others; a full queue drops them.
"""

import math
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NewType, Protocol

from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.checkpoint.retention import Stored, superfluous_evals
from roadless.service.contract.job.evaluation import CheckpointsSpec

#: The manifest of a checkpoint whose files were checked, with what the check found.
ValidatedManifest = NewType("ValidatedManifest", Manifest)
#: Age is for the service to judge: here nothing ages.
_NOW = datetime(2000, 1, 1, tzinfo=UTC)


class Peers(Protocol):
    """The other ranks that write files of the same checkpoint.

    Implemented by ``roadless.worker.distributed.store_peers.StorePeers``.
    """

    is_lead: bool

    def tell(self, checkpoint_id: str, files: tuple[CheckpointFile, ...] | None) -> None:
        """Report that this rank's files are uploaded or, with None, that they never will be."""

    def hear(self, checkpoint_id: str) -> list[tuple[CheckpointFile, ...] | None] | None:
        """Return what each of the others has reported; None until all have. For the lead."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An eval checkpoint that is announced, or will be. ``loss``: None when not known yet.

    ``is_pinned``: a user requested it. ``is_validated``: its files were checked.
    """

    id: str
    step: int
    loss: float | None
    is_pinned: bool
    is_validated: bool


@dataclass(frozen=True)
class Staged:
    """A checkpoint written to local disk, to be uploaded and then announced.

    ``peers``: the ranks that upload its other files; the lead announces it when all have. None: no
    others. ``validated``: the manifest to announce it with, once its files were checked; a result
    of None: it is never listed. None itself: no check is needed. ``keep``: the job's rule for what
    need not wait.
    """

    folder: Path
    manifest: Manifest
    evaluations_served: int = 0
    peers: Peers | None = None
    validated: Future[ValidatedManifest | None] | None = None
    keep: CheckpointsSpec | None = None

    @property
    def is_state(self) -> bool:
        """Whether a newer one makes it superfluous."""
        return self.manifest.kind is CheckpointKind.RESUME

    @property
    def is_refused(self) -> bool:
        """Whether it was checked and will not be listed."""
        validated = self.validated
        if validated is None or not validated.done():
            return False
        if validated.cancelled() or validated.exception() is not None:
            return True
        return validated.result() is None

    def as_waiting(self) -> Waiting:
        """What retention needs to know about it."""
        evaluation = self.manifest.evaluation
        return Waiting(
            id=self.manifest.checkpoint_id,
            step=self.manifest.step,
            loss=None if evaluation is None else evaluation.loss,
            is_pinned=self.evaluations_served > 0,
            is_validated=self.validated is None or self.validated.done(),
        )

    def let_go(self) -> bool:
        """Return whether its check is over or cancelled now; an evaluation is never cancelled."""
        if self.validated is None or self.validated.done():
            return True
        return self.manifest.evaluation is not None and self.validated.cancel()


def superfluous(known: Iterable[Waiting], policy: CheckpointsSpec) -> set[str]:
    """Return the ids of the checkpoints that need not wait.

    A checked one is dropped only in favour of other checked ones: whether the rest will be listed
    is not known yet.
    """
    every = list(known)
    sure = [one for one in every if one.is_validated]
    unsure = {one.id for one in every if not one.is_validated}
    return _drop(sure, policy) | (_drop(every, policy) & unsure)


def _drop(every: Iterable[Waiting], policy: CheckpointsSpec) -> set[str]:
    return superfluous_evals([_stored(one) for one in every], policy, now=_NOW)


def _stored(one: Waiting) -> Stored:
    is_finite = one.loss is not None and math.isfinite(one.loss)
    return Stored(
        id=one.id,
        step=one.step,
        loss=one.loss if is_finite else None,
        stored_at=_NOW,
        pinned=one.is_pinned,
        is_live=True,
    )
