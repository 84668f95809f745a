"""RAdam moves for every β₂: where the rectification is never defined, it takes plain steps."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_makes import make, step
from torch import Tensor
from torch.nn import Parameter

from roadless.optim.rules.radam import rectification, rectified

FORMS = ["RAdamScheduleFree", "RAdamScheduleFreeReference", "RAdamScheduleFreeClosure"]
SHORT = [0.0, 0.1, 0.3, 0.5, 0.6]


def gradient(t: int) -> Tensor:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("beta2", SHORT)
@pytest.mark.parametrize("is_silent", [True, False])
def test_with_a_short_memory_z_takes_the_steps_of_torch(
    name: str, beta2: float, is_silent: bool
) -> None:
    """torch 2.13 steps by the plain gradient while ρ <= 5; schedulefree 1.4.1 never moves then."""
    averaged, plain = (Parameter(torch.zeros(5, dtype=torch.float64)) for _ in range(2))
    ours = make(name, [averaged], lr=0.1, betas=(0.9, beta2), silent_sgd_phase=is_silent)
    theirs = torch.optim.RAdam([plain], lr=0.1, betas=(0.0, beta2))
    for t in range(20):
        step(ours, [gradient(t)])
        step(theirs, [gradient(t)])
        torch.testing.assert_close(ours.state[averaged]["z"], plain.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FORMS)
def test_a_silent_phase_that_ends_stays_silent(name: str) -> None:
    """For β₂ = 0.999 it lasts four steps, as published."""
    weight = Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer: Any = make(name, [weight], lr=0.1)
    moved = []
    for t in range(6):
        step(optimizer, [gradient(t)])
        moved.append(bool(optimizer.state[weight]["z"].any()))
    assert moved == [False] * 4 + [True] * 2


@given(beta2=st.floats(0, 0.9999), t=st.integers(1, 10**6))
def test_the_rate_is_never_zero_for_ever(beta2: float, t: int) -> None:
    group = {"betas": (0.9, beta2), "silent_sgd_phase": True}
    factor = rectified(group, t)
    assert 0 <= factor <= 1
    if not factor:
        # The length grows up to its limit, which is above 4.
        assert rectification(beta2, t) is None
        assert rectified(group, 10**9) > 0
        assert 2 / (1 - beta2) - 1 > 4
    assert math.isfinite(factor)
