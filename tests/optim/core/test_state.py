"""Saving and loading: going on is bitwise the same, and a loaded state is the optimizer's own."""

import io
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import (
    ALL_FAST,
    ALL_REFERENCE,
    FAST,
    PYPI,
    REFERENCE,
    Run,
    distance,
    example_run,
    runs,
    take_step,
)
from torch import Tensor
from torch.nn import Parameter

from roadless.optim import at_average, averaged_point
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer

RULES = sorted(FAST)


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def points(optimizer: Any) -> list[Tensor]:
    """y, x and everything in the state, by parameter."""
    found = []
    for p, x in averaged_point(optimizer).items():
        found += [p.detach(), x, *optimizer.state.get(p, {}).values()]
    return found


def assert_same_bits(a: ScheduleFreeOptimizer, b: ScheduleFreeOptimizer) -> None:
    assert len(points(a)) == len(points(b))
    assert all(torch.equal(p, q) for p, q in zip(points(a), points(b), strict=True))
    settings = [[{**g, "params": 0} for g in optimizer.param_groups] for optimizer in (a, b)]
    assert settings[0] == settings[1]


@settings(max_examples=40, deadline=None)
@given(
    run=runs(rules=ALL_REFERENCE), kind=st.sampled_from([ALL_FAST, ALL_REFERENCE]), data=st.data()
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    run: Run, kind: dict[str, Any], data: st.DataObject
) -> None:
    stop = data.draw(st.integers(0, len(run.steps)))
    gradients = run.gradients()
    through = run.optimizer(kind[run.rule], run.parameters())
    for row in gradients[:stop]:
        take_step(through, row)
    saved = through_a_file(through.state_dict())
    parameters = [
        [Parameter(p.detach().clone()) for p in group["params"]] for group in through.param_groups
    ]
    resumed = kind[run.rule]([{"params": group} for group in parameters])
    resumed.load_state_dict(saved)
    for row in gradients[stop:]:
        take_step(through, row)
        take_step(resumed, row)
    assert_same_bits(resumed, through)


@pytest.mark.parametrize("rule", RULES)
def test_a_loaded_state_shares_nothing_with_its_source(rule: str) -> None:
    run = example_run(rule)
    first, second = (run.optimizer(FAST[rule], run.parameters()) for _ in range(2))
    take_step(first, run.gradients()[0])
    second.load_state_dict(first.state_dict())
    before = [value.clone() for value in points(first)]
    take_step(second, run.gradients()[1])
    assert all(torch.equal(a, b) for a, b in zip(before, points(first), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_state_keeps_its_own_dtype(rule: str) -> None:
    """A float32 state loaded beside bfloat16 parameters stays float32, and steps work with it."""
    wide, narrow = example_run(rule, dtype=torch.float32), example_run(rule, dtype=torch.bfloat16)
    source = wide.optimizer(FAST[rule], wide.parameters())
    take_step(source, wide.gradients()[0])
    target = narrow.optimizer(FAST[rule], narrow.parameters())
    target.load_state_dict(source.state_dict())
    saved, loaded = source.state.values(), target.state.values()
    assert all(
        torch.equal(a[name], b[name]) for a, b in zip(saved, loaded, strict=True) for name in a
    )
    take_step(target, narrow.gradients()[1])
    for parameter, state in target.state.items():
        assert parameter.dtype == torch.bfloat16
        assert state.pop("low").dtype == torch.int16
        state.pop("missed", None)
        assert {value.dtype for value in state.values()} == {torch.float32}
    assert {x.dtype for x in averaged_point(target).values()} == {torch.bfloat16}


@pytest.mark.parametrize("rule", sorted(ALL_FAST))
@pytest.mark.parametrize("saved_by", ["ours", "theirs"])
def test_states_are_interchangeable_with_the_published_library(rule: str, saved_by: str) -> None:
    run = example_run(rule)
    makes = (ALL_FAST, PYPI) if saved_by == "ours" else (PYPI, ALL_FAST)
    first, second = (run.optimizer(make[rule], run.parameters()) for make in makes)
    first.train()
    second.train()
    for row in run.gradients()[:4]:
        take_step(first, row)
    second.load_state_dict(through_a_file(first.state_dict()))
    parameters = [[p for g in o.param_groups for p in g["params"]] for o in (first, second)]
    for p, q in zip(*parameters, strict=True):
        q.data.copy_(p.data)
    for row in run.gradients()[4:]:
        take_step(first, row)
        take_step(second, row)
    for p, q in zip(*parameters, strict=True):
        assert distance(q.detach(), p.detach()) <= 1e-14


@pytest.mark.parametrize("kind", [FAST, REFERENCE])
@pytest.mark.parametrize("rule", RULES)
def test_a_state_saved_at_x_is_loaded_at_x(rule: str, kind: dict[str, Any]) -> None:
    """Saved inside the block, with the parameters of that moment: `train` leads back to y."""
    run = example_run(rule)
    first = run.optimizer(kind[rule], run.parameters())
    for row in run.gradients():
        take_step(first, row)
    with at_average(first):
        saved = through_a_file(first.state_dict())
        at_x = [p.detach().clone() for p in averaged_point(first)]
    second = kind[rule]([Parameter(value) for value in at_x])
    second.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="hold the averaged point"):
        second.step()
    assert all(
        torch.equal(x, at) for x, at in zip(averaged_point(second).values(), at_x, strict=True)
    )
    second.train()
    for p, q in zip(averaged_point(first), averaged_point(second), strict=True):
        assert distance(q.detach(), p.detach()) <= 1e-14


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_learning_rate_survives(rule: str) -> None:
    run = example_run(rule)
    parameters = [p for group in run.parameters() for p in group]
    first = FAST[rule](parameters, lr=torch.tensor(0.3))
    take_step(first, run.gradients()[0])
    second = FAST[rule](parameters)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert torch.equal(second.param_groups[0]["lr"], torch.tensor(0.3))


def test_a_state_of_other_groups_is_refused() -> None:
    run = example_run("sgd")
    saved = run.optimizer(FAST["sgd"], run.parameters()).state_dict()
    with pytest.raises(ValueError, match="parameter group"):
        FAST["sgd"]([Parameter(torch.zeros(1))]).load_state_dict(saved)


@settings(max_examples=40, deadline=None)
@given(
    run=runs(rules=ALL_REFERENCE),
    kind=st.sampled_from([ALL_FAST, ALL_REFERENCE]),
    where=st.sampled_from(["y", "eval", "block", "block in eval"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_resuming_is_exact_wherever_the_state_was_saved(
    run: Run, kind: dict[str, Any], where: str, dtype: torch.dtype
) -> None:
    """Parameters and state of one moment, at y, at x or inside the block, lead to the same bits."""
    run = replace(run, dtype=dtype)
    through = run.optimizer(kind[run.rule], run.parameters())
    for row in run.gradients():
        take_step(through, row)
    if "eval" in where:
        through.eval()
    with at_average(through) if "block" in where else nullcontext():
        saved = through_a_file(through.state_dict())
        parameters = [
            [Parameter(p.detach().clone()) for p in g["params"]] for g in through.param_groups
        ]
    resumed = kind[run.rule]([{"params": group} for group in parameters])
    resumed.load_state_dict(saved)
    for optimizer in (through, resumed):
        optimizer.train()
    assert_same_bits(resumed, through)
    for row in run.gradients():
        take_step(through, row)
        take_step(resumed, row)
    assert_same_bits(resumed, through)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", sorted(ALL_FAST))
def test_eval_and_train_lead_back_bit_for_bit(rule: str, dtype: torch.dtype) -> None:
    run = example_run(rule, dtype=dtype)
    quiet, toggled = (run.optimizer(ALL_FAST[rule], run.parameters()) for _ in range(2))
    for row in run.gradients():
        for optimizer in (quiet, toggled):
            take_step(optimizer, row)
        toggled.eval()
        toggled.train()
    assert_same_bits(quiet, toggled)


@pytest.mark.parametrize("rule", sorted(ALL_FAST))
def test_weights_changed_at_x_are_the_new_x(rule: str) -> None:
    """Loaded while the parameters hold x: `train` does not bring the old y back."""
    run = example_run(rule)
    optimizer = run.optimizer(ALL_FAST[rule], run.parameters())
    for row in run.gradients():
        take_step(optimizer, row)
    optimizer.eval()
    for p in averaged_point(optimizer):
        p.data.fill_(3.0)
    optimizer.train()
    for x in averaged_point(optimizer).values():
        assert distance(x, torch.full_like(x, 3.0)) <= 1e-14
    assert not any("y" in state for state in optimizer.state.values())


@pytest.mark.parametrize("rule", RULES)
def test_y_is_in_the_state_only_while_the_parameters_hold_x(rule: str) -> None:
    run = example_run(rule)
    optimizer = run.optimizer(FAST[rule], run.parameters())
    take_step(optimizer, run.gradients()[0])
    for enter in (lambda: at_average(optimizer), lambda: nullcontext(optimizer.eval())):
        with enter():
            assert all("y" in state for state in optimizer.state.values())
        optimizer.train()
        assert not any("y" in state for state in optimizer.state.values())


@pytest.mark.parametrize("rule", RULES)
def test_settings_that_a_file_does_not_have_stay(rule: str) -> None:
    run = example_run(rule)
    first, second = (run.optimizer(FAST[rule], run.parameters()) for _ in range(2))
    saved = first.state_dict()
    for group in saved["param_groups"]:
        del group["rounding_seed"], group["r"], group["held_beta"]
    second.param_groups[0].update(rounding_seed=5, r=0.5)
    second.load_state_dict(saved)
    group = second.param_groups[0]
    assert (group["rounding_seed"], group["r"]) == (5, 0.5)
    assert group["held_beta"] == group.get("momentum", group.get("betas", (0,))[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("saved", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_state_of_any_dtype_goes_on(rule: str, saved: torch.dtype, dtype: torch.dtype) -> None:
    """Kept as it is on load; the next step brings it to its arithmetic's dtype, and y moves."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    run = replace(example_run(rule), dtype=dtype)
    optimizer = run.optimizer(FAST[rule], run.parameters())
    take_step(optimizer, run.gradients()[0])
    state = optimizer.state_dict()
    for values in state["state"].values():
        values.pop("low", None)
        values.pop("missed", None)
        values.update({name: value.to(saved) for name, value in values.items()})
    optimizer.load_state_dict(state)
    assert {v.dtype for values in optimizer.state.values() for v in values.values()} == {saved}
    before = [p.detach().clone() for p in averaged_point(optimizer)]
    take_step(optimizer, run.gradients()[1])
    for p, values in optimizer.state.items():
        values.pop("low", None)
        assert {value.dtype for value in values.values()} == {wide}
        assert p.dtype == dtype
    assert not any(torch.equal(p, b) for p, b in zip(optimizer.state, before, strict=True))
