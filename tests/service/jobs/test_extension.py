"""A larger budget: added up, heard by ranks that train, and opening what has finished."""

import pytest
from played import step_event

from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.requests import Extend
from roadless.service.contract.resources import Progress
from roadless.service.errors import Invalid
from roadless.service.jobs.extension import extended

FINISHED = {"kind": "finished", "reason": "budget_reached"}
WSD = {"name": "wsd", "cooldown_len": 0.2}
ADAMW = {"name": "adamw", "lr": 0.01}
COOLDOWN = {"kind": "cooldown", "cooldown_len": 0.5}


def extend(digits_spec, asked, *, budget, step=0, wall_seconds=0.0, **changes):
    """The budget that comes of it."""
    spec = JobSpec.model_validate({**digits_spec, "budget": budget, **changes})
    progress = Progress(step=step, samples=64 * step, wall_seconds=wall_seconds)
    after = extended(spec, Extend.model_validate(asked), progress=progress, from_step=step)
    return after.budget and after.budget.model_dump(exclude_none=True)


# ---- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "asked", "wanted"),
    [
        ({"max_steps": 500}, {"steps": 100}, {"max_steps": 600}),
        (
            {"max_steps": 500, "max_seconds": 60},
            {"seconds": 0.5},
            {"max_steps": 500, "max_seconds": 60.5},
        ),
        ({"max_samples": 64 * 400}, {"samples": 1}, {"max_samples": 64 * 400 + 1}),
        ({"max_steps": 500}, {}, None),
        (None, {"steps": 100}, {"max_steps": 420}),
        (None, {"seconds": 60, "samples": 64}, {"max_seconds": 92.0, "max_samples": 64 * 321}),
        (None, {}, None),
    ],
)
def test_what_is_asked_for_is_added(digits_spec, budget, asked, wanted):
    """To the limits of the budget; an open-ended job's is counted from where it stands."""
    assert extend(digits_spec, asked, budget=budget, step=320, wall_seconds=32.0) == wanted


@pytest.mark.parametrize(
    ("budget", "asked", "said"),
    [
        ({"max_steps": 500}, {"seconds": 60}, r"expected an amount of what .* limits \(steps\)"),
        ({"max_steps": 500, "max_seconds": 99}, {"seconds": 1}, "leaves room below max_steps"),
        ({"max_seconds": 30}, {"seconds": 1}, "saw 31.0 with 32.0 used"),
        (None, {"tokens": 5}, "expected no max_tokens"),
        (None, {"gpu_seconds": 5}, "expected no max_gpu_seconds"),
    ],
)
def test_an_amount_that_leads_nowhere_is_refused(digits_spec, budget, asked, said):
    with pytest.raises(Invalid, match=said):
        extend(digits_spec, asked, budget=budget, step=500, wall_seconds=32.0)


@pytest.mark.parametrize("asked", [{"steps": 0}, {"seconds": -1}, {"epochs": 3}, {"steps": 2**60}])
def test_no_amount_is_zero_negative_unknown_or_beyond_reason(service, digits_spec, asked):
    job_id = service.submit(digits_spec)
    assert service.post(f"/jobs/{job_id}/extend", json=asked).status_code == 422


# ---- schedules that know their end ---------------------------------------------------------------


def test_a_schedule_free_job_needs_no_plan_and_takes_none(digits_spec):
    assert extend(digits_spec, {"steps": 1}, budget={"max_steps": 5}) == {"max_steps": 6}
    with pytest.raises(Invalid, match="expected no plan"):
        extend(digits_spec, {"steps": 1, "plan": COOLDOWN}, budget={"max_steps": 5})


@pytest.mark.parametrize("name", ["constant", "sqrt"])
def test_nor_does_a_schedule_without_a_horizon(digits_spec, name):
    changes = {"schedule": {"name": name}, "optimizer": ADAMW}
    assert extend(digits_spec, {"steps": 1}, budget={"max_steps": 5}, **changes) == {"max_steps": 6}


def test_a_schedule_with_a_horizon_is_asked_for_a_plan_and_told_who_needs_none(digits_spec):
    with pytest.raises(Invalid, match="Schedule-free jobs need no plan") as caught:
        extend(
            digits_spec,
            {"steps": 100},
            budget={"max_steps": 500},
            schedule=WSD,
            optimizer=ADAMW,
        )
    (fault,) = caught.value.errors
    assert fault.pointer == "/plan"
    for kind in ("cooldown", "second_stage", "keep_last_rate"):
        assert kind in fault.message


def test_a_schedule_with_a_horizon_cannot_become_open_ended(digits_spec):
    with pytest.raises(Invalid, match="expected a number of steps"):
        extend(digits_spec, {}, budget={"max_steps": 500}, schedule=WSD, optimizer=ADAMW)


def test_more_seconds_leave_the_rates_as_they_are(digits_spec):
    budget = {"max_steps": 500, "max_seconds": 10}
    changes = {"schedule": WSD, "optimizer": ADAMW}
    grown = extend(digits_spec, {"seconds": 5}, budget=budget, **changes)
    assert grown == {"max_steps": 500, "max_seconds": 15}


def test_a_plan_that_the_schedule_cannot_follow_is_refused_where_it_stands(digits_spec):
    with pytest.raises(Invalid, match="for 'cosine'") as caught:
        extend(
            digits_spec,
            {"steps": 100, "plan": COOLDOWN},
            budget={"max_steps": 500},
            schedule={"name": "cosine"},
            optimizer=ADAMW,
        )
    assert caught.value.errors[0].pointer == "/plan"


def test_a_plan_is_written_into_the_specification(service, digits_spec):
    """So the rates stay a function of it, and its copy, sent anew, trains the same curve."""
    spec = {**digits_spec, "schedule": WSD, "optimizer": ADAMW, "budget": {"max_steps": 20}}
    job_id, rank = service.running(spec, steps=20)
    rank.save(20, kind="resume")
    rank.report({**FINISHED, "step": 20})
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    asked = {"steps": 30, "plan": COOLDOWN}
    job = service.post(f"/jobs/{job_id}/extend", json=asked).json()
    assert (job["phase"], job["spec"]["budget"]["max_steps"]) == ("QUEUED", 50)
    (extension,) = job["spec"]["schedule_extensions"]
    assert extension == {"from_step": 20, "horizon": 20, "plan": COOLDOWN}
    assert service.claim().brief()["spec"]["schedule_extensions"] == [extension]
    copy = service.post("/jobs", json=job["spec"])
    assert copy.status_code == 201


def test_ranks_that_follow_a_schedule_are_paused_before_their_rates_change(service, digits_spec):
    spec = {**digits_spec, "schedule": WSD, "optimizer": ADAMW}
    job_id, _ = service.running(spec)
    answer = service.post(f"/jobs/{job_id}/extend", json={"steps": 5, "plan": COOLDOWN})
    assert answer.status_code == 409
    assert "pause, extend and resume it" in answer.json()["detail"]
    assert service.job(job_id)["spec"]["schedule_extensions"] == []


# ---- jobs that train -----------------------------------------------------------------------------


def test_ranks_hear_of_a_larger_budget_with_their_next_report(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    assert rank.report(step_event(2)).json()["budget"]["limits"]["max_steps"] == 500
    job = service.post(f"/jobs/{job_id}/extend", json={"steps": 100}).json()
    assert job["phase"] == "RUNNING"
    assert rank.report(step_event(3)).json()["budget"]["limits"]["max_steps"] == 600
    service.post(f"/jobs/{job_id}/extend")
    assert rank.report(step_event(4)).json()["budget"] == {"limits": None}
    assert service.job(job_id)["attempt"]["fence"] == 1


def test_an_extension_retried_with_its_key_is_added_once(service, digits_spec):
    job_id = service.submit(digits_spec)
    key = {"Idempotency-Key": "more"}
    answers = [
        service.post(f"/jobs/{job_id}/extend", json={"steps": 100}, headers=key) for _ in range(3)
    ]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [
        None,
        "true",
        "true",
    ]
    assert service.job(job_id)["spec"]["budget"]["max_steps"] == 600


def test_a_budget_extended_while_the_ranks_were_leaving_is_not_used_up(service, digits_spec):
    """They said goodbye to the old budget; another attempt continues under the new one."""
    job_id, rank = service.running({**digits_spec, "budget": {"max_steps": 20}}, steps=20)
    rank.save(20, kind="resume")
    service.post(f"/jobs/{job_id}/extend", json={"steps": 5})
    obeyed = {"limits": {"max_steps": 20}}
    rank.report({**FINISHED, "step": 20, "budget": obeyed})
    assert service.phase(job_id) == "RECOVERING"
    second = service.claim(released=[rank.assignment["attempt_id"]])
    assert second.brief()["spec"]["budget"]["max_steps"] == 25
    second.report({**FINISHED, "step": 25, "budget": {"limits": {"max_steps": 25}}})
    assert service.phase(job_id) == "FINISHING"


def test_a_stop_is_a_stop_though_the_budget_was_extended_before_it(service, digits_spec):
    job_id, rank = service.running({**digits_spec, "budget": {"max_steps": 20}}, steps=20)
    service.post(f"/jobs/{job_id}/extend", json={"steps": 5})
    service.post(f"/jobs/{job_id}/stop")
    rank.report({**FINISHED, "step": 20, "budget": {"limits": {"max_steps": 20}}})
    service.sync(released=[rank.assignment["attempt_id"]])
    assert (service.phase(job_id), service.job(job_id)["reason"]) == ("STOPPED", "stopped_by_user")


def test_a_job_whose_seats_are_being_released_goes_on_once_they_are(service, digits_spec):
    job_id, rank = service.running({**digits_spec, "budget": {"max_steps": 20}}, steps=20)
    rank.save(20, kind="resume")
    rank.report({**FINISHED, "step": 20})
    assert service.post(f"/jobs/{job_id}/extend", json={"steps": 5}).json()["phase"] == "RECOVERING"
    second = service.claim(released=[rank.assignment["attempt_id"]])
    assert second.brief()["resume"]["step"] == 20


# ---- jobs that have ended ------------------------------------------------------------------------


def test_a_finished_job_is_opened_again_and_goes_on_from_its_last_state(service, digits_spec):
    job_id, rank = service.running({**digits_spec, "budget": {"max_steps": 20}}, steps=20)
    rank.save(20, kind="resume")
    rank.report({**FINISHED, "step": 20})
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    assert service.phase(job_id) == "SUCCEEDED"
    job = service.post(f"/jobs/{job_id}/extend", json={"steps": 5}).json()
    assert (job["phase"], job["desired"], job["ended_at"]) == ("QUEUED", "run", None)
    assert service.claim().brief()["resume"]["step"] == 20
    events = service.get(f"/jobs/{job_id}/events").json()["data"]
    (told,) = [event["message"] for event in events if event["code"] == "budget.extended"]
    assert told == "max_steps 20 -> max_steps 25"


def test_a_paused_job_stays_paused_with_its_larger_budget(service, digits_spec):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/pause")
    job = service.post(f"/jobs/{job_id}/extend", json={"steps": 5}).json()
    assert (job["phase"], job["spec"]["budget"]["max_steps"]) == ("PAUSED", 505)
    assert service.sync()["start"] == []


def test_a_cancelled_job_is_not_extended(service, digits_spec):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/cancel")
    answer = service.post(f"/jobs/{job_id}/extend", json={"steps": 5})
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "a CANCELLED job does not accept extend",
    )
    assert service.job(job_id)["spec"]["budget"]["max_steps"] == 500


def test_a_budget_beyond_what_counters_hold_is_refused(service, digits_spec):
    spec = digits_spec | {"schedule": {"name": "wsd"}, "optimizer": {"name": "adamw"}}
    for limit in (2**60 + 1, 10**400):
        answer = service.post("/jobs", json={**spec, "budget": {"max_steps": limit}})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/budget/max_steps"


def test_an_extension_beyond_it_is_refused_with_the_way_out(service, digits_spec):
    job_id = service.submit({**digits_spec, "budget": {"max_steps": 2**60 - 1}})
    answer = service.post(f"/jobs/{job_id}/extend", json={"steps": 2})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "/steps"
    assert "add less" in fault["message"]
    assert service.post(f"/jobs/{job_id}/extend", json={"steps": 1}).status_code == 202
