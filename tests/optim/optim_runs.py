"""Runs of optimizers on given gradients, drawn by hypothesis and shared by the tests here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import schedulefree
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer

Make = Callable[..., torch.optim.Optimizer]
SHAPES = ((), (3,), (2, 3), (0,), (4, 1, 2))

FAST: dict[str, Callable[..., ScheduleFreeOptimizer]] = {
    "sgd": optim.SGDScheduleFree,
    "adamw": optim.AdamWScheduleFree,
}
REFERENCE: dict[str, Callable[..., ScheduleFreeOptimizer]] = {
    "sgd": optim.SGDScheduleFreeReference,
    "adamw": optim.AdamWScheduleFreeReference,
}
PYPI: dict[str, Make] = {
    "sgd": schedulefree.SGDScheduleFree,
    "adamw": schedulefree.AdamWScheduleFree,
    "radam": schedulefree.RAdamScheduleFree,
    "paper": schedulefree.AdamWScheduleFreePaper,
}
#: All fast forms and all reference texts; those above are enough where the rule does not matter.
ALL_FAST: dict[str, Callable[..., ScheduleFreeOptimizer]] = FAST | {
    "paper": optim.AdamWScheduleFreePaper,
    "radam": optim.RAdamScheduleFree,
}
ALL_REFERENCE: dict[str, Callable[..., ScheduleFreeOptimizer]] = REFERENCE | {
    "radam": optim.RAdamScheduleFreeReference,
}


@dataclass(frozen=True)
class Step:
    """Who has a gradient (by parameter), and the learning rate set from outside, if any."""

    has_gradient: tuple[bool, ...]
    lr: float | None


@dataclass(frozen=True)
class Run:
    """One training run on random gradients; two runs of it see the same numbers."""

    rule: str
    settings: dict[str, Any]
    groups: tuple[tuple[tuple[int, ...], ...], ...]
    group_settings: tuple[dict[str, Any], ...]
    steps: tuple[Step, ...]
    seed: int
    dtype: torch.dtype = torch.float64

    @property
    def beta(self) -> float:
        return float(self.settings.get("momentum") or self.settings["betas"][0])

    def parameters(self) -> list[list[Parameter]]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            [Parameter(self._normal(shape, generator)) for shape in shapes]
            for shapes in self.groups
        ]

    def optimizer(self, make: Make, parameters: list[list[Parameter]], **more: Any) -> Any:
        groups = [
            {"params": params, **settings}
            for params, settings in zip(parameters, self.group_settings, strict=True)
        ]
        return make(groups, **self.settings, **more)

    def gradients(self) -> list[list[Tensor | None]]:
        """By step and parameter."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shapes = [shape for group in self.groups for shape in group]
        drawn = [[self._normal(shape, generator) for shape in shapes] for _ in self.steps]
        return [
            [g if has else None for g, has in zip(row, step.has_gradient, strict=True)]
            for row, step in zip(drawn, self.steps, strict=True)
        ]

    def in_float32(self) -> "Run":
        return replace(self, dtype=torch.float32)

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(self.dtype)


def take_step(optimizer: Any, gradients: list[Tensor | None], lr: float | None = None) -> None:
    """One step on copies of the gradients."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    if lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
    optimizer.step()


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1."""
    if not a.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def _between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


_shared = {
    "lr": _between(1e-4, 1.0),
    "weight_decay": st.just(0) | _between(1e-3, 0.5),
    "warmup_steps": st.integers(0, 12),
    "r": st.just(0.0) | _between(0.0, 3.0),
    "weight_lr_power": st.just(2.0) | _between(0.0, 3.0),
}
_beta = _between(0.1, 0.99)
_adam = {
    "betas": st.tuples(_beta, st.just(0.0) | _between(0.5, 0.999)),
    "eps": _between(1e-10, 1e-4),
}
_own = {
    "sgd": {"momentum": _beta},
    "adamw": _adam,
    "paper": _adam,
    "radam": _adam | {"silent_sgd_phase": st.booleans()},
}


def _has(rule: str, name: str) -> bool:
    return rule != "radam" or name != "warmup_steps"


@st.composite
def runs(draw: st.DrawFn, *, has_gaps: bool = True, rules: Iterable[str] = FAST) -> Run:
    """Runs of up to 12 steps; with gaps, some gradients are missing at some steps."""
    rule = draw(st.sampled_from(sorted(rules)))
    shared = {name: values for name, values in _shared.items() if _has(rule, name)}
    groups = draw(
        st.lists(st.lists(st.sampled_from(SHAPES), max_size=3).map(tuple), min_size=1, max_size=3)
    )
    num_parameters = sum(map(len, groups))
    flags = st.booleans() if has_gaps else st.just(True)
    step = st.builds(
        Step, st.tuples(*[flags] * num_parameters), st.none() | st.just(0.0) | _between(0.0, 1.0)
    )
    return Run(
        rule=rule,
        settings=draw(st.fixed_dictionaries(shared | _own[rule])),
        groups=tuple(groups),
        group_settings=tuple(draw(st.fixed_dictionaries({}, optional=shared)) for _ in groups),
        steps=tuple(draw(st.lists(step, min_size=1, max_size=12))),
        seed=draw(st.integers(0, 10**6)),
    )


def example_run(rule: str, *, num_steps: int = 6, dtype: torch.dtype = torch.float64) -> Run:
    """A plain run with two parameters in one group, a warmup and a weight decay."""
    return Run(
        rule=rule,
        settings={"lr": 0.1, "weight_decay": 0.01}
        | ({"warmup_steps": 3} if _has(rule, "warmup_steps") else {}),
        groups=(((3,), (2, 3)),),
        group_settings=({},),
        steps=(Step((True, True), None),) * num_steps,
        seed=7,
        dtype=dtype,
    )
