"""One safetensors file, written tensor by tensor and hashed on the way.

The library's own writer needs all tensors at once. This one holds a single tensor, so that a model
gathered from many ranks is never whole in memory, and no file is read again to hash it.
Format: https://github.com/huggingface/safetensors (8 bytes of length, a JSON header, the bytes).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import torch

from roadless.service.contract.checkpoint.manifest import CheckpointFile

_TYPES = {
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: The header is padded to this many bytes, so that tensors are aligned for their dtype.
_ALIGNMENT = 8
#: Written and hashed together: small enough to stay in a cache, large enough for few calls.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorForm:
    """What the header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """The form of a tensor; for a distributed one, that of the whole."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def num_bytes(self) -> int:
        """Length of its content."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def is_storable(tensor: torch.Tensor) -> bool:
    """Return whether the format can hold the tensor: dense, and of a dtype that it has."""
    return tensor.dtype in _TYPES and tensor.layout is torch.strided


def in_file_order(forms: Mapping[str, TensorForm]) -> list[str]:
    """Return the names in the order of the file: wide dtypes first, so that all are aligned."""
    return sorted(forms, key=lambda name: (-forms[name].dtype.itemsize, name))


def write_tensors(
    path: Path,
    forms: Mapping[str, TensorForm],
    tensors: Iterable[torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> CheckpointFile:
    """Write a file and flush it to the disk.

    ``tensors``: CPU tensors of these forms, in the order of :func:`in_file_order`. ``metadata``:
    text for the header. Returns name, size and SHA-256 of the file. Raises OSError, and TypeError
    for a dtype that the format does not have.
    """
    names = in_file_order(forms)
    with path.open("xb", buffering=0) as file:
        hashed = _Hashed(file)
        hashed.write(memoryview(_header(names, forms, metadata or {})))
        for name, tensor in zip(names, tensors, strict=True):
            if TensorForm.of(tensor) != forms[name]:
                raise ValueError(f"{name}: expected {forms[name]}, saw {TensorForm.of(tensor)}")
            hashed.write(_bytes_of(tensor))
        os.fsync(file.fileno())
    return hashed.describe(path.name)


def write_bytes(path: Path, content: bytes) -> CheckpointFile:
    """Write a file of this content and flush it to the disk; raises OSError."""
    with path.open("xb", buffering=0) as file:
        hashed = _Hashed(file)
        hashed.write(memoryview(content))
        os.fsync(file.fileno())
    return hashed.describe(path.name)


class _Hashed:
    """Writes to a sink and keeps what a manifest records of it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, content: memoryview) -> None:
        for start in range(0, len(content), _CHUNK_BYTES):
            chunk = content[start : start + _CHUNK_BYTES]
            self._digest.update(chunk)
            self._size += len(chunk)
            while chunk:
                chunk = chunk[self._sink.write(chunk) :]

    def describe(self, name: str) -> CheckpointFile:
        return CheckpointFile(name=name, size=self._size, sha256=self._digest.hexdigest())


def _header(
    names: Iterable[str], forms: Mapping[str, TensorForm], metadata: Mapping[str, str]
) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in names:
        form, stop = forms[name], start + forms[name].num_bytes
        if form.dtype not in _TYPES:
            raise TypeError(f"{name}: expected a dtype of safetensors, saw {form.dtype}")
        offsets = [start, stop]
        header[name] = {"dtype": _TYPES[form.dtype], "shape": form.shape, "data_offsets": offsets}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
