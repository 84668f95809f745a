"""A checkpoint on local disk, on its way to the service, and what is known of it meanwhile."""

import math
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.checkpoint.retention import Stored, superfluous_evals
from roadless.service.contract.job.evaluation import CheckpointsSpec

#: Age is for the service to judge: here nothing grows old.
_NOW = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An eval checkpoint that is announced, or will be. ``loss``: None when not known yet.

    ``is_pinned``: a user has asked for it. ``has_verdict``: its files were looked at.
    """

    id: str
    step: int
    loss: float | None
    is_pinned: bool
    has_verdict: bool


def superfluous(known: Iterable[Waiting], policy: CheckpointsSpec) -> set[str]:
    """Return the ids of those that need not wait.

    One that was looked at goes for others that were: of the rest nobody knows whether they will be
    listed.
    """
    every = list(known)
    sure = [one for one in every if one.has_verdict]
    unsure = {one.id for one in every if not one.has_verdict}
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


class Peers(Protocol):
    """The other ranks that write files of the same checkpoint
    (``roadless.worker.distributed.store_peers.StorePeers``).
    """

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

    @property
    def is_refused(self) -> bool:
        """Whether it was looked at, and will not be listed."""
        verdict = self.verdict
        if verdict is None or not verdict.done():
            return False
        return verdict.cancelled() or verdict.exception() is not None or verdict.result() is None

    def as_waiting(self) -> Waiting:
        """What retention asks about it."""
        evaluation = self.manifest.evaluation
        return Waiting(
            id=self.manifest.checkpoint_id,
            step=self.manifest.step,
            loss=None if evaluation is None else evaluation.loss,
            is_pinned=self.evaluations_served > 0,
            has_verdict=self.verdict is None or self.verdict.done(),
        )

    def let_go(self) -> bool:
        """Return whether nobody looks at its files, nor will: an evaluation is not given up."""
        if self.verdict is None or self.verdict.done():
            return True
        return self.manifest.evaluation is not None and self.verdict.cancel()
