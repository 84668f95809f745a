"""What a user's package might offer: factories that work, and factories that do not."""

import random

import numpy as np
import torch
from torch import nn


def small(*, input_shape: tuple[int, ...], num_outputs: int, width: int = 4) -> nn.Module:
    num_inputs = torch.Size(input_shape).numel()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(num_inputs, width), nn.Tanh(), nn.Linear(width, num_outputs)
    )


def frozen_norm(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Modes of its own: one part stays in evaluation mode."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_outputs))
    model[1].eval()
    return model


def failing(**arguments: object) -> nn.Module:
    raise RuntimeError("no such width")


def no_module(**arguments: object) -> str:
    return "a model"


def too_wide(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs + 1))


def for_tokens(**arguments: object) -> nn.Module:
    return nn.Embedding(10, 10)


def _filled(num_outputs: int, *, value: float) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))
    nn.init.constant_(model[1].bias, value)
    return model


def drawn_by_numpy(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return _filled(num_outputs, value=float(np.random.rand()))


def drawn_by_python(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return _filled(num_outputs, value=random.random())


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return inputs, None


def pair(**arguments: object) -> nn.Module:
    return Pair()


class Noisy(nn.Module):
    """Adds noise from every generator there is, while it trains."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(inputs.flatten(1))
        if self.training:
            outputs = outputs + torch.randn(()) + np.random.rand() * outputs + random.random()
        return outputs


def noisy(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Noisy(num_outputs)
