"""What the worker asks of a model's parameters, whatever its forward pass does."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import named_tensors

_TRAINED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LAZY = (UninitializedParameter, UninitializedBuffer)


def require_trainable(model: nn.Module) -> None:
    """Raise ModelInvalid unless the model has parameters that an optimizer can train."""
    _require_initialized(model)
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    if not trained:
        raise ModelInvalid(
            f"expected parameters to train, saw {sum(1 for _ in model.parameters())} parameters, "
            "none of which requires a gradient"
        )
    for name, parameter in trained:
        _require_plain(name, parameter)
    _require_own_memory(trained)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ModelInvalid(
                f"expected dense gradients, which the optimizers take, saw an embedding {name} "
                "with sparse=True"
            )


def _require_own_memory(named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Each parameter is stepped by itself: of two in one place the last would win."""
    spans = sorted(
        (parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes, name)
        for name, parameter in named
        if parameter.numel() and parameter.is_contiguous()
    )
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise ModelInvalid(
                f"expected each parameter in memory of its own, saw {name} and {other} in the same "
                "place; to tie two, use one nn.Parameter for both"
            )


def _require_initialized(model: nn.Module) -> None:
    """Lazy modules that no batch has given a shape have none to train."""
    lazy = [name for name, one in named_tensors(model) if isinstance(one, _LAZY)]
    if lazy:
        raise ModelInvalid(f"expected parameters with shapes, saw lazy ones: {', '.join(lazy)}")


def _require_plain(name: str, parameter: nn.Parameter) -> None:
    if parameter.dtype not in _TRAINED:
        raise ModelInvalid(
            "expected real floating-point parameters of 16 bits or more to train, saw "
            f"{name} of {parameter.dtype}; a complex one is kept as two real numbers, by "
            "torch.view_as_real"
        )
    if parameter.is_inference():
        raise ModelInvalid(
            f"expected parameters that can be trained, saw {name} made under torch.inference_mode"
        )
    if parameter.layout is not torch.strided or parameter.device.type == "meta":
        raise ModelInvalid(
            f"expected dense parameters with values, saw {name} with layout {parameter.layout} on "
            f"the device {parameter.device}"
        )
    sides = zip(parameter.stride(), parameter.shape, strict=True)
    if any(stride == 0 and size > 1 for stride, size in sides):
        raise ModelInvalid(
            f"expected each number of {name} in memory of its own, saw an expanded tensor; train "
            "the one that it is expanded from, or clone it"
        )
    if not bool(parameter.detach().isfinite().all()):
        raise ModelInvalid(f"expected finite numbers to start from, saw NaN or infinity in {name}")
