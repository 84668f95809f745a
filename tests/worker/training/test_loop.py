"""The loop of one rank: when it evaluates, saves and ends, and that stopping leaves no trace."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_bench import CONVNET, MLP, Bench, bits, make_brief

from roadless.optim import averaged_point
from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.reports.events import EvalPoint, Notice, StepMetrics
from roadless.service.contract.states import Desired, Reason
from roadless.worker.errors import NonFiniteLoss
from roadless.worker.evaluation.evaluate import reevaluate
from roadless.worker.position import Position
from roadless.worker.reporting.outbox import Heard
from roadless.worker.training.loop import seed_step

STOP = Heard(Desired.STOP)
SGD = {"name": "sgd_schedulefree", "lr": 0.5, "weight_decay": 0.01}
ADAMW = {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 4}


def values_of(points: list[StepMetrics] | list[EvalPoint]) -> list[Any]:
    """What makes two curves equal: everything but seconds, floats as their bits."""
    ignored = {"seq", "wall_seconds", "gpu_seconds"}
    return [bits(point.model_dump(exclude=ignored)) for point in points]


def steps_of(points: list[StepMetrics] | list[EvalPoint]) -> list[int]:
    return [point.step for point in points]


def dropping_model() -> nn.Module:
    """Draws random numbers in every step, and has batch norm."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 10)
    )


# ---- stopping leaves no trace -------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_run_in_several_attempts_is_the_uninterrupted_run(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Stopped or extended at any step: curves, parameters, buffers, optimizer; with dropout."""
    folder = tmp_path_factory.mktemp("loop")
    splits = sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=3)))
    changes = {
        "model": data.draw(st.sampled_from([MLP, CONVNET])),
        "optimizer": data.draw(st.sampled_from([SGD, ADAMW])),
        "evaluation": {"every_steps": data.draw(st.integers(1, 4))},
        "training": {"max_grad_norm": data.draw(st.sampled_from([None, 0.5]))},
        "budget": {"max_steps": 10},
    }
    model = data.draw(st.sampled_from([dropping_model, lambda: None]))
    whole = Bench(make_brief(**changes), folder / "whole", model=model())
    assert whole.training.run() is Reason.BUDGET_REACHED

    steps, evals, last = [], {}, None
    for start, end in itertools.pairwise([0, *splits, 10]):
        torch.manual_seed(data.draw(st.integers(0, 99)))
        # A stop is obeyed by the step after the one with which it is heard.
        is_stopped = end - start >= 2 and end < 10
        brief = make_brief(**changes | {"budget": {"max_steps": 10 if is_stopped else end}})
        part = Bench(
            brief.model_copy(update={"resume": manifest_of(last) if last else None}),
            folder / str(start),
            model=model(),
            script={end - start - 1: STOP} if is_stopped else {},
            resume=last.last_state if last else None,
        )
        expected = Reason.STOPPED_BY_USER if is_stopped else Reason.BUDGET_REACHED
        assert part.training.run() is expected
        assert part.training.step == end
        steps += part.reporter.steps
        assert not evals.keys() & set(steps_of(part.reporter.evals))
        evals |= {point.step: point for point in part.reporter.evals}
        last = part
    assert values_of(steps) == values_of(whole.reporter.steps)
    common = [evals[point.step] for point in whole.reporter.evals]
    assert values_of(common) == values_of(whole.reporter.evals)
    assert bits(last.state) == bits(whole.state)


def manifest_of(bench: Bench) -> Manifest:
    return bench.reporter.of_kind(CheckpointKind.RESUME)[-1].manifest


@pytest.mark.parametrize("model", [dropping_model, lambda: None], ids=["dropout", "convnet"])
def test_training_does_not_notice_evaluations(tmp_path: Path, model: Any) -> None:
    """Not in a single bit: steps, y, z, moments, and the statistics of batch norm in training."""
    often, seldom = (
        Bench(
            make_brief(model=CONVNET, evaluation={"every_steps": every}),
            tmp_path / str(every),
            model=model(),
        )
        for every in (1, 1000)
    )
    for bench in (often, seldom):
        bench.training.run()
    assert len(often.reporter.evals) == 6
    assert values_of(often.reporter.steps) == values_of(seldom.reporter.steps)
    assert bits(often.state) == bits(seldom.state)
    assert values_of(often.reporter.evals[-1:]) == values_of(seldom.reporter.evals)


def test_random_numbers_of_a_step_depend_on_seed_step_and_rank_alone() -> None:
    seen = set()
    for seed, step, rank in itertools.product((0, 1, 2**63 - 1), (0, 1, 10**9), (0, 1, 4095)):
        torch.manual_seed(len(seen))
        first, again = (drawn_after(seed, step=step, rank=rank) for _ in range(2))
        assert first == again
        seen.add(first)
    assert len(seen) == 27


def drawn_after(seed: int, *, step: int, rank: int) -> tuple[float, ...]:
    """What torch, numpy and Python draw in a step."""
    seed_step(seed, step=step, rank=rank, device=torch.device("cpu"), is_foreign=True)
    return (*torch.rand(4).tolist(), *np.random.rand(2).tolist(), random.random())


def test_a_step_on_a_cpu_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own seeding would note the stack of each step for them, slowly."""

    def refuse(seed: int) -> None:
        raise AssertionError(f"expected no device to be seeded, saw {seed}")

    for devices in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(devices, "manual_seed_all", refuse)
    seed_step(0, step=1, rank=0, device=torch.device("cpu"), is_foreign=True)


# ---- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "last_step"),
    [({"max_steps": 3}, 3), ({"max_samples": 33}, 5), ({"max_samples": 32}, 4)],
)
def test_the_budget_ends_the_run(tmp_path: Path, budget: dict[str, Any], last_step: int) -> None:
    bench = Bench(make_brief(budget=budget), tmp_path)
    assert bench.training.run() is Reason.BUDGET_REACHED
    assert bench.training.step == last_step
    assert steps_of(bench.reporter.steps) == list(range(1, last_step + 1))
    assert bench.reporter.steps[-1].samples == 8 * last_step


def test_a_budget_of_tokens_ends_the_run(tmp_path: Path) -> None:
    gpt = {"kind": "preset", "name": "gpt", "layers": 1, "width": 8, "heads": 1, "context": 4}
    brief = make_brief(
        model=gpt,
        data={"kind": "builtin", "name": "python_stdlib_bytes"},
        task="causal_lm",
        budget={"max_tokens": 8 * 4 * 2 + 1},
    )
    bench = Bench(brief, tmp_path)
    assert bench.training.run() is Reason.BUDGET_REACHED
    assert [(point.step, point.tokens) for point in bench.reporter.steps] == [
        (1, 32),
        (2, 64),
        (3, 96),
    ]


def test_a_budget_of_seconds_ends_the_run_and_counts_earlier_attempts(tmp_path: Path) -> None:
    bench = Bench(make_brief(budget={"max_seconds": 0.3}), tmp_path)
    assert bench.training.run() is Reason.BUDGET_REACHED
    last = bench.reporter.steps[-1]
    assert 0.25 < last.wall_seconds < 2
    assert last.gpu_seconds == 0
    again = Bench(make_brief(budget={"max_seconds": 0.3}), tmp_path / "2", resume=bench.last_state)
    assert again.training.run() is Reason.BUDGET_REACHED
    assert again.reporter.steps == []


def test_a_run_without_a_budget_ends_when_the_user_stops_it(tmp_path: Path) -> None:
    """With an evaluation and a training state of the last step, whatever the cadence."""
    bench = Bench(make_brief(budget=None), tmp_path, script={4: STOP})
    assert bench.training.run() is Reason.STOPPED_BY_USER
    assert bench.reporter.order == [*["step"] * 5, "eval", "eval", "resume"]
    assert steps_of(bench.reporter.evals) == [5]
    assert [staged.manifest.step for staged in bench.reporter.published] == [5, 5]


def test_a_stop_heard_before_the_first_step_is_obeyed(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, script={0: STOP})
    assert bench.training.run() is Reason.STOPPED_BY_USER
    assert bench.reporter.order == ["eval", "eval", "resume"]
    assert bench.reporter.evals[0].step == 0


def test_a_fenced_attempt_leaves_without_a_word(tmp_path: Path) -> None:
    brief = make_brief(evaluation={"every_steps": 1}, checkpoints={"state_every_steps": 1})
    bench = Bench(brief, tmp_path, script={2: Heard(is_fenced=True)})
    assert bench.training.run() is None
    assert bench.training.step == 3
    assert steps_of(bench.reporter.evals) == [1, 2]
    bench.states.close()
    saved = bench.reporter.of_kind(CheckpointKind.RESUME)
    assert [staged.manifest.step for staged in evals_of(bench)] == [1, 2]
    assert [staged.manifest.step for staged in saved] == [1, 2]


# ---- evaluations --------------------------------------------------------------------------------


def test_evaluations_come_as_often_as_specified_and_at_the_end(tmp_path: Path) -> None:
    bench = Bench(make_brief(evaluation={"every_steps": 4}, budget={"max_steps": 9}), tmp_path)
    bench.training.run()
    assert steps_of(bench.reporter.evals) == [4, 8, 9]


def test_a_step_is_evaluated_once(tmp_path: Path) -> None:
    """Although it is due, asked for, and the last one."""
    script = {5: Heard(evaluations_requested=1)}
    bench = Bench(make_brief(evaluation={"every_steps": 3}), tmp_path, script=script)
    bench.training.run()
    assert steps_of(bench.reporter.evals) == [3, 6]
    assert [staged.evaluations_served for staged in evals_of(bench)] == [0, 1]


def test_a_request_is_served_once_at_the_next_step(tmp_path: Path) -> None:
    script = {2: Heard(evaluations_requested=4), 4: Heard(evaluations_requested=5)}
    bench = Bench(make_brief(evaluations_served=3), tmp_path, script=script)
    bench.training.run()
    assert steps_of(bench.reporter.evals) == [3, 5, 6]
    assert [staged.evaluations_served for staged in evals_of(bench)] == [4, 5, 0]


def test_a_request_that_an_earlier_attempt_served_is_not_served_again(tmp_path: Path) -> None:
    script = {0: Heard(evaluations_requested=3)}
    bench = Bench(make_brief(evaluations_served=3), tmp_path, script=script)
    bench.training.run()
    assert steps_of(bench.reporter.evals) == [6]


def evals_of(bench: Bench) -> list[Any]:
    return bench.reporter.of_kind(CheckpointKind.EVAL)


def test_what_is_evaluated_is_the_averaged_point(tmp_path: Path) -> None:
    brief = make_brief()
    bench = Bench(brief, tmp_path)
    bench.training.run()
    average = averaged_point(bench.setup.optimizer)
    for parameter, value in average.items():
        parameter.data = value
    result = reevaluate(bench.setup.model, datasets=bench.setup.datasets, spec=brief.spec)
    assert bench.reporter.evals[-1].loss.hex() == result.loss.hex()


# ---- training states ----------------------------------------------------------------------------


def test_states_are_saved_as_often_as_specified_and_at_the_end(tmp_path: Path) -> None:
    bench = Bench(make_brief(checkpoints={"state_every_steps": 4}), tmp_path)
    bench.training.run()
    saved = bench.reporter.of_kind(CheckpointKind.RESUME)
    assert [staged.manifest.step for staged in saved] == [4, 6]


def test_an_end_that_is_due_anyway_is_saved_once(tmp_path: Path) -> None:
    brief = make_brief(checkpoints={"state_every_steps": 3}, evaluation={"every_steps": 2})
    bench = Bench(brief, tmp_path)
    bench.training.run()
    saved = bench.reporter.of_kind(CheckpointKind.RESUME)
    assert [staged.manifest.step for staged in saved] == [3, 6]


@pytest.mark.parametrize("every_steps", [3, 1000])
def test_a_state_knows_of_the_evaluation_of_its_step(tmp_path: Path, every_steps: int) -> None:
    """So a rank that dies before it has said that it ended does not evaluate the end twice."""
    brief = make_brief(
        checkpoints={"state_every_steps": 3}, evaluation={"every_steps": every_steps}
    )
    bench = Bench(brief, tmp_path / "1")
    bench.training.run()
    again = Bench(
        brief.model_copy(update={"resume": manifest_of(bench)}),
        tmp_path / "2",
        resume=bench.last_state,
    )
    assert again.training.run() is Reason.BUDGET_REACHED
    assert again.reporter.order == []


def test_a_state_without_the_evaluation_of_its_step_is_saved_again_with_it(tmp_path: Path) -> None:
    """Resumed and stopped at once: the next attempt must know what this one evaluated."""
    bench = Bench(make_brief(checkpoints={"state_every_steps": 3}), tmp_path / "1")
    bench.training.run()
    state_of_3, _ = bench.reporter.of_kind(CheckpointKind.RESUME)
    brief = make_brief().model_copy(update={"resume": state_of_3.manifest})
    stopped = Bench(brief, tmp_path / "2", resume=state_of_3.folder, script={0: STOP})
    assert stopped.training.run() is Reason.STOPPED_BY_USER
    assert stopped.reporter.order == ["eval", "eval", "resume"]
    assert stopped.training.step == 3


# ---- what is said -------------------------------------------------------------------------------


def test_a_step_says_where_it_stands_and_how_it_went(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, position=Position(step=10, samples=90, tokens=0))
    bench.training.take_step()
    (point,) = bench.reporter.steps
    assert (point.step, point.samples, point.tokens) == (11, 98, 0)
    assert point.values.keys() == {"train.loss", "grad.norm", "optimizer.lr"}
    assert point.values["optimizer.lr"] == pytest.approx(0.02 / 3)
    assert point.values["train.loss"] > 0
    assert point.values["grad.norm"] > 0
    assert point.wall_seconds > 0


# ---- what is not finite -------------------------------------------------------------------------


class SometimesBad(nn.Module):
    """A linear model whose loss is NaN in some steps, counted from 0 over all attempts."""

    def __init__(self, bad: set[int], *, first: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(64, 10)
        self.bad, self.calls = bad, itertools.count(first)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        is_bad = self.training and next(self.calls) in self.bad
        outputs: torch.Tensor = self.linear(inputs.flatten(1))
        return outputs * float("nan") if is_bad else outputs


def skipping(max_skips: int, **changes: Any) -> Any:
    training = {"on_non_finite": "skip", "max_skips": max_skips}
    return make_brief(training=training, **changes)


def test_skipped_steps_are_counted_and_told_and_training_goes_on(tmp_path: Path) -> None:
    """Told of the first, second and fourth; the state carries the count to the next attempt."""
    bench = Bench(skipping(2), tmp_path / "1", model=SometimesBad({1, 2, 4}))
    assert bench.training.run() is Reason.BUDGET_REACHED
    skipped = [point.values["train.skipped"] for point in bench.reporter.steps]
    assert skipped == [0, 1, 2, 2, 3, 3]
    notices = [event for event in bench.reporter.said if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["train.skipped"] * 2
    assert "step 2 made no update (skipped steps so far: 1): loss nan" in notices[0].message

    longer = skipping(2, budget={"max_steps": 8})
    again = Bench(longer, tmp_path / "2", model=SometimesBad({6}, first=6), resume=bench.last_state)
    again.training.run()
    assert [point.values["train.skipped"] for point in again.reporter.steps] == [4, 4]
    assert len([event for event in again.reporter.said if isinstance(event, Notice)]) == 1


def test_too_many_skips_in_a_row_fail_the_job(tmp_path: Path) -> None:
    bench = Bench(skipping(2), tmp_path, model=SometimesBad({0, 2, 3, 4}))
    with pytest.raises(NonFiniteLoss, match="expected a finite training loss, saw nan"):
        bench.training.run()
    assert bench.training.step == 4


def test_without_the_wish_nothing_is_skipped_nor_counted(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path, model=SometimesBad({3}))
    with pytest.raises(NonFiniteLoss):
        bench.training.run()
    assert "train.skipped" not in bench.reporter.steps[0].values


# ---- moving to more ranks -----------------------------------------------------------------------


def test_a_rank_that_is_to_move_leaves_with_the_next_training_state(tmp_path: Path) -> None:
    """And not before; without an evaluation that an undisturbed run would not have."""
    brief = make_brief(
        evaluation={"every_steps": 3}, checkpoints={"state_every_steps": 4}, budget=None
    )
    bench = Bench(brief, tmp_path, script={1: Heard(resize=True)})
    assert bench.training.run() is Reason.RESIZED
    assert bench.training.step == 4
    assert steps_of(bench.reporter.evals) == [3]
    saved = bench.reporter.of_kind(CheckpointKind.RESUME)
    assert [staged.manifest.step for staged in saved] == [4]


def test_a_stop_goes_before_a_move(tmp_path: Path) -> None:
    both = Heard(Desired.STOP, resize=True)
    brief = make_brief(checkpoints={"state_every_steps": 2}, budget=None)
    bench = Bench(brief, tmp_path, script={1: both})
    assert bench.training.run() is Reason.STOPPED_BY_USER
    assert steps_of(bench.reporter.evals) == [2]
