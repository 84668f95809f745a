"""What the rest of the worker needs from a model besides its outputs.

A model is a torch module that maps a batch of inputs to logits, or to predictions in regression. An
eval checkpoint is its ``state_dict`` and nothing more, unless the model is from a library with its
own format.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn


class SelfSaving(nn.Module, ABC):
    """A model whose eval checkpoint is a folder in the format of another library."""

    @abstractmethod
    def save_folder(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write files that the library loads as they are to ``folder``, which is empty.

        ``tensors``: this module's complete state dict, with the values to save.
        """

    @abstractmethod
    def load_folder(self, folder: Path) -> None:
        """Load the weights that ``save_folder`` wrote to ``folder`` into this module."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of the model in order: units to recompute or to shard.

    A model lists them as ``blocks``; a model without that attribute has none.
    """
    blocks = getattr(model, "blocks", ())
    is_list = isinstance(blocks, nn.ModuleList | nn.Sequential | list | tuple)  # not their number
    parts = list(blocks) if is_list else []
    return parts if all(isinstance(part, nn.Module) for part in parts) else []


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and then the buffers, those that no checkpoint keeps too, by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and restore each one's mode after the block."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
