"""The eigenbasis of a factor: found once, and then followed by one step of power iteration.

Where the mathematics leaves a choice open (equal eigenvalues, a null space, what a factor has not
seen), a rule makes it. Left to rounding, it would differ between LAPACKs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: A level far above rounding and far below λ₁, in units of n times the precision.
_NOISE = 64
#: A column of QR keeps the old basis if no more than this many shifts remain of it.
_FEW_SHIFTS = 8


def eigenbasis(factor: Tensor) -> Tensor:
    """Return the eigenvectors of L as columns, the largest eigenvalue first.

    Computed in float64, so that what a float32 factor decides does not depend on a solver's last
    bit; if that fails, on the CPU, whose solver is the most robust. Eigenvalues within min(64 n ε,
    √ε) λ₁ of each other (ε the precision of L) count as equal, zeros included. Any basis of their
    space would do; `_basis_by_rule` chooses one.

    Args:
        factor: L, symmetric, positive semidefinite, of shape (n, n).

    Raises:
        RuntimeError: no solver converges.

    >>> eigenbasis(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).abs()
    tensor([[0., 1.],
            [1., 0.]])
    """
    exact, resolution = factor.to(torch.float64), min(_noise(factor), _precision(factor) ** 0.5)
    failures: list[RuntimeError] = []
    for candidate in (exact, exact.cpu()):
        try:
            return _eigenvectors(candidate, resolution=resolution).to(factor)
        except RuntimeError as error:
            failures.append(error)
    raise RuntimeError(
        f"SOAP: expected a factor with an eigenbasis, seen {failures[-1]}"
    ) from failures[-1]


def _eigenvectors(L: Tensor, *, resolution: float) -> Tensor:
    eigenvalues: Tensor
    eigenvectors: Tensor
    eigenvalues, eigenvectors = torch.linalg.eigh(L)
    descending, basis = eigenvalues.flip(0).tolist(), eigenvectors.flip(1).contiguous()
    for start, end in _clusters(descending, width=resolution * descending[0]):
        if end - start > 1:
            basis[:, start:end] = _basis_by_rule(basis[:, start:end])
    return basis


def _clusters(descending: list[float], *, width: float) -> Iterator[tuple[int, int]]:
    """Yield ranges of values that are within ``width`` of the first of their range.

    >>> list(_clusters([4.0, 3.9, 3.8, 1.0, 0.0, 0.0], width=0.15))
    [(0, 2), (2, 3), (3, 4), (4, 6)]
    """
    start = 0
    for end in range(1, len(descending) + 1):
        if end == len(descending) or descending[start] - descending[end] > width:
            yield start, end
            start = end


def _basis_by_rule(columns: Tensor) -> Tensor:
    """Return the orthonormal basis of the columns' space that a rule chooses: near the axes.

    With V the columns, the rule is V W, W the eigenvectors of Vᵀ D V, where D = diag(√1, √2, ...).
    It does not depend on the LAPACK: V W is the same for every orthonormal V of that space. Axes
    inside the space are kept. Sums of these roots do not cancel as those of whole numbers do, so
    that spaces of the kind that occurs (like those of e₁ ± e₂) have a unique basis too.
    """
    D = torch.arange(1, len(columns) + 1, dtype=columns.dtype, device=columns.device).sqrt()
    W: Tensor = torch.linalg.eigh(columns.T @ (D.unsqueeze(1) * columns)).eigenvectors
    return columns @ W


def _precision(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def _noise(L: Tensor) -> float:
    return min(_NOISE * L.shape[0] * _precision(L), 0.125)


def refreshed(factor: Tensor, basis: Tensor, *, floor: float) -> tuple[Tensor, Tensor]:
    """Move a basis towards the eigenvectors of the factor; return it with the order of its columns.

    One step of orthogonal iteration, sorted by the estimated eigenvalues so that each column is
    made orthogonal to the more important ones only::

        Y = L Q,  λ = diag(Qᵀ Y),  π sorts λ in descending order
        Q' = QR((Y + μ Q) π),  μ = max(floor, 64 n ε) · max |λ|

    The shift μ (ε the precision of the dtype) leaves the eigenvectors alone. It lets the old basis,
    not rounding noise, decide the directions that L has not seen; the SOAP paper and HeavyBall
    0.7.4 have none, HeavyBall 3.2.1 has this one. Two more rules:

    * Estimates that differ by less than √ε of the largest keep their order.
    * A column of which QR leaves less than ε^¼, and that little more than its shift, is in the
      space of the more important ones: L does not determine it. It moves behind them and starts
      from its old direction, not from the digits that are left. This costs a second QR, and on an
      accelerator a readback of one number; both are rare once a basis is near the eigenvectors.

    Args:
        factor: L, symmetric, of shape (n, n).
        basis: Q, orthogonal, of that shape.
        floor: least shift relative to the largest eigenvalue, >= 0.

    Returns:
        Q', and π: new column j follows old column π[j], so a tensor kept per column must be indexed
        by π along this dimension.

    Source: Vyas et al. 2024, arXiv 2409.11321, algorithm 4; the sorting is that of its authors'
    code.

    >>> refreshed(torch.diag(torch.tensor([1.0, 4.0])), torch.eye(2), floor=0.0)[1]
    tensor([1, 0])
    """
    # By rows: L is symmetric, and permutations and LAPACK are fastest on rows.
    rows = basis.T @ factor
    eigenvalues = (basis.T * rows).sum(1)
    largest = eigenvalues.abs().amax().clamp(min=torch.finfo(factor.dtype).tiny)
    order = _descending(eigenvalues, largest)
    shift = max(floor, _noise(factor)) * largest
    rows = (rows + shift * basis.T)[order]
    reflectors, scales = torch.geqrf(rows.T)
    undecided = _undecided(reflectors.diagonal().abs(), rows, shift=shift)
    if undecided is not None:
        behind = undecided.to(torch.int8).argsort(stable=True)
        rows = torch.where(undecided.unsqueeze(1), basis.T[order], rows)[behind]
        order = order[behind]
        reflectors, scales = torch.geqrf(rows.T)
    Q: Tensor = torch.linalg.householder_product(reflectors, scales)
    return Q, order


def _descending(eigenvalues: Tensor, largest: Tensor) -> Tensor:
    """Return the order of eigenvalues; those that are about equal keep their order.

    >>> _descending(torch.tensor([0.5, 0.5 + 1e-6, 1.0, 0.0, 1e-9]), torch.tensor(1.0))
    tensor([2, 0, 1, 3, 4])
    """
    steps = eigenvalues / (largest * _precision(eigenvalues) ** 0.5)
    order: Tensor = steps.round_().argsort(descending=True, stable=True)
    return order


def _undecided(remainders: Tensor, rows: Tensor, *, shift: Tensor) -> Tensor | None:
    """Return which rows have little more than their shift left beside earlier rows; None if none.

    The first check needs only one number, and spares a small basis the rest.
    """
    few = _FEW_SHIFTS * shift
    if remainders.amin() > few:
        return None
    least = _precision(rows) ** 0.25 * torch.linalg.vector_norm(rows, dim=1)
    is_undecided = (remainders <= few) & (remainders <= least)
    return is_undecided if is_undecided.any() else None
