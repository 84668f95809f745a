"""A copy of live tensors in host memory, so that training goes on while the copy is written."""

from collections.abc import Mapping

import torch


class HostCopy:
    """Buffers that are made once and used for every copy; memory for one state, never more."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def reserve(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make the buffers that a copy of these tensors takes, memory pages and all.

        A first copy without that would spend most of its time on the kernel's page faults.
        """
        fitting = {name: self._buffers[name] for name in tensors if self._fits(name, tensors[name])}
        self._buffers = fitting
        for name, tensor in tensors.items():
            if name not in fitting:
                self._buffers[name] = torch.zeros(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return copies by name; good until the next call."""
        self.reserve(tensors)
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._buffers[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return dict(self._buffers)

    def _fits(self, name: str, tensor: torch.Tensor) -> bool:
        buffer = self._buffers.get(name)
        return buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)
