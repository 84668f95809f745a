"""Pages of a list: each begins after a place in the list's order, whoever stands there now.

A place names what the list is ordered by, and not only a row: so a page follows the one before it
when that one's last row was deleted in between, and rows that come and go elsewhere move nothing.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, tuple_

from roadless.service.contract.resources import ProblemError
from roadless.service.errors import Invalid

Rows = TypeVar("Rows", bound=Select[Any])

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORM = re.compile(r"([A-Za-z0-9_]{1,64})(?:\.([0-9]{1,19}))?")
_LARGEST = 2**63 - 1


class Listed(Protocol):
    """A row that has a place in such a list."""

    id: Any
    created_at: Any


@dataclass(frozen=True)
class Place:
    """Where a row stands, or stood: ``order``, what the list is ordered by, and then ``id``.

    Without ``order`` it is where the row of this id stands, which must exist.
    """

    id: str
    order: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that a user names; raises Invalid for another text."""
        match = _FORM.fullmatch(text)
        order = int(match[2]) if match and match[2] else None
        if match is None or (order is not None and order > _LARGEST):
            raise _refusal(text)
        return cls(match[1], order)

    def __str__(self) -> str:
        return self.id if self.order is None else f"{self.id}.{self.order}"


def place_of(row: Listed) -> Place:
    """Where the row stands in a list that is newest first."""
    return Place(row.id, (row.created_at - _EPOCH) // timedelta(microseconds=1))


def newest_first(query: Rows, kind: type[Listed], *, after: Place | None, limit: int) -> Rows:
    """Return the query for up to ``limit`` rows of the table ``kind`` after a place with an order.

    Rows of the same moment are ordered by their ids, so that none is shown twice or left out.
    Raises Invalid for a place that no row can have.
    """
    if after is not None:
        place: ColumnElement[bool] = tuple_(kind.created_at, kind.id) < tuple_(
            _moment(after), after.id
        )
        query = query.where(place)
    return query.order_by(kind.created_at.desc(), kind.id.desc()).limit(limit)


def _moment(place: Place) -> datetime:
    assert place.order is not None, f"expected a place with an order, saw {place}"
    try:
        return _EPOCH + timedelta(microseconds=place.order)
    except OverflowError as error:
        raise _refusal(str(place)) from error


def _refusal(text: str) -> Invalid:
    message = f"expected the last_id of a page of this list, saw {text[:80]!r}"
    return Invalid(message, errors=(ProblemError(pointer="query:after", message=message),))
