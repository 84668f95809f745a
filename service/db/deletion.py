"""Deletes much without holding anybody up.

A job that a user deletes is marked, in one short transaction, and is gone for everybody from then
on. Its rows follow in batches, each a transaction of its own, and the job's own row is the last: so
what a crash leaves behind is found by its mark.
"""

from sqlalchemy import ColumnElement, delete, inspect, select, tuple_
from sqlalchemy.orm import Session

from roadless.service.db.tables import JobRow, Table

#: Rows that one transaction deletes, of those that are small.
ROWS_TOGETHER = 500
#: In ``jobs.desired`` of a job that a user has deleted. No answer shows it.
DELETED = "deleted"


def is_kept() -> ColumnElement[bool]:
    """SQL condition: no user has deleted the job."""
    return JobRow.desired != DELETED


def delete_some(
    session: Session, table: type[Table], condition: ColumnElement[bool], *, limit: int
) -> int:
    """Delete up to ``limit`` rows of the table that meet the condition; return how many."""
    key = inspect(table).primary_key
    some = select(*key).where(condition).limit(limit)
    done = session.execute(delete(table).where(tuple_(*key).in_(some)).returning(*key))
    return len(done.all())
