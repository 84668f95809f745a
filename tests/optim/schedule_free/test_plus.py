"""ScheduleFree+ against a direct implementation in plain floats, and on convex problems."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optim_runs import distance
from torch.nn import Parameter

from roadless.optim import AdamCScheduleFreePlusPaper, averaged_point
from roadless.optim.schedule_free.plus import interpolation

Array = NDArray[np.float64]


class Direct:
    """Algorithm 1 of the paper for one vector, written again from it."""

    def __init__(self, start: Array, **s: Any) -> None:
        self.x, self.y, self.z = start.copy(), start.copy(), start.copy()
        self.m, self.v = np.zeros_like(start), np.zeros_like(start)
        self.s, self.e, self.t = s, 0.0, 0
        self.weight_sum, self.lr_max = 0.0, 0.0

    def step(self, f: float, g: Array, lr: float) -> None:
        s, k = self.s, self.t
        self.t += 1
        b = self.anneal(k)
        self.e = s["polyak_beta"] * self.e + (1 - s["polyak_beta"]) * (
            math.sqrt(math.pi / 2) * float(np.abs(g).sum())
        )
        top = f + b * float(g @ (self.z - self.x))
        gamma = lr * max(0.0, top) / (self.e / (1 - s["polyak_beta"] ** self.t))
        self.lr_max = max(self.lr_max, gamma)
        c = 1.0
        if k >= s["c_warmup"]:
            w = self.t ** s["r"] * self.lr_max ** s["weight_lr_power"]
            self.weight_sum += w
            c = w / self.weight_sum if self.weight_sum else 0.0
        beta1, beta2 = s["betas"]
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        self.z = self.z - gamma**2 * s["weight_decay"] * self.y
        self.z = self.z - gamma * m_hat / (np.sqrt(v_hat) + s["eps"])
        self.x = (1 - c) * self.x + c * self.z
        self.y = b * self.x + (1 - b) * self.z

    def anneal(self, k: int) -> float:
        s = self.s
        if s["sf_beta1_anneal_steps"] == 0:
            return float(s["sf_beta1"])
        share = min(1.0, k / s["sf_beta1_anneal_steps"])
        ends = math.log(1 - s["sf_beta1"]), math.log(1 - s["sf_beta1_max"])
        return 1 - math.exp((1 - share) * ends[0] + share * ends[1])


DEFAULTS: dict[str, Any] = {
    "betas": (0.9, 0.95),
    "sf_beta1": 0.9,
    "eps": 1e-8,
    "weight_decay": 0,
    "r": 0,
    "polyak_beta": 0,
    "c_warmup": 0,
    "sf_beta1_anneal_steps": 0,
    "sf_beta1_max": 0.965,
    "weight_lr_power": 2,
}

drawn = st.fixed_dictionaries(
    {
        "betas": st.tuples(st.floats(0, 0.95), st.floats(0, 0.99)),
        "sf_beta1": st.floats(0.1, 0.95),
        "eps": st.floats(1e-9, 1e-3),
        "weight_decay": st.just(0) | st.floats(0.1, 30.0),
        "r": st.just(0) | st.floats(0, 2),
        "polyak_beta": st.just(0) | st.floats(0, 0.95),
        "c_warmup": st.integers(0, 5),
        "sf_beta1_anneal_steps": st.integers(0, 12),
        "sf_beta1_max": st.floats(0.1, 0.99),
        "weight_lr_power": st.just(2) | st.floats(0, 3),
    }
)


@settings(max_examples=100, deadline=None)
@given(
    chosen=st.just(DEFAULTS) | drawn,
    lrs=st.lists(st.just(1.0) | st.floats(0, 1), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
)
def test_equal_to_a_direct_implementation(
    chosen: dict[str, Any], lrs: list[float], seed: int
) -> None:
    """Two tensors of two groups are one vector: the loss and the norms are those of the whole."""
    random = np.random.default_rng(seed)
    start = random.normal(size=5)
    direct = Direct(start, **chosen)
    parts = [Parameter(torch.from_numpy(p.copy())) for p in (start[:2], start[2:])]
    optimizer = AdamCScheduleFreePlusPaper([{"params": [p]} for p in parts], **chosen)
    for lr in lrs:
        f, g = float(random.normal() + 1), random.normal(size=5)
        direct.step(f, g, lr)
        for p, part in zip(parts, (g[:2], g[2:]), strict=True):
            p.grad = torch.from_numpy(part.copy())
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step_func(f)
        x = torch.cat(list(averaged_point(optimizer).values()))
        assert distance(torch.cat(parts).detach(), torch.from_numpy(direct.y)) <= 1e-10
        assert distance(x, torch.from_numpy(direct.x)) <= 1e-10


def least_squares(seed: int) -> tuple[Parameter, Callable[[], torch.Tensor]]:
    """A convex loss with least value 0 and a condition number of 100, from the origin."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))
    a = q * torch.logspace(0, -1, 10, dtype=torch.float64)
    target = a @ torch.randn(10, generator=generator, dtype=torch.float64)
    w = Parameter(torch.zeros(10, dtype=torch.float64))
    return w, lambda: ((a @ w - target) ** 2).sum()


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_convex_problem_is_solved_whatever_its_scale(scale: float) -> None:
    """No learning rate is chosen: the loss may be measured in any unit."""
    w, loss_of = least_squares(0)
    first = loss_of().item()
    optimizer = AdamCScheduleFreePlusPaper([w], c_warmup=20)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of() * scale
        loss.backward()
        return loss.item()

    for _ in range(600):
        optimizer.step(closure)
    optimizer.eval()
    assert loss_of().item() <= 1e-3 * first


def test_the_step_does_not_depend_on_the_unit_of_the_loss() -> None:
    ends = []
    for scale in (1.0, 2.0**10):
        w, loss_of = least_squares(1)
        optimizer = AdamCScheduleFreePlusPaper([w], eps=0)
        for _ in range(20):
            optimizer.zero_grad()
            loss = loss_of() * scale
            loss.backward()
            optimizer.step_func(loss.item())
        ends.append(w.detach())
    assert distance(*ends) <= 1e-12


def one_step(*, loss: float = 1.0, **chosen: Any) -> tuple[Parameter, Any]:
    w = Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = AdamCScheduleFreePlusPaper([w], **chosen)
    w.grad = torch.tensor([0.5, -0.5], dtype=torch.float64)
    optimizer.step_func(loss)
    return w, optimizer


def test_the_first_step_has_the_length_of_polyaks_rule() -> None:
    w, optimizer = one_step(loss=3.0)
    length = 3.0 / (math.sqrt(math.pi / 2) * 1.0)
    assert optimizer.param_groups[0]["polyak_lr"] == pytest.approx(length)
    assert w[0].item() == pytest.approx(1.0 - length, rel=1e-6)


def test_a_loss_below_zero_takes_no_step() -> None:
    w, optimizer = one_step(loss=-3.0)
    assert w.tolist() == [1.0, 2.0]
    assert optimizer.param_groups[0]["k"] == 1


def test_gradients_that_are_zero_take_no_step() -> None:
    """The published code divides by their norm."""
    w = Parameter(torch.ones(2))
    optimizer = AdamCScheduleFreePlusPaper([w])
    w.grad = torch.zeros(2)
    optimizer.step_func(1.0)
    assert w.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss: float) -> None:
    with pytest.raises(ValueError, match="expected a finite loss"):
        one_step(loss=loss)


def test_decay_goes_with_the_square_of_the_step() -> None:
    moved = []
    for decay in (0, 20):
        w, _ = one_step(loss=0.01, weight_decay=decay)
        moved.append(w.detach())
    gamma = 0.01 / math.sqrt(math.pi / 2)
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64) * gamma**2 * 20
    assert distance(moved[0] - moved[1], expected) <= 1e-12


def test_both_doors_take_the_same_step() -> None:
    by_value, _ = one_step(loss=2.0)
    w = Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = AdamCScheduleFreePlusPaper([w])

    def closure() -> float:
        w.grad = torch.tensor([0.5, -0.5], dtype=torch.float64)
        return 2.0

    assert optimizer.step(closure) == 2.0
    assert torch.equal(w, by_value)
    with pytest.raises(ValueError, match="as it needs the loss"):
        optimizer.step()


def test_a_step_by_value_is_a_step_for_hooks_and_schedulers() -> None:
    """Both hang on ``step``, which torch wraps; a scheduler warns where none was counted."""
    w = Parameter(torch.ones(3))
    optimizer, seen = AdamCScheduleFreePlusPaper([w]), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2)
        for _ in range(3):
            w.grad = torch.ones(3)
            optimizer.step_func(1.0)
            scheduler.step()
    assert seen == ["before", "after"] * 3


def test_a_refused_loss_moves_nothing_and_a_good_one_goes_on() -> None:
    w, optimizer = one_step()
    before = w.detach().clone()
    with pytest.raises(ValueError, match="expected a finite loss"):
        optimizer.step_func(torch.tensor(math.nan))
    assert torch.equal(w, before)
    assert optimizer.param_groups[0]["k"] == 1
    optimizer.step_func(1.0)
    assert not torch.equal(w, before)


def test_the_value_comes_back_as_it_was_given() -> None:
    w = Parameter(torch.ones(1))
    w.grad = torch.ones(1)
    loss = torch.tensor(0.5)
    assert AdamCScheduleFreePlusPaper([w]).step_func(loss) is loss


def test_interpolation_is_a_line_in_the_logarithm() -> None:
    group = {"sf_beta1": 0.8, "sf_beta1_max": 0.96, "sf_beta1_anneal_steps": 4}
    logs = [math.log(1 - interpolation(group, k)) for k in range(6)]
    steps = np.diff(logs)
    assert np.allclose(steps[:4], steps[0])
    assert steps[4] == pytest.approx(0, abs=1e-12)
    assert math.exp(logs[0]) == pytest.approx(0.2)
    assert math.exp(logs[4]) == pytest.approx(0.04)


@pytest.mark.parametrize(
    "bad",
    [
        *({"betas": value} for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), 0.9, (0.9,))),
        *({name: value} for name in ("sf_beta1", "sf_beta1_max") for value in (0, 1)),
        *({name: -1} for name in ("lr", "eps", "weight_decay", "r", "weight_lr_power")),
        *({name: -1} for name in ("c_warmup", "sf_beta1_anneal_steps")),
        {"polyak_beta": 1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))}.*expected .*, seen "):
        AdamCScheduleFreePlusPaper([Parameter(torch.ones(1))], **bad)


def test_state_of_a_narrow_parameter_is_wide() -> None:
    w = Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = AdamCScheduleFreePlusPaper([w])
    w.grad = torch.ones_like(w)
    optimizer.step_func(1.0)
    assert {value.dtype for value in optimizer.state[w].values()} == {torch.float32}
    assert averaged_point(optimizer)[w].dtype == torch.bfloat16
