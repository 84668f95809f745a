"""Which backend runs an update, and what is left to plain torch.

The choice depends only on the tensors and the number of elements in the whole model, never on time,
load or earlier runs: a resumed run makes the same choices and so gets the same bits.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor

from roadless.optim.backends.form import Direction, Move, Tensors
from roadless.optim.backends.memory import PLAIN, are_same_part, have_own_memory, is_plain
from roadless.optim.backends.repeat import Prepared
from roadless.optim.numerics.sharding import local

_log = logging.getLogger(__name__)
_loaded_devices: set[str] = set()  #: by `load_kernels`

#: Elements of a model below which no backend is loaded: half a second of loading would cost a short
#: job more than its kernels could save. An estimate; `make bench-optim` measures around it.
MIN_ELEMENTS = 2**20

_HOMES = {"cpu": "roadless.optim.backends.numba_cpu", "cuda": "roadless.optim.backends.triton_gpu"}


class Backend(Protocol):
    """The interface of a backend: a module with these functions."""

    def why_absent(self) -> str | None:
        """Return why the backend cannot run in this process, or None."""

    def takes(self, row: tuple[Tensor, ...]) -> bool:
        """Return whether `run` can do the update of these tensors, all plain and on its device."""

    def run(self, tensors: Tensors, *, move: Move, direction: Direction) -> None:
        """Do the update in one pass over memory."""

    def prepare(self, tensors: Tensors) -> Prepared | None:
        """Return a repeatable update of tensors that it takes, none of them narrow; or None."""

    def load(self) -> None:
        """Load the kernels of the usual updates now, not at the first step that needs them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend of a device, or why there is none."""

    backend: Backend | None
    #: For logs and callers; empty if there is a backend.
    reason: str = ""


@cache
def backend_of(device_type: str) -> Choice:
    """Return the backend of a device such as "cpu"; its absence is logged once, with the reason."""
    home = _HOMES.get(device_type)
    choice = Choice(None, "no backend for this device") if home is None else _loaded(home)
    if choice.backend is None:
        _log.info("optimizer steps on %s run in plain torch: %s", device_type, choice.reason)
    return choice


def _loaded(home: str) -> Choice:
    try:
        backend = cast(Backend, import_module(home))
    except ImportError as error:
        return Choice(None, f"{error}")
    reason = backend.why_absent()
    return Choice(None, reason) if reason else Choice(backend)


def is_worth_a_kernel(num_elements: int, device_type: str) -> bool:
    """Return whether a model of this many elements is stepped by its device's backend.

    It is if it is large enough to load a backend for, or if `load_kernels` was called.
    """
    return num_elements >= MIN_ELEMENTS or device_type in _loaded_devices


def load_kernels(device_type: str = "cpu") -> None:
    """Load the kernels of a device now, and use them for models of every size from now on.

    For a process that others are forked from, or that will take its first step soon: loading time
    is the only reason not to use kernels for a small model. A device without a backend keeps using
    plain torch.
    """
    _loaded_devices.add(device_type)
    backend = backend_of(device_type).backend
    if backend is not None:
        backend.load()


def prepared(tensors: Tensors) -> Prepared | None:
    """Return the update as a repeatable one, if a single backend can do all of it.

    None if points are narrow, since each step rounds them differently, or distributed.
    """
    rows = tensors.rows()
    if tensors.rounding or not all(map(is_plain, rows)):
        return None
    device_types = {point.device.type for point in tensors.points}
    backend = backend_of(device_types.pop()).backend if len(device_types) == 1 else None
    if backend is None or not all(map(backend.takes, rows)) or not have_own_memory(rows):
        return None
    return backend.prepare(tensors)


def run_where_possible(tensors: Tensors, *, move: Move, direction: Direction) -> set[int]:
    """Let backends do the updates that they can; return the positions of those done.

    Only the local part of a distributed tensor (DTensor) is updated.

    Args:
        tensors: of the update, matched by position; points are of one dtype; positions may differ
            in device, and may be refused by every backend.
        move: how points move.
        direction: how u comes from the gradients.
    """
    parts = tensors
    same = set(range(len(tensors.points)))
    if not all(type(point) in PLAIN for point in tensors.points):
        same = {i for i, row in enumerate(tensors.rows()) if are_same_part(row)}
        parts = tensors.map(local)
    kinds = defaultdict(list)
    for position, row in enumerate(parts.rows()):
        if position in same and is_plain(row) and _can_round(parts, position):
            kinds[row[0].device.type].append((position, row))
    done: set[int] = set()
    for device_type, members in kinds.items():
        backend = backend_of(device_type).backend
        if backend is None:
            continue
        taken = {position: row for position, row in members if backend.takes(row)}
        if have_own_memory(list(taken.values())):
            some = parts if len(taken) == len(parts.points) else parts.at(list(taken))
            backend.run(some, move=move, direction=direction)
            done.update(taken)
    return done


def _can_round(tensors: Tensors, position: int) -> bool:
    """Refuse parts of narrow tensors whose elements are not contiguous in the whole."""
    return not tensors.rounding or tensors.rounding[position].first_index is not None
