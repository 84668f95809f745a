"""Whether float32 can tell the values of a column apart."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A column is refused when all its values lie within so many neighbouring numbers of float32.
_STEPS = 1024
#: A share of the largest value: what differs by less is a constant with rounding errors.
_NOISE = 2.0**-50


@dataclass(frozen=True)
class LostColumn:
    """A column whose values float32 would make equal, or nearly so."""

    name: str
    least: float
    greatest: float


class Spread:
    """Watches the values of each column, in float64, on their way to float32."""

    def __init__(self) -> None:
        self._seen: dict[str, _Range] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Take further rows of a column into account.

        ``values``: (rows,) or (rows, width), finite in float32. Images and the like, with more
        axes, are left out: there one constant pixel is no fault.
        """
        if values.ndim > 2 or values.dtype.itemsize <= np.dtype(np.float32).itemsize:
            return
        added = _Range.of(values.reshape(len(values), -1))
        self._seen[name] = self._seen[name].joined(added) if name in self._seen else added

    def first_lost(self) -> LostColumn | None:
        """Return the first column that float32 does not keep apart, if there is one."""
        for name, seen in self._seen.items():
            lost = np.flatnonzero(seen.is_lost())
            if lost.size:
                at = int(lost[0])
                return LostColumn(name, float(seen.least[at]), float(seen.greatest[at]))
        return None


@dataclass(frozen=True)
class _Range:
    """The ends of each number of a column, and whether float32 holds all of them exactly."""

    least: NDArray[np.float64]
    greatest: NDArray[np.float64]
    is_exact: NDArray[np.bool_]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "_Range":
        is_exact = (values.astype(np.float32) == values).all(axis=0)
        return cls(values.min(axis=0), values.max(axis=0), is_exact)

    def joined(self, other: "_Range") -> "_Range":
        return _Range(
            np.minimum(self.least, other.least),
            np.maximum(self.greatest, other.greatest),
            self.is_exact & other.is_exact,
        )

    def is_lost(self) -> NDArray[np.bool_]:
        width = self.greatest - self.least
        largest = np.maximum(np.abs(self.least), np.abs(self.greatest))
        with np.errstate(over="ignore"):  # beside the largest float32 there is none
            step = np.spacing(largest.astype(np.float32)).astype(np.float64)
        is_lost: NDArray[np.bool_] = (
            ~self.is_exact & (width > _NOISE * largest) & (width < _STEPS * step)
        )
        return is_lost
