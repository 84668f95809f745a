"""A small convolutional network with batch norm, so that the statistics at x matter."""

import torch
from torch import nn

from service.contract.models import ConvnetPreset
from worker.data.base import Description


class Convnet(nn.Module):
    """Two blocks, pooling between them, a linear head over the mean of all positions.

    Input (samples, channels, height, width), height and width at least 2.
    """

    def __init__(self, spec: ConvnetPreset, *, data: Description) -> None:
        super().__init__()
        channels, _, _ = data.input_shape
        self.features = nn.Sequential(
            _block(channels, spec.width),
            nn.MaxPool2d(2),
            _block(spec.width, 2 * spec.width),
        )
        self.head = nn.Linear(2 * spec.width, data.num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (samples, classes)."""
        logits: torch.Tensor = self.head(self.features(inputs).mean(dim=(2, 3)))
        return logits


def _block(num_inputs: int, num_outputs: int) -> nn.Sequential:
    # Batch norm takes the mean out, so the convolution needs no bias.
    convolution = nn.Conv2d(num_inputs, num_outputs, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_outputs), nn.ReLU())
