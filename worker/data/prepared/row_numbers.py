"""Columns that count the rows: an index that was stored like any other column.

pandas' ``reset_index`` and polars' ``with_row_index`` leave one, under a name that tells nothing.
Where rows are sorted by class it gives the class away.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: As few rows may count by chance.
_FEWEST_ROWS = 20


@dataclass(frozen=True)
class _Count:
    """How a column could still count: from its first value, in each file or over all of them."""

    start: float
    num_rows: int = 0
    in_each_file: bool = True
    overall: bool = True


class RowNumbers:
    """Watches columns for those that count the rows from 0 or 1."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def add(self, name: str, values: NDArray[Any], *, row_of_file: int) -> None:
        """Take further rows of a column into account; lists of numbers never count.

        ``row_of_file``: the number of the first of them in its file, from 0.
        """
        if values.ndim > 1:
            return
        seen = self._counts.setdefault(name, _Count(float(values[0])))
        if not (seen.in_each_file or seen.overall):
            return  # most columns, after their first chunk
        expected = seen.start + np.arange(len(values))
        self._counts[name] = replace(
            seen,
            num_rows=seen.num_rows + len(values),
            in_each_file=seen.in_each_file and bool((values == expected + row_of_file).all()),
            overall=seen.overall and bool((values == expected + seen.num_rows).all()),
        )

    def columns(self) -> list[str]:
        """Return the columns that count all rows."""
        return [name for name, seen in self._counts.items() if _does_count(seen)]


def _does_count(seen: _Count) -> bool:
    is_whole = seen.in_each_file or seen.overall
    return is_whole and seen.start in (0, 1) and seen.num_rows >= _FEWEST_ROWS
