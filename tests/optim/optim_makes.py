"""Every optimizer of the library by its public name, made and stepped in one way.

New names are covered by themselves: whatever in ``roadless.optim.__all__`` is an optimizer is in
`NAMES`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from roadless import optim

NAMES = sorted(
    name
    for name in optim.__all__
    if isinstance(getattr(optim, name), type)
    and issubclass(getattr(optim, name), torch.optim.Optimizer)
)
WRAPPERS = ("ScheduleFreeWrapper", "ScheduleFreeWrapperReference")
CLOSURES = tuple(name for name in NAMES if name.endswith("Closure"))
PLUS = "AdamCScheduleFreePlusPaper"


def make(name: str, params: Any, **settings: Any) -> Any:
    """An optimizer of that name; settings are those of its base where it is a wrapper."""
    kind = getattr(optim, name)
    if name in WRAPPERS:
        return kind(torch.optim.AdamW(params, **{"lr": 0.05} | settings))
    return kind(params, **settings)


def step(optimizer: Any, gradients: list[Tensor | None], *, loss: float = 1.0) -> None:
    """One step on copies of the gradients, by closure, which all of them take."""

    def closure() -> float:
        for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        return loss

    optimizer.step(closure)


def parameters_of(optimizer: Any) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def randoms(num: int, like: list[Parameter], *, seed: int = 0) -> list[list[Tensor]]:
    """By step and parameter."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in like]
        for _ in range(num)
    ]


def parameters(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in ((4, 3), (3,), (2, 3, 2), (16, 8))
    ]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
