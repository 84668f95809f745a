"""Factors, bases and rotations, each by its own law."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roadless.optim.soap.basis import eigenbasis, refreshed
from roadless.optim.soap.factors import update_factors
from roadless.optim.soap.rotation import carry, rotate, rotate_back

seeds = st.integers(0, 10**6)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def covariance(n: int, seed: int) -> Tensor:
    """Of eigenvalues 1, 1/2, 1/4, ..."""
    Q = orthogonal(n, seed)
    return Q @ torch.diag(0.5 ** torch.arange(n, dtype=torch.float64)) @ Q.T


def off_diagonal(L: Tensor, Q: Tensor) -> float:
    rotated = Q.T @ L @ Q
    return float((rotated - rotated.diagonal().diag()).norm())


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=seeds,
)
def test_rotation_is_a_change_of_basis(
    shape: tuple[int, ...], flags: tuple[bool, ...], seed: int
) -> None:
    """It is the Kronecker product of the bases on the flat tensor; the way back undoes it."""
    g = normal(*shape, seed=seed)
    bases = [orthogonal(n, seed + n) if f else None for n, f in zip(shape, flags, strict=False)]
    kronecker = torch.ones(1, 1, dtype=torch.float64)
    for n, Q in zip(shape, bases, strict=True):
        kronecker = torch.kron(
            kronecker, torch.eye(n, dtype=g.dtype) if Q is None else Q.contiguous()
        )
    torch.testing.assert_close(rotate(g, bases).reshape(-1), kronecker.T @ g.reshape(-1))
    torch.testing.assert_close(rotate_back(rotate(g, bases), bases), g)
    others = [Q if Q is None else orthogonal(len(Q), seed + 99) for Q in bases]
    torch.testing.assert_close(carry(rotate(g, bases), bases, others), rotate(g, others))


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    beta=st.floats(0, 0.99),
    seed=seeds,
)
def test_factors_are_averages_of_covariances(
    shape: tuple[int, ...], beta: float, seed: int
) -> None:
    """Each factor has the squared norm of the gradient as its trace, and is what einsum says."""
    g, start = normal(*shape, seed=seed), [covariance(n, seed) for n in shape]
    factors: list[Tensor | None] = [L.clone() for L in start]
    factors[0] = None
    update_factors(factors, g, beta=beta)
    for i, (L, new) in enumerate(zip(start, factors, strict=True)):
        if new is None:
            continue
        matrix = g.movedim(i, 0).flatten(1)
        torch.testing.assert_close(new, beta * L + (1 - beta) * matrix @ matrix.T)


def test_the_first_gradient_forgets_what_was_in_the_memory() -> None:
    factor = torch.full((2, 2), math.nan)
    update_factors([factor, None], torch.eye(2), beta=0.0)
    assert torch.equal(factor, torch.eye(2))


@settings(deadline=None)
@given(n=st.integers(1, 6), seed=seeds)
def test_the_eigenbasis_makes_the_factor_diagonal_and_descending(n: int, seed: int) -> None:
    L = covariance(n, seed)
    Q = eigenbasis(L)
    eigenvalues = 0.5 ** torch.arange(n, dtype=L.dtype)
    torch.testing.assert_close(Q.T @ L @ Q, eigenvalues.diag())


def test_a_zero_factor_has_the_axes_as_its_basis() -> None:
    Q = eigenbasis(torch.zeros(3, 3))
    torch.testing.assert_close(Q.abs(), torch.eye(3))


@settings(deadline=None)
@given(n=st.integers(2, 6), rank=st.integers(1, 5), seed=seeds)
def test_the_basis_of_a_null_space_does_not_depend_on_rounding(
    n: int, rank: int, seed: int
) -> None:
    """A change of the gradient in its last bits changes the basis no more than that."""
    G = orthogonal(n, seed)[:, : min(rank, n)] * 0.5 ** torch.arange(min(rank, n))
    disturbed = G * (1 + 1e-15 * normal(*G.shape, seed=seed + 1))
    Q, other = eigenbasis(G @ G.T), eigenbasis(disturbed @ disturbed.T)
    torch.testing.assert_close(Q.T @ Q, torch.eye(n, dtype=G.dtype))
    assert float((Q * other).sum(0).abs().min()) > 1 - 1e-12


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3), seed=seeds)
def test_the_basis_of_equal_eigenvalues_does_not_depend_on_rounding(
    sizes: list[int], seed: int
) -> None:
    """Neither on rounding nor on which of the equally right bases a LAPACK returns."""
    eigenvalues = torch.tensor([2.0**-i for i, k in enumerate(sizes) for _ in range(k)]).double()
    U, n = orthogonal(sum(sizes), seed), sum(sizes)
    turn = torch.block_diag(*[orthogonal(k, seed + k) for k in sizes])
    Q, other = (eigenbasis(V @ eigenvalues.diag() @ V.T) for V in (U, U @ turn))
    torch.testing.assert_close(Q.T @ Q, torch.eye(n, dtype=Q.dtype))
    assert float((Q * other).sum(0).abs().min()) > 1 - 1e-12


def test_the_rule_has_no_ties_where_differences_of_rows_are_seen() -> None:
    """With whole numbers as D, e₁ + e₄ and e₂ + e₃ would be equals, and any mix of them right."""
    G = torch.tensor([[1.0, 0, 0, -1], [0, 1, -1, 0]], dtype=torch.float64).T
    Q = eigenbasis(G @ G.T)
    for seed in range(20):
        disturbed = G * (1 + 1e-15 * normal(4, 2, seed=seed))
        other = eigenbasis(disturbed @ disturbed.T)
        assert float((Q * other).sum(0).abs().min()) > 1 - 1e-12


def test_estimates_that_are_about_equal_keep_their_order() -> None:
    """Which of them comes first must not be a matter of rounding: QR treats the first better."""
    L = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    for noise in (0.0, 1e-12, -1e-12):
        _, order = refreshed(
            L + torch.diag(torch.tensor([0.0, noise])), torch.eye(2).double(), floor=0.0
        )
        assert order.tolist() == [0, 1]


def test_what_cancels_in_a_refresh_starts_from_the_old_basis() -> None:
    """A new gradient gives many old directions the same image: QR leaves rounding of the rest."""
    n = 12
    old, new = orthogonal(n, 1), normal(n, 2, seed=2)
    new /= new.norm()

    def after(noise: float) -> Tensor:
        G = new * (1 + noise * normal(n, 2, seed=3))
        Q, _ = refreshed(G @ G.T, old, floor=1e-8)
        return Q

    Q, other = after(0.0), after(1e-15)
    torch.testing.assert_close(Q.T @ Q, torch.eye(n, dtype=Q.dtype))
    assert float((Q - other).norm()) < 1e-12
    torch.testing.assert_close(Q[:, :2] @ Q[:, :2].T, new @ torch.linalg.pinv(new))


def test_unused_axes_stay_axes() -> None:
    G = torch.zeros(5, 2)
    G[[1, 3]] = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    unused = eigenbasis(G @ G.T)[:, 2:]
    torch.testing.assert_close(unused.abs().sum(0), torch.ones(3))
    torch.testing.assert_close(unused[[1, 3]], torch.zeros(2, 3))


def test_a_decomposition_that_always_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(L: Tensor) -> object:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(RuntimeError, match=r"expected .* eigenbasis, seen did not converge"):
        eigenbasis(torch.eye(2))


def test_the_decomposition_falls_back_to_double(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.linalg.eigh

    def fails_in_single(L: Tensor) -> object:
        if L.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return real(L)

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_single)
    Q = eigenbasis(covariance(3, 0).float())
    assert Q.dtype == torch.float32
    torch.testing.assert_close(Q.T @ Q, torch.eye(3))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 6), seed=seeds)
def test_refreshing_converges_to_the_eigenvectors(n: int, seed: int) -> None:
    """From any start the rate is the ratio of neighbouring eigenvalues, here 1/2."""
    L, Q = covariance(n, seed), orthogonal(n, seed + 1)
    for _ in range(80):
        Q, _ = refreshed(L, Q, floor=0.0)
    assert off_diagonal(L, Q) < 1e-9
    torch.testing.assert_close(Q.T @ Q, torch.eye(n, dtype=L.dtype))
    assert ((Q.T @ L @ Q).diagonal().diff() < 0).all()


@settings(deadline=None)
@given(n=st.integers(2, 6), seed=seeds)
def test_the_order_names_the_old_column_of_each_new_one(n: int, seed: int) -> None:
    """Of eigenvectors out of order the refresh makes the ordered ones, whatever their signs."""
    L = covariance(n, seed)
    shuffled = eigenbasis(L)[:, torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    Q, order = refreshed(L, shuffled, floor=0.0)
    torch.testing.assert_close((Q * shuffled[:, order]).sum(0).abs(), torch.ones(n, dtype=L.dtype))


def test_directions_never_seen_stay_where_they_are() -> None:
    """Without the shift, QR would complete a factor of low rank by rounding noise."""
    Q = orthogonal(5, 3)
    L = Q[:, :2] @ torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)) @ Q[:, :2].T
    new, order = refreshed(L, Q, floor=1e-8)
    torch.testing.assert_close((new * Q[:, order]).sum(0).abs(), torch.ones(5, dtype=L.dtype))
