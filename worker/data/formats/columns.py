"""Converts values of a column to numbers, labels, texts or images; errors name the bad one.

A value becomes the number that its format says it is, or it is refused. Python would be more
generous: its ``float`` reads "2021_05", "١٢" and "1_0", which no reader of CSV does.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.base import UNCOUNTED
from roadless.worker.data.formats.chunk import Chunk, Column, shown

#: Above every label that a specification can name, and exact as a float.
_HIGHEST_LABEL = 2**31
#: From here on float64 does not hold every whole number.
_FIRST_INEXACT = 2.0**53
_NUMBER_TYPES: frozenset[type] = frozenset({int, float, bool, Decimal})
#: A text of these characters that ``float`` reads is a number to every reader of CSV.
_PLAIN = re.compile(r"[0-9+\-.eE \t]*")
_WRITTEN_NUMBER = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*")
_WHOLE = re.compile(r"[ \t]*[+-]?[0-9]+[ \t]*")
#: How pandas (``get_dummies``), R and pyarrow write truth values into CSV.
_BOOLEANS = {
    **dict.fromkeys(("true", "True", "TRUE"), 1.0),
    **dict.fromkeys(("false", "False", "FALSE"), 0.0),
}
#: How pandas, R and databases write that there is no value.
_MISSING = frozenset({"", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nil", "?"})
_NOT_FINITE = re.compile(r"[ \t]*[+-]?(?:nan|inf|infinity)[ \t]*", re.IGNORECASE)

_MISSING_WAY_OUT = "leave the row out, fill it, or name the columns to use in `columns`"
_SHAPE_WAY_OUT = "fill or cut the lists of all rows to one length"
_WHOLE_WAY_OUT = (
    "subtract a constant from the column, store it as a float if its last digits do not matter, "
    "or name the columns to use in `columns`"
)
_LABELS_WAY_OUT = (
    f"number the classes 0, 1, 2, ..., or name all of them; {UNCOUNTED} marks a row that is "
    "neither learned nor scored"
)


class _Due(NamedTuple):
    """What a value should have been, and what the user can do."""

    expected: str
    way_out: str


_NUMBER = _Due(
    "a number",
    "store it as a number, leave the row out, or name the columns to use in `columns`",
)
_FINITE = _Due("a finite float32", _MISSING_WAY_OUT)
_CLASS_NUMBER = _Due("a class number", _LABELS_WAY_OUT)


class _Unlike(Exception):
    """Some value is not a number, or not of the shape of the others; a search finds which."""


def numbers(chunk: Chunk, name: str) -> NDArray[np.floating[Any]] | NDArray[np.uint8]:
    """Return the column as float64 of shape (rows, ...); float32 and uint8 arrays stay as they are.

    Every value is finite in float32. Raises DataInvalid for the first row that is not a number, not
    finite, of another shape, or a whole number that float64 cannot hold.
    """
    values = chunk.columns[name]
    if isinstance(values, np.ndarray) and values.dtype == np.uint8:
        return values
    try:
        wide = _wide(values, of_texts=_of_csv if chunk.is_text_only else None)
    except _Unlike:
        if has_booleans(chunk, name):
            _refuse_first_no_boolean(chunk, name)
        _refuse_first_unlike(chunk, name, _NUMBER, _FINITE, reads_texts=chunk.is_text_only)
    if wide.size == 0:
        chunk.refuse(0, name, expected="at least one number", seen=shown(values[0]))
    _require_finite(chunk, name, wide)
    _require_exact(chunk, name, wide)
    return wide


def labels(chunk: Chunk, name: str) -> NDArray[np.int64]:
    """Return the column as class numbers from 0, or UNCOUNTED where a row does not count.

    They may be written as whole floats, or as texts. Raises DataInvalid for the first that is no
    class number.
    """
    values = chunk.columns[name]
    try:
        wide = _wide(values, of_texts=_of_texts)
    except _Unlike:
        _refuse_first_unlike(chunk, name, _CLASS_NUMBER, _CLASS_NUMBER, reads_texts=True)
    is_class = (wide >= 0) & (wide < _HIGHEST_LABEL) & (wide == np.floor(wide))
    is_label = is_class | (wide == UNCOUNTED)
    if wide.ndim != 1:
        chunk.refuse(
            0,
            name,
            expected="one class number a row",
            seen=f"numbers of shape {wide.shape[1:]}",
            way_out="take the argmax of one-hot rows, or the number out of a list of one",
        )
    if not is_label.all():
        row = int(np.argmin(is_label))
        chunk.refuse(
            row,
            name,
            expected="a class number from 0",
            seen=shown(values[row]),
            way_out=_LABELS_WAY_OUT,
        )
    return wide.astype(np.int64)


def has_booleans(chunk: Chunk, name: str) -> bool:
    """Whether the column has truth values, written as texts, as far as the first row tells."""
    return chunk.is_text_only and chunk.columns[name][0] in _BOOLEANS


def has_class_names(chunk: Chunk, name: str) -> bool:
    """Whether the labels of the column are names, as far as the first row tells."""
    value = chunk.columns[name][0]
    return isinstance(value, str) and _is_class_name(value)


def class_names(chunk: Chunk, name: str) -> Sequence[str]:
    """Return the column as names of classes. Raises DataInvalid for the first row without one."""
    values = chunk.columns[name]
    for row, value in enumerate(values):
        if not (isinstance(value, str) and _is_class_name(value)):
            chunk.refuse(
                row,
                name,
                expected="the name of a class, like the first row",
                seen=shown(value),
                way_out="leave such rows out, or number all classes 0, 1, 2, ...",
            )
    return list(values)


def plain_class_name(text: str) -> str:
    """Return what spellings of one name share, whatever blanks are around it and however accents
    are encoded. Of truth values also the case, of others not: "A" and "a" may be two letters.

    >>> plain_class_name("cat ") == plain_class_name("cat"), plain_class_name("TRUE")
    (True, 'true')
    """
    plain = unicodedata.normalize("NFC", text).strip()
    return plain.lower() if plain in _BOOLEANS else plain


def _is_class_name(text: str) -> bool:
    """Neither a number nor one of the spellings of a missing value."""
    is_number = _WRITTEN_NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text)
    return text.strip().lower() not in _MISSING and is_number is None


def texts(chunk: Chunk, name: str) -> list[bytes]:
    """Return the column as UTF-8. Raises DataInvalid for the first row that is not text."""
    return [_text(chunk, name, row, value) for row, value in enumerate(chunk.columns[name])]


def _text(chunk: Chunk, name: str, row: int, value: Any) -> bytes:
    if not isinstance(value, str):
        way_out = "leave the row out, or write a text"
        if isinstance(value, list | dict):
            way_out = "write one text a row, of messages as the model's chat template renders them"
        chunk.refuse(row, name, expected="a text", seen=shown(value), way_out=way_out)
    try:
        return value.encode()
    except UnicodeEncodeError:
        chunk.refuse(row, name, expected="a text that UTF-8 can say", seen=shown(value))


def written_number(text: str) -> int | float | None:
    """Return the number that the text is, or None.

    >>> written_number("05"), written_number("1e3"), written_number("2021_05")
    (5, 1000.0, None)
    """
    if not _WRITTEN_NUMBER.fullmatch(text):
        return None
    return int(text) if _WHOLE.fullmatch(text) else float(text)


# ---- numbers ------------------------------------------------------------------------------------


def _wide(
    values: Column, *, of_texts: Callable[[Sequence[str]], NDArray[np.float64]] | None
) -> NDArray[np.float64]:
    """The values as float64, but those of a float32 array as they are. Raises _Unlike.

    ``of_texts``: how texts are read; None: not at all.
    """
    if isinstance(values, np.ndarray):
        return values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    kinds = set(map(type, values))
    if kinds == {str} and of_texts is not None:
        return of_texts(values)
    if kinds <= _NUMBER_TYPES:
        return _of_numbers(values)
    if kinds == {list} and _leaf_kinds(values) <= _NUMBER_TYPES:
        return _of_lists(values)
    raise _Unlike


def _of_csv(values: Sequence[str]) -> NDArray[np.float64]:
    return _of_booleans(values) if values[0] in _BOOLEANS else _of_texts(values)


def _of_texts(values: Sequence[str]) -> NDArray[np.float64]:
    # One look at all texts in a row, since a pattern for each would cost more than to read it.
    if not _PLAIN.fullmatch("".join(values)):
        raise _Unlike
    try:
        return np.fromiter(map(float, values), dtype=np.float64, count=len(values))
    except ValueError as error:
        raise _Unlike from error


def _of_booleans(values: Sequence[str]) -> NDArray[np.float64]:
    try:
        return np.array([_BOOLEANS[value] for value in values])
    except KeyError as error:
        raise _Unlike from error


def _of_numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    try:
        return np.fromiter(map(float, values), dtype=np.float64, count=len(values))
    except (OverflowError, ValueError) as error:
        raise _Unlike from error


def _of_lists(values: Sequence[Any]) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64)
    except (OverflowError, ValueError, TypeError) as error:
        raise _Unlike from error


def _leaf_kinds(values: Sequence[Any]) -> set[type]:
    kinds = set(map(type, values))
    if list not in kinds:
        return kinds
    nested = (_leaf_kinds(value) for value in values if isinstance(value, list))
    return (kinds - {list}).union(*nested)


def _require_finite(chunk: Chunk, name: str, values: NDArray[np.float64]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = (
            np.isfinite(values.astype(np.float32, copy=False)).reshape(len(values), -1).all(axis=1)
        )
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        chunk.refuse(
            row,
            name,
            expected="a finite float32",
            seen=shown(chunk.columns[name][row]),
            way_out=_MISSING_WAY_OUT,
        )


def _require_exact(chunk: Chunk, name: str, wide: NDArray[np.float64]) -> None:
    """A whole number of many digits is an id, or a time in nanoseconds: its last digits matter."""
    values = chunk.columns[name]
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iu":
        return
    for place in np.argwhere(np.abs(wide) >= _FIRST_INEXACT):
        value = _at(values, place)
        if _is_rounded(value, float(wide[tuple(place)])):
            chunk.refuse(
                int(place[0]),
                name,
                expected="a whole number that float64 holds, as all are up to 2**53",
                seen=shown(value),
                way_out=_WHOLE_WAY_OUT,
            )


def _at(values: Column, place: NDArray[np.int64]) -> Any:
    found: Any = values
    for at in place.tolist():
        found = found[at]
    return found


def _is_rounded(value: Any, wide: float) -> bool:
    """Whether the value is a whole number, and another one than its float64 is."""
    if isinstance(value, str):
        value = Decimal(value.strip()) if _WHOLE.fullmatch(value) else wide
    if isinstance(value, Decimal) and value != value.to_integral_value():
        return False
    return bool((int(value) if isinstance(value, np.integer) else value) != wide)


# ---- what is wrong ------------------------------------------------------------------------------


def _refuse_first_unlike(
    chunk: Chunk, name: str, due: _Due, due_if_missing: _Due, *, reads_texts: bool
) -> NoReturn:
    """Find the row that kept the column from becoming an array."""
    shape: tuple[int, ...] | None = None
    for row, value in enumerate(chunk.columns[name]):
        seen = _shape_of(value, reads_texts=reads_texts)
        if seen is None:
            expected, way_out = due_if_missing if _is_out_of_range(value) else due
            chunk.refuse(row, name, expected=expected, seen=shown(value), way_out=way_out)
        if shape not in (None, seen):
            expected, way_out = f"the shape {shape} of the first row", _SHAPE_WAY_OUT
            chunk.refuse(row, name, expected=expected, seen=str(seen), way_out=way_out)
        shape = seen
    _refuse_first_of_another_form(chunk, name, expected=due.expected)


def _refuse_first_of_another_form(chunk: Chunk, name: str, *, expected: str) -> NoReturn:
    """Numbers and texts that say numbers are in one column."""
    values = chunk.columns[name]
    is_text = isinstance(values[0], str)
    row = next((at for at, one in enumerate(values) if isinstance(one, str) != is_text), 0)
    chunk.refuse(
        row,
        name,
        expected=f"{expected} stored as a {'text' if is_text else 'number'} like the first row",
        seen=shown(values[row]),
        way_out="store all of them in one form",
    )


def _refuse_first_no_boolean(chunk: Chunk, name: str) -> NoReturn:
    values = chunk.columns[name]
    row = next(at for at, one in enumerate(values) if one not in _BOOLEANS)
    expected = "true or false like the row before"
    chunk.refuse(row, name, expected=expected, seen=shown(values[row]), way_out=_MISSING_WAY_OUT)


def _is_out_of_range(value: Any) -> bool:
    """Whether it is no number because it is missing, infinite or of hundreds of digits."""
    is_text = isinstance(value, str) and _NOT_FINITE.fullmatch(value) is not None
    return value is None or isinstance(value, int) or is_text


def _shape_of(value: Any, *, reads_texts: bool) -> tuple[int, ...] | None:
    """The shape of a number, or of a list of numbers; None for anything else."""
    if isinstance(value, str):
        return () if reads_texts and _WRITTEN_NUMBER.fullmatch(value) else None
    if not _leaf_kinds([value]) <= _NUMBER_TYPES:
        return None
    try:
        return np.asarray(value, dtype=np.float64).shape
    except (OverflowError, ValueError, TypeError):
        return None
