"""The diagnostics of schedule-free training, held to what the optimizer does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_specs import OPTIMIZERS, make_optimizer
from torch import nn
from training_bench import Bench, make_brief

from roadless.optim import at_average, averaged_point
from roadless.service.contract.reports.events import Notice
from roadless.worker.evaluation.evaluate import reevaluate
from roadless.worker.training.diagnostics import (
    WARMUP_STEPS,
    Y_BETTER_EVALUATIONS,
    LagHint,
    WarmupHint,
    diagnostics,
)


def stepped(name: str, *, steps: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = make_optimizer(model, name=name, lr=0.05, warmup_steps=3, r=0.5)
    inputs, targets = torch.randn(8, 4), torch.randn(8, 3)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return float(loss.detach())

    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer


def flat(values: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in values])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_distance_and_weight_are_those_of_the_points(name: str) -> None:
    """x after the step is (1 - c) x before + c z, and the distance is |x - z|."""
    _, before = stepped(name, steps=7)
    model, after = stepped(name, steps=8)
    with at_average(after, model=model):
        seen = diagnostics(after)
    x_before, x = flat(averaged_point(before).values()), flat(averaged_point(after).values())
    states = [after.state[p] for g in after.param_groups for p in g["params"]]
    if not all("z" in state for state in states):
        assert seen == {}
        return
    z = flat(state["z"] for state in states)
    assert seen["schedulefree.distance"] == pytest.approx(float((x - z).norm()), rel=1e-3)
    if "schedulefree.weight" in seen:
        c = seen["schedulefree.weight"]
        assert 0 < c < 1
        assert torch.allclose(x, (1 - c) * x_before + c * z, atol=1e-5)


def test_most_averaging_optimizers_tell_their_weight() -> None:
    seen = set()
    for name in ("adamw_schedulefree", "sgd_schedulefree", "schedulefree_wrapper"):
        model, optimizer = stepped(name, steps=2)
        with at_average(optimizer, model=model):
            seen |= {"schedulefree.weight" in diagnostics(optimizer)}
    assert seen == {True}


def test_evaluations_carry_the_diagnostics_and_receipts_do_not(tmp_path: Path) -> None:
    """A receipt is evaluated again by strangers, who have x alone."""
    brief = make_brief(evaluation={"at_y": True})
    bench = Bench(brief, tmp_path)
    bench.training.run()
    (point,) = bench.reporter.evals
    assert {"schedulefree.distance", "schedulefree.weight", "eval.loss_at_y"} <= set(point.metrics)
    receipt = bench.reporter.published[0].manifest.evaluation
    assert set(receipt.metrics) == {"eval.accuracy", "eval.top5_accuracy"} & set(point.metrics)
    at_y = reevaluate(bench.setup.model, datasets=bench.setup.datasets, spec=brief.spec)
    assert point.metrics["eval.loss_at_y"] == at_y.loss
    assert point.metrics["eval.loss_at_y"] != point.loss


def test_without_a_word_y_is_not_evaluated(tmp_path: Path) -> None:
    bench = Bench(make_brief(), tmp_path)
    bench.training.run()
    assert "eval.loss_at_y" not in bench.reporter.evals[0].metrics


# ---- hints --------------------------------------------------------------------------------------


def test_a_lagging_average_is_told_once_and_not_for_single_evaluations() -> None:
    hint = LagHint()
    for _ in range(Y_BETTER_EVALUATIONS - 1):
        assert hint.after(loss_at_x=1.0, loss_at_y=0.9) is None
    assert hint.after(loss_at_x=1.0, loss_at_y=0.96) is None
    said = [hint.after(loss_at_x=1.0, loss_at_y=0.9) for _ in range(3 * Y_BETTER_EVALUATIONS)]
    assert [word is not None for word in said].index(True) == Y_BETTER_EVALUATIONS - 1
    assert sum(word is not None for word in said) == 1


def hints_of(losses: list[float], norms: list[float], *, first: int = 1) -> list[Notice]:
    hint = WarmupHint()
    numbered = enumerate(zip(losses, norms, strict=True), start=first)
    said = [hint.after(step, loss=loss, grad_norm=norm) for step, (loss, norm) in numbered]
    return [word for word in said if word is not None]


FALLING = [2.0 / (1 + step / 50) for step in range(2 * WARMUP_STEPS)]
CALM = [1.0] * (2 * WARMUP_STEPS)


def test_a_calm_start_gets_no_hint() -> None:
    assert hints_of(FALLING, CALM) == []


def test_gradients_that_are_largest_at_the_start_get_a_hint() -> None:
    (said,) = hints_of(FALLING, [1.0, 11.0, *CALM[2:]])
    assert said.code == "hint.warmup"
    assert "largest gradient norm of the first 20 steps was 11" in said.message
    assert hints_of(FALLING, [1.0, 9.0, *CALM[2:]]) == []


def test_a_loss_that_rises_at_the_start_gets_a_hint() -> None:
    rising = [*[2.0] * 10, *[2.3] * 10, *FALLING[20:]]
    (said,) = hints_of(rising, CALM)
    assert "the loss rose from 2 to 2.3 in the first 20 steps" in said.message


def test_an_attempt_that_did_not_see_the_start_gives_no_hint() -> None:
    assert hints_of(FALLING, [99.0, *CALM[1:]], first=2) == []
