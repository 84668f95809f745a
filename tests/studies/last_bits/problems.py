"""Problems of some hundred numbers on which rounding errors can grow; all in float64.

Besides ordinary ones there is one for each way in which mathematics leaves a rotated optimizer a
choice: gradients of low rank, rows that are alike or dead, equal singular values.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter, ReLU, Sequential, Tanh, functional

NUM_STEPS = 50


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


class Problem(ABC):
    """Parameters and, at each step, a loss and a gradient for each of them."""

    #: What makes it hard, in a few words.
    name: ClassVar[str]
    shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((8, 6),)

    def __init__(self) -> None:
        self.parameters = self.start()

    def start(self) -> list[Parameter]:
        return [Parameter(normal(*shape, seed=i)) for i, shape in enumerate(self.shapes)]

    @abstractmethod
    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        """At the parameters as they are, in a step counted from 0."""


class Noise(Problem):
    name = "noise of full rank"
    shapes = ((4, 3), (3,), (2, 3, 2), (16, 8))

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        return 1.0, [normal(*s, seed=100 * step + i) for i, s in enumerate(self.shapes)]


class Valley(Problem):
    """That of `roadless.optim.SOAP`'s docstring."""

    name = "narrow valley"

    def start(self) -> list[Parameter]:
        return [Parameter(torch.tensor([[3.0, -2.0], [1.0, 2.0]], dtype=torch.float64))]

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        valley = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
        slope = self.parameters[0].detach() @ valley
        return float(slope.square().sum() / 2), [slope @ valley]


class Bowl(Problem):
    """The gradient is the parameter, so it has none between its own singular directions."""

    name = "round bowl"
    shapes = ((4, 4), (5, 4))

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        points = [parameter.detach().clone() for parameter in self.parameters]
        return float(sum(p.square().sum() / 2 for p in points)), points


class OneExample(Problem):
    name = "rank 1, new each step"
    shapes = ((16, 8), (6, 12))

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        seed = 1000 * step
        return 1.0, [
            torch.outer(normal(n, seed=seed + n), normal(m, seed=seed + 50 + m))
            for n, m in self.shapes
        ]


class LowRank(Problem):
    name = "rank 2, always the same"
    shapes = ((16, 8),)

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        return 1.0, [normal(16, 2, seed=4) @ normal(2, 8, seed=5)]


class DeadUnits(Problem):
    name = "rows and a column of zeros"

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        gradient = normal(8, 6, seed=step)
        gradient[[1, 4, 5]] = 0
        gradient[:, 2] = 0
        return 1.0, [gradient]


class Twins(Problem):
    name = "rows alike"

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        half = normal(4, 6, seed=step) / 3
        return 1.0, [torch.cat([half, half])]


class EqualValues(Problem):
    name = "equal singular values"
    shapes = ((6, 6),)

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        return 1.0, [torch.linalg.qr(normal(6, 6, seed=step))[0]]


class Identity(Problem):
    name = "multiples of 1"
    shapes = ((6, 6),)

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        return 1.0, [torch.eye(6, dtype=torch.float64) * (1 + step % 3)]


class Network(Problem):
    """A classifier: gradients over its logits add up to 0, and their ranks grow with the steps."""

    name = "network, tanh"
    activation: ClassVar[type[Module]] = Tanh

    def start(self) -> list[Parameter]:
        self.model = Sequential(Linear(10, 16), self.activation(), Linear(16, 3)).double()
        parameters = list(self.model.parameters())
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter.copy_(normal(*parameter.shape, seed=i) / parameter.shape[-1] ** 0.5)
        self.inputs = normal(64, 10, seed=10)
        self.labels = torch.arange(64) % 3
        return parameters

    def gradients(self, step: int) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            loss = functional.cross_entropy(self.model(self.inputs), self.labels)
            return float(loss.detach()), list(torch.autograd.grad(loss, self.parameters))


class RectifiedNetwork(Network):
    name = "network, relu"
    activation = ReLU


PROBLEMS: tuple[type[Problem], ...] = (
    Noise,
    Valley,
    Bowl,
    OneExample,
    LowRank,
    DeadUnits,
    Twins,
    EqualValues,
    Identity,
    Network,
    RectifiedNetwork,
)
