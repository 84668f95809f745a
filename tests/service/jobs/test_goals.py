"""A goal ends a job as a used-up limit does, and an extension keeps it."""

import pytest
from pydantic import ValidationError

from roadless.service.contract.job.budget import METRICS, BudgetSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.requests import Extend
from roadless.service.contract.resources import Progress
from roadless.service.contract.states import REACHED, Reason
from roadless.service.errors import Invalid
from roadless.service.jobs.extension import extended
from roadless.worker.evaluation.task import metrics, score_names

SPEC = {
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
}
UNTIL = {"metric": "eval.accuracy", "value": 0.9, "mode": "max"}


def spec_of(**changes: object) -> JobSpec:
    return JobSpec.model_validate(SPEC | changes)


def grown(spec: JobSpec, **amounts: int) -> BudgetSpec | None:
    progress = Progress(step=10, samples=640, tokens=0, wall_seconds=1.0, gpu_seconds=0.0)
    return extended(spec, Extend(**amounts), progress=progress, from_step=10).budget


@pytest.mark.parametrize("task", METRICS)
def test_the_contract_names_what_evaluations_tell(task):
    """The service names metrics without importing those who compute them."""
    names = score_names(task, num_classes=100)
    told = metrics(task, dict.fromkeys(names, 1.0), bytes_per_token=4.0)
    assert METRICS[task] == {"eval.loss", *(f"eval.{name}" for name in told)}


def test_an_extension_keeps_goals_and_adds_to_limits():
    budget = {"max_steps": 10, "until": UNTIL, "patience": {"evaluations": 3}}
    before = spec_of(budget=budget)
    after = grown(before, steps=5)
    assert after == before.budget.model_copy(update={"max_steps": 15})


def test_there_is_nothing_to_add_to_where_a_budget_has_goals_only():
    with pytest.raises(Invalid, match=r"what the budget limits \(goals only\)"):
        grown(spec_of(budget={"until": UNTIL}), steps=5)


def test_a_goal_alone_is_a_budget():
    assert spec_of(budget={"patience": {"evaluations": 3}}).budget.patience.metric == "eval.loss"


def test_metrics_that_no_evaluation_of_the_task_has_are_refused():
    with pytest.raises(ValidationError, match=r"budget\.patience\.metric among eval\.accuracy"):
        spec_of(budget={"patience": {"metric": "eval.mae", "evaluations": 3}})


def test_a_watchdog_has_bounds():
    assert spec_of().retry.hang_seconds == 600
    for seconds in (0, 10**6):
        with pytest.raises(ValidationError):
            spec_of(retry={"hang_seconds": seconds})


def test_what_is_reached_is_no_fault():
    assert {Reason.BUDGET_REACHED, Reason.GOAL_REACHED, Reason.NO_BETTER} == REACHED


# ---- endings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["goal_reached", "no_better"])
def test_a_job_that_reaches_its_goal_succeeds(service, digits_spec, reason):
    job_id, rank = service.running(digits_spec)
    rank.report({"kind": "finished", "reason": reason, "step": 1})
    service.sync(released=[rank.assignment["attempt_id"]])
    job = service.job(job_id)
    assert (job["phase"], job["reason"]) == ("SUCCEEDED", reason)


def test_a_goal_of_a_budget_that_was_changed_meanwhile_is_no_end(service, digits_spec):
    """The user let the job go on while its ranks were leaving: another attempt follows."""
    until = {"metric": "eval.loss", "value": 2.0, "mode": "min"}
    job_id, rank = service.running({**digits_spec, "budget": {"max_steps": 50, "until": until}})
    limits = {"max_steps": 50, "until": {**until, "value": 1.0}}
    etag = service.get(f"/jobs/{job_id}").headers["etag"]
    headers = {**service.user, "If-Match": etag}
    answer = service.http.patch(f"/v1/jobs/{job_id}", json={"budget": limits}, headers=headers)
    assert answer.status_code == 200
    reached = {"limits": {"max_steps": 50, "until": until}}
    rank.report({"kind": "finished", "reason": "goal_reached", "step": 1, "budget": reached})
    assert service.phase(job_id) == "RECOVERING"


def test_a_rank_that_hangs_is_tried_again(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report({"kind": "failed", "reason": "rank_hung", "message": "rank 0: no step"})
    assert service.phase(job_id) == "RECOVERING"
