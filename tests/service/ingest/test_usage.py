"""What ranks say of their machine: series of their own, which move nothing of the job."""

from typing import Any

import pytest
from played import Rank, Service, step_event


@pytest.fixture
def two_ranks(digits_spec: dict[str, Any]) -> dict[str, Any]:
    return {**digits_spec, "parallelism": {"num_workers": 2}}


def usage_event(step: int, **values: float) -> dict[str, Any]:
    return {"kind": "usage", "step": step, "values": values or {"rss_bytes": 1e6 + step}}


def say(rank: Rank, number: int, *events: dict[str, Any], first_seq: int = 1) -> Any:
    """A report of rank ``number`` of the same attempt."""
    numbered = [{**event, "seq": first_seq + i} for i, event in enumerate(events)]
    body = {"rank": number, "events": numbered}
    return rank.http.post(f"{rank.url}/report", json=body, headers=rank.headers)


def series(service: Service, job_id: str, name: str, **query: Any) -> dict[str, Any]:
    answer = service.get(f"/jobs/{job_id}/metrics/{name}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(service: Service, job_id: str) -> set[str]:
    return {one["name"] for one in service.get(f"/jobs/{job_id}/metrics").json()["data"]}


def test_each_rank_has_series_of_its_own(service: Service, two_ranks: dict[str, Any]) -> None:
    job_id, rank = service.running(two_ranks)
    rank.report(usage_event(1), step_event(2), usage_event(2))
    assert say(rank, 1, usage_event(1, rss_bytes=7.0, cpu_percent=50.0)).status_code == 200
    assert series(service, job_id, "rank.0.rss_bytes")["last"] == [1e6 + 1, 1e6 + 2]
    assert series(service, job_id, "rank.1.rss_bytes")["last"] == [7.0]
    assert series(service, job_id, "rank.1.cpu_percent")["x"] == [1.0]
    expected = {"rank.0.rss_bytes", "rank.1.rss_bytes", "rank.1.cpu_percent"}
    assert names(service, job_id) == expected | {"train.loss"}


def test_a_report_that_arrives_twice_counts_once(
    service: Service, two_ranks: dict[str, Any]
) -> None:
    job_id, rank = service.running(two_ranks)
    for _ in range(2):
        assert say(rank, 1, usage_event(1), usage_event(2)).json()["ack_seq"] == 2
    assert series(service, job_id, "rank.1.rss_bytes")["count"] == [1, 1]


def test_usage_is_no_step(service: Service, two_ranks: dict[str, Any]) -> None:
    """A rank may be faster than the lead: the job still waits for the lead's first step."""
    job_id = service.submit(two_ranks)
    rank = service.claim()
    assert say(rank, 1, usage_event(9)).status_code == 200
    job = service.job(job_id)
    assert (job["phase"], job["progress"]["step"]) == ("STARTING", 0)
    assert job["started_at"] is None
    rank.report(step_event(1))
    say(rank, 1, usage_event(50), first_seq=2)
    job = service.job(job_id)
    assert (job["phase"], job["progress"]["step"]) == ("RUNNING", 1)


def test_usage_is_shown_along_the_axes_of_the_lead(
    service: Service, two_ranks: dict[str, Any]
) -> None:
    """The step joins them; one that the lead did not tell is on the axis of steps only."""
    job_id, rank = service.running(two_ranks)
    rank.report(step_event(2), step_event(4))
    say(rank, 1, usage_event(2), usage_event(3), usage_event(4))
    assert series(service, job_id, "rank.1.rss_bytes")["x"] == [2.0, 3.0, 4.0]
    assert series(service, job_id, "rank.1.rss_bytes", x="wall_seconds")["x"] == [0.2, 0.4]


def test_what_a_lost_attempt_said_after_its_training_state_is_superseded(
    service: Service, two_ranks: dict[str, Any]
) -> None:
    job_id, rank = service.running(two_ranks)
    rank.report(*[step_event(step) for step in range(2, 11)])
    say(rank, 1, *[usage_event(step) for step in range(1, 11)])
    rank.save(4, kind="resume")
    rank.ended()
    service.sync(released=[rank.assignment["attempt_id"]])
    again = service.claim()
    say(again, 1, usage_event(6, rss_bytes=5.0))
    seen = series(service, job_id, "rank.1.rss_bytes")
    assert seen["x"] == [1.0, 2.0, 3.0, 4.0, 6.0]
    assert seen["last"][-1] == 5.0


@pytest.mark.parametrize(
    "event",
    [
        {**usage_event(1), "values": {"Rss": 1.0}},
        {**usage_event(1), "values": {"a.b": 1.0}},
        {**usage_event(1), "values": {f"v{i}": 1.0 for i in range(33)}},
        {**usage_event(1), "step": -1},
        {**usage_event(1), "step": 2**70},
    ],
)
def test_names_and_numbers_of_usage_are_bounded(
    service: Service, two_ranks: dict[str, Any], event: dict[str, Any]
) -> None:
    _, rank = service.running(two_ranks)
    assert say(rank, 1, event).status_code == 422
