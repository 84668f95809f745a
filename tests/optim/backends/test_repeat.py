"""A step that is like the one before is repeated, and one that is not is never taken for it."""

import copy
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_memory import Strange
from optim_runs import distance
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim.backends import choose, numba_cpu

SHAPES = [(3, 3), (5,), (2, 2, 2)]
NEVER = 2**60


@pytest.fixture(autouse=True)
def kernels_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "MIN_ELEMENTS", 0)
        yield


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each job that is prepared."""
    jobs: list[int] = []
    prepare = numba_cpu.prepare
    monkeypatch.setattr(numba_cpu, "prepare", lambda t: jobs.append(1) or prepare(t))
    return jobs


class Trained:
    """Parameters and their optimizer; each step's gradients are a function of its number."""

    def __init__(self, make: Callable[..., Any]) -> None:
        torch.manual_seed(0)
        self.parameters = [Parameter(torch.randn(shape).double()) for shape in SHAPES]
        self.optimizer = make(self.parameters)
        self.t = 0
        self.as_gradient: Callable[[Tensor], Tensor] = lambda gradient: gradient

    def step(self) -> None:
        self.t += 1
        generator = torch.Generator().manual_seed(self.t)
        for parameter in self.parameters:
            if parameter.requires_grad:
                random = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                parameter.grad_dtype = None
                parameter.grad = self.as_gradient(random.to(parameter.dtype))
        self.optimizer.step()

    def everything(self) -> list[Tensor]:
        states = [self.optimizer.state.get(p, {}) for p in self.parameters]
        buffers = [tensor for state in states for _, tensor in sorted(state.items())]
        return [tensor.detach() for tensor in (*self.parameters, *buffers)]


def _swap_memory(one: Trained) -> None:
    for parameter in one.parameters:
        parameter.data = parameter.data.clone()


def _transpose(one: Trained) -> None:
    one.parameters[0].data = one.parameters[0].data.t()
    for name, tensor in one.optimizer.state.get(one.parameters[0], {}).items():
        one.optimizer.state[one.parameters[0]][name] = tensor.t()


def _freeze(one: Trained) -> None:
    one.parameters[1].requires_grad_(not one.parameters[1].requires_grad)
    one.parameters[1].grad = None


def _replace_state(one: Trained) -> None:
    for state in one.optimizer.state.values():
        state.update({name: 0.5 * tensor for name, tensor in state.items()})


def _forget_state(one: Trained) -> None:
    one.optimizer.state.pop(one.parameters[2], None)


def _narrower(one: Trained) -> None:
    one.parameters[2].grad = None
    one.parameters[2].data = one.parameters[2].data.float()


def _reload(one: Trained) -> None:
    one.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))


def _settings(one: Trained) -> None:
    one.optimizer.param_groups[0].update(lr=0.03, weight_decay=0.2)


def _add_group(one: Trained) -> None:
    one.parameters.append(Parameter(torch.ones(4).double()))
    one.optimizer.add_param_group({"params": [one.parameters[-1]]})


def _reorder(one: Trained) -> None:
    one.optimizer.param_groups[0]["params"].reverse()


def _copy(one: Trained) -> None:
    """As a checkpoint of everything does: parameters and optimizer, from their bytes."""
    one.parameters, one.optimizer = pickle.loads(pickle.dumps((one.parameters, one.optimizer)))


def _scattered_gradients(one: Trained) -> None:
    """Every second element of what is twice as large."""
    one.as_gradient = lambda g: torch.stack([g, -g], dim=-1)[..., 0]


def _strange_gradients(one: Trained) -> None:
    one.as_gradient = lambda g: g.as_subclass(Strange)


def _narrow_gradients(one: Trained) -> None:
    """Which a parameter may take since torch 2.10."""
    one.as_gradient = lambda g: g.float()


def _nothing(one: Trained) -> None:
    pass


DISTURBANCES = [
    *(_swap_memory, _transpose, _freeze, _replace_state, _forget_state, _narrower, _reload),
    *(_settings, _add_group, _reorder, _copy, _nothing),
    *(_scattered_gradients, _strange_gradients, _narrow_gradients),
]
MAKES = {
    "schedule-free": lambda p: optim.AdamWScheduleFree(p, lr=0.1, weight_decay=0.1),
    "sgd": lambda p: optim.SGDScheduleFree(p, lr=0.1),
    "descent": lambda p: optim.ForeachAdamW(p, lr=0.1),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@settings(max_examples=60, deadline=None)
@given(disturbances=st.lists(st.sampled_from(DISTURBANCES), max_size=8))
def test_whatever_happens_between_steps_they_are_those_of_plain_torch(
    make: Callable[..., Any], disturbances: list[Callable[[Trained], None]]
) -> None:
    ends = []
    for least in (0, NEVER):
        choose.MIN_ELEMENTS = least
        one = Trained(make)
        for disturb in (_nothing, *disturbances):
            one.step()
            disturb(one)
            one.step()
        ends.append(one.everything())
    for seen, expected in zip(*ends, strict=True):
        assert seen.dtype == expected.dtype
        assert distance(seen, expected) < (1e-12 if seen.dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_nothing_is_prepared_again_while_nothing_moves(
    make: Callable[..., Any], made: list[int]
) -> None:
    one = Trained(make)
    for _ in range(6):
        one.step()
    assert len(made) == 1
    _swap_memory(one)
    for _ in range(3):
        one.step()
    assert len(made) == 2


def test_each_group_is_repeated_by_itself(made: list[int]) -> None:
    one = Trained(MAKES["schedule-free"])
    _add_group(one)
    for _ in range(5):
        one.step()
    assert len(made) == 2


def test_another_rule_of_moments_is_prepared_anew(made: list[int]) -> None:
    """A first moment that is asked for later needs another kernel, and a buffer."""
    one = Trained(MAKES["schedule-free"])
    one.step()
    one.optimizer.param_groups[0]["inner_momentum"] = 0.5
    one.step()
    one.step()
    assert len(made) == 2
    assert "exp_avg" in one.optimizer.state[one.parameters[0]]


def test_a_step_that_may_be_repeated_keeps_no_gradient_alive() -> None:
    one = Trained(MAKES["schedule-free"])
    one.step()
    gradient = weakref.ref(one.parameters[0].grad)
    one.optimizer.zero_grad(set_to_none=True)
    assert gradient() is None


def test_gradients_of_another_type_are_prepared_anew(made: list[int]) -> None:
    """And then left to torch, which knows what they mean."""
    one = Trained(MAKES["schedule-free"])
    one.step()
    _strange_gradients(one)
    for _ in range(2):
        (repeat,) = vars(one.optimizer)["_repeats"].values()
        one.step()
        assert repeat.gradients(one.parameters, one.optimizer.state) is None
    assert len(made) == 1


def test_a_state_that_is_replaced_is_let_go() -> None:
    """By loading another one, and by a group that is taken away."""
    one = Trained(MAKES["schedule-free"])
    _add_group(one)
    one.step()
    saved = copy.deepcopy(one.optimizer.state_dict())
    old = [weakref.ref(one.optimizer.state[p]["z"]) for p in one.parameters]
    one.optimizer.load_state_dict(saved)
    assert [z() for z in old] == [None] * 4
    one.step()
    late = one.parameters.pop()
    old_z = weakref.ref(one.optimizer.state[late]["z"])
    one.optimizer.param_groups.pop()
    del one.optimizer.state[late]
    _swap_memory(one)
    one.step()
    assert old_z() is None
