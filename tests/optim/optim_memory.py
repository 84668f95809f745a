"""Gradients of one value in many guises: what torch leaves in ``.grad``, and what users put in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from optim_makes import NAMES, make, parameters_of
from torch import Tensor
from torch.nn import Parameter

from roadless.optim.backends import choose
from roadless.optim.core.engine import Engine

Guise = Callable[[Tensor], Tensor]


def _has_kernel(name: str) -> bool:
    optimizer = make(name, [Parameter(torch.ones(2))])
    if not isinstance(optimizer, Engine):
        return False
    return optimizer.rule.kernel(optimizer.param_groups[0], 10) is not None


#: The optimizers that kernels step.
KERNEL_NAMES = [name for name in NAMES if _has_kernel(name)]


@contextmanager
def kernels(*, are_used: bool) -> Iterator[None]:
    """For models of every size, or for none."""
    usual = choose.MIN_ELEMENTS
    choose.MIN_ELEMENTS = 0 if are_used else 2**60
    try:
        yield
    finally:
        choose.MIN_ELEMENTS = usual


def give(optimizer: Any, gradients: list[Tensor | None]) -> None:
    """One step on these gradients themselves, of any dtype."""

    def closure() -> float:
        for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            parameter.grad_dtype = None
            parameter.grad = gradient
        return 1.0

    optimizer.step(closure)


class Strange(torch.Tensor):
    """A tensor that may mean something else than its memory says."""


def of_conjugate(g: Tensor) -> Tensor:
    """The imaginary part of a number that was conjugated, as autograd leaves it."""
    return torch.complex(torch.zeros_like(g), -g).conj().imag


def negated(g: Tensor) -> Tensor:
    """The same flag over neighbours in memory."""
    return torch._neg_view(-g)


def among_others(g: Tensor) -> Tensor:
    """In the middle of a larger storage."""
    storage = torch.full((g.numel() + 7,), float("nan"), dtype=g.dtype)
    storage[3:-4] = g.flatten()
    return storage[3:-4].view(g.shape)


def every_second(g: Tensor) -> Tensor:
    return torch.stack([g, torch.full_like(g, float("nan"))], dim=-1)[..., 0]


def last_dimension_first(g: Tensor) -> Tensor:
    """In memory; the shape is the same."""
    return g.movedim(-1, 0).contiguous().movedim(0, -1)


def from_inference(g: Tensor) -> Tensor:
    with torch.inference_mode():
        return g.clone()


def with_history(g: Tensor) -> Tensor:
    """As ``create_graph`` leaves it."""
    with torch.enable_grad():
        return g.clone().requires_grad_() * 1


def repeated(g: Tensor) -> Tensor:
    """One number for all elements, in memory once."""
    return g.flatten()[0].clone().expand(g.shape)


def without_memory(g: Tensor) -> Tensor:
    """Zeros, as forward-mode and double backward formulas make them."""
    return torch._efficientzerotensor(g.shape, dtype=g.dtype)


#: Each has the value of the tensor that it is given.
GUISES: dict[str, Guise] = {
    "of a conjugate": of_conjugate,
    "negated": negated,
    "negated twice": lambda g: negated(negated(g)),
    "among others": among_others,
    "every second": every_second,
    "last dimension first": last_dimension_first,
    "copied on write": lambda g: torch._lazy_clone(g),
    "of a subclass": lambda g: g.clone().as_subclass(Strange),
    "from inference": from_inference,
    "with history": with_history,
    "a parameter": lambda g: Parameter(g.clone()),
    "wider": lambda g: g.double(),
}
#: Each has the value of the second function of what it is given.
POORER_GUISES: dict[str, tuple[Guise, Guise]] = {
    "repeated": (repeated, lambda g: torch.full_like(g, g.flatten()[0])),
    "repeated and negated": (
        lambda g: negated(g.flatten()[:1])[0].expand(g.shape),
        lambda g: torch.full_like(g, g.flatten()[0]),
    ),
    "without memory": (without_memory, torch.zeros_like),
    "narrower": (lambda g: g.bfloat16(), lambda g: g.bfloat16().to(g.dtype)),
}
