"""In which dtype parameters live and layers compute.

    fp32      float32 throughout
    amp_bf16  float32 parameters; training computes in bfloat16 where that is safe
    bf16      bfloat16 parameters; the optimizer keeps what rounding loses

Evaluations call the bare model, so amp evaluates in float32, and bf16 as it trains.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from roadless.optim.batchnorm import tracks_statistics
from roadless.service.contract.job.training import Precision


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Convert a float32 model's parameters to the precision, in place, before it is wrapped.

    A bf16 model still takes float32 inputs and returns float32 outputs. Batch norm, and instance
    norm with running statistics, stay in float32: a running mean in bfloat16 soon stops moving.
    """
    if precision == "fp32":
        return
    for module in model.modules():
        # Without weights it narrows its running mean to the inputs' dtype on the way (torch 2.13).
        if isinstance(module, _InstanceNorm) and tracks_statistics(module) and not module.affine:
            module.register_forward_pre_hook(_widen)
            if precision == "bf16":
                module.register_forward_hook(_narrow_again)
    if precision == "bf16":
        _narrow(model)


def _narrow(model: nn.Module) -> None:
    model.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, _BatchNorm) or tracks_statistics(module):
            module.float()
    model.register_forward_pre_hook(_narrow_inputs)
    model.register_forward_hook(_wide_outputs)


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass in training."""
    if precision != "amp_bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _narrow_inputs(_model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.bfloat16() if _is_float(value) else value for value in inputs)


def _wide_outputs(_model: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> Any:
    return outputs.float() if _is_float(outputs) else outputs


def _widen(_norm: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].float()


def _narrow_again(
    _norm: nn.Module, _inputs: tuple[torch.Tensor], outputs: torch.Tensor
) -> torch.Tensor:
    return outputs.bfloat16()


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
