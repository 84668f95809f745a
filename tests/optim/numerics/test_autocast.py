"""A loop that stands inside torch.autocast as a whole is the loop whose forward passes do."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from optim_makes import NAMES, make
from torch import Tensor, nn

from roadless.optim import at_average, averaged_point
from roadless.optim.numerics.autocast import outside_autocast

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NARROW = [torch.bfloat16, torch.float16]


def narrow(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def trained(
    name: str, *, loop: AbstractContextManager[Any], forward: Any, beta: float | None = None
) -> list[Tensor]:
    """Losses at y and at x by step, then y and x; β is changed, where there is one, half-way."""
    net, found = model(), []
    optimizer = make(name, net.parameters(), lr=0.05)
    batches = torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(1))
    with loop:
        for t, batch in enumerate(batches):

            def closure(batch: Tensor = batch) -> float:
                optimizer.zero_grad()
                with forward():
                    loss = (net(batch).float() - 1).square().mean()
                loss.backward()
                found.append(loss.detach())
                return loss.item()

            if t == 3 and beta is not None:
                change_beta(optimizer.param_groups[0], beta)
            optimizer.step(closure)
            with forward(), torch.no_grad(), at_average(optimizer):
                found.append(net(batch).float())
            optimizer.eval()
            with forward(), torch.no_grad():
                found.append(net(batch).float())
            optimizer.train()
        found += [x.clone() for x in averaged_point(optimizer).values()]
    return [*found, *(p.detach() for p in net.parameters())]


def change_beta(group: dict[str, Any], beta: float) -> None:
    if "sf_momentum" in group:
        group["sf_momentum"] = beta
    elif "momentum" in group:
        group["momentum"] = beta
    elif "betas" in group:
        group["betas"] = (beta, group["betas"][1])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_loop_inside_is_the_forward_passes_inside(name: str, dtype: torch.dtype) -> None:
    """Neither is a step narrowed, nor does a pass see earlier parameters."""
    whole = trained(name, loop=narrow(dtype), forward=nullcontext, beta=0.8)
    passes = trained(name, loop=nullcontext(), forward=lambda: narrow(dtype), beta=0.8)
    assert all(map(torch.equal, whole, passes))


@pytest.mark.parametrize("name", [name for name in NAMES if "SOAP" in name])
def test_a_state_that_is_read_inside_is_the_one_read_outside(name: str) -> None:
    read = []
    for around in (nullcontext(), narrow(torch.bfloat16)):
        net = model()
        optimizer = make(name, net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        with around:
            optimizer.step()
            read.append(optimizer.state_dict()["state"])
    outside, inside = read
    assert [list(state) for state in inside.values()] == [list(s) for s in outside.values()]
    for one, other in zip(inside.values(), outside.values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_forward_pass_after_a_change_inside_sees_it() -> None:
    layer, batch = nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    with narrow(torch.bfloat16):
        layer(batch)
        with outside_autocast(), torch.no_grad():
            layer.weight.zero_()
        assert not layer(batch).any()


def test_an_error_inside_leaves_autocast_as_it_was() -> None:
    def fail() -> None:
        with outside_autocast():
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError

    with narrow(torch.bfloat16):
        with pytest.raises(KeyError):
            fail()
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_of_an_accelerator_is_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be seen where there is none."""
    monkeypatch.setattr("roadless.optim.numerics.autocast._device_types", lambda: ("cpu", "cuda"))
    torch.set_autocast_enabled("cuda", True)
    try:
        with narrow(torch.bfloat16), outside_autocast():
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
