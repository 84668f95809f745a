"""GET /v1/jobs/{job_id}/metrics and /metrics/{name}: curves for users and the dashboard."""

from typing import Annotated

from fastapi import APIRouter, Query

from roadless.service.attempts.store import live_cutoffs
from roadless.service.auth.dependencies import Project
from roadless.service.contract.resources import MetricBuckets, MetricSummary, Page
from roadless.service.http.dependencies import Db
from roadless.service.http.routing import GuardedRoute
from roadless.service.metrics import views
from roadless.service.metrics.rollup import MAX_BUCKETS

router = APIRouter(route_class=GuardedRoute, prefix="/v1/jobs/{job_id}/metrics", tags=["metrics"])

Limit = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("")
def list_metrics(job_id: str, db: Db, project: Project) -> Page[MetricSummary]:
    """Every series of a job with its number of points, last and smallest value."""
    with db.read() as session:
        return views.summaries(session, job_id, cutoffs=live_cutoffs(session, job_id, project))


@router.get("/{name}")
def get_metric(
    job_id: str,
    name: str,
    db: Db,
    project: Project,
    x: views.Axis = "step",
    x_min: Limit = None,
    x_max: Limit = None,
    buckets: Annotated[int, Query(ge=1, le=MAX_BUCKETS)] = 500,
) -> MetricBuckets:
    """One series in buckets between ``x_min`` and ``x_max``, both included, along ``x``."""
    with db.read() as session:
        return views.buckets(
            session,
            job_id,
            name=name,
            cutoffs=live_cutoffs(session, job_id, project),
            window=views.Window(x, x_min, x_max),
            buckets=buckets,
        )
