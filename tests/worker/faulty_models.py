"""Models that a user's package might make, each with one fault, or with an oddity that is none.

As an entry point: ``faulty_models:make`` with the argument ``kind``, the name of the class.
"""

import os
import random
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

NUM_INPUTS, NUM_CLASSES = 64, 10


def make(*, input_shape: tuple[int, ...], num_outputs: int, kind: str) -> nn.Module:
    model: nn.Module = globals()[kind]()
    return model


class Base(nn.Module):
    """One linear layer over the pixels of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_CLASSES)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer(inputs.flatten(1))


# ---- what a forward pass does --------------------------------------------------------------------


class ReturnsNothing(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        super().forward(inputs)


class ReturnsTuple(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs), inputs


class ReturnsTupleInTraining(Base):
    """As networks with auxiliary heads do."""

    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = super().forward(inputs)
        return (outputs, outputs) if self.training else outputs


class ReturnsClasses(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs).argmax(dim=-1, keepdim=True).expand(-1, NUM_CLASSES)


class TooWide(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs).repeat(1, 2)


class OneRowForAll(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs).mean(dim=0)


class DividesByZero(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return self.scaled(inputs, 0)

    def scaled(self, inputs: torch.Tensor, factor: int) -> torch.Tensor:
        return inputs * (1 // factor)


class Exits(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        raise SystemExit("no licence")


class RaisesInTraining(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training:
            raise OSError("no such table")
        return super().forward(inputs)


class OnAnotherDevice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.zeros(NUM_CLASSES, device="meta")

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) + self.table


class NotANumber(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) + torch.log(-inputs.sum().abs() - 1)


class Detached(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs).detach()


class _Undifferentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("to be done")


class NoBackward(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return _Undifferentiated.apply(super().forward(inputs))


# ---- what it is made of --------------------------------------------------------------------------


class NoParameters(nn.Module):
    def forward(self, inputs: torch.Tensor) -> Any:
        return inputs.flatten(1)[:, :NUM_CLASSES]


class AllFrozen(Base):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(requires_grad=False)


class ComplexWeights(Base):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(NUM_INPUTS, dtype=torch.complex64))

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer((inputs.flatten(1) * self.phase).real)


class Expanded(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1).expand(NUM_CLASSES))

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.scale


class TiedByMemory(Base):
    """Two parameters in one place, where one under two names was meant."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(NUM_INPUTS, NUM_CLASSES)
        self.other.weight.data = self.layer.weight.data

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) + self.other(inputs.flatten(1))


class Overlapping(Base):
    def __init__(self) -> None:
        super().__init__()
        numbers = torch.zeros(15)
        self.first, self.second = nn.Parameter(numbers[:10]), nn.Parameter(numbers[5:])

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) + self.first + self.second


class OfEightBits(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(NUM_CLASSES).to(torch.float8_e4m3fn))


class MadeForInference(Base):
    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode():
            self.scale = nn.Parameter(torch.ones(NUM_CLASSES))


class StartsAtInfinity(Base):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.layer.bias, float("inf"))


class OnMeta(Base):
    def __init__(self) -> None:
        super().__init__()
        self.to("meta")


class LazyAside(Base):
    """Its lazy layer is run in training alone, so that no evaluation gives it shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.LazyLinear(NUM_CLASSES)

    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = super().forward(inputs)
        return outputs + self.aside(inputs.flatten(1)) if self.training else outputs


class SparseEmbedding(Base):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, NUM_CLASSES, sparse=True)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.table(inputs.flatten(1).long().clamp(0, 19)).mean(dim=1)


class SparseFunction(Base):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, NUM_CLASSES))

    def forward(self, inputs: torch.Tensor) -> Any:
        numbers = inputs.flatten(1).long().clamp(0, 19)
        return functional.embedding(numbers, self.table, sparse=True).mean(dim=1)


class ExtraState(Base):
    def get_extra_state(self) -> Any:
        return {"passes": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class UnloadableState(Base):
    """Its state dict has other names than it takes."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {
            f"old.{name}": value for name, value in super().state_dict(*args, **options).items()
        }


class DoubleComplexBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex128))


# ---- what it changes -----------------------------------------------------------------------------


class ReplacesParameter(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        self.layer.weight = nn.Parameter(self.layer.weight.detach() * 0.9)
        return super().forward(inputs)


class ReplacesInTraining(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training:
            self.layer.bias = nn.Parameter(self.layer.bias.detach().clone())
        return super().forward(inputs)


class GrowsInTraining(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training and not hasattr(self, "late"):
            self.late = nn.Linear(NUM_INPUTS, NUM_CLASSES)
        late = self.late(inputs.flatten(1)) if hasattr(self, "late") else 0.0
        return super().forward(inputs) + late


class RenormsEmbedding(Base):
    """torch's ``max_norm`` changes the table in place, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, NUM_CLASSES, max_norm=0.5)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.table(inputs.flatten(1).long().clamp(0, 19)).mean(dim=1)


class ClampsWeights(Base):
    """As critics of adversarial networks do, behind the back of autograd."""

    def forward(self, inputs: torch.Tensor) -> Any:
        self.layer.weight.data.clamp_(-0.01, 0.01)
        return super().forward(inputs)


class GrowsBuffer(Base):
    """As caches do that keep what they have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training:
            self.seen = torch.cat([self.get_buffer("seen"), torch.ones(1)])
        return super().forward(inputs)


class AddsBuffer(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training and not hasattr(self, "seen"):
            self.register_buffer("seen", torch.ones(3))
        return super().forward(inputs)


class KeepsItsGraph(Base):
    """Adds what it found in the pass before, gradients and all."""

    before: torch.Tensor | None = None

    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = super().forward(inputs)
        if self.training:
            added = 0.0 if self.before is None else self.before.mean()
            outputs = self.before = outputs.tanh() + added
        return outputs


# ---- what differs from time to time --------------------------------------------------------------


class DropsAlways(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return functional.dropout(super().forward(inputs), 0.2)


class DrawsFromNumpy(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) + np.random.rand()


class DrawsFromPython(Base):
    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * random.random()


class SkipsSeldom(Base):
    """A layer that is skipped for the whole batch, one time in four."""

    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = super().forward(inputs)
        return outputs if torch.rand(()) < 0.75 else outputs * 0


class CountsPasses(Base):
    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.passes += 1
        return super().forward(inputs) * self.passes


class ReturnsTupleLater(Base):
    passes = 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.passes += 1
        outputs = super().forward(inputs)
        return outputs if self.passes == 1 else (outputs, outputs)


class NeverEvaluates(Base):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def train(self, mode: bool = True) -> Any:
        return super().train(mode=True)

    def eval(self) -> Any:
        return self

    def forward(self, inputs: torch.Tensor) -> Any:
        self.dropout.training = True
        return super().forward(self.dropout(inputs.flatten(1)))


# ---- what differs from rank to rank --------------------------------------------------------------


def _of_this_process() -> torch.Tensor:
    """What nobody else draws: another process, or the same one later."""
    return torch.from_numpy(np.random.default_rng().normal(size=NUM_CLASSES)).float()


class OwnParameter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(_of_this_process())

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.scale


class OwnBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", _of_this_process())

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.get_buffer("scale")


class OwnUnkeptBuffer(OwnBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", _of_this_process(), persistent=False)


class OwnAttribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = _of_this_process()

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.scale


class TimeOfDay(Base):
    def __init__(self) -> None:
        super().__init__()
        self.made_at = time.monotonic()

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.made_at


class OwnModules(Base):
    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(1 + os.getpid() % 1000, 1)


class FollowsItsInputs(Base):
    """A buffer that each pass in training moves, and that every pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(NUM_INPUTS))

    def forward(self, inputs: torch.Tensor) -> Any:
        flat, centre = inputs.flatten(1), self.get_buffer("centre")
        if self.training:
            with torch.no_grad():
                centre.lerp_(flat.mean(dim=0), 0.5)
        return self.layer(flat - centre.clone())


# ---- shards --------------------------------------------------------------------------------------


class Scalar(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.scale


class Turned(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layer.weight = nn.Parameter(torch.randn(NUM_INPUTS, NUM_CLASSES).div(8).t())


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, NUM_CLASSES))
        self.body[0].to(memory_format=torch.channels_last)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.body(inputs)


class TiedBlocks(Base):
    """Two blocks with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(NUM_INPUTS, NUM_INPUTS) for _ in range(2))
        self.blocks[1].weight = self.blocks[0].weight

    def forward(self, inputs: torch.Tensor) -> Any:
        for block in self.blocks:
            inputs = block(inputs.flatten(1)).tanh()
        return super().forward(inputs)


class OneBlockTwice(Base):
    """A block that the list has twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(NUM_INPUTS, NUM_INPUTS)] * 2)

    def forward(self, inputs: torch.Tensor) -> Any:
        for block in self.blocks:
            inputs = block(inputs.flatten(1)).tanh()
        return super().forward(inputs)


class TwoTypes(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(NUM_CLASSES, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) * self.scale.float()


class Empty(Base):
    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0, NUM_CLASSES))

    def forward(self, inputs: torch.Tensor) -> Any:
        return super().forward(inputs) + self.none.sum(dim=0)


class CountsItsBlocks(Base):
    """Has a number under the name that others give their list of blocks."""

    blocks = 3


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(NUM_INPUTS, NUM_CLASSES))

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer(inputs.flatten(1))


# ---- oddities that are no faults -----------------------------------------------------------------


class DrawsInVain(Base):
    """Draws in evaluation too, and uses it in training alone, as some transformers do."""

    def forward(self, inputs: torch.Tensor) -> Any:
        kept = torch.rand(()) > 0.1
        outputs = super().forward(inputs)
        return outputs * kept if self.training else outputs


class LockAndGenerator(Base):
    """Cannot be copied or pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.numbers = (number for number in range(10))

    def forward(self, inputs: torch.Tensor) -> Any:
        with self.lock:
            return super().forward(inputs)


class IntegerParameter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(NUM_INPUTS), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer(inputs.flatten(1)[:, self.order])


class HalfFrozen(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layer.weight.requires_grad = False


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(NUM_CLASSES)
        )

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.body(inputs)


class ComplexBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.polar(torch.ones(64), torch.arange(64.0)))

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer((inputs.flatten(1) * self.get_buffer("phase")).real)


class TensorExtraState(Base):
    def __init__(self) -> None:
        super().__init__()
        self.passes = torch.zeros((), dtype=torch.int64)

    def get_extra_state(self) -> Any:
        return self.passes

    def set_extra_state(self, state: Any) -> None:
        self.passes = state.clone()
