"""How parameters lie in memory, which training and whoever evaluates must have alike.

A product with a transposed or channels-last weight is summed in another order, so to other bits.
"""

import torch
from torch import nn

from roadless.service.contract.job.training import ParallelismSpec


def lay_out(model: nn.Module, *, parallelism: ParallelismSpec) -> None:
    """Bring parameters into the memory order that training has, in place.

    As the model was made, but for shards: FSDP2 of torch 2.13 refuses what is not contiguous, and
    gathers with usual strides what is so by two orders, such as the convolution of one channel.
    """
    if parallelism.strategy != "fsdp":
        return
    for parameter in model.parameters():
        usual = torch.empty(parameter.shape, device="meta").stride()
        if parameter.stride() != usual:
            values = parameter.data
            parameter.data = torch.empty(values.shape, dtype=values.dtype).copy_(values)
