"""A model's state whole, although each rank may hold a shard of it: one tensor at a time."""

from collections.abc import Iterator

import torch
from torch import nn

from optim.sharding import whole
from worker.tensorfile import TensorForm, in_file_order


def forms_of(model: nn.Module) -> dict[str, TensorForm]:
    """Return dtype and shape of each tensor of the model's state, by name; nothing is exchanged."""
    return {name: TensorForm.of(value) for name, value in model.state_dict().items()}


def gathered(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and whole tensors on the CPU, in the order of a file.

    Every rank of a sharded model must iterate to the end, since each tensor is gathered by all.
    """
    state = model.state_dict()
    for name in in_file_order(forms_of(model)):
        yield name, whole(state[name].detach()).cpu()


def help_to_gather(model: nn.Module) -> None:
    """Take part in what the lead gathers; costs nothing where parameters are not sharded."""
    for _ in gathered(model):
        pass
