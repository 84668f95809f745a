"""Activations computed again: gradients, buffers and random states as without."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roadless.worker.distributed.activation_checkpointing import recompute_activations
from roadless.worker.errors import ModelInvalid

WIDTH = 4


class Counted(nn.Module):
    """Centres by a running mean of its own, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("num_passes", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(inputs.detach().mean(0), 0.3)
            self.num_passes += 1
        return inputs - self.mean


class AsImages(nn.Module):
    """Instance norm over rows taken as images of one channel each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True, affine=True)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.norm(inputs.unsqueeze(1)).squeeze(1)
        return outputs


class Model(nn.Module):
    """Two blocks, of which the first is run again at the end."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = (
            nn.Sequential(nn.Linear(WIDTH, WIDTH), make(), nn.Dropout(0.3), nn.Tanh())
            for _ in range(2)
        )
        self.blocks = nn.ModuleList([first, second, first])

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


KINDS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "cumulative batch norm": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "frozen batch norm": lambda: nn.BatchNorm1d(WIDTH).eval(),
    "instance norm": AsImages,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm by a hook": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "a running mean of its own": Counted,
    "none": lambda: nn.LayerNorm(WIDTH),
}


def trained(model: nn.Module) -> dict[str, Any]:
    optimizer, gradients = torch.optim.SGD(model.parameters(), lr=0.1), []
    torch.manual_seed(3)
    for t in range(3):
        optimizer.zero_grad()
        inputs = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(t))
        (model(inputs) - 1).square().mean().backward()
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return model.state_dict() | {f"gradient {i}": g for i, g in enumerate(gradients)}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_change_buffers_are_computed_again_as_they_were(kind: str) -> None:
    model, expected = Model(KINDS[kind]), trained(Model(KINDS[kind]))
    recompute_activations(model)
    seen = trained(model)
    assert seen.keys() == expected.keys()
    for name, value in seen.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_such_blocks_cannot_be_compiled_too(kind: str) -> None:
    with pytest.raises(ModelInvalid, match=r"saw .*\b(running_mean|_u|weight_u|mean)\b.* in Model"):
        recompute_activations(Model(KINDS[kind]), is_compiled=True)


def test_a_block_that_stands_twice_is_computed_again_once() -> None:
    model, calls = Model(KINDS["none"]), []
    model.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))
    recompute_activations(model)
    trained(model)
    assert len(calls) == 3 * 2 * 2
