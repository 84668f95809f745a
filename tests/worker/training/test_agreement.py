"""What a user wants of ranks that train: a pause, a larger budget, or both at the same time."""

from pathlib import Path
from typing import Any

import pytest
from training_bench import Bench, bits, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.job.budget import BudgetSpec
from roadless.service.contract.reports.events import BudgetNow
from roadless.service.contract.states import Desired, Reason
from roadless.worker.reporting.outbox import Heard


def heard(desired: Desired = Desired.RUN, **limits: Any) -> Heard:
    budget = BudgetNow(limits=BudgetSpec(**limits)) if limits else None
    return Heard(desired, budget=budget)


def steps_of(bench: Bench) -> list[int]:
    return [step.step for step in bench.reporter.steps]


def test_a_pause_evaluates_saves_and_says_so(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, script={2: heard(Desired.PAUSE)})
    assert bench.training.run() is Reason.PAUSED_BY_USER
    assert bench.training.step == 3
    assert bench.reporter.order[-3:] == ["eval", CheckpointKind.EVAL, CheckpointKind.RESUME]
    assert bench.reporter.evals[-1].step == 3


def test_a_pause_before_the_first_step_saves_where_it_stands(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, script={0: heard(Desired.PAUSE)})
    assert bench.training.run() is Reason.PAUSED_BY_USER
    assert (steps_of(bench), bench.reporter.evals[-1].step) == ([], 0)


def test_a_paused_job_and_an_uninterrupted_one_end_with_the_same_bits(tmp_path: Path) -> None:
    whole = Bench(make_brief(), tmp_path / "whole")
    whole.training.run()
    first = Bench(make_brief(), tmp_path / "first", script={2: heard(Desired.PAUSE)})
    first.training.run()
    second = Bench(make_brief(), tmp_path / "second", resume=first.last_state)
    second.training.run()
    assert steps_of(first) + steps_of(second) == steps_of(whole)
    assert bits(second.state) == bits(whole.state)


def test_a_larger_budget_is_obeyed_without_a_pause(tmp_path: Path) -> None:
    """Not a bit of difference to a run that had it from the start."""
    whole = Bench(make_brief(budget={"max_steps": 9}), tmp_path / "whole")
    whole.training.run()
    grown = Bench(make_brief(), tmp_path / "grown", script={3: heard(max_steps=9)})
    assert grown.training.run() is Reason.BUDGET_REACHED
    assert steps_of(grown) == list(range(1, 10))
    assert grown.reporter.order == whole.reporter.order
    assert bits(grown.state) == bits(whole.state)


def test_a_budget_that_is_taken_away_leaves_an_open_ended_job(tmp_path: Path) -> None:
    script = {2: Heard(budget=BudgetNow(limits=None)), 9: heard(Desired.STOP)}
    bench = Bench(make_brief(), tmp_path, script=script)
    assert bench.training.run() is Reason.STOPPED_BY_USER
    assert bench.training.step == 10


def test_a_budget_below_what_is_used_ends_the_run_with_the_next_step(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, script={4: heard(max_steps=2)})
    assert bench.training.run() is Reason.BUDGET_REACHED
    assert bench.training.step == 5


def test_a_service_that_says_no_budget_leaves_that_of_the_specification(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, script={1: Heard(budget=None)})
    bench.training.run()
    assert bench.training.step == 6


def test_the_ranks_say_which_budget_they_have_used_up(tmp_path: Path) -> None:
    """One that grows after the last step is not theirs: the service then goes on."""
    script = {2: heard(max_steps=4), 4: heard(max_steps=99)}
    bench = Bench(make_brief(), tmp_path, script=script)
    assert bench.training.run() is Reason.BUDGET_REACHED
    assert bench.training.step == 4
    assert bench.training.budget == BudgetNow(limits=BudgetSpec(max_steps=4))


@pytest.mark.parametrize(
    ("desired", "reason"),
    [(Desired.STOP, Reason.STOPPED_BY_USER), (Desired.PAUSE, Reason.BUDGET_REACHED)],
)
def test_with_the_last_step_a_stop_comes_first_and_a_pause_last(
    tmp_path: Path, desired: Desired, reason: Reason
) -> None:
    """A job that is at its end has nothing to be paused for."""
    bench = Bench(make_brief(), tmp_path, script={5: heard(desired)})
    assert bench.training.run() is reason
    assert bench.training.step == 6
