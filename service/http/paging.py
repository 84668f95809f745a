"""Pages: one more row than requested shows whether there are more."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from roadless.service.contract.resources import Page

Row = TypeVar("Row")
Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=200, description="rows per page")]


def page_of(
    rows: Sequence[Row],
    limit: int,
    *,
    view: Callable[[Row], Item],
    cursor: Callable[[Row], str],
) -> Page[Item]:
    """A page of ``rows``, which were fetched with ``limit + 1``."""
    shown = rows[:limit]
    return Page(
        data=[view(row) for row in shown],
        first_id=cursor(shown[0]) if shown else None,
        last_id=cursor(shown[-1]) if shown else None,
        has_more=len(rows) > limit,
    )
