"""Logistic or linear regression: the model to beat."""

import torch
from torch import nn

from roadless.service.contract.job.models import LinearPreset
from roadless.worker.data.base import Description
from roadless.worker.model.shapes import require_numbers


class Linear(nn.Module):
    """Flatten, and one linear layer. Input (samples, ...), any shape."""

    def __init__(self, spec: LinearPreset, *, data: Description) -> None:
        super().__init__()
        require_numbers(data, model=spec.name)
        self.head = nn.Linear(torch.Size(data.input_shape).numel(), data.num_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits or predictions of shape (samples, outputs)."""
        outputs: torch.Tensor = self.head(inputs.flatten(1))
        return outputs
