"""A multi-layer perceptron: the smallest model that learns something."""

from itertools import pairwise

import torch
from torch import nn

from roadless.service.contract.job.models import MlpPreset
from roadless.worker.data.base import Description
from roadless.worker.model.shapes import require_numbers


class Mlp(nn.Module):
    """Flatten, hidden layers with ReLU, a linear head. Input (samples, ...), any shape."""

    def __init__(self, spec: MlpPreset, *, data: Description) -> None:
        super().__init__()
        require_numbers(data, model=spec.name)
        widths = (torch.Size(data.input_shape).numel(), *spec.hidden)
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Linear(widths[-1], data.num_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits or predictions of shape (samples, outputs)."""
        features = inputs.flatten(1)
        for layer in self.hidden:
            features = layer(features).relu()
        outputs: torch.Tensor = self.head(features)
        return outputs
