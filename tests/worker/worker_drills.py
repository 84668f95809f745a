"""Helpers of the worker's tests: a launch, a listening service's memory, and waiting for things."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roadless.worker.rank_launch import RankLaunch

STAND_IN = "stand_in_rank:main"


@dataclass
class Call:
    at: float
    method: str
    path: str
    token: str
    body: dict[str, Any]


@dataclass
class Listener:
    """A service that writes down what it hears; ``answers`` are given first, then 204."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def wait_for_call(self, seconds: float = 10.0) -> Call:
        wait_until(lambda: bool(self.calls), seconds=seconds)
        return self.calls[0]


def wait_until(is_true: Callable[[], bool], *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def read_note(scratch: Path, rank: int = 0) -> dict[str, Any]:
    path = scratch / f"started-{rank}.json"
    wait_until(path.exists)
    note: dict[str, Any] = json.loads(path.read_text())
    return note


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie that waits for its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def make_launch(scratch: Path | str, what: str = "stay", **changes: Any) -> RankLaunch:
    fields: dict[str, Any] = {
        "attempt_id": "att_1",
        "job_id": what,
        "fence": 1,
        "token": "attempt-secret",
        "service_url": "http://127.0.0.1:9",
        "rank": 0,
        "local_rank": 0,
        "world_size": 1,
        "master_addr": "127.0.0.1",
        "master_port": 1,
        "threads": 1,
        "scratch": str(scratch),
    }
    return RankLaunch(**{**fields, **changes})
