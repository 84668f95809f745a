"""The training state as files: all that resuming bit for bit needs, at any number of ranks.

Each rank writes its own blocks as safetensors; the lead also writes what is whole, and a JSON
record of the rest: the position, the optimizer's settings and counters, and which block of which
tensor is in which file. Nothing is pickled. A reader takes the blocks that it needs, so a state
written by any ranks under any strategy can be read by any others.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from roadless.optim.numerics.sharding import local
from roadless.service.contract.checkpoint.manifest import CheckpointFile
from roadless.worker.checkpointing.safetensors_file import (
    TensorForm,
    in_file_order,
    write_bytes,
    write_tensors,
)
from roadless.worker.checkpointing.shard_layout import (
    LEAD,
    Slice,
    distributed_like,
    own_slice,
    slices_by_writer,
)
from roadless.worker.checkpointing.state_tree import join, split
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.position import Position

STATE_FILE = "state.json"

#: What reading a bad file may raise.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_MODEL, _OPTIMIZER = "model/", "optimizer"
#: Names of an optimizer's state that are points in parameter space, so laid out like parameters.
_POINTS = frozenset({"x", "y", "z", "low"})


@dataclass(frozen=True)
class Resumed:
    """Where a training state was taken; the rest is put back into model and optimizer."""

    position: Position
    evaluated_step: int | None


@dataclass(frozen=True)
class Share:
    """What one rank writes of a training state. ``record``: JSON, of the lead only."""

    rank: int
    tensors: Mapping[str, torch.Tensor]
    record: Mapping[str, Any] | None


def tensors_file(rank: int) -> str:
    """Return the name of the file with a rank's blocks."""
    return "state.safetensors" if rank == LEAD else f"state-{rank:05d}.safetensors"


# ---- writing ------------------------------------------------------------------------------------


def share_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rank: int,
    position: Position,
    evaluated_step: int | None,
) -> Share:
    """Return a rank's share of the current state; its tensors are the live ones.

    Model: y and the training buffers. Optimizer: z, moments, step, weight sum and settings. The
    order of data and the random numbers of a step are functions of the seed and the step, so the
    position is all that they need.
    """
    nest, tensors = split(optimizer.state_dict(), path=_OPTIMIZER)
    tensors |= {f"{_MODEL}{name}": value for name, value in model.state_dict().items()}
    writers = {name: slices_by_writer(tensor) for name, tensor in tensors.items()}
    mine = {name: local(tensor) for name, tensor in tensors.items() if rank in writers[name]}
    if rank != LEAD:
        return Share(rank, mine, None)
    record = {
        "position": position.as_record(),
        "evaluated_step": evaluated_step,
        "optimizer": nest,
        "layout": _layout(tensors, writers),
    }
    return Share(rank, mine, record)


def write_share(folder: Path, share: Share) -> tuple[CheckpointFile, ...]:
    """Write a rank's files into a folder that exists, and flush them; raises OSError."""
    forms = {name: TensorForm.of(tensor) for name, tensor in share.tensors.items()}
    ordered = (share.tensors[name] for name in in_file_order(forms))
    file = write_tensors(folder / tensors_file(share.rank), forms, ordered)
    if share.record is None:
        return (file,)
    return (file, write_bytes(folder / STATE_FILE, json.dumps(share.record).encode()))


def _layout(
    tensors: Mapping[str, torch.Tensor], writers: Mapping[str, dict[int, Slice]]
) -> dict[str, Any]:
    """Where the blocks of distributed tensors are; those that are not listed are the lead's."""
    return {
        name: {"shape": list(tensors[name].shape), "blocks": _blocks(slices)}
        for name, slices in writers.items()
        if slices != {LEAD: Slice.whole(tuple(tensors[name].shape))}
    }


def _blocks(slices: Mapping[int, Slice]) -> list[dict[str, Any]]:
    return [
        {"file": tensors_file(rank), "start": list(block.start), "size": list(block.size)}
        for rank, block in slices.items()
    ]


# ---- reading ------------------------------------------------------------------------------------


def read_state(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fetch: Callable[[str], None] = lambda _name: None,
) -> Resumed:
    """Put a training state back, however many ranks wrote it.

    ``fetch``: makes sure that the file of this name is in the folder; called for those that this
    rank needs, before they are read. Raises CheckpointUnreadable when the state does not fit.
    """
    try:
        with _Blocks(folder, fetch) as blocks:
            record = blocks.record
            _put_back(_Reader(blocks, model, optimizer), record, model, optimizer)
            return Resumed(Position.from_record(record["position"]), record["evaluated_step"])
    except (*_UNREADABLE, SafetensorError) as error:
        raise CheckpointUnreadable(f"the training state does not load: {error}") from error


def _put_back(
    reader: "_Reader", record: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    nest = join(record["optimizer"], reader)
    names = [name for name in reader if name.startswith(_MODEL)]
    model.load_state_dict({name.removeprefix(_MODEL): reader[name] for name in names})
    optimizer.load_state_dict(nest)


class _Blocks:
    """The files of a state, opened on first use."""

    def __init__(self, folder: Path, fetch: Callable[[str], None]) -> None:
        self._folder = folder
        self._fetch = fetch
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_Blocks":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @cached_property
    def record(self) -> dict[str, Any]:
        """The lead's JSON."""
        self._fetch(STATE_FILE)
        record: dict[str, Any] = json.loads((self._folder / STATE_FILE).read_text())
        return record

    @property
    def layout(self) -> dict[str, Any]:
        """Blocks of distributed tensors; a state of an earlier release has none."""
        found: dict[str, Any] = self.record.get("layout", {})
        return found

    @property
    def names(self) -> list[str]:
        """Every tensor of the state."""
        in_lead = list(self._file(tensors_file(LEAD)).keys())
        return [*self.layout, *(name for name in in_lead if name not in self.layout)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        if name in self.layout:
            return tuple(self.layout[name]["shape"])
        return tuple(self._file(tensors_file(LEAD)).get_slice(name).get_shape())

    def read(self, name: str, wanted: Slice) -> torch.Tensor:
        """Return a block of a tensor, put together from the blocks that were written."""
        pieces = list(self._pieces(name, wanted))
        if len(pieces) == 1 and pieces[0][0].size == wanted.size:
            return pieces[0][1]
        made = torch.empty(wanted.size, dtype=self._dtype(name))
        for block, piece in pieces:
            made[block.within(wanted)] = piece
        return made

    def _pieces(self, name: str, wanted: Slice) -> Iterator[tuple[Slice, torch.Tensor]]:
        for block, file in self._blocks(name):
            common = block.common(wanted)
            if common == block:
                yield common, self._file(file).get_tensor(name)
            elif not common.is_empty:
                yield common, self._file(file).get_slice(name)[common.within(block)]

    def _blocks(self, name: str) -> list[tuple[Slice, str]]:
        if name not in self.layout:
            return [(Slice.whole(self.shape(name)), tensors_file(LEAD))]
        return [
            (Slice(tuple(one["start"]), tuple(one["size"])), one["file"])
            for one in self.layout[name]["blocks"]
        ]

    def _dtype(self, name: str) -> torch.dtype:
        _, file = self._blocks(name)[0]
        scalar: torch.Tensor = self._file(file).get_slice(name)[:0]
        return scalar.dtype

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._fetch(name)
            opened = safe_open(self._folder / name, framework="pt")
            self._open[name] = self._stack.enter_context(opened)
        return self._open[name]


class _Reader(Mapping[str, torch.Tensor]):
    """The tensors of a state as this rank's model and optimizer hold them, read one at a time."""

    def __init__(self, blocks: _Blocks, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._blocks = blocks
        self._model = model.state_dict()
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._keeps_whole = _keeps_whole_state(optimizer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks.names)

    def __len__(self) -> int:
        return len(self._blocks.names)

    def __getitem__(self, name: str) -> torch.Tensor:
        like = self._like(name)
        shape = self._blocks.shape(name)
        if like is None or tuple(like.shape) != shape:
            return self._blocks.read(name, Slice.whole(shape))
        part = self._blocks.read(name, own_slice(like)).to(local(like).device)
        return distributed_like(part, like)

    def _like(self, name: str) -> torch.Tensor | None:
        """The live tensor that this one is laid out as; None for one that every rank has whole."""
        if name.startswith(_MODEL):
            return self._model.get(name.removeprefix(_MODEL))
        _, kind, index, leaf = name.split("/", 3)
        if kind != "state" or (self._keeps_whole and leaf not in _POINTS):
            return None
        parameter: torch.Tensor = self._parameters[int(index)]
        return parameter


def _keeps_whole_state(optimizer: torch.optim.Optimizer) -> bool:
    rule = getattr(optimizer, "rule", None)
    return bool(getattr(rule, "keeps_whole_state", False))
