"""Residual networks with batch norm, of He et al., arXiv 1512.03385.

The small stem is that of their networks for CIFAR; the bottleneck strides in its 3x3 convolution,
as has become common since.
"""

import torch
from torch import nn
from torch.nn import functional

from roadless.service.contract.job.models import ResnetPreset
from roadless.worker.data.base import Description
from roadless.worker.model.shapes import image_shape

_BOTTLENECK_FACTOR = 4


class Resnet(nn.Module):
    """Stem, stages that halve the image and double the channels, a linear head over the mean.

    Input (samples, channels, height, width).
    """

    def __init__(self, spec: ResnetPreset, *, data: Description) -> None:
        super().__init__()
        channels, _, _ = image_shape(data, model=spec.name)
        self.stem = (
            _large_stem(channels, spec.width)
            if spec.stem == "large"
            else _small_stem(channels, spec.width)
        )
        blocks = _blocks(spec)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(blocks[-1].num_outputs, data.num_outputs)
        self._initialise()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits or predictions of shape (samples, outputs)."""
        features = self.stem(inputs)
        for block in self.blocks:
            features = block(features)
        outputs: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return outputs

    def _initialise(self) -> None:
        """Preserve variance backwards; blocks add nothing at first (arXiv 1706.02677)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Block):
                nn.init.zeros_(module.last_norm.weight)


class Block(nn.Module):
    """Convolutions with batch norm, ReLU between them, added to the shortcut.

    ``convolutions``: (input channels, output channels, kernel size, stride) of each.
    """

    def __init__(self, convolutions: tuple[tuple[int, int, int, int], ...]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(*one) for one in convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _, width, _, _ in convolutions)
        num_inputs, self.num_outputs = convolutions[0][0], convolutions[-1][1]
        stride = max(stride for _, _, _, stride in convolutions)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or num_inputs != self.num_outputs:
            self.shortcut = nn.Sequential(
                _convolution(num_inputs, self.num_outputs, 1, stride),
                nn.BatchNorm2d(self.num_outputs),
            )

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the sum; at zero the block is its shortcut."""
        norm = self.norms[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's features: (samples, output channels, height / stride, ...)."""
        features = inputs
        for index, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            features = norm(convolution(features if index == 0 else functional.relu(features)))
        return functional.relu(features + self.shortcut(inputs))


def _blocks(spec: ResnetPreset) -> list[Block]:
    num_inputs, blocks = spec.width, []
    for stage, depth in enumerate(spec.depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(_block(spec, num_inputs, width=spec.width * 2**stage, stride=stride))
            num_inputs = blocks[-1].num_outputs
    return blocks


def _block(spec: ResnetPreset, num_inputs: int, *, width: int, stride: int) -> Block:
    if spec.block == "basic":
        return Block(((num_inputs, width, 3, stride), (width, width, 3, 1)))
    num_outputs = _BOTTLENECK_FACTOR * width
    return Block(((num_inputs, width, 1, 1), (width, width, 3, stride), (width, num_outputs, 1, 1)))


def _small_stem(num_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(_convolution(num_inputs, width, 3, 1), nn.BatchNorm2d(width), nn.ReLU())


def _large_stem(num_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(num_inputs, width, 7, 2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )


def _convolution(num_inputs: int, num_outputs: int, kernel_size: int, stride: int) -> nn.Conv2d:
    # Batch norm removes the mean, so the convolution needs no bias.
    return nn.Conv2d(
        *(num_inputs, num_outputs, kernel_size),
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
