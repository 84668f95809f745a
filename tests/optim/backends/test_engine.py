"""Optimizers with kernels and without: the same steps, whoever takes them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from optim_runs import FAST, REFERENCE, Run, distance, example_run, runs, take_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from roadless import optim
from roadless.optim.backends import choose, numba_cpu

NEVER = 10**12
FIRST_ORDER = [
    "AdamWScheduleFree",
    "AdamWScheduleFreePaper",
    "ForeachAdamW",
    "ForeachSFAdamW",
    "PaLMForeachSFAdamW",
    "RAdamScheduleFree",
    "SGDScheduleFree",
]


@pytest.fixture(autouse=True, scope="module")
def kernels_for_all_sizes() -> Iterator[None]:
    usual = choose.MIN_ELEMENTS
    choose.MIN_ELEMENTS = 0
    yield
    choose.MIN_ELEMENTS = usual


def positions(optimizer: Any) -> list[Tensor]:
    found = []
    for p, x in optim.averaged_point(optimizer).items():
        found += [p.detach().clone(), x, *(t.clone() for t in optimizer.state.get(p, {}).values())]
    return found


def path(run: Run, make: Any) -> list[list[Tensor]]:
    """y and x of all parameters after each step."""
    optimizer = run.optimizer(make, run.parameters())
    points = []
    for step, gradients in zip(run.steps, run.gradients(), strict=True):
        take_step(optimizer, gradients, step.lr)
        points.append([q for p, x in optim.averaged_point(optimizer).items() for q in (p, x)])
        points[-1] = [q.detach().clone() for q in points[-1]]
    return points


def without_kernels(run: Run, make: Any) -> list[list[Tensor]]:
    choose.MIN_ELEMENTS = NEVER
    try:
        return path(run, make)
    finally:
        choose.MIN_ELEMENTS = 0


def gap(a: list[list[Tensor]], b: list[list[Tensor]]) -> float:
    rows = zip(a, b, strict=True)
    gaps = [distance(p, q) for row, other in rows for p, q in zip(row, other, strict=True)]
    return max(gaps, default=0.0)


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_kernels_plain_torch_and_reference_agree_step_by_step(run: Run) -> None:
    seen = path(run, FAST[run.rule])
    assert gap(seen, without_kernels(run, FAST[run.rule])) <= 1e-12
    assert gap(seen, path(run, REFERENCE[run.rule])) <= 1e-12


@settings(max_examples=30, deadline=None)
@given(run=runs())
def test_kernels_and_plain_torch_agree_in_float32(run: Run) -> None:
    narrow = run.in_float32()
    assert gap(path(narrow, FAST[run.rule]), without_kernels(narrow, FAST[run.rule])) <= 1e-5


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_every_first_order_name_has_a_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes the same steps with it: warmup, decay, and RAdam's silent phase included."""
    run = example_run("sgd", num_steps=12)
    make = getattr(optim, name)
    more = {} if name.startswith("RAdam") else {"warmup_steps": 3}
    plain = Run("", {"lr": 0.1, "weight_decay": 0.1} | more, run.groups, ({},), run.steps, seed=7)
    taken = []
    run_job = numba_cpu.Job.run
    monkeypatch.setattr(numba_cpu.Job, "run", lambda *a, **k: taken.append(1) or run_job(*a, **k))
    assert gap(path(plain, make), without_kernels(plain, make)) <= 1e-12
    assert len(taken) >= 8


@pytest.mark.parametrize("rule", sorted(FAST))
def test_resumed_runs_go_on_with_the_same_bits(rule: str) -> None:
    run = example_run(rule, dtype=torch.float32)
    first = run.optimizer(FAST[rule], run.parameters())
    for row in run.gradients()[:3]:
        take_step(first, row)
    second = run.optimizer(FAST[rule], run.parameters())
    second.load_state_dict(first.state_dict())
    members = [[p for g in o.param_groups for p in g["params"]] for o in (first, second)]
    for p, q in zip(*members, strict=True):
        q.data.copy_(p.data)
    for row in run.gradients()[3:]:
        take_step(first, row)
        take_step(second, row)
    assert all(torch.equal(a, b) for a, b in zip(positions(first), positions(second), strict=True))


@pytest.mark.parametrize("rule", sorted(FAST))
def test_who_no_kernel_takes_moves_all_the_same(rule: str) -> None:
    """A transposed parameter and one of another dtype, among others, in one group."""
    start = [torch.randn(6), torch.randn(4, 3).t(), torch.randn(5).double(), torch.randn(2, 2)]
    ends = []
    for least in (0, NEVER):
        choose.MIN_ELEMENTS = least
        parameters = [
            torch.nn.Parameter(t.clone(memory_format=torch.preserve_format)) for t in start
        ]
        optimizer = FAST[rule](parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            take_step(optimizer, [torch.ones_like(p) for p in parameters])
        ends.append([p.detach() for p in parameters])
    choose.MIN_ELEMENTS = 0
    assert not ends[0][1].is_contiguous()
    for before, a, b in zip(start, *ends, strict=True):
        assert distance(a, b) <= 1e-6
        assert not torch.equal(before, a)


class Allocations(TorchDispatchMode):
    """Counts the elements of every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize("rule", sorted(FAST))
def test_a_step_with_kernels_makes_no_tensor(rule: str) -> None:
    run = example_run(rule)
    optimizer = run.optimizer(FAST[rule], run.parameters())
    take_step(optimizer, run.gradients()[0])
    with Allocations() as seen:
        optimizer.step()
    assert max(seen.sizes, default=0) <= 1
