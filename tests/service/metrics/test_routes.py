"""The metrics endpoints over HTTP: axes, limits, superseded points, and what is refused."""

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from table_rows import a_job, a_runner, an_attempt

from roadless.service.auth.store import insert_token
from roadless.service.auth.tokens import Audience
from roadless.service.clock import utc_now
from roadless.service.contract.reports.events import StepMetrics
from roadless.service.contract.resources import MetricBuckets, MetricSummary, Page
from roadless.service.db.session import Database
from roadless.service.db.tables import Table
from roadless.service.errors import ServiceError
from roadless.service.metrics import store
from roadless.service.metrics.routes import router

URL = "/v1/jobs/job_1/metrics"
TOKEN = "a user's"


@pytest.fixture
def db(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    Table.metadata.create_all(database.engine)
    now = utc_now()
    with database.write() as session:
        session.add(a_runner("run_1", now))
        insert_token(session, TOKEN, name="user", audience=Audience.USER)
        projects = {"job_1": "default", "job_2": "default", "job_3": "theirs"}
        jobs = [a_job(id, now, project=project) for id, project in projects.items()]
        session.add_all(jobs)
        session.flush()
        for fence, resumed_step in ((1, 0), (2, 2)):
            session.add(an_attempt(jobs[0], "run_1", fence=fence, resumed_step=resumed_step))
    yield database
    database.close()


@pytest.fixture
def http(db):
    app = FastAPI()
    app.state.db = db  # the one part that the routes ask for
    app.include_router(router)
    app.add_exception_handler(ServiceError, answer)
    with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def answer(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return JSONResponse({"detail": error.detail}, status_code=error.status)


def said(db: Database, step: int, loss: float, *, fence: int) -> None:
    event = StepMetrics(
        seq=step,
        step=step,
        samples=10 * step,
        tokens=0,
        wall_seconds=0.5 * step,
        gpu_seconds=float(step),
        values={"train.loss": loss},
    )
    with db.write() as session:
        store.append_steps(session, job_id="job_1", fence=fence, events=[event])


@pytest.fixture
def curve(db):
    """Steps 1 to 3 by the first attempt; the second resumed from 2 and lived 3 and 4 anew."""
    for step, loss in ((1, 4.0), (2, 3.0), (3, -7.0)):
        said(db, step, loss, fence=1)
    for step, loss in ((3, 2.0), (4, 1.0)):
        said(db, step, loss, fence=2)


@pytest.mark.usefixtures("curve")
@pytest.mark.parametrize(
    ("axis", "x"),
    [
        ("step", [1, 2, 3, 4]),
        ("samples", [10, 20, 30, 40]),
        ("tokens", [0, 0, 0, 0]),
        ("wall_seconds", [0.5, 1.0, 1.5, 2.0]),
        ("gpu_seconds", [1, 2, 3, 4]),
    ],
)
def test_live_points_along_each_axis(http, axis, x):
    answer = http.get(f"{URL}/train.loss", params={"x": axis})
    found = MetricBuckets.model_validate_json(answer.text)
    assert (found.axis, found.x, found.last) == (axis, x, [4.0, 3.0, 2.0, 1.0])


@pytest.mark.usefixtures("curve")
@pytest.mark.parametrize("axis", ["step", "gpu_seconds"])
def test_limits_hold_on_every_axis(http, axis):
    params = {"x": axis, "x_min": 2, "x_max": 3}
    assert http.get(f"{URL}/train.loss", params=params).json()["x"] == [2, 3]


@pytest.mark.usefixtures("curve")
def test_few_buckets_keep_extremes_and_counts(http):
    found = http.get(f"{URL}/train.loss", params={"buckets": 1}).json()
    assert (found["min"], found["max"], found["last"]) == ([1.0], [4.0], [1.0])
    assert (found["x"], found["count"], found["non_finite_count"]) == ([4.0], [4], [0])


def test_values_that_are_not_finite_are_counted_and_answered_as_null(http, db):
    said(db, 1, float("nan"), fence=2)
    found = http.get(f"{URL}/train.loss").json()
    assert (found["last"], found["non_finite_count"]) == ([None], [1])


@pytest.mark.usefixtures("curve")
def test_summaries_leave_the_axes_out(http):
    found = Page[MetricSummary].model_validate_json(http.get(URL).text)
    assert found.data == [MetricSummary(name="train.loss", count=4, last=1.0, min=1.0)]
    assert (found.first_id, found.last_id) == ("train.loss", "train.loss")


def test_a_job_that_has_said_nothing_has_empty_curves(http):
    assert http.get("/v1/jobs/job_2/metrics").json()["data"] == []
    assert http.get("/v1/jobs/job_2/metrics/train.loss").json()["x"] == []


@pytest.mark.usefixtures("curve")
def test_a_name_that_the_job_does_not_know_is_not_found(http):
    answer = http.get(f"{URL}/train.los")
    assert answer.status_code == 404
    assert "train.loss" in answer.json()["detail"]


@pytest.mark.usefixtures("curve")
def test_a_range_without_points_is_empty_not_an_error(http):
    answer = http.get(f"{URL}/train.loss", params={"x_min": 100})
    assert (answer.status_code, answer.json()["x"]) == (200, [])


@pytest.mark.parametrize("path", ["", "/train.loss"])
@pytest.mark.parametrize("job", ["job_3", "job_9"])
def test_jobs_of_other_projects_and_of_nobody_are_not_found(http, path, job):
    assert http.get(f"/v1/jobs/{job}/metrics{path}").status_code == 404


@pytest.mark.parametrize(
    "params", [{"buckets": 0}, {"buckets": 2001}, {"x": "wall"}, {"x_min": "nan"}, {"x_max": "a"}]
)
def test_nonsense_is_refused(http, params):
    assert http.get(f"{URL}/train.loss", params=params).status_code == 422
