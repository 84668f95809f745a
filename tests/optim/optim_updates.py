"""Whole updates with random numbers, and what they must give: the contract of all backends."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from roadless.optim.backends.form import Adam, Direction, Gradient, Move, Tensors

#: Which state tensors an update has, in the letters of `Tensors`.
KINDS = ("z", "zv", "zvm", "vm")
SHAPES = ((), (0,), (1,), (7,), (33, 2), (1023,), (1025,), (4099,))
FIELDS = {"p": "points", "g": "gradients", "z": "z", "v": "v", "m": "m"}


@dataclass(frozen=True)
class Update:
    """One update of some tensors."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    move: Move
    direction: Direction
    seed: int
    dtype: torch.dtype

    def tensors(self) -> Tensors:
        """Fresh tensors, the same each time; v is not negative."""
        generator = torch.Generator().manual_seed(self.seed)
        columns = {}
        for letter, field in FIELDS.items():
            drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in self.shapes]
            if letter in "pg" + self.kind:
                columns[field] = [(t.abs() if letter == "v" else t).to(self.dtype) for t in drawn]
        return Tensors(**columns)

    def expected(self) -> Tensors:
        """The formulas of `roadless.optim.backends.form`, in float64, written down as they stand
        there."""
        given = self.tensors().map(lambda t: t.double())
        rows = [self._moved(dict(zip("pg" + self.kind, row, strict=True))) for row in given.rows()]
        return Tensors(**{FIELDS[k]: [row[k] for row in rows] for k in "pg" + self.kind})

    def _moved(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        lr, decay, lr_y, c = (getattr(self.move, n) for n in ("lr", "decay", "lr_y", "c"))
        u = row["g"]
        if isinstance(self.direction, Adam):
            a = self.direction
            row["v"] = a.beta2 * row["v"] + (1 - a.beta2) * u**2
            if "m" in row:
                row["m"] = a.beta1 * row["m"] + (1 - a.beta1) * u
                u = a.m_scale * row["m"]
            u = u / (torch.sqrt(a.v_scale * row["v"]).clamp(min=a.floor) + a.eps)
        u = u + decay * row["p"]
        if "z" in row:
            row["z"] = row["z"] - lr * u
            row["p"] = (1 - c) * (row["p"] - lr_y * u) + c * row["z"]
        else:
            row["p"] = row["p"] - lr * u
        return row


def pairs(a: Tensors, b: Tensors) -> Iterator[tuple[Tensor, Tensor]]:
    for row, other in zip(a.rows(), b.rows(), strict=True):
        yield from zip(row, other, strict=True)


_share = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.0, 1.0)
_moves = st.builds(
    Move,
    lr=st.just(0.0) | st.floats(1e-4, 1.0),
    decay=st.just(0.0) | st.floats(1e-3, 0.5),
    lr_y=st.floats(0.0, 0.5),
    c=_share,
)
_adams = st.builds(
    Adam,
    beta2=st.just(0.0) | st.floats(0.5, 0.999),
    v_scale=st.floats(0.5, 1000.0),
    eps=st.floats(1e-8, 1e-3),
    floor=st.just(0.0) | st.floats(1e-8, 1.0),
    beta1=st.floats(0.0, 0.99),
    m_scale=st.floats(0.5, 10.0),
)


@st.composite
def updates(draw: st.DrawFn, *, max_tensors: int = 6) -> Update:
    """Updates in float64, of every kind and of all sizes around a block's."""
    kind = draw(st.sampled_from(KINDS))
    return Update(
        kind=kind,
        shapes=tuple(draw(st.lists(st.sampled_from(SHAPES), max_size=max_tensors))),
        move=draw(_moves),
        direction=Gradient() if kind == "z" else draw(_adams),
        seed=draw(st.integers(0, 10**6)),
        dtype=torch.float64,
    )


def example_update(kind: str, *, dtype: torch.dtype = torch.float32, c: float = 0.25) -> Update:
    adam = Adam(beta2=0.9, v_scale=1.5, eps=1e-8, floor=1e-3, beta1=0.8, m_scale=1.25)
    return Update(
        kind=kind,
        shapes=((70_001,), (3, 5), (), (0,)),
        move=Move(lr=0.1, decay=0.01, lr_y=0.02, c=c),
        direction=Gradient() if kind == "z" else adam,
        seed=3,
        dtype=dtype,
    )


def in_float32(update: Update) -> Update:
    return replace(update, dtype=torch.float32)
