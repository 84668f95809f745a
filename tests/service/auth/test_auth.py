"""Deny by default: every route is closed, or on the short list below."""

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from fastapi.routing import APIRoute
from played import Service, eval_event
from sqlalchemy import insert, text
from starlette.routing import Mount, Route
from wheel_maker import make_wheel

from roadless.service.auth.tokens import Audience, digest, mint
from roadless.service.contract.ids import new_id
from roadless.service.db.session import Database
from roadless.service.db.tables import Table, TokenRow

#: What anyone may call; none of it tells anything about a job.
PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("HEAD", "/openapi.json"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
    ("MOUNT", "/static"),
}
#: Pages for people: they send a stranger to the login.
PAGES = {("GET", "/"), ("GET", "/jobs/{job_id}")}
#: What a project names itself and finds by its own names only (secrets/test_secrets.py,
#: wheels/test_wheels.py).
NAMED = ("/v1/secrets/{name}", "/v1/wheels/{file_name}")

#: Names a file and a metric alike in the walks.
NAME = "train.loss"
JOB, CHECKPOINT, ATTEMPT = new_id("job"), new_id("ckpt"), new_id("att")
DATASET, WHEEL = new_id("ds"), new_id("whl")


def routes(router) -> Iterator[tuple[str, str]]:
    """(method, path) of everything that the router answers; fails on what it does not know."""
    for route in router.routes:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router)
        elif isinstance(route, Mount):
            yield "MOUNT", route.path
        else:
            assert isinstance(route, APIRoute | Route), f"unknown kind of route: {route!r}"
            for method in route.methods:
                yield method, route.path


def closed_routes(app) -> list[tuple[str, str]]:
    return sorted(set(routes(app)) - PUBLIC - PAGES)


def url_of(
    path: str,
    *,
    job=JOB,
    checkpoint=CHECKPOINT,
    attempt=ATTEMPT,
    dataset=DATASET,
    wheel=WHEEL,
) -> str:
    values = {
        "dataset_id": dataset,
        "file_name": "models-1-py3-none-any.whl",
        "wheel_id": wheel,
        "job_id": job,
        "checkpoint_id": checkpoint,
        "attempt_id": attempt,
        "runner_id": "run_x",
        "name": NAME,
    }
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], path)


@pytest.fixture
def database_url(tmp_path):
    """Routes do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def attempt_token(service: Service, digits_spec):
    service.submit(digits_spec)
    return service.claim().assignment["token"]


def test_the_walk_sees_every_route_of_the_schema(service):
    seen = {path for _, path in routes(service.http.app)}
    described = service.http.get("/openapi.json").json()["paths"]
    assert set(described) <= seen
    assert len(closed_routes(service.http.app)) >= 18


def test_the_public_list_names_only_routes_that_exist(service):
    assert set(routes(service.http.app)) >= PUBLIC | PAGES


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer wrong", "Bearer rl_user_x"],
)
def test_every_closed_route_refuses_a_stranger(service, header):
    headers = {} if header is None else {"Authorization": header}
    for method, path in closed_routes(service.http.app):
        answer = service.http.request(method, url_of(path), headers=headers)
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_cookie_that_is_not_valid_opens_nothing(service):
    cookies = {"Cookie": "roadless_token=wrong"}
    for method, path in closed_routes(service.http.app):
        assert service.http.request(method, url_of(path), headers=cookies).status_code == 401


@pytest.mark.parametrize("path", sorted(path for _, path in PAGES))
def test_pages_send_a_stranger_to_the_login(service, path):
    answer = service.http.get(url_of(path), follow_redirects=False)
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/login")


def test_a_token_opens_only_the_routes_of_its_audience(service, attempt_token):
    tokens = {
        "/v1/": service.user["Authorization"].split()[1],
        "/internal/v1/runners": service.runner["Authorization"].split()[1],
        "/internal/v1/attempts": attempt_token,
    }
    for method, path in closed_routes(service.http.app):
        for prefix, token in tokens.items():
            if not path.startswith(prefix):
                headers = {"Authorization": f"Bearer {token}"}
                answer = service.http.request(method, url_of(path), headers=headers)
                assert answer.status_code == 401, (method, path, prefix)


def test_an_attempts_token_opens_its_own_attempt_only(service, digits_spec):
    _, first = service.running({**digits_spec, "parallelism": {"num_workers": 1}})
    service.submit({**digits_spec, "parallelism": {"num_workers": 1}})
    second = service.claim(alive=[first.assignment["attempt_id"]], node={"free_cpus": 3})
    for method, path in closed_routes(service.http.app):
        if path.startswith("/internal/v1/attempts"):
            url = url_of(path, attempt=second.assignment["attempt_id"])
            assert service.http.request(method, url, headers=first.headers).status_code == 401
    assert second.brief()["attempt_id"] == second.assignment["attempt_id"]


def test_the_cookie_may_look_but_not_touch(service, digits_spec):
    job_id = service.submit(digits_spec)
    token = service.user["Authorization"].split()[1]
    cookie = {"Cookie": f"roadless_token={token}"}
    assert service.http.get(f"/v1/jobs/{job_id}", headers=cookie).status_code == 200
    for method, path in closed_routes(service.http.app):
        if method not in ("GET", "HEAD"):
            answer = service.http.request(method, url_of(path, job=job_id), headers=cookie)
            assert answer.status_code == 401, (method, path)
    assert service.phase(job_id) == "QUEUED"


# ---- projects ----------------------------------------------------------------------------------


@pytest.fixture
def stranger(service: Service, settings):
    """A valid user token of another project, as headers."""
    token, db = mint(Audience.USER), Database(settings.resolved_database_url)
    with db.write() as session:
        row = {"id": new_id("tok"), "name": "b", "audience": "user", "project": "other"}
        session.execute(
            insert(TokenRow).values(**row, sha256=digest(token), created_at=datetime.now(UTC))
        )
    db.close()
    return {"Authorization": f"Bearer {token}"}


def test_ids_of_another_project_are_not_found(service, stranger, digits_spec, tmp_path):
    job_id, rank = service.running(digits_spec)
    rank.report(eval_event(1))
    checkpoint_id = new_id("ckpt")
    assert rank.upload(checkpoint_id, b"x", NAME).status_code == 204
    saved = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    saved["manifest"]["files"][0]["name"] = NAME
    assert rank.report(saved).status_code == 200
    used = {"kind": "checkpoint", "checkpoint_id": checkpoint_id}
    service.submit({**digits_spec, "model": used})
    dataset_id = used_dataset(service)
    wheel_id = used_wheel(service, make_wheel(tmp_path), digits_spec)
    walked = 0
    for method, path in closed_routes(service.http.app):
        if path.startswith("/v1/") and "{" in path and path not in NAMED:
            url = url_of(
                path, job=job_id, checkpoint=checkpoint_id, dataset=dataset_id, wheel=wheel_id
            )
            url += "?offset=0" if method == "PUT" else ""
            said = {"json": {}} if method == "PATCH" else {}
            any_version = {"If-Match": "*", "X-Content-SHA256": "0" * 64}
            other = service.http.request(method, url, headers=stranger | any_version, **said)
            own = service.http.request(method, url, headers=service.user | any_version, **said)
            assert other.status_code == 404, (method, path)
            assert own.status_code in (200, 202, 409), (method, path, own.text)
            walked += 1
    assert walked >= 12


def used_wheel(service, path, spec) -> str:
    """A wheel with a job, which keeps it from being deleted."""
    state = service.http.app.state
    state.settings = state.settings.model_copy(update={"allow_wheels": True})
    content = path.read_bytes()
    said = {"X-Content-SHA256": hashlib.sha256(content).hexdigest()}
    url = f"/v1/wheels/{path.name}"
    answer = service.http.put(url, content=content, headers=service.user | said)
    wheel_id = answer.json()["id"]
    model = {"kind": "entry_point", "factory": "our_models:small", "wheel": wheel_id}
    service.submit({**spec, "model": model})
    return wheel_id


def used_dataset(service: Service) -> str:
    """A sealed data set of one file, which a job waits to train on."""
    made = service.post("/datasets", json={"name": "corpus", "format": "bytes"}).json()
    headers = {**service.user, "X-Content-SHA256": hashlib.sha256(b"x").hexdigest()}
    url = f"/v1/datasets/{made['id']}/files/{NAME}?offset=0"
    assert service.http.put(url, content=b"x", headers=headers).status_code == 200
    assert service.post(f"/datasets/{made['id']}/seal").status_code == 200
    spec = {
        "model": {"kind": "preset", "name": "gpt"},
        "data": {"kind": "dataset", "dataset_id": made["id"]},
        "task": "causal_lm",
        "optimizer": {"name": "adamw_schedulefree"},
    }
    service.submit(spec)
    return made["id"]


def test_lists_show_the_own_project_only(service, stranger, digits_spec):
    service.submit(digits_spec)
    assert service.http.get("/v1/jobs", headers=stranger).json()["data"] == []
    mine = service.http.post("/v1/jobs", headers=stranger, json={**digits_spec, "project": "other"})
    assert mine.status_code == 201
    assert [job["id"] for job in service.get("/jobs").json()["data"]] != [mine.json()["id"]]
    assert len(service.get("/jobs").json()["data"]) == 1


def test_a_cursor_of_another_project_is_not_found(service, stranger, digits_spec):
    job_id = service.submit(digits_spec)
    answer = service.http.get("/v1/jobs", params={"after": job_id}, headers=stranger)
    assert answer.status_code == 404


def test_a_job_is_made_in_the_tokens_project_only(service, stranger, digits_spec):
    answer = service.http.post("/v1/jobs", json=digits_spec, headers=stranger)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/project"]


# ---- what is kept ------------------------------------------------------------------------------


def test_the_database_holds_no_token_that_opens_anything(service, settings, attempt_token):
    secrets = [
        service.user["Authorization"].split()[1],
        service.runner["Authorization"].split()[1],
        attempt_token,
    ]
    stored = everything(settings.resolved_database_url)
    for secret in secrets:
        assert digest(secret) in stored
        assert secret not in stored
        assert secret.removeprefix("rl_user_") not in stored


def everything(url: str) -> str:
    db = Database(url)
    with db.read() as session:
        rows = [
            str(row)
            for table in Table.metadata.sorted_tables
            for row in session.execute(text(f"SELECT * FROM {table.name}"))
        ]
    db.close()
    return "\n".join(rows)


def test_tokens_are_long_and_never_the_same():
    tokens = {mint(audience) for audience in Audience for _ in range(100)}
    assert len(tokens) == 300
    assert min(len(token.split("_", 2)[2]) for token in tokens) >= 43  # 256 bits
