"""Which backend runs an update, and who is left for plain torch.

The choice depends on what the tensors are and on how many elements the whole model has, never on
time, load or what ran before: a resumed run makes the same choices and so the same bits.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor
from torch.nn import Parameter

from roadless.optim.backends.form import Direction, Move, Tensors
from roadless.optim.backends.repeat import Prepared
from roadless.optim.numerics.sharding import local

_log = logging.getLogger(__name__)
_loaded_devices: set[str] = set()  #: by `load_kernels`

#: Elements of a model below which no backend is loaded: half a second of loading would cost a short
#: job more than its kernels could save. An estimate; `make bench-optim` measures around it.
MIN_ELEMENTS = 2**20

_PLAIN = frozenset({Tensor, Parameter})
_HOMES = {"cpu": "roadless.optim.backends.numba_cpu", "cuda": "roadless.optim.backends.triton_gpu"}


class Backend(Protocol):
    """What a backend is: a module with these functions."""

    def why_absent(self) -> str | None:
        """Return why it cannot run in this process, or None."""

    def takes(self, row: tuple[Tensor, ...]) -> bool:
        """Return whether `run` can do the update of these tensors, all plain and on its device."""

    def run(self, tensors: Tensors, *, move: Move, direction: Direction) -> None:
        """Do the update in one pass over memory."""

    def prepare(self, tensors: Tensors) -> Prepared | None:
        """Return an update that can be run again, of tensors that it takes, not narrow; or None."""

    def load(self) -> None:
        """Load kernels of the usual updates now, and not at the first step that needs them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend of a device, or why there is none."""

    backend: Backend | None
    #: In words, for logs and for who asks; empty with a backend.
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
    """Return whether a model with so many elements in all is stepped by its device's backend.

    It is where it is large enough to load a backend for, or where `load_kernels` was called.
    """
    return num_elements >= MIN_ELEMENTS or device_type in _loaded_devices


def load_kernels(device_type: str = "cpu") -> None:
    """Load the kernels of a device now, and step models of every size by them from now on.

    For a process that many others are forked from, or that is asked for its first step soon: only
    the time that loading takes speaks against kernels for a small model. A device without a backend
    stays with plain torch.
    """
    _loaded_devices.add(device_type)
    backend = backend_of(device_type).backend
    if backend is not None:
        backend.load()


def prepared(tensors: Tensors) -> Prepared | None:
    """Return the update as one that can be run again, if one backend does all of it that way.

    None where points are narrow, since they are rounded otherwise in each step, or distributed.
    """
    if tensors.rounding or not all(_is_plain(row) for row in tensors.rows()):
        return None
    device_types = {point.device.type for point in tensors.points}
    backend = backend_of(device_types.pop()).backend if len(device_types) == 1 else None
    if backend is None or not all(backend.takes(row) for row in tensors.rows()):
        return None
    return backend.prepare(tensors)


def run_where_possible(tensors: Tensors, *, move: Move, direction: Direction) -> set[int]:
    """Let backends do the updates that they can do; return the positions of those they did.

    A distributed tensor (DTensor) stands for its local part.

    Args:
        tensors: the update's, at one position those that belong together; points are of one dtype;
            positions may differ in device, and may be refused by every backend.
        move: how points move.
        direction: how u comes from the gradients.
    """
    is_plain = all(type(point) in _PLAIN for point in tensors.points)
    parts = tensors if is_plain else tensors.map(local)
    kinds = defaultdict(list)
    for position, row in enumerate(parts.rows()):
        if _is_plain(row) and _can_round(parts, position):
            kinds[row[0].device.type].append((position, row))
    done: set[int] = set()
    for device_type, members in kinds.items():
        backend = backend_of(device_type).backend
        if backend is not None:
            taken = [position for position, row in members if backend.takes(row)]
            some = parts if len(taken) == len(parts.points) else parts.at(taken)
            backend.run(some, move=move, direction=direction)
            done.update(taken)
    return done


def _can_round(tensors: Tensors, position: int) -> bool:
    """Refuse parts of narrow tensors whose elements are not neighbours in the whole."""
    return not tensors.rounding or tensors.rounding[position].first_index is not None


def _is_plain(row: tuple[Tensor, ...]) -> bool:
    """Refuse what may mean something else than its memory says, and rows of unequal shapes."""
    shape = row[0].shape
    for tensor in row:  # noqa: SIM110  all() takes twice as long, in every step for every tensor
        if type(tensor) not in _PLAIN or tensor.shape != shape:
            return False
    return True
