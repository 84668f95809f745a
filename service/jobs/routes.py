"""/v1/jobs: create, list, get, change and delete jobs, and the actions on one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from roadless.service.attempts import store as attempts
from roadless.service.auth.dependencies import Project
from roadless.service.clock import utc_now
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.requests import Extend, JobPatch, Pause
from roadless.service.contract.resources import Job, Page
from roadless.service.contract.states import Phase
from roadless.service.db.keyset import place_of
from roadless.service.db.session import Database
from roadless.service.db.tables import JobRow
from roadless.service.errors import PreconditionRequired
from roadless.service.http import conditions
from roadless.service.http.conditions import IF_MATCH, IF_NONE_MATCH
from roadless.service.http.dependencies import AppSettings, Bell, Blobs, Db
from roadless.service.http.openapi import may_refuse
from roadless.service.http.paging import After, Limit, page_of
from roadless.service.http.routing import GuardedRoute
from roadless.service.idempotency.once import REPLAYED, IdempotencyKey, once
from roadless.service.jobs import actions, deletion, store
from roadless.service.jobs.transitions import Deadlines, Transition
from roadless.service.jobs.views import job_resource
from roadless.service.wakeups import Wakeups

router = APIRouter(route_class=GuardedRoute, prefix="/v1/jobs", tags=["jobs"])

#: Documented here, and read from the request, as it may come in several lines.
IfMatch = Annotated[str | None, Header(description="ETag of the version to change, or *")]

#: What an action does to a locked job.
Change = Callable[[Transition, JobRow], None]


@router.post("", status_code=201, response_model=Job)
def create_job(
    spec: JobSpec,
    project: Project,
    db: Db,
    bell: Bell,
    settings: AppSettings,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Queue a job. With an Idempotency-Key a retry creates no second one."""

    def act(session: Session) -> dict[str, Any]:
        job = actions.submit(session, spec, project=project, allow_wheels=settings.allow_wheels)
        return _as_json(session, job)

    job, replayed = once(
        db, act, project=project, key=idempotency_key, request=spec.model_dump_json()
    )
    bell.ring()
    return _answer(job, 201, replayed=replayed, location=f"/v1/jobs/{job['id']}")


@router.get("")
def list_jobs(
    project: Project,
    db: Db,
    after: After,
    limit: Limit = 50,
    phase: Phase | None = None,
) -> Page[Job]:
    """The project's jobs, newest first."""
    with db.read() as session:
        rows = store.page(session, project, after=after, limit=limit + 1, phase=phase)
        tries = attempts.newest_of_each(session, rows)
        return page_of(
            rows, limit, view=lambda row: job_resource(row, tries.get(row.id)), cursor=place_of
        )


@router.get("/{job_id}", response_model=Job, dependencies=[IF_MATCH, IF_NONE_MATCH])
def get_job(job_id: str, project: Project, db: Db, request: Request) -> Response:
    """The job; 304 when its version is the one in If-None-Match."""
    with db.read() as session:
        job = store.get(session, job_id, project)
        resource = job_resource(job, attempts.newest(session, job_id))
    etag = _etag(resource.version)
    if conditions.is_known(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return Response(
        resource.model_dump_json(), media_type="application/json", headers={"ETag": etag}
    )


@router.patch("/{job_id}", response_model=Job, responses=may_refuse(409, 412, 428))
def patch_job(
    job_id: str,
    asked: JobPatch,
    project: Project,
    db: Db,
    settings: AppSettings,
    request: Request,
    if_match: IfMatch = None,
) -> JSONResponse:
    """Change name, labels, priority or budget of the version that If-Match names."""
    if if_match is None:
        raise PreconditionRequired(
            "expected the header If-Match with the job's ETag, saw none; read the job first"
        )
    with db.write() as session:
        job = store.get(session, job_id, project, lock=True)
        conditions.require_match(request, _etag(job.version))
        actions.patch(_transition(session, Deadlines.from_settings(settings)), job, asked)
        changed = _as_json(session, job)
    return _answer(changed, 200)


@router.delete("/{job_id}", status_code=204, responses=may_refuse(409), dependencies=[IF_MATCH])
def delete_job(job_id: str, project: Project, db: Db, blobs: Blobs, request: Request) -> None:
    """Delete a job that has ended, with its curves, events and checkpoints."""
    with db.write() as session:
        job = store.get(session, job_id, project, lock=True)
        conditions.require_match(request, _etag(job.version))
        actions.delete(session, job)
    deletion.begin(db, blobs, job_id, project)


# ---- actions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobAction:
    """What every action has in common: a locked job, a key, and a bell to ring."""

    request: Request
    job_id: str
    project: str
    db: Database
    bell: Wakeups
    deadlines: Deadlines
    key: str | None

    def apply(self, change: Change, *, body: str = "") -> JSONResponse:
        """Change the job in one transaction, once per key; ``body``: what the request says."""

        def act(session: Session) -> dict[str, Any]:
            job = store.get(session, self.job_id, self.project, lock=True)
            conditions.require_match(self.request, _etag(job.version))
            change(_transition(session, self.deadlines), job)
            return _as_json(session, job)

        job, replayed = once(
            self.db,
            act,
            project=self.project,
            key=self.key,
            request=f"{self.request.url.path}\n{body}",
        )
        self.bell.ring()
        return _answer(job, 202, replayed=replayed)


async def _job_action(
    request: Request,
    job_id: str,
    project: Project,
    db: Db,
    bell: Bell,
    settings: AppSettings,
    idempotency_key: IdempotencyKey = None,
) -> JobAction:
    deadlines = Deadlines.from_settings(settings)
    return JobAction(request, job_id, project, db, bell, deadlines, idempotency_key)


Requested = Annotated[JobAction, Depends(_job_action)]
#: The bodies of actions that may come without one.
_SAVE, _OPEN_ENDED = Pause(), Extend()


_ACTION: Any = {"status_code": 202, "response_model": Job, "dependencies": [IF_MATCH]}


@router.post("/{job_id}/pause", **_ACTION)
def pause_job(action: Requested, how: Annotated[Pause, Body()] = _SAVE) -> JSONResponse:
    """Save and leave, hold nothing, and wait to be resumed."""
    return action.apply(lambda to, job: actions.pause(to, job, how), body=how.model_dump_json())


@router.post("/{job_id}/resume", **_ACTION)
def resume_job(action: Requested) -> JSONResponse:
    """Resume a paused or stopped job from its newest training state."""
    return action.apply(actions.resume)


@router.post("/{job_id}/extend", **_ACTION)
def extend_job(action: Requested, asked: Annotated[Extend, Body()] = _OPEN_ENDED) -> JSONResponse:
    """Add to the budget, or make the job open-ended; a finished job continues."""
    return action.apply(
        lambda to, job: actions.extend(to, job, asked), body=asked.model_dump_json()
    )


@router.post("/{job_id}/retry", **_ACTION)
def retry_job(action: Requested) -> JSONResponse:
    """Try a failed job again from its newest training state."""
    return action.apply(actions.retry)


@router.post("/{job_id}/stop", **_ACTION)
def stop_job(action: Requested) -> JSONResponse:
    """Request a graceful end: a last evaluation, an eval checkpoint and the training state."""
    return action.apply(actions.stop)


@router.post("/{job_id}/cancel", **_ACTION)
def cancel_job(action: Requested) -> JSONResponse:
    """End the job now; checkpoints and curves so far stay."""
    return action.apply(actions.cancel)


@router.post("/{job_id}/evaluate", **_ACTION)
def evaluate_job(action: Requested) -> JSONResponse:
    """Request an evaluation at x and a kept checkpoint now."""
    return action.apply(actions.request_evaluation)


def _transition(session: Session, deadlines: Deadlines) -> Transition:
    return Transition(session, utc_now(), deadlines)


def _as_json(session: Session, job: JobRow) -> dict[str, Any]:
    return job_resource(job, attempts.newest(session, job.id)).model_dump(mode="json")


def _answer(
    job: dict[str, Any], status: int, *, replayed: bool = False, location: str | None = None
) -> JSONResponse:
    told = {"ETag": _etag(job["version"])}
    if location is not None:
        told["Location"] = location
    if replayed:
        told |= REPLAYED
    return JSONResponse(job, status_code=status, headers=told)


def _etag(version: int) -> str:
    return f'"{version}"'
