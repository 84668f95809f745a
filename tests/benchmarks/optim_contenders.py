"""Who is measured by ``make bench-optim``: optimizers on equal parameters and gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import schedulefree
import torch
from torch import Tensor
from torch.nn import Parameter

from roadless import optim

try:
    import heavyball
except ImportError:  # a peer, not a dependency: it is measured where it is installed
    heavyball = None

Make = Callable[[list[Parameter]], torch.optim.Optimizer]

WIDTH, VOCABULARY, LAYERS = 768, 17_000, 6


def transformer_shapes() -> list[tuple[int, ...]]:
    """An embedding and six layers: 73 tensors, 55.6M elements."""
    w = WIDTH
    matrices = [(3 * w, w), (w, w), (4 * w, w), (w, 4 * w)]
    vectors = [(3 * w,), (w,), (4 * w,), (w,), (w,), (w,), (w,), (w,)]
    return [(VOCABULARY, w), *(matrices + vectors) * LAYERS]


@dataclass
class Contender:
    """One optimizer with parameters of its own."""

    name: str
    optimizer: torch.optim.Optimizer
    parameters: list[Parameter]

    def give(self, gradients: list[Tensor]) -> None:
        """Set the gradients; copies, because some contenders write into them or drop them."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(gradient)


def contenders(shapes: list[tuple[int, ...]], names: list[str] | None = None) -> list[Contender]:
    """All of them, or those named."""
    made = []
    for name, make in MAKES.items():
        if names is None or name in names:
            generator = torch.Generator().manual_seed(0)
            parameters = [Parameter(torch.randn(s, generator=generator)) for s in shapes]
            made.append(Contender(name, make(parameters), parameters))
    return made


def _training(make: Make) -> Make:
    """schedulefree's optimizers begin at x; steps are taken at y."""

    def made(parameters: list[Parameter]) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        optimizer.train()
        return optimizer

    return made


OURS_ADAMW, OURS_SGD = "ours AdamWScheduleFree", "ours SGDScheduleFree"
TORCH_ADAMW, TORCH_SGD = "torch AdamW fused", "torch SGD momentum fused"
PEER_ADAMW = ("schedulefree AdamW loop", "schedulefree AdamW foreach")
PEER_SGD = ("schedulefree SGD loop", "schedulefree SGD foreach")

MAKES: dict[str, Make] = {
    TORCH_ADAMW: lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    OURS_ADAMW: lambda p: optim.AdamWScheduleFree(p, lr=1e-3, weight_decay=0.01),
    PEER_ADAMW[0]: _training(
        lambda p: schedulefree.AdamWScheduleFree(p, lr=1e-3, weight_decay=0.01, foreach=False)
    ),
    PEER_ADAMW[1]: _training(
        lambda p: schedulefree.AdamWScheduleFree(p, lr=1e-3, weight_decay=0.01, foreach=True)
    ),
    TORCH_SGD: lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.01, fused=True),
    OURS_SGD: lambda p: optim.SGDScheduleFree(p, lr=1e-3, weight_decay=0.01),
    PEER_SGD[0]: _training(
        lambda p: schedulefree.SGDScheduleFree(p, lr=1e-3, weight_decay=0.01, foreach=False)
    ),
    PEER_SGD[1]: _training(
        lambda p: schedulefree.SGDScheduleFree(p, lr=1e-3, weight_decay=0.01, foreach=True)
    ),
}
if heavyball is not None:
    MAKES["heavyball SFAdamW"] = lambda p: heavyball.SFAdamW(p, lr=1e-3, weight_decay=0.01)
