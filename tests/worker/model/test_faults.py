"""What is raised while a model's code runs: its owner's fault, another rank's, or a machine's."""

import errno
import os
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import distributed as replicas

from roadless.worker.errors import DataInvalid, ModelInvalid
from roadless.worker.model.faults import blaming, foreign_frames, run, told


class Custom(BaseException):
    """Nothing that ``except Exception`` would see."""


class Raising(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, inputs: torch.Tensor) -> Any:
        raise self.error


INPUTS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        RuntimeError("size of tensor a must match"),
        NotImplementedError("later"),
        RecursionError("too deep"),
        KeyError("name"),
        StopIteration(),
        SystemExit(3),
        Custom("odd"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "table.npy"),
        PermissionError(errno.EACCES, "closed"),
        ConnectionError("raised by hand"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
    ids=repr,
)
def test_whatever_a_model_raises_is_its_owners_fault(error: BaseException) -> None:
    with pytest.raises(ModelInvalid, match="expected a model for a batch of shape") as caught:
        run(Raising(error), INPUTS)
    assert type(error).__name__ in str(caught.value)
    assert "in forward: raise self.error" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        OSError(errno.ENOSPC, "No space left on device"),
        ConnectionResetError(errno.ECONNRESET, "reset by peer"),
        KeyboardInterrupt(),
        DataInvalid("expected numbers"),
    ],
    ids=repr,
)
def test_what_another_try_may_find_well_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run(Raising(error), INPUTS)
    assert caught.value is error


class Gathering(nn.Module):
    """Meets its peers before its layer, as the hooks of a sharded layer do."""

    def __init__(self, error: Exception, *, module: Any) -> None:
        super().__init__()
        self.body = nn.Identity()
        names: dict[str, Any] = {}
        # Its frames are those of a file of torch's.
        exec(compile("def gather(error): raise error", module.__file__, "exec"), names)
        self.body.register_forward_pre_hook(lambda *_: names["gather"](error))

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.body(inputs)


MEETINGS = pytest.mark.parametrize(
    "module", [distributed_c10d, replicas], ids=lambda one: one.__name__
)


@MEETINGS
def test_a_peer_that_is_gone_is_no_fault_of_the_model(module: Any) -> None:
    """torch's collectives raise a plain RuntimeError; where they do is all that tells it."""
    error = RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="closed by peer") as caught:
        run(Gathering(error, module=module), INPUTS)
    assert caught.value is error


@MEETINGS
def test_torchs_own_word_on_a_model_in_shards_is_the_models(module: Any) -> None:
    error = AssertionError("FSDP expects uniform original parameter dtype")
    with pytest.raises(ModelInvalid, match="uniform"):
        run(Gathering(error, module=module), INPUTS)


def test_frames_of_the_owner_come_innermost_first_and_without_those_of_libraries() -> None:
    def outer() -> None:
        inner()

    def inner() -> None:
        nn.Linear(3, 2)(torch.zeros(2, 4))

    with pytest.raises(RuntimeError) as caught:
        outer()
    error = caught.value
    first, second, *_ = foreign_frames(error)
    assert "in inner: nn.Linear(3, 2)(torch.zeros(2, 4))" in first
    assert "in outer: inner()" in second
    assert told(error).startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert not any("torch" in frame.partition(" in ")[0] for frame in foreign_frames(error))


def test_long_words_leave_room_for_the_frames() -> None:
    with pytest.raises(ModelInvalid) as caught, blaming(ModelInvalid, "a short word"):
        raise ValueError("x" * 100_000)
    assert len(str(caught.value)) < 4000
    assert 'raise ValueError("x" * 100_000)' in str(caught.value)


def test_a_layer_of_torch_that_is_given_the_wrong_shape_is_the_models_fault() -> None:
    """There is no frame of the owner in it: the model is put together from the library's parts."""
    with pytest.raises(ModelInvalid, match="shapes cannot be multiplied"):
        run(nn.Sequential(nn.Linear(4, 2)), INPUTS)
