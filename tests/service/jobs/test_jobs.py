"""A job through the API, from the POST to each of its ends."""

import pytest
from played import eval_event, step_event


def test_a_submitted_job_waits_in_the_queue(service, digits_spec):
    answer = service.post("/jobs", json=digits_spec)
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["phase"], job["reason"]) == ("QUEUED", "waiting_for_capacity")
    assert service.job(job["id"])["spec"]["optimizer"]["betas"] == [0.9, 0.999]


def test_a_retry_with_the_same_key_makes_one_job(service, digits_spec):
    key = {"Idempotency-Key": "k1"}
    first = service.post("/jobs", json=digits_spec, headers=key)
    second = service.post("/jobs", json=digits_spec, headers=key)
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(service.get("/jobs").json()["data"]) == 1


def test_a_key_with_another_body_is_refused(service, digits_spec):
    key = {"Idempotency-Key": "k1"}
    service.post("/jobs", json=digits_spec, headers=key)
    answer = service.post("/jobs", json={**digits_spec, "name": "other"}, headers=key)
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("idempotency_key_reused")


def test_an_unchanged_job_is_not_sent_again(service, digits_spec):
    job_id = service.submit(digits_spec)
    etag = service.get(f"/jobs/{job_id}").headers["etag"]
    headers = {**service.user, "If-None-Match": etag}
    assert service.http.get(f"/v1/jobs/{job_id}", headers=headers).status_code == 304
    service.post(f"/jobs/{job_id}/stop")
    assert service.http.get(f"/v1/jobs/{job_id}", headers=headers).status_code == 200


def test_pages_hold_every_job_once_newest_first(service, digits_spec):
    ids = [service.submit(digits_spec) for _ in range(5)]
    seen, after = [], None
    while True:
        page = service.get("/jobs", params={"limit": 2} | ({"after": after} if after else {}))
        seen += [job["id"] for job in page.json()["data"]]
        after = page.json()["last_id"]
        if not page.json()["has_more"]:
            break
    assert seen == ids[::-1]


def test_a_job_runs_to_its_budget_and_succeeds_only_when_released(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    assert service.phase(job_id) == "RUNNING"
    rank.report({"kind": "finished", "reason": "budget_reached", "step": 1})
    assert service.phase(job_id) == "FINISHING"
    attempt_id = rank.assignment["attempt_id"]
    assert service.sync(alive=[attempt_id])["stop"] == [attempt_id]
    assert service.phase(job_id) == "FINISHING"
    service.sync(released=[attempt_id])
    job = service.job(job_id)
    assert (job["phase"], job["reason"]) == ("SUCCEEDED", "budget_reached")


def test_a_stop_is_heard_with_the_next_report(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    assert service.post(f"/jobs/{job_id}/stop").status_code == 202
    assert service.phase(job_id) == "STOPPING"
    assert rank.report(step_event(2)).json()["desired"] == "stop"
    rank.report({"kind": "finished", "reason": "stopped_by_user", "step": 2})
    service.sync(released=[rank.assignment["attempt_id"]])
    job = service.job(job_id)
    assert (job["phase"], job["reason"]) == ("STOPPED", "stopped_by_user")


def test_a_stop_can_be_repeated_and_a_finished_job_refuses_it(service, digits_spec):
    job_id = service.submit(digits_spec)
    assert service.post(f"/jobs/{job_id}/stop").json()["phase"] == "STOPPED"
    assert service.post(f"/jobs/{job_id}/stop").status_code == 202
    answer = service.post(f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["title"]) == (
        409,
        "Not allowed in the job's current phase",
    )


def test_a_cancelled_job_is_fenced_at_once_and_ends_when_released(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    service.post(f"/jobs/{job_id}/cancel")
    assert rank.report(step_event(2)).status_code == 409
    attempt_id = rank.assignment["attempt_id"]
    assert service.sync(alive=[attempt_id])["stop"] == [attempt_id]
    assert service.phase(job_id) == "CANCELLING"
    service.sync(released=[attempt_id])
    assert service.phase(job_id) == "CANCELLED"


def test_an_asked_for_evaluation_reaches_the_rank(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    service.post(f"/jobs/{job_id}/evaluate")
    assert rank.report(step_event(2)).json()["evaluations_requested"] == 1


def test_a_finished_job_takes_no_evaluation(service, digits_spec):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/cancel")
    assert service.post(f"/jobs/{job_id}/evaluate").status_code == 409


def test_a_failure_of_the_users_is_not_tried_again(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report({"kind": "failed", "reason": "non_finite_loss", "message": "saw nan"})
    service.sync(released=[rank.assignment["attempt_id"]])
    job = service.job(job_id)
    assert (job["phase"], job["reason"], job["message"]) == ("FAILED", "non_finite_loss", "saw nan")


def test_a_lost_attempt_is_tried_again_once_its_seats_are_free(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.ended()
    assert service.phase(job_id) == "RECOVERING"
    attempt_id = rank.assignment["attempt_id"]
    assert service.sync(alive=[attempt_id]) == {"start": [], "stop": [attempt_id]}
    second = service.claim(released=[attempt_id])
    assert second.assignment["fence"] == 2
    assert service.phase(job_id) == "STARTING"


def test_a_job_lost_too_often_without_progress_fails(service, digits_spec):
    job_id = service.submit({**digits_spec, "retry": {"max_attempts": 2}})
    for _ in range(2):
        rank = service.claim()
        rank.ended()
        service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    job = service.job(job_id)
    assert (job["phase"], job["reason"]) == ("FAILED", "retries_exhausted")
    assert "rank 0 exited with -9" in job["message"]


def test_a_saved_training_state_forgives_earlier_losses(service, digits_spec):
    job_id = service.submit({**digits_spec, "retry": {"max_attempts": 2}})
    for step in (10, 20, 30):
        rank = service.claim()
        rank.save(step, kind="resume")
        rank.ended()
        service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    assert service.phase(job_id) == "RECOVERING"


def test_a_stop_while_recovering_reaches_the_next_attempt(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.ended()
    service.post(f"/jobs/{job_id}/stop")
    second = service.claim(released=[rank.assignment["attempt_id"]])
    assert second.brief()["desired"] == "stop"
    second.report({"kind": "started", "world_size": 2})
    assert service.phase(job_id) == "STOPPING"


def test_a_cancel_while_recovering_with_nothing_held_is_immediate(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.ended()
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    assert service.post(f"/jobs/{job_id}/cancel").json()["phase"] == "CANCELLED"


def test_the_history_tells_each_phase_in_order(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report({"kind": "finished", "reason": "budget_reached", "step": 1})
    service.sync(released=[rank.assignment["attempt_id"]])
    events = service.get(f"/jobs/{job_id}/events").json()["data"]
    codes = [event["code"] for event in events if event["code"].startswith("phase.")]
    assert codes == [
        "phase.queued",
        "phase.starting",
        "phase.running",
        "phase.finishing",
        "phase.succeeded",
    ]


def test_the_curve_of_a_resumed_job_has_each_step_once(service, digits_spec):
    job_id, first = service.running(digits_spec, steps=20)
    first.report(eval_event(10, loss=2.0), eval_event(20, loss=9.0))
    first.save(10, kind="resume")
    first.ended()
    second = service.claim(released=[first.assignment["attempt_id"]])
    assert second.brief()["resume"]["step"] == 10
    second.report(step_event(11, loss=0.5), eval_event(20, loss=1.0))
    curve = service.get(f"/jobs/{job_id}/eval-curve").json()["data"]
    assert [(point["step"], point["loss"]) for point in curve] == [(10, 2.0), (20, 1.0)]
    metric = service.get(f"/jobs/{job_id}/metrics/train.loss").json()
    assert sum(metric["count"]) == 11
    assert metric["last"][-1] == 0.5


@pytest.mark.parametrize("path", ["", "/events", "/eval-curve", "/metrics", "/checkpoints"])
def test_an_unknown_job_is_not_found(service, path):
    assert service.get(f"/jobs/job_nope{path}").status_code == 404
