"""Which tensors a kernel may be given: those whose value is what stands in their memory.

A kernel knows addresses and sizes and nothing else. torch (2.13) has strided tensors of its own
type for which that is not enough:

* The imaginary part of a conjugated tensor has its sign in a flag, ``is_neg()``; as the gradient of
  one element, autograd keeps that view.
* ``torch._efficientzerotensor``, from torch's own derivative formulas, has no memory; nor has a
  tensor whose storage was resized to nothing, or one inside a ``torch.func`` transform.
* Any tensor may be cut, transposed or laid over another one in place (``.data``, ``set_``), between
  any two steps.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn import Parameter

#: Other types may mean something else than their memory says.
PLAIN = frozenset({Tensor, Parameter})

#: The tensors of one update, in the order of `roadless.optim.backends.form.Tensors`.
Row = tuple[Tensor, ...]


def is_plain(row: Row) -> bool:
    """Return whether all are of one shape, and none means something else than its memory says."""
    shape = row[0].shape
    for tensor in row:  # no all(): it takes twice as long, in every step for every tensor
        if type(tensor) not in PLAIN or tensor.shape != shape or tensor.is_neg():
            return False
    # Which torch refuses to change outside of inference mode.
    return not row[0].is_inference()


def have_own_memory(rows: Sequence[Row]) -> bool:
    """Return whether all have memory, and nobody else has that of a tensor which is written.

    Threads take rows in any order: two that share memory would race, where torch takes turns.

    Args:
        rows: of contiguous tensors, of equal dtypes from row to row; the second of each is the
            gradient, which is only read.
    """
    rows = [row for row in rows if row[0].numel()]
    try:
        addresses = tuple([tensor.data_ptr() for row in rows for tensor in row])
    except RuntimeError:  # torch's answer for a tensor without storage
        return False
    numels = tuple([row[0].numel() for row in rows])
    itemsizes = tuple([tensor.element_size() for row in rows[:1] for tensor in row])
    return not rows or (0 not in addresses and _are_disjoint(addresses, numels, itemsizes))


@lru_cache(maxsize=64)
def _are_disjoint(
    addresses: tuple[int, ...], numels: tuple[int, ...], itemsizes: tuple[int, ...]
) -> bool:
    starts = np.array(addresses).reshape(-1, len(itemsizes))
    ends = starts + np.outer(numels, itemsizes)
    written, until = np.delete(starts, 1, axis=1).ravel(), np.delete(ends, 1, axis=1).ravel()
    order = np.argsort(written)
    written, until = written[order], until[order]
    if (written[1:] < until[:-1]).any():
        return False
    last = np.searchsorted(written, ends[:, 1]) - 1  # of those that start before the gradient ends
    return not (until[last] > starts[:, 1]).any(where=last >= 0)


def are_same_part(row: Row) -> bool:
    """Return whether the local parts of distributed tensors (DTensor) are one part of the whole.

    Those of sums that are still to be added up (``Partial``) are no part of it: torch leaves such
    gradients on replicated parameters that saw sharded activations, as norms do under sequence
    parallelism.
    """
    layouts = [(getattr(t, "device_mesh", None), getattr(t, "placements", None)) for t in row]
    placements = layouts[0][1] or ()
    return not any(p.is_partial() for p in placements) and all(x == layouts[0] for x in layouts)
