"""Every optimizer trains parameters in bfloat16 and float16 as far as those in float32."""

import pytest
import torch
from optim_makes import NAMES, PLUS, make
from torch import nn

from roadless.optim import at_average

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NUM_STEPS = 100


def progress(name: str, dtype: torch.dtype) -> float:
    """How far the loss at x falls in steps that are mostly below half a unit of bfloat16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    inputs = torch.randn(128, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.sin(inputs.sum(1, keepdim=True))
    lr = 0.1 if name == PLUS else 0.01 if name.startswith("SGD") else 3e-4
    optimizer = make(name, model.parameters(), lr=lr)

    def loss() -> torch.Tensor:
        return (model(inputs.to(dtype)).float() - targets).square().mean()

    def closure() -> float:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found.item()

    start = loss().item()
    for _ in range(NUM_STEPS):
        optimizer.step(closure)
    with torch.no_grad(), at_average(optimizer):
        return start - loss().item()


@pytest.mark.parametrize("name", NAMES)
def test_narrow_parameters_get_as_far_as_wide_ones(name: str) -> None:
    """To within a fifth; rounded to nearest, torch's AdamW gets less than half as far."""
    expected = progress(name, torch.float32)
    assert expected > 0.005
    assert progress(name, torch.bfloat16) == pytest.approx(expected, rel=0.2)
    assert progress(name, torch.float16) == pytest.approx(expected, rel=0.02)
