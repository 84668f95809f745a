"""Training states, saved beside training: the step waits for a copy in memory, not for the disk.

A save is a copy into host memory by the training thread; then another thread writes, flushes and
hashes it and hands it to the reporter, which uploads and announces it. One state is written at
a time: a save that comes earlier waits for the one before.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.events import Notice
from roadless.worker.background import Background
from roadless.worker.checkpointing.shard_layout import LEAD, slices_by_writer
from roadless.worker.checkpointing.training_state import Share, share_of, write_share
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.distributed.store_peers import StorePeers
from roadless.worker.position import Position
from roadless.worker.reporting.staged_checkpoint import Staged
from roadless.worker.setup import RankContext, TrainingSetup

log = logging.getLogger(__name__)

#: A wait for an earlier save that is worth a line in the job's history.
_WORTH_TELLING_SECONDS = 1.0


class StateSaver:
    """Saves one rank's share of each state; does nothing on a rank without one."""

    def __init__(self, context: RankContext, *, staging: Path) -> None:
        self._context = context
        self._setup = context.setup
        self._cluster = cluster = context.cluster
        self._reporter = context.reporter
        self._staging = staging
        writers = _writers(context.setup)
        self._writes = cluster.rank in writers
        self._peers = _peers(cluster, writers) if writers != {LEAD} and self._writes else None
        self._copy = HostCopy()
        self._background = Background("save")
        self._num_saves = 0
        self._failure: OSError | None = None  #: of the last save
        self._has_told_waiting = False

    @property
    def is_busy(self) -> bool:
        """Whether a state is being written, or memory for one allocated."""
        return self._background.is_busy

    def prepare(self) -> None:
        """Allocate memory ahead of the first save; call once the optimizer's state exists."""
        if self._writes:
            tensors = self._share(Position(), None).tensors
            self._background.begin(lambda: self._copy.reserve(tensors))

    def save(self, position: Position, *, evaluated_step: int | None) -> None:
        """Copy the current state, and return while it is being written."""
        if not self._writes:
            return
        self._wait_for_the_one_before()
        self._num_saves += 1
        number, checkpoint_id = self._num_saves, new_id("ckpt")
        if self._peers is not None and self._cluster.is_lead:
            self._peers.name(number, checkpoint_id)
        share = self._share(position, evaluated_step)
        held = replace(share, tensors=self._copy.take(share.tensors))

        def write() -> None:
            agreed = checkpoint_id
            if self._peers is not None and not self._cluster.is_lead:
                agreed = self._peers.name_of(number)
            self._write(agreed, held, position)

        self._background.begin(write)

    def settle(self) -> None:
        """Return once the last state is on disk; raise OSError if it was not written."""
        self._background.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Return once nothing is being written."""
        self._background.wait()

    def _share(self, position: Position, evaluated_step: int | None) -> Share:
        return share_of(
            self._setup.model,
            self._setup.optimizer,
            rank=self._cluster.rank,
            position=position,
            evaluated_step=evaluated_step,
        )

    def _wait_for_the_one_before(self) -> None:
        started = time.monotonic()
        self._background.wait()
        seconds = time.monotonic() - started
        if seconds < _WORTH_TELLING_SECONDS or self._has_told_waiting:
            return
        self._has_told_waiting = True
        message = (
            f"training waited {seconds:.1f} s for the training state before to be written; save "
            "less often, or give the node a faster disk"
        )
        self._reporter.say(Notice(code="checkpoint.slow", message=message))

    def _write(self, checkpoint_id: str, share: Share, position: Position) -> None:
        folder = self._staging / checkpoint_id
        try:
            folder.mkdir(parents=True)
            files = write_share(folder, share)
        except OSError as error:
            self._give_up(checkpoint_id, error)
            return
        self._failure = None
        manifest = self._context.manifest(checkpoint_id, CheckpointKind.RESUME, position, files)
        self._reporter.publish(Staged(folder, manifest, peers=self._peers))

    def _give_up(self, checkpoint_id: str, error: OSError) -> None:
        """The previous state stays the newest; training continues, and the next save may work."""
        log.error("checkpoint %s was not written: %s", checkpoint_id, error)
        shutil.rmtree(self._staging / checkpoint_id, ignore_errors=True)
        if self._peers is not None and not self._cluster.is_lead:
            self._peers.tell(checkpoint_id, None)
        if self._failure is None:
            message = f"a training state was not written; training continues: {error}"
            self._reporter.say(Notice(code="checkpoint.failed", message=message))
        self._failure = error


class HostCopy:
    """Buffers allocated once and used for every copy; memory for one state, never more."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def reserve(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Allocate the buffers for a copy of these tensors, and touch their memory pages.

        Otherwise the first copy would spend most of its time on the kernel's page faults.
        """
        fitting = {name: self._buffers[name] for name in tensors if self._fits(name, tensors[name])}
        self._buffers = fitting
        for name, tensor in tensors.items():
            if name not in fitting:
                self._buffers[name] = torch.zeros(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return copies by name, valid until the next call."""
        self.reserve(tensors)
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._buffers[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return dict(self._buffers)

    def _fits(self, name: str, tensor: torch.Tensor) -> bool:
        buffer = self._buffers.get(name)
        return buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)


def _writers(setup: TrainingSetup) -> set[int]:
    return {LEAD} | {rank for p in setup.model.parameters() for rank in slices_by_writer(p)}


def _peers(cluster: Cluster, writers: set[int]) -> StorePeers:
    assert cluster.store is not None, "expected ranks that share a model to share a store"
    return StorePeers(
        cluster.store, rank=cluster.rank, is_lead=cluster.is_lead, others=writers - {LEAD}
    )
