"""Eval checkpoints as files, and files checked against a manifest; see ``training_state.py`` too.

Files are written into a staging folder, flushed and hashed; the reporter uploads them and only then
announces the manifest. Tensors are safetensors, gathered one by one from the ranks that share a
model; nothing is pickled.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from roadless.optim.numerics.sharding import whole
from roadless.service.contract.checkpoint.manifest import CheckpointFile, Manifest
from roadless.worker.checkpointing.safetensors_file import TensorForm, in_file_order, write_tensors
from roadless.worker.errors import CheckpointUnreadable, ModelInvalid
from roadless.worker.model.base import SelfSaving
from roadless.worker.model.faults import told

MODEL_FILE = "model.safetensors"
_READ_BYTES = 1 << 20
#: What loading a bad file may raise.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def write_model(folder: Path, model: nn.Module) -> tuple[CheckpointFile, ...]:
    """Write the current parameters and buffers; the caller has put x into them.

    The tensors of a sharded model are gathered one by one, while the other ranks call
    ``roadless.worker.checkpointing.model_files.help_to_gather``. A model of another library is
    written in that library's format, with other files beside it. Raises OSError, and ModelInvalid
    for what that library refuses to write.
    """
    tensors = gathered(model)
    try:
        folder.mkdir(parents=True)
        if isinstance(model, SelfSaving):
            return _saved_by_itself(model, folder, dict(tensors))
        values = (tensor for _, tensor in tensors)
        return (write_tensors(folder / MODEL_FILE, forms_of(model), values),)
    finally:
        # If the disk fails midway, the other ranks still gather to the end.
        for _ in tensors:
            pass


def read_model(folder: Path, model: nn.Module) -> None:
    """Put an eval checkpoint's tensors into a model of the same specification.

    Raises CheckpointUnreadable when they do not fit.
    """
    try:
        if isinstance(model, SelfSaving):
            model.load_folder(folder)
        else:
            model.load_state_dict(load_file(folder / MODEL_FILE))
    except (*_UNREADABLE, SafetensorError) as error:
        raise CheckpointUnreadable(f"the model does not load: {error}") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the files with the manifest; raise CheckpointUnreadable where they differ."""
    for file in manifest.files:
        check_file(folder, file)


def check_file(folder: Path, file: CheckpointFile) -> None:
    """Compare one file with its manifest; raise CheckpointUnreadable if they differ."""
    try:
        seen = _describe(folder / file.name)
    except OSError as error:
        raise CheckpointUnreadable(f"{file.name}: expected a file, saw {error}") from error
    if seen != file:
        raise CheckpointUnreadable(
            f"{file.name}: expected {file.size} bytes with SHA-256 {file.sha256}, "
            f"saw {seen.size} with {seen.sha256}"
        )


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


def _saved_by_itself(
    model: SelfSaving, folder: Path, tensors: dict[str, torch.Tensor]
) -> tuple[CheckpointFile, ...]:
    try:
        model.save_folder(folder, tensors)
    except OSError:
        raise
    except SafetensorError as error:  # how the library reports an OSError
        raise OSError(f"the model's files were not written: {error}") from error
    except Exception as error:  # each library checks what it writes in its own way
        raise ModelInvalid(f"expected a model that can be written, saw {told(error)}") from error
    return _seal(folder, tuple(sorted(path.name for path in folder.iterdir())))


def _seal(folder: Path, names: tuple[str, ...]) -> tuple[CheckpointFile, ...]:
    """Flush the files to disk and describe them."""
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    return tuple(_describe(folder / name) for name in names)


def _describe(path: Path) -> CheckpointFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return CheckpointFile(name=path.name, size=path.stat().st_size, sha256=digest.hexdigest())
