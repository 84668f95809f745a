"""Early stopping ends a job with the same step whatever happens to it meanwhile."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from training_bench import Bench, bits, make_brief, make_spec

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.job.budget import BudgetSpec
from roadless.service.contract.reports.events import BudgetNow
from roadless.service.contract.states import Desired, Reason
from roadless.worker.early_stopping import EarlyStoppingRecord, judge, reached
from roadless.worker.errors import DataInvalid
from roadless.worker.position import Position
from roadless.worker.reporting.outbox import Heard

LOSSES = st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=30)


def budget_of(**limits: Any) -> BudgetSpec:
    return BudgetSpec.model_validate(limits)


def ends_after(losses: list[float], budget: BudgetSpec) -> tuple[int, Reason] | None:
    """After how many evaluations the job ends."""
    record = EarlyStoppingRecord()
    for number, loss in enumerate(losses, start=1):
        record = judge(record, {"eval.loss": loss}, budget=budget)
        if reason := reached(record, budget):
            return number, reason
    return None


# ---- the pure part ------------------------------------------------------------------------------


@given(losses=LOSSES, patience=st.integers(1, 6), delta=st.sampled_from([0.0, 0.5]))
def test_patience_ends_with_the_first_evaluation_that_has_no_gain_behind_it(
    losses: list[float], patience: int, delta: float
) -> None:
    """Against a plain count that starts anew at each number better than all before by delta."""
    budget = budget_of(patience={"evaluations": patience, "min_delta": delta})
    best, waited, expected = None, 0, None
    for number, loss in enumerate(losses, start=1):
        is_first = best is None and not math.isnan(loss)
        if is_first or (best is not None and best - loss > delta):
            best, waited = loss, 0
        else:
            waited += 1
        if waited == patience:
            expected = number, Reason.NO_BETTER
            break
    assert ends_after(losses, budget) == expected


@given(losses=LOSSES, value=st.floats(-10, 10), mode=st.sampled_from(["min", "max"]))
def test_until_ends_with_the_first_value_that_is_good_enough(
    losses: list[float], value: float, mode: str
) -> None:
    budget = budget_of(until={"metric": "eval.loss", "value": value, "mode": mode})
    good = [n for n, x in enumerate(losses, 1) if (x <= value if mode == "min" else x >= value)]
    expected = (good[0], Reason.GOAL_REACHED) if good else None
    assert ends_after(losses, budget) == expected


def test_another_budget_lets_the_job_go_on_and_waits_anew() -> None:
    budget = budget_of(max_steps=10, patience={"evaluations": 2})
    more = budget_of(max_steps=20, patience={"evaluations": 2})
    record = EarlyStoppingRecord()
    for loss in (1.0, 2.0, 2.0):
        record = judge(record, {"eval.loss": loss}, budget=budget)
    assert reached(record, budget) is Reason.NO_BETTER
    assert reached(record, more) is None
    once = judge(record, {"eval.loss": 1.5}, budget=more)
    assert reached(once, more) is None
    twice = judge(once, {"eval.loss": 1.5}, budget=more)
    assert reached(twice, more) is Reason.NO_BETTER


def test_what_was_under_way_when_a_goal_was_reached_takes_nothing_back() -> None:
    """Evaluations beside training: several may end between two steps."""
    budget = budget_of(patience={"evaluations": 2})
    record = EarlyStoppingRecord()
    for loss in (1.0, 2.0, 2.0):
        record = judge(record, {"eval.loss": loss}, budget=budget)
    for loss in (2.0, 0.5):
        assert judge(record, {"eval.loss": loss}, budget=budget) == record
    assert reached(record, budget) is Reason.NO_BETTER


def test_of_another_metric_the_record_knows_nothing() -> None:
    first = judge(
        EarlyStoppingRecord(), {"eval.loss": 0.1}, budget=budget_of(patience={"evaluations": 1})
    )
    accuracy = {"metric": "eval.accuracy", "mode": "max", "evaluations": 1}
    values = {"eval.loss": 9.0, "eval.accuracy": 0.05}
    second = judge(first, values, budget=budget_of(patience=accuracy))
    assert (second.best, second.reached) == (0.05, None)


def test_a_metric_that_the_data_does_not_have_is_named() -> None:
    budget = budget_of(until={"metric": "eval.top5_accuracy", "value": 1, "mode": "max"})
    with pytest.raises(DataInvalid, match=r"expected the metric 'eval.top5_accuracy' of this data"):
        judge(EarlyStoppingRecord(), {"eval.loss": 1.0}, budget=budget)


def test_a_state_of_an_earlier_release_has_no_record() -> None:
    assert Position.from_record({"step": 3, "samples": 24}) == Position(step=3, samples=24)


def test_a_goal_of_another_task_is_refused_by_the_specification() -> None:
    until = {"metric": "eval.perplexity", "value": 9, "mode": "min"}
    expected = "expected budget.until.metric among eval.accuracy, .* saw 'eval.perplexity'"
    with pytest.raises(ValidationError, match=expected):
        make_spec(budget={"until": until})


# ---- the loop -----------------------------------------------------------------------------------

PATIENT = {
    "evaluation": {"every_steps": 2},
    "budget": {
        "max_steps": 40,
        "patience": {"metric": "eval.accuracy", "mode": "max", "evaluations": 3, "min_delta": 0.2},
    },
}


def steps_of(bench: Bench) -> list[int]:
    return [point.step for point in bench.reporter.steps]


def test_a_goal_ends_the_run_with_the_evaluation_that_finds_it(tmp_path: Path) -> None:
    until = {"metric": "eval.loss", "value": 2.2, "mode": "min"}
    brief = make_brief(
        evaluation={"every_steps": 3},
        checkpoints={"state_every_steps": 3},
        budget={"max_steps": 90, "until": until},
    )
    bench = Bench(brief, tmp_path)
    assert bench.training.run() is Reason.GOAL_REACHED
    *before, last = (point.loss for point in bench.reporter.evals)
    assert last <= 2.2 < min(before)
    assert bench.training.step == 3 * len(bench.reporter.evals)
    states = bench.reporter.of_kind(CheckpointKind.RESUME)
    assert states[-1].manifest.step == bench.training.step


def test_an_ended_run_ends_again_at_once_unless_its_budget_grows(tmp_path: Path) -> None:
    first = Bench(make_brief(**PATIENT), tmp_path / "1")
    assert first.training.run() is Reason.NO_BETTER
    again = Bench(make_brief(**PATIENT), tmp_path / "2", resume=first.last_state)
    assert again.training.run() is Reason.NO_BETTER
    assert steps_of(again) == []
    grown = {**PATIENT, "budget": {**PATIENT["budget"], "max_steps": 41}}
    longer = Bench(make_brief(**grown), tmp_path / "3", resume=first.last_state)
    longer.training.run()
    assert len(steps_of(longer)) >= 6


@settings(max_examples=12, deadline=None)
@given(pauses=st.sets(st.integers(1, 11), max_size=3))
def test_a_run_that_is_disturbed_ends_with_the_step_of_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, pauses: set[int]
) -> None:
    """Pauses bring evaluations of their own, which must not count; nor does their place matter."""
    folder = tmp_path_factory.mktemp("early")
    whole = Bench(make_brief(**PATIENT), folder / "whole")
    assert whole.training.run() is Reason.NO_BETTER
    assert 8 <= whole.training.step < 40
    last, reason = None, None
    while reason in (None, Reason.PAUSED_BY_USER):
        start = last.training.step if last else 0
        until_pause = min((at for at in pauses if at > start + 1), default=99) - start
        part = Bench(
            make_brief(**PATIENT),
            folder / str(start),
            script={until_pause - 1: Heard(Desired.PAUSE)},
            resume=last.last_state if last else None,
        )
        reason, last = part.training.run(), part
    assert last.training.step == whole.training.step
    assert bits(last.state) == bits(whole.state)


def test_an_evaluation_that_a_user_asks_for_does_not_count(tmp_path: Path) -> None:
    whole = Bench(make_brief(**PATIENT), tmp_path / "whole")
    whole.training.run()
    script = {n: Heard(evaluations_requested=n) for n in range(1, 40)}
    asked = Bench(make_brief(**PATIENT), tmp_path / "asked", script=script)
    assert asked.training.run() is Reason.NO_BETTER
    assert asked.training.step == whole.training.step


def test_goals_follow_a_budget_that_changes_while_ranks_train(tmp_path: Path) -> None:
    until = {"metric": "eval.loss", "value": 100.0, "mode": "min"}
    heard = Heard(budget=BudgetNow(limits=budget_of(until=until)))
    brief = make_brief(evaluation={"every_steps": 4}, budget={"max_steps": 20})
    bench = Bench(brief, tmp_path, script={5: heard})
    assert bench.training.run() is Reason.GOAL_REACHED
    assert bench.training.step == 8
