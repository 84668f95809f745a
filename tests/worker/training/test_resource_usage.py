"""What a rank says of its machine: true numbers, now and then, at no cost to a step."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_bench import Bench, make_brief

from roadless.service.contract.reports.events import Usage
from roadless.worker.training import resource_usage
from roadless.worker.training.resource_usage import USAGE_SECONDS, UsageMeter, busy_meter

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_look_comes_at_once_and_then_every_few_seconds() -> None:
    clock = Clock()
    meter = UsageMeter(CPU, clock=clock)
    seen = []
    for _ in range(100):
        seen.append(bool(meter.due()))
        clock.now += 1.0
    assert [i for i, looked in enumerate(seen) if looked] == list(range(0, 100, int(USAGE_SECONDS)))


def test_the_memory_of_this_process_is_seen() -> None:
    meter = UsageMeter(CPU, every_seconds=0)
    before = meter.due()["rss_bytes"]
    held = np.ones(2**24)
    grown = meter.due()["rss_bytes"] - before
    assert 0.9 * held.nbytes < grown < 1.5 * held.nbytes


def test_processor_time_is_a_share_of_the_time_since_the_last_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "process_time", lambda: used)
    used = 10.0
    meter = UsageMeter(CPU, clock=clock)
    clock.now, used = 102.0, 13.0
    assert meter.due()["cpu_percent"] == 150.0
    clock.now, used = 112.0, 14.0
    assert meter.due()["cpu_percent"] == 10.0


def test_no_time_between_two_looks_is_no_fault() -> None:
    meter = UsageMeter(CPU, every_seconds=0, clock=Clock())
    assert [meter.due()["cpu_percent"] for _ in range(2)] == [0.0, 0.0]


def test_a_rank_without_a_gpu_says_nothing_of_one() -> None:
    assert set(UsageMeter(CPU).due()) == {"rss_bytes", "cpu_percent"}


def test_a_rank_with_a_gpu_says_what_pytorch_and_the_driver_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([37.0, None])
    monkeypatch.setattr(resource_usage, "busy_meter", lambda device: lambda: next(answers))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 8)
    meter = UsageMeter(torch.device("cuda", 0), every_seconds=0)
    first, second = meter.due(), meter.due()
    assert (first["gpu_allocated_bytes"], first["gpu_reserved_bytes"]) == (5.0, 8.0)
    assert first["gpu_percent"] == 37.0
    assert "gpu_percent" not in second


def test_a_look_is_cheap() -> None:
    """The fastest of many, so that a busy machine does not count; a step takes milliseconds."""
    meter = UsageMeter(CPU, every_seconds=0)
    idle = UsageMeter(CPU)
    idle.due()
    assert _fastest(meter.due) < 1e-3
    assert _fastest(idle.due) < 2e-5


def _fastest(call: Callable[[], object]) -> float:
    def took() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(took() for _ in range(200))


# ---- the driver ---------------------------------------------------------------------------------


class Driver:
    """The four calls of the driver's library, as they answer."""

    def __init__(self, *, init: int = 0, find: int = 0, rates: int = 0) -> None:
        self.uuid = b""
        self._init, self._find, self._rates = init, find, rates

    def nvmlInit_v2(self) -> int:  # noqa: N802  the library says so
        return self._init

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802  likewise
        self.uuid = uuid
        return self._find

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:  # noqa: N802  likewise
        rates._obj.gpu = 42
        return self._rates


@pytest.fixture
def driver_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], Driver]:
    def install(driver: Driver) -> Driver:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
        told = SimpleNamespace(uuid="1234-abcd")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
        return driver

    return install


def test_the_driver_is_asked_by_the_identity_of_the_gpu(driver_of: Any) -> None:
    driver = driver_of(Driver())
    meter = busy_meter(torch.device("cuda", 0))
    assert meter is not None
    assert meter() == 42.0
    assert driver.uuid == b"GPU-1234-abcd"


@pytest.mark.parametrize("answers", [{"init": 9}, {"find": 6}])
def test_a_driver_that_does_not_know_the_gpu_is_not_asked_again(
    driver_of: Any, answers: dict[str, int]
) -> None:
    driver_of(Driver(**answers))
    assert busy_meter(torch.device("cuda", 0)) is None


def test_what_the_driver_does_not_tell_is_not_made_up(driver_of: Any) -> None:
    driver_of(Driver(rates=3))
    meter = busy_meter(torch.device("cuda", 0))
    assert meter is not None
    assert meter() is None


def test_a_node_without_the_driver_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_usage, "_LIBRARY", "libabsent.so.9")
    assert busy_meter(torch.device("cuda", 0)) is None


# ---- in training --------------------------------------------------------------------------------


def test_training_says_it_from_the_first_step_on(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, usage=UsageMeter(CPU, every_seconds=0))
    bench.training.run()
    said = [event for event in bench.reporter.said if isinstance(event, Usage)]
    assert [event.step for event in said] == [1, 2, 3, 4, 5, 6]
    assert all(event.values["rss_bytes"] > 1e7 for event in said)


def test_a_short_job_says_it_once(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path)
    bench.training.run()
    said = [event for event in bench.reporter.said if isinstance(event, Usage)]
    assert [event.step for event in said] == [1]
