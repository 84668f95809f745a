"""Checkpoints that users pin, unpin and delete, and those that time takes away."""

import threading
from datetime import timedelta

import pytest
from played import step_event
from sqlalchemy import select, text

from roadless.service.checkpoints import actions, retention
from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.db.tables import JobRow
from roadless.service.errors import Unavailable
from roadless.service.scheduling.housekeeping import Housekeeping

KEEP_ONE = {"keep_last": 1, "keep_best": 0}
DAY = timedelta(days=1)


@pytest.fixture
def home(service, settings):
    """What a sweep is given; the app itself sweeps only at its start and hourly."""
    state = service.http.app.state
    return Housekeeping(
        state.db, state.blobs, state.dataset_blobs, state.wheel_blobs, settings.uploads_dir
    )


def running(service, digits_spec, *, steps=9, **checkpoints):
    return service.running({**digits_spec, "checkpoints": checkpoints}, steps=steps)


def listed(service, job_id, **params):
    answer = service.get(f"/jobs/{job_id}/checkpoints", params=params)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["data"]]


def post(service, checkpoint_id, verb):
    answer = service.post(f"/checkpoints/{checkpoint_id}/{verb}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def delete(service, checkpoint_id):
    return service.http.delete(f"/v1/checkpoints/{checkpoint_id}", headers=service.user)


def folders(settings):
    return sorted(path.name for path in (settings.home_dir / "blobs").glob("*/*/*"))


def end(service, job_id, rank):
    """Cancel the job and release what it held."""
    assert service.post(f"/jobs/{job_id}/cancel").status_code == 202
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    assert service.phase(job_id) == "CANCELLED"


def lose(service, rank):
    """End the attempt and give its seats back; nothing is free to start another."""
    rank.ended()
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})


# ---- pins --------------------------------------------------------------------------------------


def test_a_pinned_checkpoint_outlives_retention_until_it_is_unpinned(
    service, settings, digits_spec
):
    job_id, rank = running(service, digits_spec, **KEEP_ONE)
    first = rank.save(1)
    assert service.get(f"/checkpoints/{first}").json()["pinned"] is False
    assert post(service, first, "pin")["pinned"] is True
    second = rank.save(2)
    assert listed(service, job_id) == [second, first]
    assert post(service, first, "unpin")["pinned"] is False
    assert listed(service, job_id) == [second, first], "retention comes with the next one"
    third = rank.save(3)
    assert listed(service, job_id) == [third]
    assert folders(settings) == [third]


def test_pinning_twice_is_pinning_once(service, digits_spec):
    _, rank = running(service, digits_spec)
    saved = rank.save(1)
    answers = [post(service, saved, verb) for verb in ("pin", "pin", "unpin", "unpin")]
    assert [answer["pinned"] for answer in answers] == [True, True, False, False]
    assert (
        answers[0] == answers[1] == service.get(f"/checkpoints/{saved}").json() | {"pinned": True}
    )


def test_what_a_user_asked_to_evaluate_is_pinned_from_the_start(service, digits_spec):
    _, rank = running(service, digits_spec)
    checkpoint_id = new_id("ckpt")
    rank.upload(checkpoint_id, b"x")
    saved = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    assert rank.report({**saved, "evaluations_served": 1}).status_code == 200
    assert service.get(f"/checkpoints/{checkpoint_id}").json()["pinned"] is True


def test_within_the_hour_housekeeping_takes_what_was_unpinned(service, settings, home, digits_spec):
    """Of a job that has ended too, which saves nothing more."""
    job_id, rank = running(service, digits_spec, **KEEP_ONE)
    first = rank.save(1)
    post(service, first, "pin")
    second = rank.save(2)
    end(service, job_id, rank)
    home.clean_up(utc_now())
    assert listed(service, job_id) == [second, first]
    post(service, first, "unpin")
    home.clean_up(utc_now())
    assert listed(service, job_id) == [second]
    assert folders(settings) == [second]


def test_a_pinned_training_state_stays_beside_the_newest_two(service, digits_spec):
    job_id, rank = running(service, digits_spec)
    first = rank.save(1, kind="resume")
    post(service, first, "pin")
    others = [rank.save(step, kind="resume") for step in (2, 3, 4)]
    assert listed(service, job_id, kind="resume") == [others[2], others[1], first]


def test_a_job_goes_on_from_the_newest_state_whichever_is_pinned(service, digits_spec):
    _, rank = running(service, digits_spec)
    post(service, rank.save(1, kind="resume"), "pin")
    newest = [rank.save(step, kind="resume") for step in (2, 3)][1]
    lose(service, rank)
    assert service.claim().brief()["resume"]["checkpoint_id"] == newest


def test_a_pinned_state_is_gone_on_from_when_the_two_newest_do_not_load(service, digits_spec):
    _, rank = running(service, digits_spec)
    pinned = rank.save(1, kind="resume")
    post(service, pinned, "pin")
    for step in (2, 3):
        rank.save(step, kind="resume")
    tried = []
    for _ in range(2):
        lose(service, rank)
        rank = service.claim()
        tried.append(rank.brief()["resume"]["step"])
        rank.report({"kind": "failed", "reason": "checkpoint_unreadable", "message": "torn"})
    lose(service, rank)
    assert tried == [3, 2]
    assert service.claim().brief()["resume"]["checkpoint_id"] == pinned


def test_a_pinned_state_of_a_superseded_past_is_the_last_to_go_on_from(service, digits_spec):
    """It is superseded since it did not load: all others come first."""
    _, rank = running(service, digits_spec)
    first = rank.save(1, kind="resume")
    superseded = rank.save(8, kind="resume")
    post(service, superseded, "pin")
    lose(service, rank)
    rank = service.claim()
    rank.report({"kind": "failed", "reason": "checkpoint_unreadable", "message": "torn"})
    lose(service, rank)
    rank = service.claim()
    assert rank.brief()["resume"]["checkpoint_id"] == first
    rank.report(step_event(2))
    assert superseded not in listed(service, rank.assignment["job_id"])
    newer = rank.save(2, kind="resume")
    for expected in (newer, first):
        lose(service, rank)
        rank = service.claim()
        assert rank.brief()["resume"]["checkpoint_id"] == expected
        rank.report({"kind": "failed", "reason": "checkpoint_unreadable", "message": "torn"})


def test_a_checkpoint_that_a_job_starts_from_is_pinned_and_stays_so(service, digits_spec):
    _, rank = running(service, digits_spec, **KEEP_ONE)
    saved = rank.save(1)
    model = {"kind": "checkpoint", "checkpoint_id": saved}
    second_id = service.submit({**digits_spec, "model": model})
    assert service.get(f"/checkpoints/{saved}").json()["pinned"] is True
    for answer in (service.post(f"/checkpoints/{saved}/unpin"), delete(service, saved)):
        assert answer.status_code == 409
        assert second_id in answer.json()["detail"]
    rank.save(2)
    assert service.get(f"/checkpoints/{saved}").status_code == 200
    service.post(f"/jobs/{second_id}/cancel")
    assert service.post(f"/checkpoints/{saved}/unpin").status_code == 409, "it may be retried"
    assert service.http.delete(f"/v1/jobs/{second_id}", headers=service.user).status_code == 204
    assert post(service, saved, "unpin")["pinned"] is False
    assert delete(service, saved).status_code == 204


def test_a_job_is_deleted_with_its_pinned_checkpoints(service, settings, digits_spec):
    """A pin holds against retention, not against who deletes the whole job."""
    job_id, rank = running(service, digits_spec)
    saved = rank.save(1)
    post(service, saved, "pin")
    end(service, job_id, rank)
    assert service.http.delete(f"/v1/jobs/{job_id}", headers=service.user).status_code == 204
    assert service.get(f"/checkpoints/{saved}").status_code == 404
    assert folders(settings) == []


# ---- deletion ----------------------------------------------------------------------------------


def test_a_deleted_checkpoint_is_gone_with_its_files_and_its_point_stays(
    service, settings, digits_spec
):
    job_id, rank = running(service, digits_spec)
    first, second = rank.save(1), rank.save(2)
    assert delete(service, second).status_code == 204
    assert listed(service, job_id) == [first]
    assert folders(settings) == [first]
    assert service.get(f"/checkpoints/{second}/download").status_code == 404
    assert delete(service, second).status_code == 404


def test_a_pinned_checkpoint_is_not_deleted(service, digits_spec):
    job_id, rank = running(service, digits_spec)
    saved = rank.save(1)
    post(service, saved, "pin")
    answer = delete(service, saved)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert "unpin it first" in answer.json()["detail"]
    assert listed(service, job_id) == [saved]
    post(service, saved, "unpin")
    assert delete(service, saved).status_code == 204


@pytest.mark.parametrize("phase", ["QUEUED", "STARTING", "RUNNING", "PAUSED", "RECOVERING"])
def test_the_state_that_a_job_goes_on_from_is_not_deleted(service, digits_spec, phase):
    job_id, rank = running(service, digits_spec)
    older, newest = [rank.save(step, kind="resume") for step in (1, 2)]
    if phase == "RECOVERING":
        rank.ended()
    elif phase != "RUNNING":
        service.post(f"/jobs/{job_id}/pause", json={"checkpoint": "latest"})
        service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    if phase in ("QUEUED", "STARTING"):
        service.post(f"/jobs/{job_id}/resume")
    if phase == "STARTING":
        rank = service.claim()
    assert service.phase(job_id) == phase
    answer = delete(service, newest)
    assert answer.status_code == 409
    assert job_id in answer.json()["detail"]
    assert delete(service, older).status_code == 204
    if phase == "STARTING":
        assert rank.brief()["resume"]["checkpoint_id"] == newest
        url = f"{rank.url}/checkpoints/{newest}/files/model.safetensors"
        assert service.http.get(url, headers=rank.headers).content == b"x"


def test_what_a_starting_attempt_loads_is_not_deleted_though_it_is_not_the_newest(
    service, digits_spec
):
    """Its own attempt would save a newer one only after its first step; here the newest is away."""
    job_id, rank = running(service, digits_spec)
    loading = rank.save(2, kind="resume")
    lose(service, rank)
    rank = service.claim()
    newer = rank.save(3, kind="resume")
    assert service.phase(job_id) == "STARTING"
    assert delete(service, loading).status_code == 409
    rank.report(step_event(3))
    assert delete(service, loading).status_code == 204
    assert delete(service, newer).status_code == 409


def test_the_states_of_a_job_that_has_ended_may_be_deleted(service, digits_spec):
    """Who reopens it then begins with an older one, or anew."""
    job_id, rank = running(service, digits_spec)
    older, newest = [rank.save(step, kind="resume") for step in (1, 2)]
    end(service, job_id, rank)
    assert delete(service, newest).status_code == 204
    assert service.post(f"/jobs/{job_id}/retry").status_code == 409
    assert listed(service, job_id) == [older]


def test_checkpoints_of_another_project_are_not_found(service, digits_spec):
    _, rank = running(service, digits_spec)
    saved = rank.save(1)
    with service.http.app.state.db.write() as session:
        session.execute(text("UPDATE checkpoints SET project = 'other'"))
    assert delete(service, saved).status_code == 404
    for verb in ("pin", "unpin"):
        assert service.post(f"/checkpoints/{saved}/{verb}").status_code == 404


def test_files_that_cannot_be_deleted_now_are_swept_later(service, digits_spec, home, monkeypatch):
    _, rank = running(service, digits_spec)
    saved = rank.save(1)

    def away(_: str) -> None:
        raise Unavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(home.blobs, "delete", away)
        assert delete(service, saved).status_code == 204
    assert service.get(f"/checkpoints/{saved}").status_code == 404
    rank.ended()
    home.clean_up(utc_now() + timedelta(hours=2))
    assert list(home.blobs.folders(before=utc_now() + DAY)) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_claim_does_not_begin_with_a_state_that_is_being_deleted(service, digits_spec):
    """While the deletion holds the job, the claim passes it over; then there is no such state."""
    job_id, rank = running(service, digits_spec)
    older, newest = [rank.save(step, kind="resume") for step in (1, 2)]
    end(service, job_id, rank)
    db = service.http.app.state.db
    with db.write() as session:
        actions.delete(session, newest, "default", now=utc_now())
        reopening = threading.Thread(target=service.post, args=(f"/jobs/{job_id}/extend",))
        reopening.start()
        reopening.join(0.3)
        assert reopening.is_alive(), "it waits for the job"
    reopening.join(10)
    resume = service.claim().brief()["resume"] if service.phase(job_id) == "QUEUED" else None
    assert resume is None or resume["checkpoint_id"] == older


# ---- age ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_ended", [False, True])
def test_time_takes_eval_checkpoints_but_the_newest_and_the_pinned(
    service, settings, home, digits_spec, has_ended
):
    job_id, rank = running(
        service, digits_spec, keep_last=10, keep_best=2, max_age_seconds=DAY.total_seconds()
    )
    pinned, *_, newest = [rank.save(step, loss=step) for step in (1, 2, 3)]
    state = rank.save(3, kind="resume")
    post(service, pinned, "pin")
    if has_ended:
        end(service, job_id, rank)
    home.clean_up(utc_now() + DAY - timedelta(minutes=1))
    assert len(listed(service, job_id)) == 4
    home.clean_up(utc_now() + DAY + timedelta(minutes=1))
    assert sorted(listed(service, job_id)) == sorted([pinned, newest, state])
    assert folders(settings) == sorted([pinned, newest, state])


def test_without_an_age_time_takes_nothing(service, home, digits_spec):
    job_id, rank = running(service, digits_spec)
    saved = [rank.save(step) for step in (1, 2, 3)]
    home.clean_up(utc_now() + 1000 * DAY)
    assert listed(service, job_id) == saved[::-1]


def test_jobs_of_an_earlier_release_are_kept_by_their_old_rules(service, home, digits_spec):
    """Their stored specifications have no field for what came later."""
    job_id, rank = running(service, digits_spec, **KEEP_ONE)
    with home.db.write() as session:
        job = session.scalars(select(JobRow)).one()
        job.spec = {**job.spec, "checkpoints": {**KEEP_ONE, "state_every_steps": 100}}
    first, second = rank.save(1), rank.save(2)
    assert listed(service, job_id) == [second]
    home.clean_up(utc_now() + 1000 * DAY)
    assert listed(service, job_id) == [second]
    assert first != second


def test_many_jobs_are_looked_at_in_batches(service, home, digits_spec, monkeypatch):
    monkeypatch.setattr(retention, "_JOBS_TOGETHER", 2)
    spec = {**digits_spec, "parallelism": {"num_workers": 1}, "checkpoints": KEEP_ONE}
    job_ids = []
    for _ in range(5):
        job_id, rank = service.running(spec, steps=3)
        post(service, rank.save(1), "pin")
        rank.save(2)
        end(service, job_id, rank)
        job_ids.append(job_id)
    for job_id in job_ids:
        post(service, listed(service, job_id)[1], "unpin")
    assert retention.remove_superfluous(home.db, home.blobs, now=utc_now()) == 5
    assert [len(listed(service, job_id)) for job_id in job_ids] == [1] * 5


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_another_transaction_works_on_waits_for_the_next_round(
    service, home, digits_spec
):
    _, rank = running(service, digits_spec, **KEEP_ONE)
    first = rank.save(1)
    post(service, first, "pin")
    rank.save(2)
    post(service, first, "unpin")
    with home.db.write() as session:
        session.execute(text("SELECT id FROM jobs FOR UPDATE"))
        assert retention.remove_superfluous(home.db, home.blobs, now=utc_now()) == 0
    assert retention.remove_superfluous(home.db, home.blobs, now=utc_now()) == 1


# ---- the best ----------------------------------------------------------------------------------


def test_the_best_are_listed_best_first(service, digits_spec):
    job_id, rank = running(service, digits_spec, keep_last=10)
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: 1.0}
    by_step = {step: rank.save(step, loss=loss_of(loss)) for step, loss in losses.items()}
    rank.save(5, kind="resume")
    assert listed(service, job_id, best=3) == [by_step[2], by_step[5], by_step[4]]
    assert listed(service, job_id, best=200, kind="eval")[-1] == by_step[1]
    assert by_step[3] not in listed(service, job_id, best=200)


def loss_of(loss):
    return "NaN" if loss != loss else loss


def test_the_best_of_a_past_that_is_superseded_are_left_out(service, digits_spec):
    job_id, rank = running(service, digits_spec, keep_last=10)
    rank.save(1, kind="resume")
    better = rank.save(3, loss=0.5)
    post(service, better, "pin")
    lose(service, rank)
    rank = service.claim()
    rank.report(step_event(2))
    worse = rank.save(4, loss=2.0)
    assert service.get(f"/checkpoints/{better}").status_code == 200
    assert listed(service, job_id, best=2) == [worse]


@pytest.mark.parametrize(
    "params",
    [{"best": 0}, {"best": 201}, {"best": 1, "kind": "resume"}, {"best": 1, "after": "ckpt_1"}],
)
def test_a_best_that_makes_no_sense_is_refused(service, digits_spec, params):
    job_id = service.submit(digits_spec)
    answer = service.get(f"/jobs/{job_id}/checkpoints", params=params)
    assert answer.status_code == 422
    assert "best" in answer.text


# ---- history -----------------------------------------------------------------------------------


def told(service, job_id):
    events = service.get(f"/jobs/{job_id}/events", params={"limit": 200}).json()["data"]
    ours = ("checkpoint.pinned", "checkpoint.unpinned", "checkpoint.deleted")
    return [(event["code"], event["message"]) for event in events if event["code"] in ours]


def test_what_users_do_with_checkpoints_is_in_the_history_of_the_job_once(service, digits_spec):
    job_id, rank = running(service, digits_spec)
    saved, state = rank.save(1), rank.save(2, kind="resume")
    rank.save(3, kind="resume")
    for verb in ("pin", "pin", "unpin", "unpin"):
        post(service, saved, verb)
    for one in (saved, state):
        assert delete(service, one).status_code == 204
    assert told(service, job_id) == [
        ("checkpoint.pinned", f"the eval checkpoint of step 1, {saved}, was pinned"),
        ("checkpoint.unpinned", f"the eval checkpoint of step 1, {saved}, was unpinned"),
        ("checkpoint.deleted", f"the eval checkpoint of step 1, {saved}, was deleted"),
        ("checkpoint.deleted", f"the training state of step 2, {state}, was deleted"),
    ]


def test_what_is_refused_is_not_in_the_history(service, digits_spec):
    job_id, rank = running(service, digits_spec)
    saved = rank.save(1)
    post(service, saved, "pin")
    assert delete(service, saved).status_code == 409
    assert [code for code, _ in told(service, job_id)] == ["checkpoint.pinned"]
