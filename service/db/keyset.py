"""Pages of a list, newest first; each begins after the last row of the page before."""

from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, tuple_

Rows = TypeVar("Rows", bound=Select[Any])


class Listed(Protocol):
    """A row that has a place in such a list."""

    id: Any
    created_at: Any


def newest_first(query: Rows, kind: type[Listed], *, after: Listed | None, limit: int) -> Rows:
    """Return the query for up to ``limit`` rows of the table ``kind`` after the row ``after``.

    Rows of the same moment are ordered by their ids, so that none is shown twice or left out.
    """
    if after is not None:
        place: ColumnElement[bool] = tuple_(kind.created_at, kind.id) < tuple_(
            after.created_at, after.id
        )
        query = query.where(place)
    return query.order_by(kind.created_at.desc(), kind.id.desc()).limit(limit)
