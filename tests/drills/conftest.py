"""What drills share: a stack for each file, and figures that are printed at the end."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pairs
import pytest
from up_stack import UpStack, strays


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes a figure of this drill."""
    return lambda text: pairs.FIGURES.append((request.node.name, text))


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Callable[..., pairs.Outcome]:
    """Runs a pair of jobs through a fault."""

    def run(up: UpStack, fault: pairs.Fault, **options: Any) -> pairs.Outcome:
        return pairs.run(up, request.node.name, fault, **options)

    return run


@pytest.fixture(scope="module")
def make_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., UpStack]]:
    """Starts stacks; at the end each must leave without a trace."""
    made: list[UpStack] = []

    def make(name: str = "home", **options: Any) -> UpStack:
        made.append(UpStack(tmp_path_factory.mktemp("up") / name, **options))
        return made[-1]

    yield make
    left = {}
    for up in made:
        stopped = up.stop()
        left[up.home.name] = [
            *stopped.left,
            *map(str, strays(up.home)),
        ]
        up.kill_all()
    assert not any(left.values()), left


@pytest.fixture(scope="module")
def up(make_up: Callable[..., UpStack]) -> UpStack:
    """The stack of a file's drills, on SQLite, with leases of 10 s so that drills are short."""
    return make_up(environ={"ROADLESS_LEASE_SECONDS": "10"})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    terminalreporter.section("figures")
    for name, text in pairs.FIGURES:
        terminalreporter.write_line(f"{name}: {text}")
    if (path := os.environ.get("DRILL_FIGURES")) is not None:
        with Path(path).open("a") as file:
            file.writelines(json.dumps([*pair]) + "\n" for pair in pairs.FIGURES)
