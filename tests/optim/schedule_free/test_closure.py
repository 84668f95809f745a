"""The closure forms: x between steps, y in the closure only, and nobody moved who takes no part."""

from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import distance
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim import at_average, averaged_point

FORMS: dict[str, Any] = {
    "sgd": optim.SGDScheduleFreeClosure,
    "adamw": optim.AdamWScheduleFreeClosure,
    "radam": optim.RAdamScheduleFreeClosure,
}
NATIVE: dict[str, Any] = {
    "sgd": optim.SGDScheduleFree,
    "adamw": optim.AdamWScheduleFree,
    "radam": optim.RAdamScheduleFree,
}
PUBLISHED: dict[str, Any] = {
    "sgd": schedulefree.SGDScheduleFreeClosure,
    "adamw": schedulefree.AdamWScheduleFreeClosure,
    "radam": schedulefree.RAdamScheduleFreeClosure,
}
RULES = sorted(FORMS)
each_rule = pytest.mark.parametrize("rule", RULES)


def parameters(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in ((3,), (2, 4))
    ]


def quadratic(params: list[Parameter]) -> Callable[[], float]:
    """A closure whose gradient depends on where it is taken."""

    def closure() -> float:
        for p in params:
            p.grad = None
        losses = [((p - 1) ** 2).sum() for p in params if p.requires_grad]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.item()

    return closure


def bits(params: list[Any]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def worst(seen: list[Tensor], expected: list[Tensor]) -> float:
    return max(distance(a, b) for a, b in zip(seen, expected, strict=True))


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    rule = draw(st.sampled_from(RULES))
    beta = draw(st.floats(0.2, 0.98))
    chosen: dict[str, Any] = {
        "lr": draw(st.floats(1e-3, 0.3)),
        "weight_decay": draw(st.just(0) | st.floats(1e-3, 0.3)),
        "r": draw(st.just(0.0) | st.floats(0.0, 2.0)),
        "weight_lr_power": draw(st.just(2.0) | st.floats(0.0, 2.0)),
        "foreach": draw(st.booleans()),
    }
    if rule == "sgd":
        chosen["momentum"] = beta
    else:
        chosen["betas"] = (beta, draw(st.floats(0.5, 0.999)))
    if rule == "radam":
        # The published form never moves where its silent phase never ends.
        chosen["silent_sgd_phase"] = draw(st.booleans()) and chosen["betas"][1] > 0.6
    else:
        chosen["warmup_steps"] = draw(st.integers(0, 6))
    return rule, chosen


@settings(max_examples=60, deadline=None)
@given(case=drawn())
def test_equal_to_the_published_closure_forms(case: tuple[str, dict[str, Any]]) -> None:
    rule, chosen = case
    ours, theirs = parameters(), parameters()
    mine, published = FORMS[rule](ours, **chosen), PUBLISHED[rule](theirs, **chosen)
    for _ in range(8):
        a, b = mine.step(quadratic(ours)), published.step(quadratic(theirs))
        assert a == pytest.approx(b, rel=1e-11)
        assert worst(bits(ours), bits(theirs)) <= 1e-11


@settings(max_examples=40, deadline=None)
@given(case=drawn())
def test_equal_to_the_form_that_holds_y(case: tuple[str, dict[str, Any]]) -> None:
    rule, chosen = case
    at_x, at_y = parameters(), parameters()
    form, native = FORMS[rule](at_x, **chosen), NATIVE[rule](at_y, **chosen)
    for _ in range(8):
        form.step(quadratic(at_x))
        native.step(quadratic(at_y))
        assert worst(bits(at_x), list(averaged_point(native).values())) <= 1e-11


@each_rule
def test_positional_arguments_are_those_of_the_published_forms(rule: str) -> None:
    positional: tuple[Any, ...] = {
        "sgd": (0.5, 0.1, 0.8, 3, 1.0, 1.5, False),
        "adamw": (0.5, (0.8, 0.9), 1e-4, 0.1, 3, 1.0, 1.5, False),
        "radam": (0.5, (0.8, 0.9), 1e-4, 0.1, 1.0, 1.5, False, False),
    }[rule]
    for arguments in ((), positional):
        ours, theirs = (m[rule](parameters(), *arguments) for m in (FORMS, PUBLISHED))
        mine, published = ours.param_groups[0], theirs.param_groups[0]
        for name in set(published) - {"params", "lr_max"}:
            assert mine[name] == published[name], name


@each_rule
def test_the_parameters_hold_x_between_steps_and_y_in_the_closure(rule: str) -> None:
    params = parameters()
    optimizer = FORMS[rule](params, lr=0.1)
    for _ in range(7):
        optimizer.step(quadratic(params))
    x, seen = bits(params), []

    def closure() -> float:
        seen.extend(bits(params))
        return quadratic(params)()

    zs = [optimizer.state[p]["z"].clone() for p in params]
    optimizer.step(closure)
    expected = [0.1 * z + 0.9 * p for z, p in zip(zs, x, strict=True)]
    assert worst(seen, expected) <= 1e-14
    assert worst(seen, x) > 1e-6


@each_rule
def test_x_may_be_read_without_any_call(rule: str) -> None:
    params = parameters()
    optimizer = FORMS[rule](params, lr=0.1)
    for _ in range(7):
        optimizer.step(quadratic(params))
    x = bits(params)
    assert all(map(torch.equal, x, averaged_point(optimizer).values()))
    with at_average(optimizer):
        assert all(map(torch.equal, x, bits(params)))
        with pytest.raises(RuntimeError, match="outside of at_average"):
            optimizer.step(quadratic(params))
    optimizer.eval()
    assert all(map(torch.equal, x, bits(params)))


@each_rule
def test_who_is_frozen_or_late_is_not_moved_bit_for_bit(rule: str) -> None:
    """The published forms pull both to the value they had at the first call."""
    params = parameters()
    frozen, late = params[0], Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = FORMS[rule]([*params, late], lr=0.1)
    for _ in range(6):
        optimizer.step(quadratic(params))
    frozen.requires_grad_(False)
    frozen.grad = None
    late.data.fill_(7.0)
    x = frozen.detach().clone()
    for _ in range(20):
        optimizer.step(quadratic(params))
    assert torch.equal(frozen, x)
    assert torch.equal(late, torch.full_like(late, 7.0))


@each_rule
def test_a_parameter_that_is_left_out_for_a_while_returns_to_x(rule: str) -> None:
    params = parameters()
    optimizer = FORMS[rule](params, lr=0.1)
    for _ in range(6):
        optimizer.step(quadratic(params))
    x = params[0].detach().clone()
    params[0].grad = None
    for _ in range(20):
        optimizer.step(quadratic(params[1:]))
    assert distance(params[0].detach(), x) <= 1e-13


@each_rule
def test_a_closure_that_fails_leaves_x(rule: str) -> None:
    params = parameters()
    optimizer = FORMS[rule](params, lr=0.1)
    for _ in range(6):
        optimizer.step(quadratic(params))
    x = bits(params)

    def failing() -> float:
        raise KeyError("loss")

    with pytest.raises(KeyError, match="loss"):
        optimizer.step(failing)
    assert worst(bits(params), x) <= 1e-15
    assert optimizer.param_groups[0]["k"] == 6
    optimizer.step(quadratic(params))


@each_rule
def test_a_step_without_closure_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="expected a closure, seen None"):
        FORMS[rule](parameters()).step()


@each_rule
def test_a_changed_beta_leaves_x_and_who_rests(rule: str) -> None:
    params = parameters()
    optimizer = FORMS[rule](params, lr=0.1)
    for _ in range(6):
        optimizer.step(quadratic(params))
    params[0].requires_grad_(False)
    params[0].grad = None
    x = bits(params)
    group = optimizer.param_groups[0]
    group.update(momentum=0.5) if rule == "sgd" else group.update(betas=(0.5, 0.999))
    seen = []
    zs = [optimizer.state[p]["z"].clone() for p in params]

    def closure() -> float:
        seen.extend(bits(params))
        return quadratic(params)()

    optimizer.step(closure)
    assert distance(seen[1], 0.5 * zs[1] + 0.5 * x[1]) <= 1e-14
    assert torch.equal(params[0].detach(), x[0])


@each_rule
def test_bfloat16_follows_float32(rule: str) -> None:
    """x rounded is too coarse to find y again; what was kept is enough."""
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        params = [Parameter(torch.full((64,), 3.0, dtype=dtype))]
        optimizer = FORMS[rule](params, lr=0.02)
        for _ in range(200):
            optimizer.step(quadratic(params))
        ends.append(params[0].detach().float())
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) <= 0.01


@each_rule
def test_a_late_parameter_holds_x_after_its_first_step_too(rule: str) -> None:
    """There x and y differ at once, as the group's average has a past."""
    ends = []
    for kind in (FORMS, NATIVE):
        params = parameters()
        optimizer = kind[rule](params, lr=0.1)
        for _ in range(6):
            params[1].grad = None
            optimizer.step(quadratic(params[:1]))
        optimizer.step(quadratic(params))
        ends.append(averaged_point(optimizer)[params[1]])
        assert kind is NATIVE or torch.equal(ends[0], params[1].detach())
    assert distance(*ends) <= 1e-13


@each_rule
def test_the_position_is_x_from_the_start(rule: str) -> None:
    optimizer = FORMS[rule](parameters())
    optimizer.add_param_group({"params": parameters()})
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]


@each_rule
def test_it_goes_on_from_a_state_of_the_form_that_holds_y(rule: str) -> None:
    """Who rests comes back to x, too."""
    at_y = parameters()
    native = NATIVE[rule](at_y, lr=0.1)
    for _ in range(7):
        native.step(quadratic(at_y))
    params = [Parameter(p.detach().clone()) for p in at_y]
    form = FORMS[rule](params)
    form.load_state_dict(native.state_dict())
    at_y[0].grad = None
    for _ in range(3):
        native.step(quadratic(at_y[1:]))
        form.step(quadratic(params[1:]))
    assert worst(bits(params), list(averaged_point(native).values())) <= 1e-13
