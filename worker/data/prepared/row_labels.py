"""The labels of rows as class numbers, whether a source stores numbers or names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roadless.service.contract.job.data import MAX_CLASSES
from roadless.worker.data.base import UNCOUNTED
from roadless.worker.data.formats.chunk import Chunk, shown
from roadless.worker.data.formats.columns import (
    class_names,
    has_class_names,
    labels,
    plain_class_name,
)

#: More are hardly names of classes; each is kept in every checkpoint.
MAX_CLASS_NAMES = 10_000


class RowLabels:
    """Numbers the labels of chunk after chunk; the first row says whether they are names.

    ``num_classes``: how many there are; None: as many as the labels say.
    """

    def __init__(self, num_classes: int | None) -> None:
        self._num_classes = num_classes
        self._is_named: bool | None = None
        self._codes: dict[str, int] = {}  #: numbers of names, in the order in which they turned up
        self._spellings: dict[str, str] = {}  #: the first of each class
        self.highest = -1
        self.has_uncounted = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, sorted; () where the rows number them."""
        return tuple(sorted(self._codes))

    def of(self, chunk: Chunk, name: str) -> NDArray[np.int64]:
        """Return the class numbers of a chunk, of names only preliminary ones.

        Raises DataInvalid for the first row without a class, or with one too many.
        """
        if self._is_named is None:
            self._is_named = has_class_names(chunk, name)
        found = self._codes_of(chunk, name) if self._is_named else labels(chunk, name)
        self._require_below_limit(chunk, name, found)
        self.highest = max(self.highest, int(found.max(initial=-1)))
        self.has_uncounted |= bool((found == UNCOUNTED).any())
        return found

    def sorted_numbers(self) -> NDArray[np.int64]:
        """Return, by preliminary number, the place of each name among all of them, sorted."""
        places = {name: place for place, name in enumerate(self.class_names)}
        return np.array([places[name] for name in self._codes], dtype=np.int64)

    def _require_below_limit(self, chunk: Chunk, name: str, found: NDArray[np.int64]) -> None:
        limit, of = MAX_CLASSES, ""
        if self._num_classes is not None:
            limit, of = self._num_classes, "num_classes = "
        if (found >= limit).any():
            row = int(np.argmax(found >= limit))
            seen = shown(chunk.columns[name][row]) if self._is_named else str(found[row])
            chunk.refuse(row, name, expected=f"a class below {of}{limit}", seen=seen)

    def _codes_of(self, chunk: Chunk, name: str) -> NDArray[np.int64]:
        found = class_names(chunk, name)
        codes = [self._codes.setdefault(one, len(self._codes)) for one in found]
        self._require_unlike_names(chunk, name, found)
        if max(codes) >= MAX_CLASS_NAMES:
            row = next(row for row, code in enumerate(codes) if code >= MAX_CLASS_NAMES)
            expected = f"at most {MAX_CLASS_NAMES} names of classes"
            way_out = "number the classes 0, 1, 2, ..."
            chunk.refuse(row, name, expected=expected, seen=shown(found[row]), way_out=way_out)
        return np.array(codes, dtype=np.int64)

    def _require_unlike_names(self, chunk: Chunk, name: str, found: Sequence[str]) -> None:
        """Two spellings of one name would be two classes, and their rows split between them."""
        for one in dict.fromkeys(found):
            known = self._spellings.setdefault(plain_class_name(one), one)
            if known != one:
                chunk.refuse(
                    found.index(one),
                    name,
                    expected=f"one spelling of a class, {known!r} as in a row before",
                    seen=ascii(one),
                    way_out="write it the same way in all rows",
                )
