"""/v1/jobs/{id}/events, and an event as the API shows it."""

from typing import Annotated

from fastapi import APIRouter, Query

from roadless.service.attempts.store import require_job
from roadless.service.auth.dependencies import Project
from roadless.service.contract.resources import JobEvent, Page
from roadless.service.db.tables import EventRow
from roadless.service.events import store
from roadless.service.http.dependencies import Db
from roadless.service.http.paging import Limit, page_of
from roadless.service.http.routing import GuardedRoute

router = APIRouter(route_class=GuardedRoute, prefix="/v1/jobs/{job_id}/events", tags=["events"])


def event_resource(row: EventRow) -> JobEvent:
    """The event as the API shows it; its id is the cursor."""
    return JobEvent(
        id=str(row.id), at=row.at, code=row.code, message=row.message, attempt_id=row.attempt_id
    )


@router.get("")
def list_events(
    job_id: str,
    project: Project,
    db: Db,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Limit = 100,
) -> Page[JobEvent]:
    """The job's history, oldest first."""
    with db.read() as session:
        require_job(session, job_id, project)
        rows = store.page(session, job_id, project=project, after=after, limit=limit + 1)
        return page_of(rows, limit, view=event_resource, cursor=lambda row: str(row.id))
