"""One-pass kernels on the CPU: numba's machine code, run by torch's own threads.

The kernel of an update is compiled on first use in a process, or by `load`, never at import. It is
cached on disk: in ``__pycache__`` beside the source if that is writable, else in the user's cache
folder (numba's rule; ``NUMBA_CACHE_DIR`` overrides it).

torch's CPU operators run in regions of an OpenMP runtime. The kernels request a region of
``torch.get_num_threads()`` threads from the same runtime, through its C entry point
``GOMP_parallel``: both share one pool, as a second one would compete with torch's spinning threads
for the cores.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roadless.optim.backends import numba_kernels
from roadless.optim.backends.form import Direction, Move, Tensors, numbers
from roadless.optim.numerics.precision import working_dtype

_log = logging.getLogger(__name__)

_Words = NDArray[np.int64]

#: Elements of one tensor that a thread takes at a time: enough to hide the cost of taking them, few
#: enough to balance the load at the end.
_CHUNK_ELEMENTS = 2**15
#: The column of a row that holds the gradient's address.
_GRADIENT = 1
#: The updates that have a kernel, by the states that they have.
_KINDS = {"z": "sgd", "zv": "adam", "zvm": "momentum", "vm": "descent"}
_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def why_absent() -> str | None:
    """Return why this backend cannot run in this process, or None if it can."""
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return "this build of torch brings no OpenMP runtime with the entry GOMP_parallel"
    return None


def takes(row: tuple[Tensor, ...]) -> bool:
    """Return whether one update's tensors can be given to `run`.

    They can if all are on the CPU and contiguous, and either of one dtype, float32 or float64, or
    bfloat16 for points and gradients, float32 for the state and int16 for what rounding took.
    """
    dtype = row[0].dtype
    if dtype not in _DTYPES or row[1].dtype != dtype:
        return False
    state = working_dtype(dtype)
    others = row[2:-1] if row[-1].dtype == torch.int16 else row[2:]
    for tensor in others:
        if tensor.dtype != state:
            return False
    for tensor in row:  # noqa: SIM110  as in `choose`
        if not (tensor.is_cpu and tensor.is_contiguous()):
            return False
    return True


def run(tensors: Tensors, *, move: Move, direction: Direction) -> None:
    """Do the update for all tensors in one parallel region.

    Elements are independent, so the number of threads does not change a bit. Narrow points are
    computed in float32 and rounded as in `roadless.optim.numerics.rounding`.

    Args:
        tensors: of one dtype; each row is one that `takes` accepts.
        move: how points move.
        direction: how u comes from the gradients.

    >>> import torch
    >>> from roadless.optim.backends.numba_cpu import run
    >>> from roadless.optim.backends.form import Gradient, Move, Tensors
    >>> y, z, g = torch.ones(2), torch.ones(2), torch.ones(2)
    >>> move = Move(lr=0.5, lr_y=0.25, c=0.5)
    >>> run(Tensors([y], [g], z=[z]), move=move, direction=Gradient())
    >>> y, z
    (tensor([0.6250, 0.6250]), tensor([0.5000, 0.5000]))
    """
    if tensors.points:
        Job(tensors).run([g.data_ptr() for g in tensors.gradients], move=move, direction=direction)


class Job:
    """An update of tensors that stay in place, with gradients at new addresses each time.

    It holds addresses, not tensors: its owner keeps those alive and checks whether one has moved.
    """

    def __init__(self, tensors: Tensors) -> None:
        """``tensors``: as in `run`, at least one."""
        dtype = tensors.points[0].dtype
        self._table = _table(tensors)
        self._gradient_column = self._table[:, _GRADIENT]
        self._tensor_of, start, length = _chunks(_sizes(tensors))
        self._gradient_starts = start * dtype.itemsize
        self._has_chunk_each = np.array_equal(self._tensor_of, np.arange(len(tensors.points)))
        self._most_threads = -(-int(length.sum()) // _CHUNK_ELEMENTS)
        self._numbers = np.empty(numba_kernels.NUM_NUMBERS, dtype=_DTYPES[working_dtype(dtype)])
        self._counter = np.zeros(1, dtype=np.int64)
        self._words = np.empty(numba_kernels.JOB_LENGTH, dtype=np.int64)
        self._words[numba_kernels.COUNTER] = self._counter.ctypes.data
        self._words[numba_kernels.ROWS] = self._table.ctypes.data
        self._words[numba_kernels.NUMBERS] = self._numbers.ctypes.data
        self._words[numba_kernels.NUM_ROWS] = len(self._table)
        self._address = self._words.ctypes.data
        self._function = _function(_kind(tensors), _DTYPES[dtype]).address

    def run(self, gradients: Sequence[int], *, move: Move, direction: Direction) -> None:
        """Do the update with the gradients at these addresses, one for each tensor."""
        if not self._most_threads:
            return
        if self._has_chunk_each:
            self._gradient_column[:] = gradients
        else:
            addresses = np.array(gradients, dtype=np.int64)[self._tensor_of]
            self._gradient_column[:] = addresses + self._gradient_starts
        self._numbers[:] = numbers(move, direction)
        self._counter[0] = 0
        # As torch does: no thread is woken for less than a chunk of work.
        num_threads = min(torch.get_num_threads(), self._most_threads)
        _gomp_parallel()(self._function, self._address, num_threads, 0)


def prepare(tensors: Tensors) -> Job:
    """Return a repeatable update of tensors, at least one, that `takes` accepts."""
    return Job(tensors)


def load() -> None:
    """Compile the kernels of all updates in float32, or read them from disk."""
    _gomp_parallel()
    for kind in numba_kernels.KINDS:
        _function(kind, "float32")


def _kind(tensors: Tensors) -> str:
    letters = "".join(letter for letter in "zvm" if getattr(tensors, letter))
    return _KINDS[letters]


def _table(tensors: Tensors) -> _Words:
    """One row per chunk: its address in each tensor, then the columns that the kernels name."""
    rows = tensors.rows()
    tensor_of, start, length = _chunks(_sizes(tensors))
    width = len(rows[0])
    addresses = np.array([t.data_ptr() for row in rows for t in row], dtype=np.int64)
    sizes = np.array([t.element_size() for t in rows[0]], dtype=np.int64)
    # A row without a low part has 0 in its place.
    table = np.zeros((len(length), width - bool(tensors.low) + numba_kernels.NUM_MORE), np.int64)
    table[:, :width] = addresses.reshape(-1, width)[tensor_of] + start[:, None] * sizes
    table[:, numba_kernels.INDEX] = start
    table[:, numba_kernels.LENGTH] = length
    if tensors.rounding:
        keys = np.array([each.key for each in tensors.rounding], dtype=np.uint64).view(np.int64)
        indexes = np.array([each.first_index for each in tensors.rounding], dtype=np.int64)
        table[:, numba_kernels.KEY] = keys[tensor_of]
        table[:, numba_kernels.INDEX] += indexes[tensor_of]
    return table


def _sizes(tensors: Tensors) -> tuple[int, ...]:
    return tuple([point.numel() for point in tensors.points])


@lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...]) -> tuple[_Words, _Words, _Words]:
    """Return each chunk's tensor, first element and length, for tensors of these sizes."""
    numel = np.array(sizes, dtype=np.int64)
    tensor_of = np.repeat(np.arange(len(sizes)), -(-numel // _CHUNK_ELEMENTS))
    first_chunk = np.searchsorted(tensor_of, tensor_of)
    start = (np.arange(len(tensor_of)) - first_chunk) * _CHUNK_ELEMENTS
    return tensor_of, start, np.minimum(numel[tensor_of] - start, _CHUNK_ELEMENTS)


@cache
def _gomp_parallel() -> Callable[[int, int, int, int], None]:
    """``void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)``.

    Looked up among the symbols of the process, where torch's own runtime comes first.
    """
    entry = ctypes.CDLL(None).GOMP_parallel
    entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    entry.restype = None
    return entry


@cache
def _function(kind: str, dtype: str) -> Any:
    try:
        return numba_kernels.compiled(kind, dtype, is_cached=True)
    except RuntimeError as error:
        _log.warning("numba kernels are compiled in every process: %s", error)
        return numba_kernels.compiled(kind, dtype, is_cached=False)
