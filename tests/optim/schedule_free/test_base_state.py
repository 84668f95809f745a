"""A base's state inside its wrapper's: whatever the base keeps, and in whatever way it saves it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_travels import (
    FLAT,
    LR,
    Pair,
    assert_alike,
    assert_go_on_alike,
    one_process,
)
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions

from roadless.optim import ScheduleFreeWrapper, ScheduleFreeWrapperReference

pytestmark = pytest.mark.filterwarnings("ignore")

FORMS = [ScheduleFreeWrapper, ScheduleFreeWrapperReference]


class Counting(torch.optim.SGD):
    """Has a counter in its state that is of no parameter, as MADGRAD has, and sums of gradients."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.state["k"] = torch.zeros(1, dtype=torch.long)  # type: ignore[index]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.state["k"] += 1  # type: ignore[index]
        for group, parameter in _with_gradient(self):
            total = self.state[parameter].setdefault("total", torch.zeros_like(parameter))
            total.add_(parameter.grad)
            parameter.sub_(total, alpha=group["lr"] / self.state["k"].item())  # type: ignore[index]


class Estimating(torch.optim.Optimizer):
    """Has numbers in its groups, as Prodigy has, and nested ones beside those of parameters."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "d": 0.01, "k": 0, "d_numerator": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group, parameter in _with_gradient(self):
            state = self.state[parameter]
            if not state:
                state.update(start=parameter.clone(), steps=0, sizes={"of_moves": torch.zeros(2)})
            state["steps"] += 1
            state["sizes"]["of_moves"] += parameter.grad.abs().sum()
            parameter.sub_(parameter.grad, alpha=group["lr"] * group["d"])
            parameter.lerp_(state["start"], 1e-3 * float(state["sizes"]["of_moves"][0]))
        for group in self.param_groups:
            group["k"] += 1
            group["d_numerator"] += 0.5
            group["d"] = 0.01 * (1 + group["d_numerator"])


class Cooling(torch.optim.SGD):
    """Saves an attribute of its own beside torch's state."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.heat = 1.0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"heat": self.heat}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.heat = state_dict["heat"]
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.heat *= 0.9
        for group, parameter in _with_gradient(self):
            parameter.sub_(parameter.grad, alpha=group["lr"] * self.heat)


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], Any]]:
    groups = optimizer.param_groups
    return [(group, p) for group in groups for p in group["params"] if p.grad is not None]


def around(form: Any, base: Any, **settings: Any) -> Callable[[Any], Any]:
    return lambda params: form(base(params, lr=LR, **settings))


BASES = [Counting, Estimating, Cooling]
EVERY = pytest.mark.parametrize(
    "make",
    [pytest.param(around(f, b), id=f"{f.__name__}-{b.__name__}") for f in FORMS for b in BASES],
)
WHOLE = StateDictOptions(full_state_dict=True)
FROM_ONE = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


@EVERY
def test_a_plain_state_goes_on(make: Any) -> None:
    source, target = Pair(make).train(0, 3), Pair(make)
    target.model.load_state_dict(source.model.state_dict())
    target.optimizer.load_state_dict(source.optimizer.state_dict())
    assert_go_on_alike(target, source, first=3)


@EVERY
@pytest.mark.parametrize(("save", "load"), [(FLAT, FLAT), (WHOLE, FROM_ONE)])
def test_a_distributed_checkpoint_goes_on(
    make: Any, save: StateDictOptions, load: StateDictOptions
) -> None:
    source, target = Pair(make).train(0, 3), Pair(make)
    with one_process():
        target.load(source, source.saved(save), load)
    assert_go_on_alike(target, source, first=3)


@EVERY
def test_a_run_goes_back_in_the_same_optimizer(make: Any) -> None:
    pair, early = Pair(make).train(0, 2, is_all_used=True), Pair(make)
    saved = pair.saved(FLAT)
    early.load(pair, saved, FLAT)
    pair.train(2, 3, is_all_used=True)
    pair.optimizer.zero_grad()
    assert_go_on_alike(pair.load(early, saved, FLAT), early, first=2)


@EVERY
def test_reading_before_the_first_step_leaves_the_base_as_it_was(make: Any) -> None:
    quiet, read = Pair(make), Pair(make).read()
    assert getattr(read.optimizer.base, "heat", 1.0) == 1.0
    assert read.optimizer.base.state.get("k", torch.zeros(1)).item() == 0
    assert read.optimizer.param_groups[0].get("d", 0.01) == 0.01
    assert_go_on_alike(read, quiet, first=0)


def test_a_counter_that_a_file_lacks_is_missed_by_name() -> None:
    source, target = (Pair(around(ScheduleFreeWrapper, Counting)) for _ in range(2))
    state = source.train(0, 2).optimizer.state_dict()
    del state["param_groups"][0]["base.state.k"]
    with pytest.raises(ValueError, match=r"expected base\.state\.k .* Counting keeps it"):
        target.optimizer.load_state_dict(state)


@pytest.mark.parametrize("form", FORMS)
def test_hooks_of_the_base_run_once_and_are_heard(form: Any) -> None:
    """What the base's hooks return is what the base loads."""
    make = around(form, torch.optim.SGD, momentum=0.9)
    source, target, seen = Pair(make).train(0, 2), Pair(make), []

    def halved(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        seen.append("load")
        states = {
            key: {name: value / 2 for name, value in state.items()}
            for key, state in saved["state"].items()
        }
        return saved | {"state": states}

    source.optimizer.base.register_state_dict_pre_hook(lambda _: seen.append("save"))
    target.optimizer.base.register_load_state_dict_pre_hook(halved)
    target.optimizer.base.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    target.optimizer.load_state_dict(source.optimizer.state_dict())
    assert seen == ["save", "load", "loaded"]
    (before,), (after,) = (pair.optimizer.base.state.values() for pair in (source, target))
    assert torch.equal(after["momentum_buffer"], before["momentum_buffer"] / 2)


@EVERY
def test_nothing_is_shared_with_the_source(make: Any) -> None:
    source, target = Pair(make).train(0, 2), Pair(make)
    target.model.load_state_dict(source.model.state_dict())
    target.optimizer.load_state_dict(source.optimizer.state_dict())
    twin = Pair(make).train(0, 2)
    target.train(2, 3, is_all_used=True)
    assert_alike(source, twin)
    assert_alike(source.train(2, 2), twin.train(2, 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_groups_of_the_base_that_come_later_travel_too(form: Any, base: Any) -> None:
    pairs = [Pair(around(form, base)) for _ in range(2)]
    for pair in pairs:
        pair.optimizer = around(form, base)([pair.model["used"].weight])
        pair.optimizer.add_param_group({"params": [pair.model["never"].weight], "lr": LR / 2})
    source, target = pairs
    source.train(0, 3, is_all_used=True)
    target.load(source, source.saved(FLAT), FLAT)
    assert [group["lr"] for group in target.optimizer.base.param_groups] == [LR, LR / 2]
    assert_go_on_alike(target, source, first=3)


def test_a_base_that_was_trained_before_it_was_wrapped_keeps_its_state() -> None:
    """Read before the wrapper's first step, and loaded at it."""

    def pair_of(source: Pair | None) -> Pair:
        pair = Pair(lambda params: torch.optim.Adam(params, lr=LR)).train(0, 3)
        pair.optimizer = ScheduleFreeWrapper(pair.optimizer)
        pair.optimizer.zero_grad()
        return pair if source is None else pair.load(source, source.saved(FLAT), FLAT)

    quiet, read = pair_of(None), pair_of(None).read()
    loaded = pair_of(read)
    for pair in (quiet, read, loaded):
        pair.train(3, 2)
    assert_alike(read, quiet)
    assert_alike(loaded, quiet)


def test_a_state_of_torch_follows_its_parameter_and_ours_is_kept_wide() -> None:
    wide = Pair(around(ScheduleFreeWrapper, torch.optim.AdamW), dtype=torch.float64).train(0, 2)
    target = Pair(around(ScheduleFreeWrapper, torch.optim.AdamW), dtype=torch.float32)
    target.model.load_state_dict(wide.model.state_dict())
    target.optimizer.load_state_dict(wide.optimizer.state_dict())
    (state,) = target.optimizer.base.state.values()
    tensors: dict[str, Tensor] = {n: t for n, t in state.items() if n.startswith("exp_avg")}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    target.train(2, 2)
