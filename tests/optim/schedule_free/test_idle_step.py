"""A base's state is found out by a step that leaves no trace, even where the step fails."""

import math
from typing import Any

import pytest
import torch
from optim_travels import LR, TORCH_BASES, Pair, assert_go_on_alike
from torch.nn import Parameter

from roadless.optim import ScheduleFreeWrapper
from roadless.optim.schedule_free.idle_step import initial_states_of, is_emptied

pytestmark = pytest.mark.filterwarnings("ignore")


def idle(base: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """As torch's distributed checkpoint prepares it."""
    for group in base.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    return base


@pytest.mark.parametrize("name", sorted(TORCH_BASES))
def test_names_and_shapes_are_those_of_a_real_step(name: str) -> None:
    trained = Pair(TORCH_BASES[name]).train(0, 2, is_all_used=True)
    fresh = Pair(TORCH_BASES[name])
    states = initial_states_of(idle(fresh.optimizer))
    assert all(is_emptied(state) for state in states.values())
    for parameter, twin in zip(fresh.model.parameters(), trained.model.parameters(), strict=True):
        real = trained.optimizer.state.get(twin, {})
        assert not is_emptied(real) or not real
        shapes = {n: v.shape for n, v in states.get(parameter, {}).items() if v is not None}
        assert shapes == {name: value.shape for name, value in real.items() if value is not None}


@pytest.mark.parametrize("name", sorted(TORCH_BASES))
@pytest.mark.parametrize("value", [1.0, -0.0, math.inf, math.nan])
def test_parameters_and_state_keep_their_bits(name: str, value: float) -> None:
    """Where an infinite weight times a rate of 0 would be NaN, too."""
    parameter = Parameter(torch.full((2, 2), value))
    base = idle(TORCH_BASES[name]([parameter]))
    bits, storage = parameter.detach().view(torch.int32).clone(), parameter.data_ptr()
    before = str(base.state_dict())
    initial_states_of(base)
    assert torch.equal(parameter.detach().view(torch.int32), bits)
    assert parameter.data_ptr() == storage
    assert str(base.state_dict()) == before


class Attributed(torch.optim.SGD):
    """Keeps attributes of many kinds, some twice, and one that leads back to itself."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.count, self.seen, self.mean = 0, [torch.zeros(1)], torch.zeros(2)
        self.by_name: dict[str, Any] = {"mean": self.mean, "parts": [1, {"deep": torch.ones(1)}]}
        self.by_name["self"] = self.by_name

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.count += 1
        self.mean += 1
        self.seen.append(torch.ones(1))
        self.by_name["parts"][1]["deep"] *= 2
        self.by_name["new"] = self.count
        self.fresh = True


def test_attributes_are_put_back_in_the_same_objects() -> None:
    base = idle(Attributed([Parameter(torch.ones(2))], lr=LR))
    assert isinstance(base, Attributed)
    mean, seen = base.mean, base.seen
    initial_states_of(base)
    assert (base.count, len(base.seen), base.mean.tolist()) == (0, 1, [0.0, 0.0])
    assert base.by_name["parts"][1]["deep"].tolist() == [1.0]
    assert "new" not in base.by_name
    assert not hasattr(base, "fresh")
    assert base.mean is mean is base.by_name["mean"]
    assert base.seen is seen
    assert base.by_name["self"] is base.by_name


class Dividing(torch.optim.SGD):
    """Fails at a rate of 0."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad / (1 / group["lr"]))


def test_a_base_that_fails_keeps_its_rate_and_trains_on() -> None:
    quiet, read = (
        Pair(lambda params: ScheduleFreeWrapper(Dividing(params, lr=LR))) for _ in range(2)
    )
    assert initial_states_of(idle(Dividing([Parameter(torch.ones(2))], lr=LR))) == {}
    read.read()
    assert read.optimizer.param_groups[0]["lr"] == LR
    assert_go_on_alike(read, quiet, first=0)
