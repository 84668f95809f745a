"""Input checks of `optim/theory/bounds.py` and its neighbours: rates, norms, horizons; numpy only.

Each check returns the row as an array, or raises with what was expected and what was seen.
"""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
#: One number of steps or several.
Horizons = SupportsIndex | Sequence[int] | NDArray[np.integer[Any]]


def checked_rates(eta: ArrayLike) -> Floats:
    """Return the rates as an array of float64.

    Raises:
        ValueError: not one row of finite numbers >= 0, or none at all.
    """
    return checked_row("eta", eta)


def checked_norms(grad_norms: ArrayLike, *, num_steps: int) -> Floats:
    """Return one gradient norm per step.

    Raises:
        ValueError: neither one finite number >= 0 nor a row of ``num_steps`` of them.
    """
    norms = np.asarray(grad_norms, dtype=np.float64)
    if norms.ndim == 0:
        norms = np.full(num_steps, norms)
    norms = checked_row("grad_norms", norms)
    if len(norms) != num_steps:
        raise ValueError(f"grad_norms: expected 1 or {num_steps} values, seen {len(norms)}")
    return norms


def checked_horizons(
    horizons: Horizons, *, num_steps: int, name: str = "horizons"
) -> NDArray[np.int64]:
    """Return the horizon or the row of horizons as an array of int64.

    Raises:
        ValueError: not whole numbers in 1..num_steps, or none at all.
    """
    wanted = np.asarray(horizons)
    if wanted.ndim > 1 or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.integer):
        raise ValueError(f"{name}: expected whole numbers, one or a row, seen {horizons!r}")
    outside = np.atleast_1d(wanted)[np.atleast_1d((wanted < 1) | (wanted > num_steps))]
    if outside.size:
        raise ValueError(f"{name}: expected 1 to {num_steps}, seen {outside[0]}")
    return wanted.astype(np.int64)


def checked_row(name: str, values: ArrayLike) -> Floats:
    """Return the values as an array of float64.

    Raises:
        ValueError: not one row of finite numbers >= 0, or none at all.
    """
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or row.size == 0:
        raise ValueError(f"{name}: expected a row of numbers, seen shape {row.shape}")
    bad = np.flatnonzero(~(np.isfinite(row) & (row >= 0)))
    if bad.size:
        t = int(bad[0])
        raise ValueError(f"{name}: expected finite numbers >= 0, seen {row[t]} at step {t + 1}")
    return row


def require_whole_number(name: str, value: SupportsIndex, *, least: int) -> int:
    """Return the value as an int.

    Raises:
        ValueError: it is not a whole number, or below ``least``.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}: expected a whole number, seen {value!r}") from error
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, seen {number}")
    return number
