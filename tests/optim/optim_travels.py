"""States on the way from one optimizer to another, of every name and over every base of torch's.

A `Pair` is a model and its optimizer. One of the model's layers may have no gradients.
"""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from optim_makes import NAMES, WRAPPERS, make
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from roadless import optim
from roadless.optim import ScheduleFreeWrapper, ScheduleFreeWrapperReference, averaged_point

Make = Callable[[Any], Any]
LR = 0.05
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)

TORCH_BASES: dict[str, Make] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=LR),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=LR, amsgrad=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=LR),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=LR, momentum=0.3, centered=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=LR, initial_accumulator_value=0.1),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=LR),
    "RAdam": lambda params: torch.optim.RAdam(params, lr=LR),
    "Adadelta": lambda params: torch.optim.Adadelta(params, lr=LR),
    "Adamax": lambda params: torch.optim.Adamax(params, lr=LR),
    "ASGD": lambda params: torch.optim.ASGD(params, lr=LR),
    "Rprop": lambda params: torch.optim.Rprop(params, lr=LR),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=LR),
    "Muon": lambda params: torch.optim.Muon(params, lr=LR),
}
OUR_BASES: dict[str, Make] = {
    "ForeachLaProp": lambda params: optim.ForeachLaProp(params, lr=LR),
    "ForeachADOPT": lambda params: optim.ForeachADOPT(params, lr=LR),
    "ForeachSOAP": lambda params: optim.ForeachSOAP(params, lr=LR),
}


def _named(name: str) -> Make:
    return lambda params: make(name, params, lr=LR)


def _around(form: Any, base: Make) -> Make:
    return lambda params: form(base(params))


BY_NAME: dict[str, Make] = {name: _named(name) for name in NAMES if name not in WRAPPERS}
WRAPPED: dict[str, Make] = {
    f"{form.__name__}({base})": _around(form, make_base)
    for form in (ScheduleFreeWrapper, ScheduleFreeWrapperReference)
    for base, make_base in (TORCH_BASES | OUR_BASES).items()
}
ALL: dict[str, Make] = BY_NAME | WRAPPED


class Pair:
    """A model of two layers and its optimizer; pairs start alike."""

    def __init__(
        self, make_one: Make, *, dtype: torch.dtype = torch.float32, width: int = 3
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        layers = {name: nn.Linear(3, width, bias=False) for name in ("used", "never")}
        self.model = nn.ModuleDict(layers).to(dtype)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer = make_one(self.model.parameters())

    def train(self, first: int, num_steps: int, *, is_all_used: bool = False) -> "Pair":
        for t in range(first, first + num_steps):
            self.step(t, is_all_used=is_all_used)
        return self

    def step(self, t: int, *, is_all_used: bool) -> None:
        def closure() -> float:
            for name, parameter in self.model.named_parameters():
                has_gradient = is_all_used or name.startswith("used")
                parameter.grad = gradient_like(parameter, t) if has_gradient else None
            return 1.0

        self.optimizer.step(closure)

    def saved(self, options: StateDictOptions | None = None) -> Any:
        """What torch's distributed checkpoint would write, as a copy."""
        return copy.deepcopy(get_optimizer_state_dict(self.model, self.optimizer, options=options))

    def load(self, source: "Pair", saved: Any, options: StateDictOptions | None = None) -> "Pair":
        self.model.load_state_dict(source.model.state_dict())
        set_optimizer_state_dict(self.model, self.optimizer, saved, options=options)
        return self

    def read(self) -> "Pair":
        get_optimizer_state_dict(self.model, self.optimizer)
        return self

    def points(self) -> list[Tensor]:
        """Copies of y and x."""
        ys = [parameter.detach().clone() for parameter in self.model.parameters()]
        return [*ys, *averaged_point(self.optimizer).values()]


def gradient_like(parameter: Tensor, t: int) -> Tensor:
    """The t-th, the same for plain and sharded parameters."""
    generator = torch.Generator().manual_seed(100 + t)
    gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    if isinstance(parameter, DTensor):
        return distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
    return gradient


def assert_alike(seen: Pair, right: Pair) -> None:
    """Bit for bit."""
    for a, b in zip(seen.points(), right.points(), strict=True):
        assert torch.equal(a, b)


def assert_go_on_alike(seen: Pair, right: Pair, *, first: int) -> None:
    """Now, after steps in which one layer rests, and once it moves as well."""
    assert_alike(seen, right)
    for is_all_used in (False, True):
        for pair in (seen, right):
            pair.train(first, 2, is_all_used=is_all_used)
        first += 2
        assert_alike(seen, right)


@contextmanager
def one_process() -> Any:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
