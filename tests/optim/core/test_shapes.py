"""Parameters, gradients and states whose sizes part: refused on every name, never broadcast."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_makes import NAMES, WRAPPERS, make, parameters_of, same_bits
from optim_memory import give, kernels
from torch import Tensor
from torch.nn import Parameter

from roadless import optim


def started(name: str, *, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(0)
    optimizer = make(
        name, [Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SIZES]
    )
    for _ in range(7):
        step(optimizer)
    return optimizer


SIZES = ((4, 4), (3,))


def step(optimizer: Any) -> None:
    """With new gradients of ones."""
    give(optimizer, [torch.ones_like(p) for p in parameters_of(optimizer)])


def step_again(optimizer: Any) -> None:
    """With the gradients that are there."""
    optimizer.step(lambda: 1.0)


def resize(optimizer: Any, new: Callable[[Tensor], Tensor]) -> None:
    """Of the first parameter, as users do it."""
    parameter = parameters_of(optimizer)[0]
    parameter.data = new(parameter.data)


def change_states(optimizer: Any, new: Callable[[Tensor], Tensor], *, num: int = 9) -> None:
    """Of the first parameter, those that are as large as it is."""
    parameter = parameters_of(optimizer)[0]
    state = optimizer.state[parameter]
    for name in [n for n, tensor in state.items() if tensor.shape == parameter.shape][:num]:
        state[name] = new(state[name])


def cut_in_place(tensor: Tensor) -> Tensor:
    tensor.data = tensor.data[:2]
    return tensor


CHANGES: dict[str, Callable[[Any], None]] = {
    "parameter cut": lambda o: resize(o, lambda p: p[:2]),
    "parameter cut to one row, which broadcasts": lambda o: resize(o, lambda p: p[:1]),
    "parameter cut to nothing": lambda o: resize(o, lambda p: p[:0]),
    "parameter grown": lambda o: resize(o, lambda p: torch.cat([p, p])),
    "parameter with another dimension": lambda o: resize(o, lambda p: p[None].clone()),
    "parameter in another shape": lambda o: resize(o, lambda p: p.view(2, 8)),
    "states cut": lambda o: change_states(o, lambda t: t[:2]),
    "states cut in place": lambda o: change_states(o, cut_in_place),
    "states of one row, which broadcasts": lambda o: change_states(o, lambda t: t[:1]),
    "states of one element": lambda o: change_states(o, lambda t: t.flatten()[:1]),
    "one state of one element": lambda o: change_states(o, lambda t: t.flatten()[0], num=1),
    "one state grown": lambda o: change_states(o, lambda t: torch.cat([t, t]), num=1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("are_used", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_shape_is_refused(
    name: str, change: str, are_used: bool, dtype: torch.dtype
) -> None:
    with kernels(are_used=are_used):
        optimizer = started(name, dtype=dtype)
        CHANGES[change](optimizer)
        with pytest.raises(ValueError, match=r"expected the shape of its parameter.*seen"):
            step(optimizer)


@pytest.mark.parametrize("are_used", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("new", [lambda p: p[:2], lambda p: p[:1], lambda p: torch.cat([p, p])])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_from_before_is_refused(
    name: str, new: Callable[[Tensor], Tensor], are_used: bool
) -> None:
    """Also where its state was brought to the new size, and in the first step of all."""
    with kernels(are_used=are_used):
        optimizer = started(name)
        change_states(optimizer, new)
        resize(optimizer, new)
        with pytest.raises(ValueError, match=r"gradient: expected.*seen \(4, 4\)"):
            step_again(optimizer)
        fresh = make(name, [Parameter(torch.ones(4, 4))])
        parameters_of(fresh)[0].grad = torch.ones(4, 4)
        resize(fresh, new)
        with pytest.raises(ValueError, match=r"gradient: expected.*seen \(4, 4\)"):
            step_again(fresh)


@pytest.mark.parametrize("are_used", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in WRAPPERS])
def test_a_parameter_whose_state_was_deleted_starts_anew(name: str, are_used: bool) -> None:
    """The way out that the error names; a wrapper's base has states of its own."""
    with kernels(are_used=are_used):
        optimizer = started(name)
        resize(optimizer, lambda p: p[:2])
        with pytest.raises(ValueError, match="delete it"):
            step(optimizer)
        one = parameters_of(optimizer)[0]
        del optimizer.state[one]
        before = one.detach().clone()
        for _ in range(7):
            step(optimizer)
    assert one.shape == (2, 4)
    assert bool((one < before).all())


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "PaLMForeachSFAdamW"])
@pytest.mark.parametrize("new", [lambda p: p[:2], lambda p: p[:1], lambda p: torch.cat([p, p])])
def test_there_is_no_average_of_points_of_unequal_shapes(
    name: str, new: Callable[[Tensor], Tensor]
) -> None:
    optimizer = started(name)
    resize(optimizer, new)
    for read in (optim.averaged_point, lambda o: o.eval()):
        with pytest.raises(ValueError, match="state 'z': expected the shape"):
            read(optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_refuses_before_it_moves_anything(name: str, dtype: torch.dtype) -> None:
    """Half-way, its parameters hold neither y nor x; the fault is in the last of them."""
    refused, quiet = started(name, dtype=dtype), started(name, dtype=dtype)
    vector = parameters_of(refused)[1]
    whole = vector.data
    vector.data = whole[:2]
    with pytest.raises(ValueError, match="expected the shape of its parameter"):
        step_again(refused)
    vector.data = whole
    assert same_bits(parameters_of(refused), parameters_of(quiet))
    step(refused)
    step(quiet)
    assert same_bits(parameters_of(refused), parameters_of(quiet))
    assert same_bits(*(list(optim.averaged_point(one).values()) for one in (refused, quiet)))
