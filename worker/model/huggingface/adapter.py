"""A transformers model in the worker's terms: inputs to logits, and a folder as its checkpoint."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from roadless.worker.model.base import SelfSaving

_PREFIX = "model."
#: A training step has no use for a cache, and reads outputs by name.
_OPTIONS = {"use_cache": False, "return_dict": True}
_MASKED_CLASS = "ForSequenceClassification"


class TransformersAdapter(SelfSaving):
    """Input: what the model's first argument takes, (samples, ...). Output: its logits.

    ``companions``: files by name, such as a tokenizer's, that each eval checkpoint gets too.
    """

    def __init__(self, model: PreTrainedModel, *, companions: Mapping[str, bytes]) -> None:
        super().__init__()
        self.model = model
        self.blocks = tuple(_outermost(model, names=set(model._no_split_modules or ())))
        self._companions = dict(companions)
        parameters = inspect.signature(model.forward).parameters
        self._options = {name: value for name, value in _OPTIONS.items() if name in parameters}
        self._has_mask = "attention_mask" in parameters and _MASKED_CLASS in type(model).__name__

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits: (samples, classes), or (samples, tokens, vocabulary)."""
        outputs = self.model(**self._arguments(inputs), **self._options)
        logits: torch.Tensor = outputs.logits
        return logits

    def save_folder(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write what ``from_pretrained`` loads, with the companions beside it."""
        own = {name.removeprefix(_PREFIX): value.detach().cpu() for name, value in tensors.items()}
        self.model.save_pretrained(folder, state_dict=own)
        for name, content in self._companions.items():
            (folder / name).write_bytes(content)

    def load_folder(self, folder: Path) -> None:
        """Load the weights; raises ValueError unless the folder has exactly the model's."""
        loaded, said = type(self.model).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,  # narrower weights fit in, and are narrowed again below
            output_loading_info=True,
        )
        if faults := {name: sorted(map(str, keys)) for name, keys in said.items() if keys}:
            raise ValueError(f"expected exactly the weights of the model, saw {faults}")
        self.model.load_state_dict(loaded.state_dict())

    def _arguments(self, inputs: torch.Tensor) -> dict[str, Any]:
        arguments: dict[str, Any] = {self.model.main_input_name: inputs}
        padding = self.model.config.get_text_config().pad_token_id if self._has_mask else None
        if padding is not None:
            arguments["attention_mask"] = (inputs != padding).long()
        return arguments


def _outermost(model: nn.Module, *, names: set[str]) -> Iterator[nn.Module]:
    """The modules of these classes in order, except those nested in another of them."""
    for child in model.children():
        if type(child).__name__ in names:
            yield child
        else:
            yield from _outermost(child, names=names)
