"""A long series in few buckets: what a chart can show and a network should carry.

Pure and vectorised. Minimum and maximum of each bucket keep spikes visible that sampling would
hide; values that are not finite are counted, never drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_BUCKETS = 2000


@dataclass(frozen=True)
class Buckets:
    """One entry per bucket that holds a point, by ascending x.

    ``x`` is that of the bucket's last point. ``last``, ``min`` and ``max`` are over finite values,
    NaN when there is none. ``count`` counts all points, ``non_finite`` those of them left out.
    """

    x: Floats
    last: Floats
    min: Floats
    max: Floats
    count: Ints
    non_finite: Ints


def rollup(x: Floats, values: Floats, *, buckets: int) -> Buckets:
    """Summarise points in at most ``buckets`` buckets of equal width between the ends of x.

    A series with no more points than buckets keeps one bucket per point.

    Args:
        x: finite, any order, shape (n,); points at the same x stay in the order given.
        values: shape (n,), perhaps not finite.
        buckets: 1 to MAX_BUCKETS.
    """
    assert 1 <= buckets <= MAX_BUCKETS, f"expected 1 to {MAX_BUCKETS} buckets, saw {buckets}"
    order = np.argsort(x, kind="stable")
    x, values = x[order], values[order]
    starts = _bucket_starts(x, buckets)
    ends = np.append(starts[1:], x.size) - 1
    if x.size == 0:
        ends = starts
    finite = np.isfinite(values)
    return Buckets(
        x=x[ends],
        last=_last_finite(values, finite, starts=starts, ends=ends),
        min=_extreme(np.minimum, values, finite, starts=starts),
        max=_extreme(np.maximum, values, finite, starts=starts),
        count=ends - starts + 1,
        non_finite=_sum(~finite, starts),
    )


def _bucket_starts(x: Floats, buckets: int) -> Ints:
    """Index of the first point of each bucket that holds one, for ascending x."""
    if x.size <= buckets:
        return np.arange(x.size)
    width = x[-1] - x[0]
    share = np.zeros_like(x) if width == 0 else (x - x[0]) / width
    bucket = np.minimum((share * buckets).astype(np.int64), buckets - 1)
    return np.flatnonzero(np.diff(bucket, prepend=-1))


def _sum(flags: NDArray[np.bool_], starts: Ints) -> Ints:
    return np.add.reduceat(flags.astype(np.int64), starts) if starts.size else starts


def _extreme(pick: np.ufunc, values: Floats, finite: NDArray[np.bool_], *, starts: Ints) -> Floats:
    """``np.fmin`` would do for NaN alone, but infinities must be left out as well."""
    if not starts.size:
        return values
    neutral = np.inf if pick is np.minimum else -np.inf
    found: Floats = pick.reduceat(np.where(finite, values, neutral), starts)
    return np.where(np.isfinite(found), found, np.nan)


def _last_finite(values: Floats, finite: NDArray[np.bool_], *, starts: Ints, ends: Ints) -> Floats:
    if not starts.size:
        return values
    newest = np.maximum.accumulate(np.where(finite, np.arange(values.size), -1))[ends]
    return np.where(newest >= starts, values[newest], np.nan)
