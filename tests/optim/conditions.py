"""What optimizers meet outside textbooks, as checks that hold for every public name.

A check runs an optimizer under one condition and beside it what is right: the same run in a plain
form, or a law. It passes, or raises AssertionError, or the optimizer refuses with ValueError or
RuntimeError. `outcome` says which; a table of them all is in ``docs/conditions.md``.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from optim_makes import WRAPPERS, make, parameters_of
from optim_travels import one_process
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter

from roadless import optim
from roadless.optim import averaged_point
from roadless.optim.backends import choose

RIGHT, NONE = "right", "has none"
Gradients = Sequence[Tensor | None]


class HasNone(Exception):
    """The optimizer has nothing to which the condition could apply."""


@dataclass(frozen=True)
class Condition:
    """One condition: what is given, and what is right then."""

    given: str
    right: str
    check: Callable[[str], None]
    may_refuse: bool

    @property
    def key(self) -> str:
        """A name in one word."""
        return self.check.__name__


CONDITIONS: list[Condition] = []


def condition(
    given: str, *, right: str, may_refuse: bool = False
) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    """Add a check to the table."""

    def add(check: Callable[[str], None]) -> Callable[[str], None]:
        CONDITIONS.append(Condition(given, right, check, may_refuse))
        return check

    return add


def outcome(name: str, one: Condition) -> str:
    """Return RIGHT, NONE, or the sentence with which the optimizer refuses; both ways must agree.

    Raises AssertionError where the result is wrong, or a refusal does not say what was expected.
    """
    plain = _outcome(name, one)
    with mock.patch.object(choose, "MIN_ELEMENTS", 0):
        by_kernels = _outcome(name, one)
    assert plain == by_kernels, f"plain torch: {plain}; kernels: {by_kernels}"
    return plain


def _outcome(name: str, one: Condition) -> str:
    try:
        one.check(name)
    except HasNone:
        return NONE
    except (ValueError, RuntimeError) as error:
        refusal = str(error)
    else:
        return RIGHT
    assert one.may_refuse, f"refused: {refusal}"
    assert "expected" in refusal, f"unclear: {refusal}"
    return refusal


# How runs are made.


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """From a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def starts(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """A matrix and a vector."""
    return [Parameter(randoms(4, 3, seed=1).to(dtype)), Parameter(randoms(3, seed=2).to(dtype))]


def step(optimizer: Any, gradients: Gradients, *, loss: float = 1.0) -> None:
    """One step from just these tensors, which are not copied."""

    def closure() -> float:
        for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            parameter.grad = gradient
        return loss

    optimizer.step(closure)


def ends(name: str, rows: Sequence[Gradients], **settings: Any) -> list[Tensor]:
    """Parameters and averaged points after steps with these gradients."""
    optimizer = make(name, starts(), **settings)
    for row in rows:
        step(optimizer, row)
    return points(optimizer)


def points(optimizer: Any) -> list[Tensor]:
    """Copies of y and x."""
    ys = [p.detach().clone() for p in parameters_of(optimizer)]
    return [*ys, *(x.detach().clone() for x in averaged_point(optimizer).values())]


def rows(num: int = 4) -> list[list[Tensor]]:
    """Plain gradients, by step, for `starts`."""
    return [[randoms(4, 3, seed=10 + t), randoms(3, seed=40 + t)] for t in range(num)]


def assert_alike(seen: Sequence[Tensor], right: Sequence[Tensor], *, within: float = 0.0) -> None:
    """Bit for bit, NaN included, or within a distance."""
    for a, b in zip(seen, right, strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within, equal_nan=True)


def assert_reads(name: str, disguise: Callable[[Tensor], Tensor], *, within: float = 0.0) -> None:
    """Gradients that mean the same, stored in another way, give the same steps.

    Kernels leave what their memory alone does not tell to plain torch, which rounds otherwise.
    """
    hidden = [[disguise(g) for g in row] for row in rows()]
    shown = [[g.resolve_conj().resolve_neg().clone().contiguous() for g in row] for row in hidden]
    assert_alike(ends(name, hidden), ends(name, shown), within=within)


def rate_of(optimizer: Any) -> float:
    """The learning rate that the first group steps by; Polyak's rule finds its own."""
    group = optimizer.param_groups[0]
    return float(max(group["lr"], group.get("scheduled_lr", 0.0)))


# Gradients.


@condition("a gradient that is a lazily negated view", right="its value, not its memory")
def negated(name: str) -> None:
    def lazy(gradient: Tensor) -> Tensor:
        view = torch.complex(gradient, gradient).conj().imag
        assert view.is_neg()
        return view

    assert_reads(name, lazy, within=1e-6)


@condition("a gradient without memory (a zero tensor of autograd)", right="zeros")
def without_memory(name: str) -> None:
    zeros = [torch._efficientzerotensor((4, 3)), torch._efficientzerotensor((3,))]
    for place in (0, 2):
        hidden, shown = list(rows()), list(rows())
        hidden[place] = zeros
        shown[place] = [torch.zeros(4, 3), torch.zeros(3)]
        assert_alike(ends(name, hidden), ends(name, shown), within=1e-6)


@condition("an expanded gradient, one number in memory", right="as if written out")
def expanded(name: str) -> None:
    assert_reads(name, lambda g: g.flatten()[:1].sum().expand(g.shape), within=1e-6)


@condition("a gradient with other strides, and one in the middle of a buffer", right="its value")
def strided(name: str) -> None:
    assert_reads(name, lambda g: g.t().contiguous().t() if g.dim() == 2 else g, within=1e-6)
    twice = lambda g: torch.cat([g.flatten(), g.flatten()])  # noqa: E731
    assert_reads(name, lambda g: twice(g)[g.numel() :].view(g.shape), within=1e-6)


@condition("a bfloat16 parameter with a float32 gradient", right="as with the gradient in bfloat16")
def wider_gradient(name: str) -> None:
    def end(dtype: torch.dtype) -> list[Tensor]:
        params = starts(torch.bfloat16)
        for parameter in params:
            parameter.grad_dtype = None
        optimizer = make(name, params)
        for row in rows():
            step(optimizer, [g.bfloat16().to(dtype) for g in row])
        return points(optimizer)

    assert_alike(end(torch.float32), end(torch.bfloat16))


@condition("a sparse gradient", right="refused", may_refuse=True)
def sparse(name: str) -> None:
    step(make(name, starts()), [rows()[0][0].to_sparse(), rows()[0][1]])
    raise AssertionError("taken")


@condition("NaN in one element of a bfloat16 or float16 parameter's gradient", right="NaN there")
def not_a_number(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        optimizer = make(name, starts(dtype))
        for t, row in enumerate(rows()):
            if t == 2:
                row[1][1] = math.nan
            step(optimizer, [g.to(dtype) for g in row])
        vector = parameters_of(optimizer)[1]
        assert bool(vector[1].isnan()), f"{vector}"


@condition("elements whose first gradient is 0 (LoRA, absent embedding rows)", right="no explosion")
def zero_first(name: str) -> None:
    losses = list(_low_rank_losses(name))
    assert max(losses) < 10 * losses[0], f"losses {losses}"


def _low_rank_losses(name: str) -> Iterator[float]:
    weights, inputs, wanted = randoms(8, 8), randoms(64, 8, seed=3), randoms(8, 8, seed=4)
    down, up = Parameter(randoms(2, 8, seed=5) / 8**0.5), Parameter(torch.zeros(8, 2))
    optimizer = make(name, [down, up], lr=0.01)

    def closure() -> float:
        optimizer.zero_grad()
        seen = inputs @ weights.T + inputs @ down.T @ up.T
        loss = (seen - inputs @ wanted).square().mean()
        loss.backward()
        return loss.item()

    for _ in range(8):
        yield optimizer.step(closure)


@condition(
    "a first gradient after 200 steps, in an old group", right="a first step of at most 2 lr"
)
def late(name: str) -> None:
    old, new = Parameter(torch.ones(4, 3)), Parameter(torch.ones(4, 3))
    optimizer = make(name, [old, new], lr=0.01)
    for t in range(200):
        step(optimizer, [randoms(4, 3, seed=t), None])
    for t in range(200, 204):
        before = _moving(optimizer, new)
        step(optimizer, [randoms(4, 3, seed=t), torch.full((4, 3), 0.01)])
        moved = (_moving(optimizer, new) - before).abs().max().item()
        assert moved <= 2 * rate_of(optimizer), f"{moved / rate_of(optimizer):.1f} lr"


def _moving(optimizer: Any, parameter: Parameter) -> Tensor:
    """The point that the base rule moves."""
    return optimizer.state[parameter].get("z", parameter).detach().clone().float()


# Parameters.


@condition("complex parameters", right="moved as the pair of reals", may_refuse=True)
def complex_numbers(name: str) -> None:
    numbers = torch.complex(randoms(4, 3), randoms(4, 3, seed=1))
    one, pair = Parameter(numbers.clone()), Parameter(torch.view_as_real(numbers).clone())
    of_one, of_pair = make(name, [one]), make(name, [pair])
    for t in range(5):
        gradient = torch.complex(randoms(4, 3, seed=20 + t), randoms(4, 3, seed=30 + t))
        step(of_one, [gradient.conj().resolve_conj().conj()])  # lazily conjugated
        step(of_pair, [torch.view_as_real(gradient)])
    assert_alike([torch.view_as_real(p) for p in points(of_one)], points(of_pair), within=1e-6)


@condition("a parameter of no elements, and one without dimensions", right="taken")
def odd_shapes(name: str) -> None:
    empty, scalar = Parameter(torch.zeros(0, 3)), Parameter(torch.tensor(1.0))
    optimizer = make(name, [empty, scalar], lr=0.05)
    for t in range(8):
        step(optimizer, [torch.zeros(0, 3), randoms(1, seed=t)[0]])
    assert empty.shape == (0, 3)
    assert float(scalar.detach()) != 1.0
    assert math.isfinite(float(scalar.detach()))


@condition("a parameter cut in place after steps, its state left", right="refused", may_refuse=True)
def cut(name: str) -> None:
    optimizer = make(name, starts())
    for row in rows():
        step(optimizer, row)
    vector = parameters_of(optimizer)[1]
    vector.grad = None
    vector.data = vector.data[:2]
    step(optimizer, [rows()[0][0], torch.ones(2)])
    raise AssertionError("went on in silence")


@condition("sharded and plain tensors in one group (FSDP2, ignored parameters)", right="taken")
def mixed(name: str) -> None:
    def end(shard: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        if shard:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)), ignored_params={model.bias})
        optimizer = make(name, model.parameters())
        for t in range(3):

            def closure(t: int = t) -> float:
                optimizer.zero_grad()
                loss = model(randoms(2, 4, seed=t)).square().sum()
                loss.backward()
                return loss.item()

            optimizer.step(closure)
        return [getattr(p, "full_tensor", lambda p=p: p)() for p in points(optimizer)]

    with one_process():
        assert_alike(end(shard=True), end(shard=False), within=1e-6)


# State.


def _model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"used": nn.Linear(3, 3), "never": nn.Linear(3, 3)})


def _train(optimizer: Any, model: nn.ModuleDict, *, first: int = 0, num: int = 4) -> None:
    for t in range(first, first + num):
        row = [randoms(*p.shape, seed=50 + t) for p in model["used"].parameters()]
        step(optimizer, [*row, None, None])


@condition("the state is read before the first step (DCP)", right="the run is as without")
def read_first(name: str) -> None:
    quiet, read = _model(), _model()
    optimizer, other = make(name, quiet.parameters()), make(name, read.parameters())
    get_optimizer_state_dict(read, other)
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
    _train(optimizer, quiet)
    _train(other, read)
    assert_alike(points(other), points(optimizer))


@condition(
    "the state is read in eval position (DCP)",
    right="the run is as without, whether refused or not",
)
def read_in_eval(name: str) -> None:
    quiet, read = _model(), _model()
    optimizer, other = make(name, quiet.parameters()), make(name, read.parameters())
    other.eval()
    with contextlib.suppress(ValueError, RuntimeError):
        get_optimizer_state_dict(read, other)
    other.train()
    _train(optimizer, quiet)
    _train(other, read)
    assert_alike(points(other), points(optimizer))


@condition(
    "a flattened distributed checkpoint, a parameter never used",
    right="resumes bit for bit",
    may_refuse=True,
)
def flattened(name: str) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    old, new = _model(), _model()
    optimizer, other = make(name, old.parameters()), make(name, new.parameters())
    _train(optimizer, old)
    saved = get_optimizer_state_dict(old, optimizer, options=options)
    new.load_state_dict(old.state_dict())
    try:
        set_optimizer_state_dict(new, other, _copied(saved), options=options)
    except KeyError as error:
        raise AssertionError(f"KeyError: {error}") from error
    _train(optimizer, old, first=4)
    _train(other, new, first=4)
    assert_alike(points(other), points(optimizer))


def _copied(saved: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in saved.items()}


@condition("the state of torch's AdamW is loaded", right="its run is continued", may_refuse=True)
def foreign(name: str) -> None:
    source = torch.optim.AdamW(starts(), lr=0.01, weight_decay=0.0)
    for row in rows(6):
        for parameter, gradient in zip(parameters_of(source), row, strict=True):
            parameter.grad = gradient.clone()
        source.step()
    optimizer = make(name, [Parameter(p.detach().clone()) for p in parameters_of(source)])
    optimizer.load_state_dict(source.state_dict())
    for row in rows(9)[6:]:
        for parameter, gradient in zip(parameters_of(source), row, strict=True):
            parameter.grad = gradient.clone()
        source.step()
        step(optimizer, [g.clone() for g in row])
    seen = [p.detach() for p in parameters_of(optimizer)]
    assert_alike(seen, [p.detach() for p in parameters_of(source)], within=1e-3)


@condition(
    "a pre-hook of load_state_dict reorders by name", right="what the hook returns is loaded"
)
def reordered(name: str) -> None:
    saved_from = make(name, starts())
    for row in rows():
        step(saved_from, row)
    right = make(name, starts())
    right.load_state_dict(saved_from.state_dict())
    swapped = make(name, [Parameter(p.detach().clone()) for p in reversed(starts())])

    def reorder(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        first, second = saved["param_groups"][0]["params"]
        states = saved["state"]
        by_place = {first: states.get(second, {}), second: states.get(first, {})}
        return saved | {"state": by_place | {k: states[k] for k in states.keys() - by_place.keys()}}

    swapped.register_load_state_dict_pre_hook(reorder)
    swapped.load_state_dict(saved_from.state_dict())
    for parameter, other in zip(
        parameters_of(right), reversed(parameters_of(swapped)), strict=True
    ):
        ours, theirs = right.state[parameter], swapped.state[other]
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, theirs[key]), key


# Loops and settings.


@condition("step hooks", right="each runs once a step")
def hooks(name: str) -> None:
    optimizer, seen = make(name, starts()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for row in rows(2):
        step(optimizer, row)
    assert seen == ["before", "after"] * 2, f"{seen}"


@condition("OneCycleLR with its cycled momentum", right="cycles")
def one_cycle(name: str) -> None:
    optimizer = make(name, starts())
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.01 / 25)


@condition("numbers given as text, as YAML reads 1e-8", right="refused", may_refuse=True)
def text_settings(name: str) -> None:
    sentences = []
    for setting, value in _numbers_of(name).items():
        try:
            make(name, starts(), **{setting: str(value)})
        except ValueError as error:
            sentences.append(str(error))
        else:
            raise AssertionError(f"{setting}={str(value)!r} was taken")
    raise ValueError(sentences[0].partition(",")[0])


def _numbers_of(name: str) -> dict[str, float]:
    """Settings of the optimizer that are one number; a wrapper's base checks its own."""
    if name in WRAPPERS:
        raise HasNone
    defaults = make(name, starts()).defaults
    ours = getattr(optim, name).__init__.__annotations__
    return {
        key: value
        for key, value in defaults.items()
        if key in ours and isinstance(value, int | float) and not isinstance(value, bool)
    }


@condition(
    "torch's options maximize, capturable, fused, differentiable", right="taken", may_refuse=True
)
def options_of_torch(name: str) -> None:
    if name in WRAPPERS:
        raise HasNone
    sentences = []
    for option in ("maximize", "capturable", "fused", "differentiable"):
        try:
            seen = ends(name, rows(), **{option: True})
        except ValueError as error:
            sentences.append(str(error))
            continue
        except TypeError as error:
            raise AssertionError(f"{error}") from error
        sign = -1 if option == "maximize" else 1
        assert_alike(seen, ends(name, [[sign * g for g in row] for row in rows()]))
    if sentences:
        raise ValueError(sentences[0])


@condition("a step inside torch.autocast", right="the step outside")
def autocast(name: str) -> None:
    outside, inside = make(name, starts()), make(name, starts())
    for row in rows():
        step(outside, row)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step(inside, row)
    assert_alike(points(inside), points(outside))


@condition("a β₂ of 0.1", right="parameters move")
def small_beta2(name: str) -> None:
    defaults = make(name, starts()).defaults
    if name in WRAPPERS or not {"betas", "beta2", "beta"} & defaults.keys():
        raise HasNone
    if "betas" in defaults:
        settings: dict[str, Any] = {"betas": (defaults["betas"][0], 0.1)}
    elif "beta2" in defaults:
        settings = {"beta2": 0.1}
    else:
        raise HasNone
    before = starts()
    optimizer = make(name, starts(), **settings)
    for row in rows(12):
        step(optimizer, row)
    for a, b in zip(parameters_of(optimizer), before, strict=True):
        assert not torch.equal(a, b)
