"""A tensor's moments are corrected for the gradients that it has had, as torch counts them."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_makes import NAMES, PLUS, WRAPPERS, make, parameters_of, step
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim.backends import choose, numba_cpu

#: Those that the engine or a reference counts for: a wrapper's base and SOAP count by themselves,
#: and ScheduleFree+ has one step size for all parameters.
COUNTED = [n for n in NAMES if n != PLUS and n not in WRAPPERS and "SOAP" not in n]
NEVER = 2**60


@pytest.fixture(params=[0, NEVER], ids=["kernels", "plain torch"], scope="module", autouse=True)
def least_elements(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "MIN_ELEMENTS", request.param)
        yield


def drawn(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


def moving(optimizer: Any, parameter: Parameter) -> Tensor:
    """The point that the base rule moves."""
    return optimizer.state[parameter].get("z", parameter).detach().clone()


def path(name: str, has_gradient: Sequence[bool], *, alone: bool) -> list[Tensor]:
    """Where the base rule takes a parameter; beside it, another one has a gradient in each step."""
    late, always = Parameter(drawn(1)), Parameter(drawn(0))
    optimizer = make(name, [late] if alone else [late, always], lr=0.05)
    seen = []
    for t, has in enumerate(has_gradient):
        gradient = drawn(100 + len(seen)) if has else None
        step(optimizer, [gradient] if alone else [gradient, drawn(1000 + t)])
        if has:
            seen.append(moving(optimizer, late))
    return seen


@pytest.mark.parametrize("name", COUNTED)
@settings(max_examples=12, deadline=None)
@given(before=st.integers(0, 40), pattern=st.lists(st.booleans(), max_size=12))
def test_whatever_steps_a_parameter_misses_it_goes_as_if_alone(
    name: str, before: int, pattern: list[bool]
) -> None:
    """Late, frozen and thawed, or seldom used as an expert is: its k-th gradient is its k-th."""
    beside = path(name, [False] * before + pattern, alone=False)
    alone = path(name, [True] * sum(pattern), alone=True)
    assert len(beside) == len(alone)
    for a, b in zip(beside, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ForeachAdamW", "AdamWScheduleFree"])
def test_the_steps_of_a_late_parameter_are_those_of_torch(name: str) -> None:
    """Whose AdamW has β₁ too, which the averaged form has as its inner momentum."""
    chosen = {"inner_momentum": 0.9} if name == "AdamWScheduleFree" else {}
    ends = []
    for kind in (name, "AdamW"):
        early, late = Parameter(drawn(0)), Parameter(drawn(1))
        shared: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0, "eps": 0.0}
        optimizer = (
            torch.optim.AdamW([early, late], **shared)
            if kind == "AdamW"
            else make(name, [early, late], **shared, **chosen)
        )
        for t in range(30):
            step(optimizer, [drawn(50 + t), drawn(80 + t) if t >= 20 and t % 3 else None])
        ends.append(moving(optimizer, late))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_who_misses_no_step_carries_no_count(name: str) -> None:
    params = [Parameter(drawn(0)), Parameter(drawn(1)), Parameter(drawn(2), requires_grad=False)]
    optimizer = make(name, params)
    for t in range(4):
        step(optimizer, [drawn(t), drawn(10 + t), None])
    assert not any("missed" in state for state in optimizer.state.values())


def test_the_learning_rate_of_the_paper_is_that_of_the_tensors_age() -> None:
    """Its bias correction is a factor of the rate: the first step of z is one of lr, not of 10."""
    early, late = Parameter(drawn(0)), Parameter(drawn(1))
    optimizer = optim.AdamWScheduleFreePaper([early, late], lr=0.1)
    for t in range(500):
        step(optimizer, [drawn(t), None])
    before = late.detach().clone()
    step(optimizer, [drawn(5), drawn(6)])
    moved = (moving(optimizer, late) - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-5, atol=0)


def test_schedulefree_plus_corrects_for_the_tensors_own_gradients() -> None:
    """Of two groups, the new one has fresh counters: a late tensor of the old one moves alike."""
    ends = []
    for is_new in (False, True):
        early, late = Parameter(drawn(0)), Parameter(drawn(1))
        optimizer = optim.AdamCScheduleFreePlusPaper([early] if is_new else [early, late])
        for t in range(50):
            early.grad = drawn(t)
            optimizer.step_func(1.0)
        if is_new:
            optimizer.add_param_group({"params": [late]})
        early.grad, late.grad = drawn(98), drawn(99)
        optimizer.step_func(1.0)
        ends.append(moving(optimizer, late))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", COUNTED)
def test_a_saved_count_is_taken_up_again_bit_for_bit(name: str) -> None:
    def gradients(t: int) -> list[Tensor | None]:
        return [drawn(t), drawn(50 + t) if t > 3 and t != 6 else None]

    through = make(name, [Parameter(drawn(0)), Parameter(drawn(1))], lr=0.05)
    for t in range(8):
        step(through, gradients(t))
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    file.seek(0)
    resumed = make(name, [Parameter(p.detach().clone()) for p in parameters_of(through)], lr=0.05)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for t in range(8, 12):
        step(through, gradients(t))
        step(resumed, gradients(t))
    for a, b in zip(parameters_of(through), parameters_of(resumed), strict=True):
        assert torch.equal(a, b)


def test_kernels_are_kept_for_each_age_and_no_longer(
    least_elements: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "MIN_ELEMENTS", 0)
    jobs = []
    run = numba_cpu.Job.run
    monkeypatch.setattr(numba_cpu.Job, "run", lambda *a, **k: jobs.append(1) or run(*a, **k))
    params = [Parameter(drawn(i)) for i in range(3)]
    optimizer = optim.AdamWScheduleFree(params)
    for t in range(12):
        step(optimizer, [drawn(t), drawn(20 + t) if t >= 4 else None, drawn(40) if t % 2 else None])
    assert len(jobs) >= 12
    assert len(vars(optimizer)["_repeats"]) <= 3


@settings(max_examples=60, deadline=None)
@given(
    patterns=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=14),
    name=st.sampled_from(["AdamWScheduleFree", "ForeachAdamW", "RAdamScheduleFree"]),
)
def test_a_step_that_is_repeated_is_of_the_right_age(
    patterns: list[tuple[bool, ...]], name: str
) -> None:
    """Whoever misses which steps, kernels and plain torch go the same way."""
    ends, usual = [], choose.MIN_ELEMENTS
    for least in (0, NEVER):
        choose.MIN_ELEMENTS = least
        optimizer = make(name, [Parameter(drawn(i)) for i in range(3)], lr=0.05)
        for t, has in enumerate(patterns):
            # Twice each, so that a repeat follows whatever it can.
            for again in range(2):
                row = [drawn(100 * t + 10 * again + i) if has[i] else None for i in range(3)]
                step(optimizer, row)
        ends.append([moving(optimizer, p) for p in parameters_of(optimizer)])
    choose.MIN_ELEMENTS = usual
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
