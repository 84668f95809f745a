"""What passes through a model must leave as it was, for training and checkpoints to be right.

Asked before the first step (``trial.py``).
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from roadless.optim.numerics.sharding import local
from roadless.worker.checkpointing.model_files import forms_of
from roadless.worker.checkpointing.safetensors_file import is_storable
from roadless.worker.distributed.parallel import reshard
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.faults import blaming

#: Names that a message lists.
_LISTED = 5


@contextmanager
def left_unchanged(model: nn.Module) -> Iterator[None]:
    """Put buffers back after the block; raise ModelInvalid for what else it has changed.

    That is parameters, and names and shapes of the state dict.
    """
    forms, parameters, norms = forms_of(model), _parameters(model), _norms(model)
    with _buffers_kept(model):
        yield
        # A checkpoint is put into a model that has not trained.
        if changed := _changed(forms, forms_of(model)):
            raise ModelInvalid(
                "expected a state_dict that training changes no names and shapes of, saw others "
                f"under {changed}, which a fresh model cannot load"
            )
    # The optimizer steps the parameters that it was given, whatever the model holds later.
    if changed := _changed(parameters, _parameters(model), is_same=operator.is_):
        raise ModelInvalid(
            "expected a forward pass to keep the parameters that the model was made with, saw "
            f"others under {changed}; make them in the constructor"
        )
    if _norms(model) != norms:
        raise ModelInvalid("expected a forward pass to leave the parameters, saw it change them")


def require_storable(model: nn.Module) -> None:
    """Raise ModelInvalid unless a file can hold the state dict, and the model takes it back.

    A checkpoint is that, and must be all that is needed to make the model again.
    """
    with blaming(ModelInvalid, "a model whose state_dict can be loaded again"):
        state = model.state_dict()
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise ModelInvalid(
                    f"expected a state_dict of tensors, which a checkpoint can hold, saw {name} of "
                    f"{type(value).__name__}; keep it in a buffer, or leave it out"
                )
            if not is_storable(value):
                raise ModelInvalid(
                    f"expected dense tensors of types that safetensors has, saw {name} of "
                    f"{value.dtype} with layout {value.layout}"
                )
        model.load_state_dict(state)


def _changed(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    is_same: Callable[[Any, Any], bool] = operator.eq,
) -> str:
    """The first names under which there is something else, as a text; empty if there are none."""
    names = sorted(before.keys() | after.keys())
    return ", ".join([n for n in names if not is_same(before.get(n), after.get(n))][:_LISTED])


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    reshard(model)  # a sharded model holds others while it is whole
    return dict(model.named_parameters(remove_duplicate=False))


def _norms(model: nn.Module) -> list[float]:
    """A number for each parameter that changes with it."""
    reshard(model)
    parts = [local(one.detach()) for one in model.parameters() if one.is_floating_point()]
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(parts, 2)])
    numbers: list[float] = norms.nan_to_num().tolist()  # a NaN equals no other
    return numbers


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back, as the tensor that it was and with its values."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in kept:
            buffer.copy_(values)
            module._buffers[name] = buffer
