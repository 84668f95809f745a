"""What ``--watch`` tells from several looks at a job."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.cli.watch import Curve, Rate, sparkline, watch
from roadless.service.client import ApiError, Unreachable
from roadless.service.contract.resources import CurvePoint, Job, MetricBuckets
from roadless.service.contract.states import Phase

LOSSES = st.lists(st.none() | st.floats(-1e6, 1e6), max_size=300)


def a_job(
    spec: dict[str, Any],
    *,
    step: int = 0,
    wall_seconds: float | None = None,
    fence: int = 1,
    phase: str = "RUNNING",
) -> Job:
    """Ten steps a second unless told otherwise."""
    now = "2025-01-01T00:00:00Z"
    attempt = {"id": "att", "fence": fence, "world_size": 1, "resumed_step": 0, "created_at": now}
    return Job.model_validate(
        {
            "id": "job_1",
            "project": "default",
            "name": "job",
            "phase": phase,
            "desired": "run",
            "version": 1,
            "spec": spec,
            "progress": {
                "step": step,
                "wall_seconds": step / 10 if wall_seconds is None else wall_seconds,
            },
            "attempt": attempt,
            "created_at": now,
        }
    )


def a_point(step: int, loss: float) -> CurvePoint:
    numbers = dict.fromkeys(("samples", "tokens", "wall_seconds", "gpu_seconds"), 0)
    return CurvePoint.model_validate(numbers | {"step": step, "loss": loss, "metrics": {}})


@dataclass
class Looked:
    """A client whose job is given look by look; an exception is raised in its place."""

    looks: list[Job | Exception] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    asked: list[int | None] = field(default_factory=list)

    def job(self, job_id: str) -> Job:
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    def eval_curve(self, job_id: str, *, since: int | None) -> list[CurvePoint]:
        self.asked.append(since)
        return [point for point in self.curve if since is None or point.step > since]

    def metric(self, job_id: str, name: str, **options: Any) -> MetricBuckets:
        empty: dict[str, list[Any]] = {
            column: [] for column in ("x", "last", "min", "max", "count", "non_finite_count")
        }
        return MetricBuckets(name=name, axis="step", **empty)


class Silent:
    """A console that is no terminal; remembers what it would show."""

    is_terminal = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, *said: object, **options: object) -> None:
        self.lines += map(str, said)


def test_only_new_points_of_the_curve_are_fetched(digits_spec):
    client, curve, job = Looked(), Curve(), a_job(digits_spec)
    client.curve = [a_point(10, 2.0)]
    curve.extend(client, job)
    client.curve.append(a_point(20, 1.0))
    curve.extend(client, job)
    assert [point.step for point in curve.points] == [10, 20]
    assert client.asked == [None, 10]


def test_a_new_attempt_replaces_what_it_superseded(digits_spec):
    client, curve = Looked(), Curve()
    client.curve = [a_point(10, 2.0), a_point(20, 1.0)]
    curve.extend(client, a_job(digits_spec, fence=1))
    client.curve = [a_point(10, 2.0)]
    curve.extend(client, a_job(digits_spec, fence=2))
    assert [point.step for point in curve.points] == [10]


def test_the_rate_is_steps_by_training_time(digits_spec):
    rate = Rate()
    rate.add(a_job(digits_spec, step=10))
    assert rate.steps_per_second is None
    rate.add(a_job(digits_spec, step=60))
    assert rate.steps_per_second == pytest.approx(10)
    rate.add(a_job(digits_spec, step=60))
    assert rate.steps_per_second == pytest.approx(10)


def test_going_back_to_an_earlier_step_measures_afresh(digits_spec):
    rate = Rate()
    for step, wall_seconds in ((100, 10.0), (200, 20.0), (150, 15.0), (151, 16.0)):
        rate.add(a_job(digits_spec, step=step, wall_seconds=wall_seconds))
    assert rate.steps_per_second == pytest.approx(1)


def test_watching_bridges_a_service_that_is_away(digits_spec):
    away = [Unreachable("no answer"), ApiError(503, "Unavailable", detail="try again")]
    client = Looked([a_job(digits_spec), *away, a_job(digits_spec, phase="STOPPED")])
    job = watch(client, "job_1", console=Silent(), sleep=lambda seconds: None)
    assert job.phase is Phase.STOPPED


def test_a_paused_job_is_told_of_once_and_watched_until_it_ends(digits_spec):
    """It may stay so for weeks, and somebody may resume it."""
    phases = ["RUNNING", "PAUSING", *["PAUSED"] * 50, "QUEUED", "STOPPED"]
    client = Looked([a_job(digits_spec, phase=phase) for phase in phases])
    console = Silent()
    job = watch(client, "job_1", console=console, sleep=lambda seconds: None)
    assert job.phase is Phase.STOPPED
    told = [line.split()[0] for line in console.lines]
    assert told == ["RUNNING", "PAUSING", "PAUSED", "QUEUED", "STOPPED"]


def test_watching_ends_at_once_when_the_job_is_unknown():
    client = Looked([ApiError(404, "Not found", detail="no such job")])
    with pytest.raises(ApiError, match="no such job"):
        watch(client, "job_1", console=Silent(), sleep=lambda seconds: None)


@given(LOSSES, st.integers(2, 80))
def test_a_sparkline_has_one_bar_a_value_within_its_width(losses, width):
    line = sparkline(losses, width=width)
    if any(loss is not None for loss in losses) and len(losses) <= width:
        assert len(line) == len(losses)
        assert [bar == " " for bar in line] == [loss is None for loss in losses]
    assert len(line) <= width


def test_a_sparkline_falls_with_the_loss_and_keeps_its_ends():
    assert sparkline([3.0, 2.0, None, 1.0]) == "█▅ ▁"
    assert sparkline([9.0, *([5.0] * 100), 1.0], width=3) == "█▅▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([None]) == ""
