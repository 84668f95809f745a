"""Into the eigenbasis and back: one matrix product for each rotated dimension."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rotate(g: Tensor, bases: Sequence[Tensor | None]) -> Tensor:
    """Return g in the coordinates of the bases: Q₀ᵀ g Q₁ for a matrix.

    Args:
        g: of any order, folded into its layout.
        bases: for each dimension of g an orthogonal Q of shape (nᵢ, nᵢ), eigenvectors as columns,
            or None to leave the dimension as it is.

    >>> Q = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> rotate(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [Q, None])
    tensor([[ 3.,  4.],
            [-1., -2.]])
    """
    return _contract(g, bases, side=0)


def rotate_back(g: Tensor, bases: Sequence[Tensor | None]) -> Tensor:
    """Undo `rotate`: Q₀ g Q₁ᵀ for a matrix.

    >>> Q = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> rotate_back(rotate(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [Q, None]), [Q, None])
    tensor([[1., 2.],
            [3., 4.]])
    """
    return _contract(g, bases, side=1)


def carry(g: Tensor, old: Sequence[Tensor | None], new: Sequence[Tensor | None]) -> Tensor:
    """Convert g from the old bases to the new ones: Q₀'ᵀ Q₀ g Q₁ᵀ Q₁' for a matrix.

    Along each dimension it takes the way with fewer products: g times QᵀQ', or g times Qᵀ and then
    Q'.
    """
    for Q, turned in zip(old, new, strict=True):
        if Q is None or turned is None:
            g = g.movedim(0, -1)
        elif Q.shape[0] ** 2 < g.numel():
            g = torch.tensordot(g, Q.T @ turned, dims=([0], [0]))
        else:
            g = torch.tensordot(g, Q, dims=([0], [1])).movedim(-1, 0)
            g = torch.tensordot(g, turned, dims=([0], [0]))
    return g


def _contract(g: Tensor, bases: Sequence[Tensor | None], *, side: int) -> Tensor:
    # Each pass removes dimension 0 and appends its image; after a full round all are in place.
    for Q in bases:
        g = g.movedim(0, -1) if Q is None else torch.tensordot(g, Q, dims=([0], [side]))
    return g
