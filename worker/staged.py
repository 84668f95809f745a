"""A checkpoint on local disk, on its way to the service, and what is known of it meanwhile."""

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.contract.evaluation import CheckpointsSpec
from service.contract.manifest import CheckpointFile, CheckpointKind, Manifest
from worker.waiting import Waiting


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
