"""A small convolutional network with batch norm, so that the statistics at x matter."""

import torch
from torch import nn

from roadless.service.contract.job.models import ConvnetPreset
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.shapes import image_shape

_POOL = 2


class Convnet(nn.Module):
    """Two blocks, pooling between them, a linear head over the mean of all positions.

    Input (samples, channels, height, width), height and width at least 2.
    """

    def __init__(self, spec: ConvnetPreset, *, data: Description) -> None:
        super().__init__()
        channels, height, width = image_shape(data, model=spec.name)
        if min(height, width) < _POOL:
            raise ModelInvalid(
                f"expected images of at least {_POOL}x{_POOL} for {spec.name}, saw {height}x{width}"
            )
        self.features = nn.Sequential(
            _block(channels, spec.width),
            nn.MaxPool2d(_POOL),
            _block(spec.width, 2 * spec.width),
        )
        self.head = nn.Linear(2 * spec.width, data.num_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits or predictions of shape (samples, outputs)."""
        outputs: torch.Tensor = self.head(self.features(inputs).mean(dim=(2, 3)))
        return outputs


def _block(num_inputs: int, num_outputs: int) -> nn.Sequential:
    # Batch norm removes the mean, so the convolution needs no bias.
    convolution = nn.Conv2d(num_inputs, num_outputs, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_outputs), nn.ReLU())
