"""One-pass kernels on a GPU: Triton code, one launch for all tensors of a group.

A block finds its tensor and its first element in two maps that depend only on the sizes and stay on
the device, and its addresses in a small table that is resent only when a tensor has moved. Compiled
at the first step, once per dtype; the numbers of a step are data.
"""

from contextlib import nullcontext
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from roadless.optim.backends.form import Direction, Move, Tensors, numbers

#: Elements per block, and the warps that share them: eight elements per thread, so that every
#: access is two of 16 bytes in float32 and enough of them are in flight to saturate the memory bus.
_BLOCK = 1024
_WARPS = 4
_ALIGNMENT_BYTES = 16
_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def why_absent() -> str | None:
    """Return None: with Triton imported, this backend can run."""
    return None


def takes(row: tuple[Tensor, ...]) -> bool:
    """Return whether one update's tensors can be given to `run`.

    They can if all are on one device, of one dtype, float32 or float64, contiguous and aligned.
    """
    first = row[0]
    return first.dtype in _DTYPES and all(
        t.dtype == first.dtype
        and t.device == first.device
        and t.is_contiguous()
        and t.data_ptr() % _ALIGNMENT_BYTES == 0
        for t in row
    )


def run(tensors: Tensors, *, move: Move, direction: Direction) -> None:
    """Do the update for all tensors in one launch per device.

    Args:
        tensors: of one dtype; each row is one that `takes` accepts.
        move: how points move.
        direction: how u comes from the gradients.
    """
    rows = [row for row in tensors.rows() if row[0].numel()]
    for device in dict.fromkeys(row[0].device for row in rows):
        there = [row for row in rows if row[0].device == device]
        _launch(there, tensors, numbers(move, direction))


def prepare(_tensors: Tensors) -> None:
    """Return None: a launch looks up its addresses itself."""


def load() -> None:
    """Do nothing: kernels are compiled at the first step, for the tensors' device."""


def _launch(rows: list[tuple[Tensor, ...]], tensors: Tensors, values: tuple[float, ...]) -> None:
    device, dtype = rows[0][0].device, rows[0][0].dtype
    tensor_of, start_of, sizes = _blocks(tuple(row[0].numel() for row in rows), device)
    addresses = _addresses(tuple(t.data_ptr() for row in rows for t in row), device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _update[(len(tensor_of),)](
            *(tensor_of, start_of, sizes, addresses),
            torch.tensor(values, dtype=dtype).to(device, non_blocking=True),
            WIDTH=len(rows[0]),
            HAS_Z=bool(tensors.z),
            HAS_V=bool(tensors.v),
            HAS_M=bool(tensors.m),
            DTYPE=_DTYPES[dtype],
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )


@lru_cache(maxsize=64)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return each block's tensor and first element, and the sizes themselves."""
    numel = torch.tensor(sizes)
    num_blocks = (numel + _BLOCK - 1) // _BLOCK
    tensor_of = torch.repeat_interleave(num_blocks)
    first_block = num_blocks.cumsum(0) - num_blocks
    start_of = (torch.arange(len(tensor_of)) - first_block[tensor_of]) * _BLOCK
    return tensor_of.to(device), start_of.to(device), numel.to(device)


@lru_cache(maxsize=64)
def _addresses(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(addresses).to(device)


@triton.jit
def _at(addresses, index, offsets, DTYPE: tl.constexpr):
    """The pointers to the block's elements of one tensor."""
    start = tl.load(addresses + index).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(start, 16) + offsets


@triton.jit
def _over_root(u, v, numbers):
    """u / (max(√(v_scale v), floor) + ε), with IEEE rounding, which float32 must request."""
    v_scale, floor, eps = tl.load(numbers + 7), tl.load(numbers + 8), tl.load(numbers + 9)
    is_single: tl.constexpr = v.dtype == tl.float32
    root = tl.sqrt_rn(v_scale * v) if is_single else tl.sqrt(v_scale * v)
    denominator = tl.where(root < floor, floor, root) + eps
    return tl.div_rn(u, denominator) if is_single else u / denominator


@triton.jit
def _update(
    tensor_of,
    start_of,
    sizes,
    addresses,
    numbers,
    WIDTH: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_V: tl.constexpr,
    HAS_M: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one tensor: `Adam` or the gradient, then `Move`, each element touched once."""
    block = tl.program_id(0)
    tensor = tl.load(tensor_of + block)
    offsets = tl.load(start_of + block) + tl.arange(0, BLOCK)
    inside = offsets < tl.load(sizes + tensor)
    first = tensor * WIDTH
    y_at = _at(addresses, first, offsets, DTYPE)
    y = tl.load(y_at, mask=inside)
    u = tl.load(_at(addresses, first + 1, offsets, DTYPE), mask=inside)
    if HAS_V:
        v_at = _at(addresses, first + 2 + HAS_Z, offsets, DTYPE)
        v = tl.load(numbers + 5) * tl.load(v_at, mask=inside) + tl.load(numbers + 6) * (u * u)
        tl.store(v_at, v, mask=inside)
        if HAS_M:
            m_at = _at(addresses, first + 3 + HAS_Z, offsets, DTYPE)
            u = tl.load(numbers + 10) * tl.load(m_at, mask=inside) + tl.load(numbers + 11) * u
            tl.store(m_at, u, mask=inside)
            u *= tl.load(numbers + 12)
        u = _over_root(u, v, numbers)
    lr = tl.load(numbers)
    u += tl.load(numbers + 1) * y
    if HAS_Z:
        z_at = _at(addresses, first + 2, offsets, DTYPE)
        z = tl.load(z_at, mask=inside) - lr * u
        tl.store(z_at, z, mask=inside)
        y -= tl.load(numbers + 2) * u
        # torch's rule for lerp, so that c = 1 gives y = z.
        c, rest = tl.load(numbers + 3), tl.load(numbers + 4)
        y = tl.where(c < rest, y + c * (z - y), z + rest * (y - z))
    else:
        y -= lr * u
    tl.store(y_at, y, mask=inside)
