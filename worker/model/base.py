"""What the rest of the worker may ask of a model beside its outputs.

A model is a torch module that maps a batch of inputs to logits, or to predictions in regression. An
eval checkpoint is its ``state_dict`` and nothing more, unless it is of a library with a format of
its own.
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
        """Write files that the library loads as they are into ``folder``, an empty one.

        ``tensors``: this module's state dict, whole and with the values to save.
        """

    @abstractmethod
    def load_folder(self, folder: Path) -> None:
        """Put the weights of a folder that ``save_folder`` wrote into this module."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of the model in order: units to recompute or to shard.

    A model lists them under the name ``blocks``; one that does not has none.
    """
    return list(getattr(model, "blocks", ()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have every module in evaluation mode; each gets the mode back that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
