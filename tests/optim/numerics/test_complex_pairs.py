"""A complex parameter goes as the pair of its parts does, in every position and after loading."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_makes import NAMES, WRAPPERS, make, parameters_of, step
from torch import Tensor
from torch.nn import Parameter

from roadless.optim import at_average, averaged_point
from roadless.optim.numerics.complex_pairs import as_pair

each_name = pytest.mark.parametrize("name", NAMES)
OURS = [name for name in NAMES if name not in WRAPPERS]
SHAPES = ((4, 3), (), (5,), (2, 2, 3))


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def starts(dtype: torch.dtype) -> list[Tensor]:
    return [drawn(shape, i, dtype) for i, shape in enumerate(SHAPES)]


def twins(name: str, *, dtype: torch.dtype = torch.complex128, **more: Any) -> tuple[Any, Any]:
    """An optimizer of complex parameters and one of their pairs."""
    chosen = {"lr": 0.05, "weight_decay": 0.1} | more
    numbers = [Parameter(z.clone()) for z in starts(dtype)]
    pairs = [Parameter(torch.view_as_real(z).clone()) for z in starts(dtype)]
    return make(name, numbers, **chosen), make(name, pairs, **chosen)


def step_both(of_numbers: Any, of_pairs: Any, t: int) -> None:
    dtype = parameters_of(of_numbers)[0].dtype
    gradients = [drawn(shape, 100 * t + i, dtype) for i, shape in enumerate(SHAPES)]
    step(of_numbers, list(gradients))
    step(of_pairs, [torch.view_as_real(g) for g in gradients])


def gap(of_numbers: Any, of_pairs: Any) -> float:
    lists = zip(parameters_of(of_numbers), parameters_of(of_pairs), strict=True)
    return max(float((as_pair(z.detach()) - pair.detach()).abs().max()) for z, pair in lists)


def gap_of_averages(of_numbers: Any, of_pairs: Any) -> float:
    lists = zip(averaged_point(of_numbers).values(), averaged_point(of_pairs).values(), strict=True)
    return max(float((as_pair(z) - pair).abs().max()) for z, pair in lists)


@each_name
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.complex128, 1e-11), (torch.complex64, 3e-5)], ids=str
)
def test_steps_and_averages_are_those_of_the_pair(
    name: str, dtype: torch.dtype, within: float
) -> None:
    of_numbers, of_pairs = twins(name, dtype=dtype)
    for t in range(12):
        step_both(of_numbers, of_pairs, t)
        assert gap(of_numbers, of_pairs) <= within
        assert gap_of_averages(of_numbers, of_pairs) <= within
    assert all(p.dtype == dtype for p in parameters_of(of_numbers))


@each_name
def test_every_position_is_that_of_the_pair(name: str) -> None:
    of_numbers, of_pairs = twins(name)
    for t in range(6):
        step_both(of_numbers, of_pairs, t)
    before = [p.detach().clone() for p in parameters_of(of_numbers)]
    with at_average(of_numbers), at_average(of_pairs):
        assert gap(of_numbers, of_pairs) <= 1e-11
    for move in ("eval", "train"):
        for optimizer in (of_numbers, of_pairs):
            getattr(optimizer, move)()
        assert gap(of_numbers, of_pairs) <= 1e-11
    assert all(map(torch.equal, before, parameters_of(of_numbers)))


@each_name
def test_a_resumed_run_goes_on_bit_for_bit(name: str) -> None:
    of_numbers, of_pairs = twins(name)
    for t in range(5):
        step_both(of_numbers, of_pairs, t)
    resumed = make(name, [Parameter(p.detach().clone()) for p in parameters_of(of_numbers)])
    resumed.load_state_dict(copy.deepcopy(of_numbers.state_dict()))
    for t in range(5, 8):
        step_both(of_numbers, of_pairs, t)
        step_both(resumed, of_pairs, t)
    assert all(map(torch.equal, parameters_of(of_numbers), parameters_of(resumed)))


@pytest.mark.parametrize(
    "name", ["AdamWScheduleFree", "ForeachADOPT", "RAdamScheduleFreeReference"]
)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), maximize=st.booleans())
def test_real_and_complex_parameters_share_a_group(
    name: str, order: list[int], maximize: bool
) -> None:
    """Transposed and late ones included."""
    real, turned = torch.ones(3, dtype=torch.float64), drawn((4, 3), 1).t()
    values = [real, turned, drawn((5,), 2), drawn((5,), 3)]
    numbers = [Parameter(values[i].clone()) for i in order]
    pairs = [Parameter(as_pair(values[i]).clone()) for i in order]
    optimizers = [make(name, params, lr=0.05, maximize=maximize) for params in (numbers, pairs)]
    for t in range(9):
        gradients = [
            None if i == 3 and t < 3 else drawn(tuple(values[i].shape), 10 * t + i, values[i].dtype)
            for i in order
        ]
        step(optimizers[0], list(gradients))
        step(optimizers[1], [None if g is None else as_pair(g) for g in gradients])
    assert gap(*optimizers) <= 1e-11
    assert gap_of_averages(*optimizers) <= 1e-11


@pytest.mark.parametrize("name", OURS)
def test_what_cannot_be_stepped_as_a_pair_is_refused(name: str) -> None:
    """Where it comes in, and not in the first step."""
    coarse = torch.zeros(3, dtype=torch.complex32)
    for value, seen in ((coarse, "seen complex32"), (drawn((3,), 0).conj(), "lazy conjugate")):
        with pytest.raises(ValueError, match=rf"^params: expected .*{seen}"):
            make(name, [Parameter(value)])
        optimizer = make(name, [Parameter(torch.zeros(3))])
        with pytest.raises(ValueError, match=rf"^params: expected .*{seen}"):
            optimizer.add_param_group({"params": [Parameter(value)]})
        assert len(optimizer.param_groups) == 1


def test_an_average_does_not_lose_its_imaginary_part_in_a_real_buffer() -> None:
    weight = Parameter(drawn((3,), 0))
    optimizer = make("SGDScheduleFree", [weight])
    with pytest.raises(ValueError, match=r"expected a complex buffer, seen torch\.float64"):
        averaged_point(optimizer, out={weight: torch.empty(3, dtype=torch.float64)})
