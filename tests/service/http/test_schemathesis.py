"""Every operation as it is described, asked by everybody: no fault, and nothing undescribed.

schemathesis makes requests from the description, right ones and wrong ones, and holds the answers
to it. Most of them name what is there, since otherwise they would end at 404.
SCHEMATHESIS_EXAMPLES asks more often than the usual run does.
"""

import hashlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from everything import Everything
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from roadless.service.main import create_app
from roadless.service.settings import Settings

NUM_EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "5"))
CALLERS = ("user", "runner", "attempt", "nobody")
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
BASE_URL = "http://testserver"
#: Of a fault, which names the request at its end.
MAX_LINES = 40


class World:
    """The app, and one of everything in it, made again once a request has ended it."""

    def __init__(self, http: TestClient, *, home: Path, folder: Path) -> None:
        self.http, self._home, self._folder = http, home, folder
        self._things: Everything | None = None
        self._is_touched = False

    def things(self) -> Everything:
        if self._things is None or (self._is_touched and not self._things.is_whole):
            self._things = Everything.made(self.http, home=self._home, folder=self._folder)
        self._is_touched = False
        return self._things

    def request(self, method: str, url: str, **said: Any) -> Any:
        answer = self.http.request(method, url, **said)
        self._is_touched = method not in ("GET", "HEAD") and answer.is_success
        return answer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    set_up = Settings(home=home, DATABASE_URL=None, tick_seconds=3600, allow_wheels=True)
    with TestClient(
        create_app(set_up), raise_server_exceptions=False, follow_redirects=False
    ) as http:
        yield World(http, home=home, folder=tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def operations(world: World) -> list[Any]:
    document = world.http.get("/openapi.json").json()
    found = schemathesis.openapi.from_dict(document).get_all_operations()
    return [operation.ok() for operation in found]


def send(case: Case, world: World, *, caller: str, is_known: bool) -> Any:
    """The answer to the case, as this caller asks; ``is_known``: about what there is."""
    things = world.things()
    if is_known:
        case.path_parameters = {
            name: things.known.get(name) or things.name_in(case.path)
            for name in case.path_parameters
        }
    if isinstance(case.body, dict) and isinstance(case.body.get("wait_seconds"), int | float):
        case.body["wait_seconds"] = 0
    case.headers.pop("Authorization", None)
    asked = requests.Request(**case.as_transport_kwargs(base_url=BASE_URL)).prepare()
    headers = {**asked.headers, **things.headers(caller)}
    content = asked.body or b""
    if is_known and "x-content-sha256" in {name.lower() for name in headers}:
        data = content if isinstance(content, bytes) else content.encode()
        headers["X-Content-SHA256"] = hashlib.sha256(data).hexdigest()
    return world.request(asked.method, asked.url, content=content, headers=headers)


def faults(operation: Any, world: World, *, caller: str) -> Iterator[str]:
    """What is wrong with the answers; one request is enough of whoever is not let in."""
    num_examples = {GenerationMode.POSITIVE: 1}
    if opened_by(operation, caller):
        num_examples = dict.fromkeys(GenerationMode, NUM_EXAMPLES)
    for mode, count in num_examples.items():
        ask = asking(operation, world, caller=caller, num_examples=count, mode=mode)
        try:
            ask()
        except Unsatisfiable:
            continue  # nothing can be wrong with a request that has no parameters
        except (Exception, BaseExceptionGroup) as error:
            said = traceback.format_exception(error, chain=False)[-MAX_LINES:]
            yield f"{operation.label} as {caller}, {mode.value}:\n{''.join(said)}"


def asking(
    operation: Any, world: World, *, caller: str, num_examples: int, mode: GenerationMode
) -> Any:
    @settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.sampled_from([True, True, False]))
    def ask(case: Case, is_known: bool) -> None:
        answer = send(case, world, caller=caller, is_known=is_known)
        case.validate_response(answer, checks=CHECKS)

    return ask


def opened_by(operation: Any, caller: str) -> bool:
    wanted = [name for one in operation.definition.raw["security"] for name in one]
    return caller in wanted or not wanted


@pytest.mark.parametrize("caller", CALLERS)
def test_whoever_asks_hears_what_is_described(world, operations, caller):
    found = []
    for operation in operations:
        found += faults(operation, world, caller=caller)
    assert not found, "\n".join(found)
