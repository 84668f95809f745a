"""What other people's code raises becomes an error that its owner can act on, in one place.

The owner's own frames come first in the message, innermost first. What a machine or another rank
has done wrong stays as it is, so that the attempt is tried again.
"""

import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from roadless.worker.errors import JobFailed, ModelInvalid
from roadless.worker.secrets import REDACTOR

#: Frames of the owner that a message shows, and characters of each.
_MAX_FRAMES, _MAX_WIDTH = 6, 240
#: Characters of an error's own words, so that frames have their place below them.
_MAX_SAID = 2000
_PACKAGE = Path(__file__).resolve().parents[2]
_OURS = tuple(str(_PACKAGE / name) + os.sep for name in ("worker", "optim", "service"))
_TORCH = os.path.realpath(os.path.dirname(torch.__file__)) + os.sep
_STDLIB = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
#: Where ranks speak to each other: what fails there is no fault of the model.
_PEERS = (_TORCH + "distributed" + os.sep, _TORCH + os.path.join("nn", "parallel", "distributed"))
#: Each module's call in torch; inside of it the module's own code or a hook runs.
_CALL = "_call_impl"
#: What a file that is not there has not; an error that somebody's code raises itself has none.
_ERRNOS = frozenset(
    {
        *(errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
        *(errno.ENETUNREACH, errno.EHOSTUNREACH),
    }
)
#: Of RuntimeErrors of torch 2.13, which has no type of its own for them.
_SAID_OF_MACHINES = (
    *("DefaultCPUAllocator", "CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS"),
    *("CUSOLVER_STATUS", "CUFFT_", "NCCL"),
)
#: In what CUDA says when a kernel was asked for nonsense, such as an index beyond a table.
_ASSERTION = "device-side assert"


@contextmanager
def blaming(
    failure: Callable[[str], JobFailed], expected: str, *, has_our_code: bool = False
) -> Iterator[None]:
    """Raise ``failure`` for what its owner's code in the block raises, ``SystemExit`` too.

    ``expected``: what that code should have done, as in "a model for samples of shape (1, 8, 8)".
    ``has_our_code``: the block does more than to call it, so that only frames of others blame it.
    """
    try:
        yield
    except BaseException as error:
        if not is_of_owner(error) or (has_our_code and not foreign_frames(error)):
            raise
        raise failure(f"expected {expected}, saw {told(error)}") from error


def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return ``model(inputs)``; raise ModelInvalid for what the model's own code raises."""
    with blaming(ModelInvalid, f"a model for a batch of shape {tuple(inputs.shape)}"):
        outputs: torch.Tensor = model(inputs)
    return outputs


def is_of_owner(error: BaseException) -> bool:
    """Return whether somebody's code raised this by itself, so that it would do so again.

    Not so when memory ends, when an accelerator fails, or when another rank is gone: torch's
    collectives (2.13) raise a plain RuntimeError then, in the midst of a forward pass.
    """
    if isinstance(error, JobFailed | KeyboardInterrupt | GeneratorExit):
        return False
    return not (is_of_machine(error) or _is_of_peers(error))


def is_of_machine(error: BaseException) -> bool:
    """Return whether memory, disk, network or an accelerator failed, which another try may find
    well.
    """
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
        said = str(error)
        return any(word in said for word in _SAID_OF_MACHINES) and _ASSERTION not in said
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def told(error: BaseException) -> str:
    """Return the error in words, and below them the frames of neither torch nor this product."""
    # Redacted first: of a secret that is cut nobody would find the rest.
    said = REDACTOR.redact(f"{type(error).__name__}: {error}".rstrip(": "))[:_MAX_SAID]
    return "\n".join([said, *foreign_frames(error)])


def foreign_frames(error: BaseException) -> list[str]:
    """Return a line for each frame of other people's code that raised it, innermost first."""
    frames = [frame for frame in _frames(error) if _is_foreign(frame.filename)]
    lines = (
        f"  at {_short(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}"
        for frame in frames[: -_MAX_FRAMES - 1 : -1]
    )
    return [REDACTOR.redact(line)[:_MAX_WIDTH] for line in lines]


def _is_of_peers(error: BaseException) -> bool:
    """Whether torch's distributed package raised it, called by no code of the model's.

    What it says of a model is an AssertionError, a ValueError and the like.
    """
    if not isinstance(error, RuntimeError | OSError) or isinstance(error, NotImplementedError):
        return False
    for frame in reversed(_frames(error)):
        path = os.path.realpath(frame.filename)
        if path.startswith(_PEERS):
            return True
        if not path.startswith(_TORCH) or frame.name == _CALL:
            return False
    return False


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _is_foreign(filename: str) -> bool:
    path = os.path.realpath(filename)
    is_standard = path.startswith(_STDLIB) and "site-packages" not in path
    is_library = is_standard or path.startswith((_TORCH, *_OURS))
    return not (is_library or filename.startswith("<"))


def _short(filename: str) -> str:
    """The file as its module's name says it, whatever folder it is installed in."""
    path = Path(filename)
    folders = [folder for folder in sys.path if folder and path.is_relative_to(folder)]
    return str(path.relative_to(max(folders, key=len))) if folders else path.name
