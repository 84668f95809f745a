"""The wrapper over any base: equal to the published one where that works, and to the native forms.

Bases are torch's own, and small ones written here for what torch has none of.
"""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_makes import same_bits
from optim_runs import distance, take_step
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim import (
    ScheduleFreeWrapper,
    ScheduleFreeWrapperReference,
    at_average,
    averaged_point,
)

Make = Callable[..., torch.optim.Optimizer]

BASES: dict[str, Make] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "sgd_momentum": lambda params: torch.optim.SGD(
        params, lr=0.1, momentum=0.5, weight_decay=0.01, nesterov=True
    ),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adamw_fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.3, centered=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
    "nadam": lambda params: torch.optim.NAdam(params, lr=0.01),
    "radam": lambda params: torch.optim.RAdam(params, lr=0.01),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "muon": lambda params: torch.optim.Muon(params, lr=0.01),
    "laprop": lambda params: optim.ForeachLaProp(params, lr=0.01),
    "soap": lambda params: optim.ForeachSOAP(params, lr=0.01),
}
FORMS = [ScheduleFreeWrapper, ScheduleFreeWrapperReference]
SHAPES = ((3, 4), (2, 5))


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in SHAPES
    ]


def gradients(num_steps: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]
        for _ in range(num_steps)
    ]


def live(optimizer: Any) -> list[Tensor]:
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


def averages(optimizer: Any) -> list[Tensor]:
    return list(averaged_point(optimizer).values())


def worst(seen: list[Tensor], expected: list[Tensor]) -> float:
    return max(distance(a, b) for a, b in zip(seen, expected, strict=True))


def trained(base: str, form: Any = ScheduleFreeWrapper, **more: Any) -> Any:
    optimizer = form(BASES[base](parameters()), **more)
    for row in gradients(4):
        take_step(optimizer, row)
    return optimizer


@st.composite
def drawn_settings(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "momentum": draw(st.floats(0.1, 0.99)),
        "weight_decay_at_y": draw(st.just(0.0) | st.floats(0.001, 0.3)),
        "r": draw(st.just(0) | st.floats(0.0, 3.0)),
        "weight_lr_power": draw(st.just(2) | st.floats(0.0, 3.0)),
    }


steps = st.lists(
    st.tuples(st.tuples(st.booleans(), st.booleans()), st.none() | st.floats(0.001, 0.3)),
    min_size=1,
    max_size=10,
)


def run(optimizer: Any, schedule: list[Any]) -> Any:
    """Steps in which some parameters have no gradient and lr is changed from outside."""
    for row, (flags, lr) in zip(gradients(len(schedule)), schedule, strict=True):
        take_step(optimizer, [g if has else None for g, has in zip(row, flags, strict=True)], lr)
    return optimizer


@settings(max_examples=60, deadline=None)
@given(chosen=drawn_settings(), schedule=steps, base=st.sampled_from(["sgd", "adagrad"]))
def test_equal_to_the_published_wrapper_where_that_works(
    chosen: dict[str, Any], schedule: list[Any], base: str
) -> None:
    ours = run(ScheduleFreeWrapper(BASES[base](parameters()), **chosen), schedule)
    theirs = schedulefree.ScheduleFreeWrapper(BASES[base](parameters()), **chosen)
    theirs.train()
    run(theirs, schedule)
    assert worst(live(ours), live(theirs)) <= 1e-12
    theirs.eval()
    assert worst(averages(ours), live(theirs)) <= 1e-12 / chosen["momentum"]


@settings(max_examples=60, deadline=None)
@given(chosen=drawn_settings(), lrs=st.lists(st.floats(0.001, 0.3), min_size=1, max_size=10))
def test_the_reference_equals_the_published_one(chosen: dict[str, Any], lrs: list[float]) -> None:
    """With all gradients there; without, the published one averages what did not move."""
    schedule = [((True, True), lr) for lr in lrs]
    base = BASES["adam"]
    ours = run(ScheduleFreeWrapperReference(base(parameters()), **chosen), schedule)
    theirs = schedulefree.ScheduleFreeWrapperReference(_with_state(base), **chosen)
    theirs.train()
    run(theirs, schedule)
    assert worst(live(ours), live(theirs)) <= 1e-12
    theirs.eval()
    assert worst(averages(ours), live(theirs)) <= 1e-12


def _with_state(make: Make) -> torch.optim.Optimizer:
    """A base whose state is there before the published wrapper puts its own into it."""
    base = make(parameters())
    for group in base.param_groups:
        lr, group["lr"] = group["lr"], 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
        base.step()
        group["lr"] = lr
    for state in base.state.values():
        state["step"].zero_()
    return base


@settings(max_examples=80, deadline=None)
@given(chosen=drawn_settings(), schedule=steps, base=st.sampled_from(sorted(BASES)))
def test_the_wrapper_equals_its_reference_over_every_base(
    chosen: dict[str, Any], schedule: list[Any], base: str
) -> None:
    fast = run(ScheduleFreeWrapper(BASES[base](parameters()), **chosen), schedule)
    reference = run(ScheduleFreeWrapperReference(BASES[base](parameters()), **chosen), schedule)
    # Muon orthogonalises in bfloat16 and amplifies what rounding leaves; all others do not.
    tolerance = 1e-2 if base == "muon" else 1e-9
    assert worst(live(fast), live(reference)) <= tolerance
    assert worst(averages(fast), averages(reference)) <= tolerance / chosen["momentum"]


@pytest.mark.parametrize("form", FORMS)
def test_over_plain_sgd_it_is_schedule_free_sgd(form: Any) -> None:
    wrapped = form(BASES["sgd"](parameters()), momentum=0.8, weight_decay_at_y=0.1, r=1.0)
    native = optim.SGDScheduleFree(parameters(), lr=0.1, momentum=0.8, weight_decay=0.1, r=1.0)
    for row in gradients(10):
        take_step(wrapped, row)
        take_step(native, row)
    assert worst(live(wrapped), live(native)) <= 1e-13
    assert worst(averages(wrapped), averages(native)) <= 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_over_adam_without_momentum_it_is_schedule_free_adamw(form: Any) -> None:
    base = torch.optim.Adam(parameters(), lr=0.05, betas=(0.0, 0.99))
    wrapped = form(base, momentum=0.8, weight_decay_at_y=0.1)
    native = optim.AdamWScheduleFree(parameters(), lr=0.05, betas=(0.8, 0.99), weight_decay=0.1)
    for row in gradients(10):
        take_step(wrapped, row)
        take_step(native, row)
    assert worst(live(wrapped), live(native)) <= 1e-12
    assert worst(averages(wrapped), averages(native)) <= 1e-12


def test_positional_arguments_are_those_of_the_published_ones() -> None:
    base = BASES["sgd"]
    names = ("weight_decay_at_y", "sf_momentum", "sf_weight_lr_power", "sf_r")
    group = ScheduleFreeWrapper(base(parameters()), 0.1, 0.7, 3, 1).param_groups[0]
    assert tuple(group[name] for name in names) == (0.1, 0.7, 3, 1)
    group = ScheduleFreeWrapperReference(base(parameters()), 0.7, 0.1, 1, 3).param_groups[0]
    assert tuple(group[name] for name in names) == (0.1, 0.7, 3, 1)
    group = ScheduleFreeWrapper(base(parameters())).param_groups[0]
    assert tuple(group[name] for name in names) == (0.0, 0.9, 2, 0)


@pytest.mark.parametrize("base", sorted(BASES))
def test_each_keeps_a_state_of_its_own(base: str) -> None:
    optimizer = trained(base)
    for parameter, state in optimizer.state.items():
        names = optimizer.base.state.get(parameter, {})
        assert set(state) == {"z", *(f"base.{name}" for name in names)}
    assert all("z" not in state for state in optimizer.base.state.values())
    kept, owners = optimizer.state_dict()["state"], live(optimizer)
    for i, p in enumerate(owners):
        theirs = optimizer.base.state.get(optimizer.param_groups[0]["params"][i], {})
        assert set(kept[i]) == {"z", *(f"base.{name}" for name in theirs)}
        assert kept[i]["z"].shape == p.shape


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("position", ["train", "eval", "block"])
def test_resuming_is_bitwise_the_same_over_every_base(form: Any, base: str, position: str) -> None:
    through = trained(base, form, weight_decay_at_y=0.1, momentum=0.8)
    if position == "eval":
        through.eval()
    saved, held = _saved_inside(through) if position == "block" else _saved(through)
    resumed = form(BASES[base]([Parameter(value) for value in held]))
    resumed.load_state_dict(saved)
    through.train()
    resumed.train()
    for row in gradients(5):
        take_step(through, row)
        take_step(resumed, row)
    assert same_bits(live(through), live(resumed))
    assert same_bits(averages(through), averages(resumed))


def _saved(optimizer: Any) -> tuple[Any, list[Tensor]]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True), [p.clone() for p in live(optimizer)]


def _saved_inside(optimizer: Any) -> tuple[Any, list[Tensor]]:
    with at_average(optimizer):
        return _saved(optimizer)


@pytest.mark.parametrize("form", FORMS)
def test_groups_stay_shared_with_the_base(form: Any) -> None:
    """After loading, too: a scheduler that sets lr reaches both."""
    optimizer = form(BASES["adamw"](parameters()))
    optimizer.load_state_dict(optimizer.state_dict())
    late = Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 2
    for mine, theirs in zip(optimizer.param_groups, optimizer.base.param_groups, strict=True):
        assert mine is theirs
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups[1] is twin.base.param_groups[1]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    take_step(optimizer, [torch.ones_like(p) for p in live(optimizer)])
    scheduler.step()
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.005, 0.25]


def test_state_is_loaded_in_its_own_dtype() -> None:
    """A float32 state loaded beside bfloat16 parameters is not rounded by torch's loading."""
    wide = ScheduleFreeWrapper(BASES["adamw"](parameters(torch.float32)))
    take_step(wide, gradients(1, torch.float32)[0])
    narrow = ScheduleFreeWrapper(BASES["adamw"](parameters(torch.bfloat16)))
    narrow.load_state_dict(wide.state_dict())
    for mine, theirs in ((narrow.state, wide.state), (narrow.base.state, wide.base.state)):
        for a, b in zip(mine.values(), theirs.values(), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)
            assert all(a[name].dtype == b[name].dtype for name in b)


@pytest.mark.parametrize("form", FORMS)
def test_changing_momentum_keeps_x(form: Any) -> None:
    """At the next step y moves to where the new β puts it; the published wrapper spoils x."""
    optimizer = trained("adamw", form)
    x = averages(optimizer)
    optimizer.param_groups[0]["sf_momentum"] = 0.5
    assert worst(averages(optimizer), x) == 0
    take_step(optimizer, [torch.zeros_like(p) for p in live(optimizer)], lr=0.0)
    zs = [state["z"] for state in optimizer.state.values()]
    for y, z, after in zip(live(optimizer), zs, averages(optimizer), strict=True):
        assert distance(0.5 * after + 0.5 * z, y) <= 1e-14


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_without_gradient_follows_a_change_of_momentum(form: Any) -> None:
    optimizer = trained("adamw", form)
    x = averages(optimizer)
    optimizer.param_groups[0]["sf_momentum"] = 0.5
    take_step(optimizer, [None, gradients(1)[0][1]])
    assert distance(averages(optimizer)[0], x[0]) <= 1e-14


@pytest.mark.parametrize("form", FORMS)
def test_eval_and_train_lead_back_bit_for_bit(form: Any) -> None:
    """In float32 and far from 0, where the way through x and back rounds."""
    optimizer = form(BASES["adamw"]([Parameter(torch.linspace(1, 100, 1000))]), momentum=0.3)
    for t in range(5):
        take_step(optimizer, [torch.linspace(-1, 1, 1000) ** (t + 1)])
    before, x = [p.clone() for p in live(optimizer)], averages(optimizer)
    for _ in range(2):
        optimizer.eval()
        assert same_bits(live(optimizer), x)
    with pytest.raises(RuntimeError, match="hold the averaged point"):
        optimizer.step()
    for _ in range(2):
        optimizer.train()
    assert same_bits(live(optimizer), before)


def test_nothing_is_kept_of_an_evaluation() -> None:
    optimizer = trained("adamw")
    before = [set(state) for state in optimizer.state.values()]
    optimizer.eval()
    assert [set(state) - {"y"} for state in optimizer.state.values()] == before
    assert all("y" in state for state in optimizer.state.values())
    optimizer.train()
    assert [set(state) for state in optimizer.state.values()] == before


@pytest.mark.parametrize("form", FORMS)
def test_groups_go_their_own_ways(form: Any) -> None:
    """Two groups with settings of their own are two wrappers."""
    mine = [{"lr": 0.1, "sf_r": 0.0, "sf_momentum": 0.9}, {"lr": 0.02, "sf_r": 3.0}]
    together, apart = parameters(), parameters()
    groups = [{"params": [p]} | more for p, more in zip(together, mine, strict=True)]
    one = form(torch.optim.SGD(groups), momentum=0.7)
    two = [
        form(torch.optim.SGD([{"params": [p]} | more]), momentum=0.7)
        for p, more in zip(apart, mine, strict=True)
    ]
    for row in gradients(5):
        take_step(one, row)
        for optimizer, g in zip(two, row, strict=True):
            take_step(optimizer, [g])
    assert same_bits(together, apart)
    assert same_bits(averages(one), [x for optimizer in two for x in averages(optimizer)])


def test_a_parameter_changed_at_x_has_a_new_y() -> None:
    optimizer = trained("adamw")
    optimizer.eval()
    first = optimizer.param_groups[0]["params"][0]
    first.data.add_(1.0)
    x = first.detach().clone()
    optimizer.train()
    assert distance(averages(optimizer)[0], x) <= 1e-14


class Estimating(torch.optim.Optimizer):
    """SGD that keeps a counter ``k`` and estimates ``d`` in its step, as Prodigy does."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "d": 0.1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * group["d"])
            group["k"] += 1
            group["d"] = 0.1 * 2 ** group["k"]


def test_a_base_that_estimates_its_rate_weighs_the_average_by_it() -> None:
    """The weights are (lr d)², with the d that the step left; the counter is the base's alone."""
    params = parameters()
    optimizer = ScheduleFreeWrapper(Estimating(params, lr=0.5), weight_decay_at_y=0.1)
    expected = 0.0
    for t, row in enumerate(gradients(3), start=1):
        take_step(optimizer, row)
        expected += (0.5 * 0.1 * 2**t) ** 2
        group = optimizer.param_groups[0]
        assert group["k"] == t
        assert group["sf_weight_sum"] == pytest.approx(expected)


def test_decay_at_y_is_multiplied_by_lr_alone() -> None:
    """z loses lr λ y, without d, as published."""
    w = Parameter(torch.full((1,), 2.0, dtype=torch.float64))
    optimizer = ScheduleFreeWrapper(Estimating([w], lr=0.5), weight_decay_at_y=0.1)
    take_step(optimizer, [torch.zeros_like(w)])
    assert optimizer.state[w]["z"].item() == pytest.approx(2.0 - 0.5 * 0.1 * 2.0)


class Faulty(torch.optim.SGD):
    """Drops gradients in its step, as some do to save memory, or fails half way."""

    fails = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])
                p.grad = None
                if self.fails:
                    raise KeyError("base")


def test_a_base_may_drop_gradients() -> None:
    dropping = ScheduleFreeWrapper(Faulty(parameters(), lr=0.1))
    keeping = ScheduleFreeWrapper(BASES["sgd"](parameters()))
    for row in gradients(3):
        take_step(dropping, row)
        take_step(keeping, row)
    assert same_bits(live(dropping), live(keeping))


@pytest.mark.parametrize("form", FORMS)
def test_a_base_that_fails_leaves_the_three_points_in_order(form: Any) -> None:
    optimizer = form(Faulty(parameters(), lr=0.1))
    take_step(optimizer, gradients(1)[0])
    take_step(optimizer, gradients(2)[1])
    x, rested = averages(optimizer), live(optimizer)[1].clone()
    optimizer.base.fails = True
    with pytest.raises(KeyError, match="base"):
        take_step(optimizer, gradients(1)[0])
    assert worst(averages(optimizer), x) <= 1e-15
    assert distance(live(optimizer)[1], rested) <= 1e-15
    z = next(iter(optimizer.state.values()))["z"]
    assert distance(0.1 * z + 0.9 * x[0], live(optimizer)[0]) <= 1e-14
    assert optimizer.param_groups[0]["sf_k"] == 2


def test_sparse_gradients_reach_a_base_that_takes_them() -> None:
    tables = [torch.nn.Embedding(5, 2, sparse=sparse).double() for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    wrapped = [ScheduleFreeWrapper(torch.optim.SGD(t.parameters(), lr=0.1)) for t in tables]
    for table, optimizer in zip(tables, wrapped, strict=True):
        for word in (1, 2, 1):
            optimizer.zero_grad()
            table(torch.tensor([word])).square().sum().backward()
            optimizer.step()
    assert distance(tables[0].weight.detach(), tables[1].weight.detach()) <= 1e-15


def test_what_cannot_be_wrapped_is_named() -> None:
    with pytest.raises(ValueError, match=r"without closure, seen LBFGS"):
        ScheduleFreeWrapper(torch.optim.LBFGS(parameters()))
    with pytest.raises(ValueError, match="no averaging of its own, seen SGDScheduleFree"):
        ScheduleFreeWrapper(optim.SGDScheduleFree(parameters()))
    with pytest.raises(ValueError, match="no averaging of its own, seen ScheduleFreeWrapper"):
        ScheduleFreeWrapper(ScheduleFreeWrapper(BASES["sgd"](parameters())))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "bad",
    [
        *({"momentum": value} for value in (0, 1, -0.1, "much")),
        *({name: -1} for name in ("weight_decay_at_y", "r", "weight_lr_power")),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(form: Any, bad: dict[str, Any]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, seen "):
        form(BASES["sgd"](parameters()), **bad)


def test_a_group_with_a_bad_setting_reaches_neither() -> None:
    optimizer = trained("sgd")
    with pytest.raises(ValueError, match="momentum: expected"):
        optimizer.add_param_group({"params": parameters(), "sf_momentum": 2})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 1


@pytest.mark.parametrize("form", FORMS)
def test_learning_rate_zero_first_is_no_division_by_zero(form: Any) -> None:
    """The published wrapper fails here; afterwards the first real step has all the weight."""
    optimizer = form(BASES["sgd"](parameters()))
    before = [p.clone() for p in live(optimizer)]
    take_step(optimizer, gradients(1)[0], lr=0.0)
    assert worst(live(optimizer), before) <= 1e-15
    take_step(optimizer, gradients(1)[0], lr=0.1)
    zs = [state["z"] for state in optimizer.state.values()]
    assert worst(averages(optimizer), zs) <= 1e-15


def test_cyclic_schedules_find_the_settings_of_the_base() -> None:
    """OneCycleLR looks into ``defaults`` for the momentum that it cycles."""
    optimizer = ScheduleFreeWrapper(BASES["adamw"](parameters()))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    for row in gradients(3):
        take_step(optimizer, row)
        scheduler.step()
    assert optimizer.base.param_groups[0]["betas"][0] != 0.9


@pytest.mark.parametrize("make_base", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
@pytest.mark.parametrize("form", [ScheduleFreeWrapper, ScheduleFreeWrapperReference])
def test_gradients_that_torch_does_not_read_are_read(form: Any, make_base: Any) -> None:
    """Lazily conjugated ones of complex parameters, and float32 ones of bfloat16 parameters."""
    for dtype, disguise in (
        (torch.complex64, lambda g: g.conj().resolve_conj().conj()),
        (torch.bfloat16, lambda g: g.float()),
    ):
        ends = []
        for change in (disguise, lambda g: g):
            weight = Parameter(torch.ones(4, dtype=dtype))
            weight.grad_dtype = None
            optimizer = form(make_base([weight], lr=0.05))
            for t in range(4):
                generator = torch.Generator().manual_seed(t)
                plain = torch.randn(4, generator=generator, dtype=torch.complex64)
                given = change(plain.to(dtype) if dtype.is_complex else plain.real.to(dtype))
                weight.grad = given
                optimizer.step()
                assert weight.grad is given
            ends.append(weight.detach())
        assert torch.equal(*ends)
