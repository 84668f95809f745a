"""A model whose steps take time and no processor, for tests that need a job to last."""

import time

import torch
from torch import Tensor, nn

SECONDS = 0.03


class Paced(nn.Module):
    """A perceptron that waits in every forward pass of training."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_inputs, 32)
        self.head = nn.Linear(32, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            time.sleep(SECONDS)
        outputs: Tensor = self.head(torch.tanh(self.hidden(inputs.flatten(1))))
        return outputs


def paced(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Paced(torch.Size(input_shape).numel(), num_outputs)
