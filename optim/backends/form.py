"""The updates that have a kernel, as plain numbers: what an engine passes to a backend.

Everything that changes from step to step is a field here and becomes an argument of the kernel, so
a changed number never causes a recompilation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gradient:
    """The direction of SGD: u = g."""


class Adam(NamedTuple):
    """How a direction comes from a second moment and, optionally, a first one.

    With g the gradient, m and v the moments::

        v ← β₂ v + (1 - β₂) g²
        m ← β₁ m + (1 - β₁) g              (with a first moment; without one, m stands for g)
        u = m_scale · m / (max(√(v_scale · v), floor) + ε)

    Adam's bias correction is a scale of 1 / (1 - βᵗ) and no floor; an average that needs no
    correction has scales of 1, and a clamped denominator is a floor and ε = 0.
    """

    beta2: float
    v_scale: float
    eps: float
    floor: float = 0.0
    beta1: float = 0.0
    m_scale: float = 1.0


#: How u comes from g.
Direction = Gradient | Adam

_GRADIENT_NUMBERS = Adam(beta2=0.0, v_scale=1.0, eps=0.0)


class Move(NamedTuple):
    """How points move along a direction u, at the point y, with λ = ``decay``.

    Schedule-free, with γ = ``lr`` and ``lr_y`` = (1 - β) γ::

        z ← z - γ (u + λ y)
        y ← (1 - c) (y - lr_y (u + λ y)) + c z

    Without averaging there is no z, and ``p ← p - γ (u + λ p)``.
    """

    lr: float
    decay: float = 0.0
    lr_y: float = 0.0
    c: float = 0.0


class Rounding(NamedTuple):
    """What `roadless.optim.numerics.rounding` needs to know of one tensor's points."""

    #: In [0, 2⁶⁴).
    key: int
    #: Index of the first local element in the whole tensor if all others follow it, else None.
    first_index: int | None


@dataclass(frozen=True, slots=True)
class Tensors:
    """What one update reads and writes: lists of equal length, matched by position.

    Points and gradients share a dtype, the others have that of the arithmetic: the same, or float32
    for narrow points. An empty list means that the update has no such tensors.
    """

    #: y, or p where nothing is averaged; written.
    points: list[Tensor]
    #: g; read only.
    gradients: list[Tensor]
    #: z; written. Empty where nothing is averaged.
    z: list[Tensor] = field(default_factory=list)
    #: v; written. Empty for SGD, whose direction is g.
    v: list[Tensor] = field(default_factory=list)
    #: m; written. Empty without a first moment.
    m: list[Tensor] = field(default_factory=list)
    #: What narrow points lack (`roadless.optim.numerics.precision`), int16; written. Empty where it
    #: is not kept.
    low: list[Tensor] = field(default_factory=list)
    #: How narrow points are rounded. Empty for points that need no rounding.
    rounding: list[Rounding] = field(default_factory=list)

    def rows(self) -> list[tuple[Tensor, ...]]:
        """Return the tensors that each update has, in the order of the fields."""
        return list(zip(*(column for column in self._columns() if column), strict=True))

    def at(self, positions: Sequence[int]) -> "Tensors":
        """Return the tensors of the updates at these positions, in this order."""
        p, g, z, v, m, low = (
            [column[i] for i in positions if column] for column in self._columns()
        )
        return Tensors(p, g, z, v, m, low, [self.rounding[i] for i in positions if self.rounding])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tensors":
        """Return these tensors with ``function`` applied to each."""
        p, g, z, v, m, low = (list(map(function, column)) for column in self._columns())
        return Tensors(p, g, z, v, m, low, self.rounding)

    def _columns(self) -> tuple[list[Tensor], ...]:
        return self.points, self.gradients, self.z, self.v, self.m, self.low


def numbers(move: Move, direction: Direction) -> tuple[float, ...]:
    """Return the numbers of a step in the order that kernels expect.

    γ, λ, lr_y, c, 1 - c; β₂, 1 - β₂, v_scale, floor, ε; β₁, 1 - β₁, m_scale. Complements are
    computed here, before anything is rounded to the dtype of the tensors.
    """
    lr, decay, lr_y, c = move
    adam = direction if isinstance(direction, Adam) else _GRADIENT_NUMBERS
    beta2, v_scale, eps, floor, beta1, m_scale = adam
    return (
        *(lr, decay, lr_y, c, 1 - c),
        *(beta2, 1 - beta2, v_scale, floor, eps),
        *(beta1, 1 - beta1, m_scale),
    )
