"""What a step may and may not do: gradients, learning rates, late parameters, errors."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from optim_runs import FAST, REFERENCE, Run, distance, example_run, runs, take_step
from torch.nn import Parameter

from roadless.optim import AdamWScheduleFree, SGDScheduleFree, averaged_point
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer

RULES = sorted(FAST)
ALL = [*FAST.values(), *REFERENCE.values()]
Make = Callable[..., ScheduleFreeOptimizer]


def weight(value: float = 1.0) -> Parameter:
    return Parameter(torch.full((2,), value, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(run=runs())
def test_gradients_are_read_only(run: Run) -> None:
    optimizer = run.optimizer(FAST[run.rule], run.parameters())
    for gradients in run.gradients():
        take_step(optimizer, gradients)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(parameters, gradients, strict=True):
            assert p.grad is None if g is None else torch.equal(p.grad, g)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_else_of_parameter_size_is_kept(rule: str) -> None:
    run = example_run(rule)
    optimizer = run.optimizer(FAST[rule], run.parameters())
    take_step(optimizer, run.gradients()[0])
    expected = {"sgd": {"z"}, "adamw": {"z", "exp_avg_sq"}}[rule]
    assert [set(state) for state in optimizer.state.values()] == [expected, expected]


@pytest.mark.parametrize("make", ALL)
def test_learning_rate_zero_moves_nothing(make: Make) -> None:
    w = weight()
    optimizer = make([w], lr=0.0, weight_decay=0.1)
    for _ in range(3):
        take_step(optimizer, [torch.ones_like(w)])
    assert torch.equal(w, torch.ones_like(w))
    assert torch.equal(averaged_point(optimizer)[w], torch.ones_like(w))


@pytest.mark.parametrize("make", ALL)
def test_learning_rate_zero_first_leaves_no_trace_in_the_average(make: Make) -> None:
    """After steps at 0 the first real step has all the weight: x = z."""
    w = weight()
    optimizer = make([w], lr=0.0)
    take_step(optimizer, [torch.ones_like(w)])
    take_step(optimizer, [torch.ones_like(w)], lr=0.5)
    assert torch.equal(averaged_point(optimizer)[w], optimizer.state[w]["z"])
    assert bool((optimizer.state[w]["z"] < 1).all())


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("lr", [0.0, 0.3])
def test_tensor_learning_rate_equals_a_number(make: Make, lr: float) -> None:
    ends = []
    for given_lr in (lr, torch.tensor(lr, dtype=torch.float64)):
        w = weight()
        optimizer = make([w], lr=given_lr, warmup_steps=2)
        for _ in range(4):
            take_step(optimizer, [torch.ones_like(w)])
        ends.append(w.detach())
        group = optimizer.param_groups[0]
        assert all(type(group[name]) is float for name in ("weight_sum", "lr_max", "scheduled_lr"))
    assert torch.equal(*ends)


def test_tensor_learning_rate_changed_in_place_is_seen() -> None:
    w, lr = weight(), torch.tensor(0.5)
    optimizer = SGDScheduleFree([w], lr=lr)
    take_step(optimizer, [torch.ones_like(w)])
    lr.zero_()
    before = w.detach().clone()
    take_step(optimizer, [torch.ones_like(w)])
    assert optimizer.param_groups[0]["scheduled_lr"] == 0.0
    assert torch.equal(w, before)


def test_torch_schedulers_drive_the_learning_rate() -> None:
    w = weight()
    optimizer = SGDScheduleFree([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for _ in range(3):
        take_step(optimizer, [torch.ones_like(w)])
        scheduler.step()
    group = optimizer.param_groups[0]
    assert (group["scheduled_lr"], group["lr_max"]) == (0.25, 1.0)


@pytest.mark.parametrize("make", ALL)
def test_frozen_parameters_stay_and_are_their_own_average(make: Make) -> None:
    w, frozen = weight(), weight(5.0).requires_grad_(False)
    optimizer = make([w, frozen], lr=0.1, weight_decay=0.1)
    take_step(optimizer, [torch.ones_like(w), None])
    optimizer.eval()
    optimizer.train()
    assert torch.equal(frozen, torch.full_like(frozen, 5.0))
    assert torch.equal(averaged_point(optimizer)[frozen], frozen)
    assert frozen not in optimizer.state


@pytest.mark.parametrize("rule", RULES)
def test_a_late_parameter_starts_from_where_it_is(rule: str) -> None:
    """Its z begins at its value at the first gradient, not at the one it had in the constructor."""
    points = []
    for make in (FAST[rule], REFERENCE[rule]):
        w, late = weight(), weight()
        optimizer = make([w, late], lr=0.1)
        take_step(optimizer, [torch.ones_like(w), None])
        late.data.fill_(9.0)
        take_step(optimizer, [torch.ones_like(w)] * 2, lr=0.0)
        assert torch.equal(late, torch.full_like(late, 9.0))
        take_step(optimizer, [torch.ones_like(w)] * 2, lr=0.1)
        points.append(torch.stack([late.detach(), averaged_point(optimizer)[late]]))
    assert distance(*points) <= 1e-14
    assert bool((points[0] < 9).all())


@pytest.mark.parametrize("rule", RULES)
def test_a_late_group_has_counters_of_its_own(rule: str) -> None:
    """A parameter in a group added late goes the same way as one that is there from the start."""
    w, late, alone = weight(), weight(), weight()
    optimizer = FAST[rule]([w], lr=0.1, warmup_steps=3)
    take_step(optimizer, [torch.ones_like(w)])
    optimizer.add_param_group({"params": [late]})
    fresh = FAST[rule]([alone], lr=0.1, warmup_steps=3)
    for _ in range(3):
        take_step(optimizer, [torch.ones_like(w)] * 2)
        take_step(fresh, [torch.ones_like(w)])
    assert torch.equal(late, alone)
    assert [group["k"] for group in optimizer.param_groups] == [4, 3]


@pytest.mark.parametrize("make", ALL)
def test_an_empty_group_is_no_trouble(make: Make) -> None:
    w = weight()
    optimizer = make([{"params": []}, {"params": [w]}], lr=0.1)
    take_step(optimizer, [torch.ones_like(w)])
    optimizer.eval()
    optimizer.train()
    assert bool((w < 1).all())


@pytest.mark.parametrize("make", ALL)
def test_closure_runs_with_gradients_and_gives_its_loss(make: Make) -> None:
    w = weight()
    optimizer = make([w], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert bool((w < 1).all())
    assert optimizer.step() is None


@pytest.mark.parametrize("rule", RULES)
def test_copies_and_pickles_go_on_the_same_way(rule: str) -> None:
    w = weight()
    optimizer = FAST[rule]([w], lr=0.1)
    take_step(optimizer, [torch.ones_like(w)])
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for each in (optimizer, *twins):
        take_step(each, [torch.ones_like(w)])
    for twin in twins:
        assert torch.equal(twin.param_groups[0]["params"][0], w)


@pytest.mark.parametrize("rule", RULES)
def test_sparse_gradients_are_refused(rule: str) -> None:
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="expected dense gradients"):
        FAST[rule](embedding.parameters()).step()


BAD_FOR_ALL: list[dict[str, Any]] = [
    {"lr": -0.1},
    {"lr": float("nan")},
    {"lr": float("inf")},
    {"lr": torch.tensor(-1.0)},
    {"lr": torch.ones(2)},
    {"lr": None},
    {"weight_decay": -1e-9},
    {"warmup_steps": -1},
    {"r": -0.5},
    {"weight_lr_power": -1.0},
]
BAD_SGD: list[dict[str, Any]] = [{"momentum": value} for value in (0, 1, -0.1, 1.5, "much")]
BAD_ADAMW: list[dict[str, Any]] = [
    *({"betas": betas} for betas in ((0.0, 0.9), (1.0, 0.9), (0.9, 1.0), (0.9, -0.1), 0.9, (0.9,))),
    {"eps": -1e-8},
]


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        *((rule, bad) for rule in RULES for bad in BAD_FOR_ALL),
        *(("sgd", bad) for bad in BAD_SGD),
        *(("adamw", bad) for bad in BAD_ADAMW),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(rule: str, bad: dict[str, Any]) -> None:
    """In the constructor, in a group's own settings, and in a group added later."""
    name = next(iter(bad))
    for make in (FAST[rule], REFERENCE[rule]):
        optimizer = make([weight()])
        for build in (
            lambda make=make: make([weight()], **bad),
            lambda make=make: make([{"params": [weight()], **bad}]),
            lambda optimizer=optimizer: optimizer.add_param_group({"params": [weight()], **bad}),
        ):
            with pytest.raises(ValueError, match=rf"^{name}.*expected .*, seen "):
                build()
        assert len(optimizer.param_groups) == 1


def test_inner_momentum_may_be_set_in_mid_run() -> None:
    w = weight()
    optimizer = AdamWScheduleFree([w], lr=0.1)
    take_step(optimizer, [torch.ones_like(w)])
    optimizer.param_groups[0]["inner_momentum"] = 0.9
    take_step(optimizer, [torch.ones_like(w)])
    assert set(optimizer.state[w]) == {"z", "exp_avg_sq", "exp_avg"}
    assert torch.allclose(optimizer.state[w]["exp_avg"], torch.full_like(w, 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("others", [torch.float32, torch.bfloat16])
def test_a_group_may_mix_dtypes(dtype: torch.dtype, others: torch.dtype) -> None:
    """Each parameter goes the way it goes alone."""
    ends = []
    for dtypes in ((dtype, others), (dtype,)):
        parameters = [Parameter(torch.ones(3, dtype=d)) for d in dtypes]
        optimizer = AdamWScheduleFree(parameters, lr=0.1)
        for _ in range(3):
            take_step(optimizer, [torch.full_like(p, 0.5) for p in parameters])
        ends.append(parameters[0].detach())
    assert torch.equal(*ends)
