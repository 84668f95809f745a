"""Pages: where one begins, and one more row than requested shows whether there are more."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Query

from roadless.service.contract.resources import Page
from roadless.service.db.keyset import Place

Row = TypeVar("Row")
Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=200, description="rows per page")]
_After = Annotated[
    str | None, Query(description="last_id of the page before; or an id, while it is listed")
]


async def _place(after: _After = None) -> Place | None:
    return None if after is None else Place.parse(after)


#: Where a page begins; None: with the first row.
After = Annotated[Place | None, Depends(_place)]


def page_of(
    rows: Sequence[Row],
    limit: int,
    *,
    view: Callable[[Row], Item],
    cursor: Callable[[Row], object],
) -> Page[Item]:
    """A page of ``rows``, which were fetched with ``limit + 1``."""
    shown = rows[:limit]
    return Page(
        data=[view(row) for row in shown],
        first_id=str(cursor(shown[0])) if shown else None,
        last_id=str(cursor(shown[-1])) if shown else None,
        has_more=len(rows) > limit,
    )
