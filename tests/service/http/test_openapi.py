"""The description of the routes: whose token, which refusals, and what comes in answer."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from roadless.service.contract.resources import Problem
from roadless.service.errors import ServiceError
from roadless.service.main import create_app
from roadless.service.settings import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "api.md"
ROW = re.compile(
    r"^\| `([A-Z]+ /[^`?]*)` \| (user|runner|attempt) \|.*\| ([^|]*) \|$", re.MULTILINE
)
#: What the tables of the document leave out, and say above them.
EVERYWHERE = {401, 408, 413, 415, 422, 503}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), DATABASE_URL=None)
    with TestClient(create_app(settings)) as http:
        return http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def statuses(operation: dict[str, Any]) -> set[int]:
    return {int(status) for status in operation["responses"]}


def refusals(operation: dict[str, Any]) -> set[int]:
    return {status for status in statuses(operation) if status >= 400}


def test_it_is_valid_openapi(document):
    validate(document)


def test_each_operation_names_the_one_token_that_opens_it(operations, document):
    tokens = {
        name: [scheme for one in operation["security"] for scheme in one]
        for name, operation in operations.items()
    }
    for name, seen in tokens.items():
        path = name.partition(" ")[2]
        if path.startswith("/v1/"):
            assert seen == ["user"], name
        elif path.startswith("/internal/v1/runners"):
            assert seen == ["runner"], name
        elif path.startswith("/internal/v1/attempts"):
            assert seen == ["attempt"], name
        else:
            assert seen == [], name
    schemes = document["components"]["securitySchemes"]
    assert {(one["type"], one["scheme"]) for one in schemes.values()} == {("http", "bearer")}
    assert set(schemes) == {"user", "runner", "attempt"}


def test_pages_and_health_are_described_too(operations):
    public = {name for name, operation in operations.items() if not operation["security"]}
    assert public == {
        *("GET /healthz", "GET /readyz", "GET /login", "POST /login", "POST /logout"),
        *("GET /", "GET /jobs/{job_id}"),
    }
    page = operations["GET /"]["responses"]
    assert list(page["200"]["content"]) == ["text/html"]
    assert "Location" in page["303"]["headers"]


def test_refusals_are_problems_and_the_schema_is_that_of_the_class(operations, document):
    seen = set()
    for name, operation in operations.items():
        for status, response in operation["responses"].items():
            if int(status) < 400 or (name == "POST /login" and status == "401"):
                continue
            if name.startswith("HEAD "):
                assert "content" not in response
                continue
            (kind,) = response["content"]
            assert kind == "application/problem+json", (name, status)
            seen.add(response["content"][kind]["schema"]["$ref"])
    assert seen == {"#/components/schemas/Problem"}
    schemas = document["components"]["schemas"]
    assert set(schemas["Problem"]["properties"]) == set(Problem.model_fields)
    assert "HTTPValidationError" not in schemas


def test_refusals_are_those_of_the_document(operations):
    """Neither has one that the other has not, but for those that may come anywhere."""
    rows = {name: set(map(int, re.findall(r"\b\d{3}\b", told))) for name, told in described()}
    assert len(rows) > 45
    assert set(rows) == {name for name, one in operations.items() if one["security"]}
    for name, told in rows.items():
        known = {status for status in told if 400 <= status < 600}
        assert known <= refusals(operations[name]), name
        assert refusals(operations[name]) - known <= EVERYWHERE, name


def described() -> Iterator[tuple[str, str]]:
    for name, _, told in ROW.findall(DOCUMENT.read_text()):
        yield name, told


def test_each_status_of_an_error_comes_somewhere(operations):
    every = {error.status for error in errors(ServiceError)} - {500}
    assert set().union(*map(refusals, operations.values())) == every


def errors(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for error in root.__subclasses__():
        yield error
        yield from errors(error)


def test_no_operation_declares_more_than_its_kind_can_answer(operations):
    """Samples of what is left out, since it cannot come."""
    assert refusals(operations["GET /healthz"]) == set()
    assert refusals(operations["POST /logout"]) == set()
    assert refusals(operations["GET /v1/secrets"]) == {401, 422, 503}
    assert refusals(operations["GET /internal/v1/attempts/{attempt_id}"]) == {401, 409, 503}
    assert 404 not in statuses(operations["POST /v1/jobs"])
    assert 412 not in statuses(operations["GET /v1/jobs"])


def test_headers_and_content_of_answers(operations):
    created = operations["POST /v1/jobs"]["responses"]["201"]
    assert {"ETag", "Location", "Idempotent-Replayed", "x-request-id"} <= set(created["headers"])
    file = operations["GET /v1/checkpoints/{checkpoint_id}/files/{name}"]["responses"]
    assert list(file["206"]["content"]) == ["application/octet-stream"]
    assert {"ETag", "Accept-Ranges", "Content-Range"} <= set(file["206"]["headers"])
    assert "content" not in file["304"]
    archive = operations["GET /v1/checkpoints/{checkpoint_id}/download"]["responses"]
    assert list(archive["200"]["content"]) == ["application/x-tar"]
    upload = operations["PUT /v1/wheels/{file_name}"]["requestBody"]
    assert upload["required"] is True
    assert list(upload["content"]) == ["application/octet-stream"]
    for operation in operations.values():
        for status, response in operation["responses"].items():
            assert "x-request-id" in response["headers"]
            assert ("Retry-After" in response["headers"]) == (status == "503")


def test_every_part_of_a_path_is_a_parameter(operations):
    for name, operation in operations.items():
        declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", name)), name


def test_headers_that_a_route_honours_are_parameters(operations):
    def headers(name: str) -> set[str]:
        parameters = operations[name].get("parameters", [])
        return {one["name"].lower() for one in parameters if one["in"] == "header"}

    assert headers("GET /v1/jobs/{job_id}") == {"if-match", "if-none-match"}
    assert headers("POST /v1/jobs/{job_id}/stop") == {"if-match", "idempotency-key"}
    assert headers("GET /v1/checkpoints/{checkpoint_id}/files/{name}") == {
        *("if-match", "if-none-match", "range", "if-range"),
    }


def test_while_it_is_made_others_are_answered_and_it_is_made_once(service, monkeypatch):
    begun, go_on, made = threading.Event(), threading.Event(), []
    app = service.http.app

    def slow():
        made.append(1)
        begun.set()
        assert go_on.wait(30)
        return {"openapi": "3.1.0"}

    monkeypatch.setattr(app, "openapi", slow)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(service.http.get, "/openapi.json") for _ in range(3)]
        assert begun.wait(10)
        try:
            assert pool.submit(service.http.get, "/healthz").result(10).status_code == 200
        finally:
            go_on.set()
        assert [one.result(30).json() for one in asked] == [{"openapi": "3.1.0"}] * 3
    assert made == [1]
