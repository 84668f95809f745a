"""The averaged point as a value, as a with-block, and as a position kept for compatibility."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_makes import parameters_of, same_bits
from optim_runs import FAST, PYPI, REFERENCE, Run, distance, example_run, runs, take_step
from torch import Tensor
from torch.nn import Parameter

from roadless.optim import at_average, averaged_point
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer

KINDS = [FAST, REFERENCE]
MAKES = [make for kind in KINDS for make in kind.values()]
RULES = sorted(FAST)


def trained(rule: str, kind: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    run = example_run(rule, dtype=dtype)
    optimizer = run.optimizer(kind[rule], run.parameters())
    for row in run.gradients():
        take_step(optimizer, row)
    return optimizer


def copies(optimizer: ScheduleFreeOptimizer) -> list[Tensor]:
    return [p.detach().clone() for p in parameters_of(optimizer)]


@pytest.fixture(params=[(rule, kind) for rule in RULES for kind in (FAST, REFERENCE)])
def optimizer(request: pytest.FixtureRequest) -> ScheduleFreeOptimizer:
    return trained(*request.param)


def test_reading_x_leaves_the_parameters_alone(optimizer: ScheduleFreeOptimizer) -> None:
    before, storages = copies(optimizer), [p.data_ptr() for p in parameters_of(optimizer)]
    x = averaged_point(optimizer)
    assert list(x) == parameters_of(optimizer)
    assert same_bits(before, copies(optimizer))
    assert storages == [p.data_ptr() for p in parameters_of(optimizer)]
    assert not same_bits(list(x.values()), before)
    assert not any(value.requires_grad for value in x.values())


@settings(max_examples=30, deadline=None)
@given(run=runs(), kind=st.sampled_from(KINDS))
def test_x_is_where_y_and_z_meet(run: Run, kind: dict[str, Any]) -> None:
    """y = (1-beta) z + beta x after every step, whatever happened before."""
    optimizer = run.optimizer(kind[run.rule], run.parameters())
    for row in run.gradients():
        take_step(optimizer, row)
        x = averaged_point(optimizer)
        for group in optimizer.param_groups:
            beta = group.get("momentum") or group["betas"][0]
            for y in group["params"]:
                z = optimizer.state.get(y, {}).get("z", y)
                assert distance((1 - beta) * z.detach() + beta * x[y], y.detach()) <= 1e-13


def test_x_goes_into_given_buffers(optimizer: ScheduleFreeOptimizer) -> None:
    buffers = {p: torch.full_like(p, torch.nan) for p in parameters_of(optimizer)}
    x = averaged_point(optimizer, out=buffers)
    assert all(x[p] is buffers[p] for p in parameters_of(optimizer))
    assert same_bits(list(buffers.values()), list(averaged_point(optimizer).values()))


def test_x_goes_into_buffers_of_another_dtype(optimizer: ScheduleFreeOptimizer) -> None:
    buffers = {p: torch.empty(p.shape, dtype=torch.float32) for p in parameters_of(optimizer)}
    averaged_point(optimizer, out=buffers)
    expected = [x.float() for x in averaged_point(optimizer).values()]
    assert same_bits(list(buffers.values()), expected)


def test_buffers_that_do_not_fit_are_refused(optimizer: ScheduleFreeOptimizer) -> None:
    first, second = parameters_of(optimizer)
    with pytest.raises(ValueError, match=r"expected a buffer of shape \(2, 3\), seen none"):
        averaged_point(optimizer, out={first: torch.empty(3)})
    with pytest.raises(ValueError, match=r"expected a buffer of shape \(3,\), seen shape \(1,\)"):
        averaged_point(optimizer, out={first: torch.empty(1), second: torch.empty(2, 3)})


def test_inside_the_block_the_parameters_hold_x(optimizer: ScheduleFreeOptimizer) -> None:
    x = list(averaged_point(optimizer).values())
    with at_average(optimizer):
        assert same_bits(copies(optimizer), x)
        assert same_bits(list(averaged_point(optimizer).values()), x)


def test_after_the_block_everything_is_as_before(optimizer: ScheduleFreeOptimizer) -> None:
    before = copies(optimizer)
    identities = [(id(p), p.data_ptr()) for p in parameters_of(optimizer)]
    with at_average(optimizer):
        pass
    assert same_bits(before, copies(optimizer))
    assert identities == [(id(p), p.data_ptr()) for p in parameters_of(optimizer)]
    optimizer.step()
    assert not same_bits(before, copies(optimizer))


def test_an_exception_and_a_change_inside_leave_no_trace(optimizer: ScheduleFreeOptimizer) -> None:
    before = copies(optimizer)

    def spoil_and_fail() -> None:
        with at_average(optimizer), torch.no_grad():
            parameters_of(optimizer)[0].fill_(torch.nan)
            raise KeyError

    with pytest.raises(KeyError):
        spoil_and_fail()
    assert same_bits(before, copies(optimizer))
    optimizer.step()


def test_a_failure_on_the_way_in_leaves_no_trace(
    optimizer: ScheduleFreeOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, into, last = copies(optimizer), optimizer.average_into, parameters_of(optimizer)[-1]

    def fill_all_but_the_last(parameter: Tensor, group: dict[str, Any], out: Tensor) -> None:
        if parameter is last:
            raise MemoryError
        into(parameter, group, out)

    monkeypatch.setattr(optimizer, "average_into", fill_all_but_the_last)
    with pytest.raises(MemoryError), at_average(optimizer):
        pass
    assert same_bits(before, copies(optimizer))
    monkeypatch.undo()
    with at_average(optimizer):
        pass
    optimizer.step()


def test_training_is_bitwise_the_same_with_evaluations_between(
    optimizer: ScheduleFreeOptimizer,
) -> None:
    rule = "sgd" if "momentum" in optimizer.param_groups[0] else "adamw"
    run = example_run(rule)
    quiet = trained(rule, FAST if type(optimizer) in FAST.values() else REFERENCE)
    for row in run.gradients():
        take_step(quiet, row)
        take_step(optimizer, row)
        with at_average(optimizer):
            averaged_point(optimizer)
    assert same_bits(copies(quiet), copies(optimizer))


def test_a_backward_pass_may_span_the_block(optimizer: ScheduleFreeOptimizer) -> None:
    """An evaluation between forward and backward does not disturb the gradients."""
    weight = parameters_of(optimizer)[0]
    loss = (weight**2).sum()
    with at_average(optimizer):
        pass
    weight.grad = None
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, 2 * weight.detach())


def test_a_block_in_a_block_is_refused(optimizer: ScheduleFreeOptimizer) -> None:
    before = copies(optimizer)
    with at_average(optimizer):
        with (
            pytest.raises(RuntimeError, match="expected to be entered once"),
            at_average(optimizer),
        ):
            pass
        assert not same_bits(before, copies(optimizer))
    assert same_bits(before, copies(optimizer))


def test_blocks_of_two_optimizers_do_not_meet() -> None:
    first, second = trained("sgd", FAST), trained("adamw", FAST)
    with at_average(first), at_average(second):
        pass


def test_a_step_inside_the_block_is_refused(optimizer: ScheduleFreeOptimizer) -> None:
    with at_average(optimizer), pytest.raises(RuntimeError, match=r"group\(s\) \[0\] hold"):
        optimizer.step()


@pytest.mark.parametrize("make", MAKES)
def test_before_the_first_step_x_is_the_parameter(make: Any) -> None:
    parameter = Parameter(torch.ones(2))
    optimizer = make([parameter])
    assert torch.equal(averaged_point(optimizer)[parameter], torch.ones(2))
    with at_average(optimizer):
        assert torch.equal(parameter, torch.ones(2))
    assert not optimizer.state


@pytest.mark.parametrize("rule", RULES)
def test_eval_is_the_same_point_as_published(rule: str) -> None:
    ours, theirs = trained(rule, FAST), None
    run = example_run(rule)
    theirs = run.optimizer(PYPI[rule], run.parameters())
    theirs.train()
    for row in run.gradients():
        take_step(theirs, row)
    ours.eval()
    theirs.eval()
    for p, q in zip(copies(ours), copies(theirs), strict=True):
        assert distance(p, q) <= 1e-12


def test_eval_and_train_are_idempotent_and_lead_back(optimizer: ScheduleFreeOptimizer) -> None:
    before = copies(optimizer)
    x = list(averaged_point(optimizer).values())
    optimizer.train()
    assert same_bits(before, copies(optimizer))
    for _ in range(2):
        optimizer.eval()
        assert same_bits(copies(optimizer), x)
        assert same_bits(list(averaged_point(optimizer).values()), x)
    for _ in range(2):
        optimizer.train()
        assert all(distance(p, q) <= 1e-15 for p, q in zip(copies(optimizer), before, strict=True))
    optimizer.step()


def test_a_block_in_eval_position_changes_nothing(optimizer: ScheduleFreeOptimizer) -> None:
    optimizer.eval()
    x = copies(optimizer)
    with at_average(optimizer):
        assert same_bits(copies(optimizer), x)
    assert same_bits(copies(optimizer), x)
    with pytest.raises(RuntimeError, match="hold the averaged point"):
        optimizer.step()


def test_one_group_at_x_is_enough_to_refuse_a_step(optimizer: ScheduleFreeOptimizer) -> None:
    """Not only the first group's position counts."""
    optimizer.eval()
    optimizer.param_groups.reverse()
    late = Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late]})
    optimizer.param_groups.reverse()
    late.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"group\(s\) \[1\] hold"):
        optimizer.step()
    optimizer.train()
    optimizer.step()
    optimizer.eval()
    assert all(group["train_mode"] is False for group in optimizer.param_groups)
    assert torch.equal(averaged_point(optimizer)[late], late)
    assert bool((late < 1).all())


def test_a_group_added_inside_the_block_trains_afterwards(optimizer: ScheduleFreeOptimizer) -> None:
    late = Parameter(torch.ones(2))
    with at_average(optimizer):
        optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(2)
    optimizer.step()
    assert bool((late < 1).all())


@pytest.mark.parametrize("rule", RULES)
def test_a_model_moved_after_its_first_steps_still_has_its_average(rule: str) -> None:
    """z of another dtype than the parameter is brought to it, as after ``model.double()``."""
    optimizer = trained(rule, FAST, torch.float32)
    expected = [x.double() for x in averaged_point(optimizer).values()]
    for p in parameters_of(optimizer):
        p.data = p.data.double()
    seen = averaged_point(optimizer).values()
    assert all(distance(x, e) <= 1e-6 for x, e in zip(seen, expected, strict=True))
