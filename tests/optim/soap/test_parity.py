"""SOAP next to its paper, written out, and next to heavyball where that is right."""

from collections.abc import Callable
from typing import Any

import heavyball
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import distance
from soap_direct import DirectSOAP
from torch import Tensor
from torch.nn import Parameter

from roadless import optim

Shape = tuple[int, ...]
_beta = st.floats(0.0, 0.99)


def normal(shape: Shape, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def trained(
    make: Callable[..., Any], shapes: list[Shape], num_steps: int, **arguments: Any
) -> list[Tensor]:
    """Parameters after steps on gradients that are the same for everybody, in float32."""
    params = [Parameter(normal(shape, i).float()) for i, shape in enumerate(shapes)]
    optimizer = make(params, **arguments)
    for step in range(num_steps):
        for i, (parameter, shape) in enumerate(zip(params, shapes, strict=True)):
            parameter.grad = normal(shape, 1000 * (step + 1) + i).float()
        optimizer.step()
    return [parameter.detach() for parameter in params]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(2, 6),
    num_steps=st.integers(1, 12),
    lr=st.floats(1e-4, 0.1),
    betas=st.tuples(_beta, _beta),
    shampoo_beta=_beta,
    eps=st.floats(1e-12, 1e-6),
    decay=st.floats(0, 0.5),
    frequency=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_every_step_is_the_papers(
    n: int,
    num_steps: int,
    lr: float,
    betas: tuple[float, float],
    shampoo_beta: float,
    eps: float,
    decay: float,
    frequency: int,
    seed: int,
) -> None:
    """In float64 to 1e-12, beside a form that keeps m unrotated and never sorts its bases."""
    W = Parameter(normal((n, n), seed))
    direct = DirectSOAP(W.detach().clone(), lr, *betas, shampoo_beta, eps, decay, frequency)
    optimizer = optim.SOAP(
        [W],
        lr,
        betas=betas,
        shampoo_beta=shampoo_beta,
        eps=eps,
        weight_decay=decay,
        precondition_frequency=frequency,
    )
    for step in range(num_steps):
        W.grad = normal((n, n), seed + step + 1)
        optimizer.step()
        direct.step(W.grad)
    assert distance(W.detach(), direct.W) < 1e-12 * _amplification(direct)


def _amplification(direct: DirectSOAP) -> float:
    """What two exact forms may differ by in the end.

    Eigenvectors of a gap γ are known to ε/γ, and a quotient by a root of v that is small beside the
    gradient, which is a large element of the direction, has lost as many digits.
    """
    gaps = [torch.linalg.eigvalsh(L).diff().min() / L.norm() for L in (direct.L, direct.R)]
    return float(max(1.0, 1e-3 / min(gaps), direct.largest))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavyball.utils, "compile_mode", None)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"betas": (0.8, 0.99), "shampoo_beta": 0.9},
        {"weight_decay": 0.3, "eps": 1e-4},
        {"max_precond_dim": 5},
        {"merge_dims": False},
    ],
    ids=str,
)
def test_heavyball_takes_the_same_steps(arguments: dict[str, Any]) -> None:
    """3.2.1 in float32, refreshed in every step; it counts the refresh of other frequencies anew.

    Shapes whose factors have full rank from the start: the basis of a null space is anybody's.
    """
    settings = {"lr": 0.01, "precondition_frequency": 1} | arguments
    shapes = [(6, 6), (4, 2, 2), (7,)]
    theirs = trained(heavyball.SOAP, shapes, 20, **settings)
    ours = trained(optim.SOAP, shapes, 20, **({"shampoo_beta": 0.95} | settings))
    assert [distance(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True)] == [True] * 3
