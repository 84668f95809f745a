"""NUL, which PostgreSQL cannot store, is judged alike on both databases: before they see it."""

import pytest
from played import NODE, step_event

SEEN = "expected text without NUL, which databases do not store, saw '\\x00'"


def faults(answer):
    assert answer.status_code == 422, answer.text
    return {fault["pointer"]: fault["message"] for fault in answer.json()["errors"]}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "a\0b"}, "/name"),
        ({"labels": {"a": "\0"}}, "/labels/a"),
        ({"labels": {"a\0": "b"}}, "/labels/a\0"),
        ({"model": {"kind": "preset", "name": "convnet\0"}}, "/model/name"),
    ],
)
def test_a_job_with_nul_is_refused_where_it_stands(service, digits_spec, change, pointer):
    answer = service.post("/jobs", json={**digits_spec, **change})
    assert faults(answer)[pointer] == SEEN
    assert service.get("/jobs").json()["data"] == []


def test_so_is_a_change_of_one_and_a_data_set(service, digits_spec):
    job_id = service.submit(digits_spec)
    headers = {**service.user, "If-Match": "*"}
    answer = service.http.patch(f"/v1/jobs/{job_id}", json={"name": "\0"}, headers=headers)
    assert faults(answer) == {"/name": SEEN}
    answer = service.post("/datasets", json={"name": "a\0", "format": "csv"})
    assert faults(answer) == {"/name": SEEN}
    answer = service.http.put(
        "/v1/secrets/HF_TOKEN", json={"value": "hf_\x000123"}, headers=service.user
    )
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/jobs?after=%00", "query:after"),
        ("/secrets?after=A%00", "query:after"),
        ("/jobs/job_%00", "path:job_id"),
        ("/jobs/job_x/metrics/train%00", "path:name"),
        ("/checkpoints/%00/files/a", "path:checkpoint_id"),
        ("/datasets?after=ds_%00", "query:after"),
    ],
)
def test_so_are_paths_and_queries(service, path, pointer):
    assert faults(service.get(path)) == {pointer: SEEN}


def test_so_are_the_paths_of_our_own_processes(service):
    answer = service.http.post(
        "/internal/v1/runners/run_%00/sync",
        json={"nodes": [NODE], "alive": [], "released": [], "wait_seconds": 0},
        headers=service.runner,
    )
    assert faults(answer) == {"path:runner_id": SEEN}


def test_the_text_of_a_backslash_and_zeros_is_none(service, digits_spec):
    job_id = service.submit({**digits_spec, "name": "\\u0000"})
    assert service.job(job_id)["name"] == "\\u0000"


def test_a_ranks_words_arrive_without_it(service, digits_spec):
    """They may quote any file; without them, a job would end without a reason."""
    job_id, rank = service.running(digits_spec)
    said = {"kind": "notice", "code": "n\0", "message": "the header a\0b, and \\u0000"}
    assert rank.report(said, step_event(2)).status_code == 200
    failed = {"kind": "failed", "reason": "data_invalid", "message": "expected a, saw a\0"}
    assert rank.report(failed).status_code == 200
    events = service.get(f"/jobs/{job_id}/events").json()["data"]
    told = {event["code"]: event["message"] for event in events}
    assert told["n\N{REPLACEMENT CHARACTER}"] == (
        "the header a\N{REPLACEMENT CHARACTER}b, and \\u0000"
    )
    assert service.job(job_id)["message"] == "expected a, saw a\N{REPLACEMENT CHARACTER}"


def test_so_do_an_agents_and_a_runners(service, digits_spec):
    _, rank = service.running(digits_spec)
    body = {"reason": "rank_died", "message": "it said \0"}
    answer = service.http.post(f"{rank.url}/ended", json=body, headers=rank.headers)
    assert answer.status_code == 204
    for _ in range(2):
        answer = service.http.post(
            "/internal/v1/runners", json={"name": "a\0"}, headers=service.runner
        )
        assert answer.status_code == 200, answer.text
