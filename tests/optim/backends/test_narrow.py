"""bfloat16 in one pass: the arithmetic of float32, and bit for bit the rounding of the library."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_makes import make
from optim_memory import KERNEL_NAMES, give, kernels
from optim_runs import FAST, example_run, take_step
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim.backends import choose, numba_cpu
from roadless.optim.backends.form import Adam, Gradient, Move, Rounding, Tensors
from roadless.optim.numerics.precision import low_part, wide
from roadless.optim.numerics.rounding import rounding_key, stochastically_rounded

PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)


def ordinary(narrow: Tensor) -> Tensor:
    """Those whose next larger number is finite too; without -0, which a step of 0 makes 0."""
    is_finite = narrow.abs() < torch.finfo(torch.bfloat16).max
    return narrow[is_finite & ~((narrow == 0) & narrow.signbit())]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(-(2**40), 2**40),
    step=st.integers(1, 10**6),
    start=st.integers(0, 2**40),
    has_low=st.booleans(),
)
def test_every_pattern_is_rounded_by_the_library_s_rule(
    seed: int, step: int, start: int, has_low: bool
) -> None:
    """A step of length 0 leaves the point as it is; then only reading and rounding are left."""
    key = rounding_key(seed=seed, step=step, parameter=1)
    y = ordinary(PATTERNS)
    low = torch.randint(1 - 2**15, 2**15, y.shape, dtype=torch.int16)
    point = wide(y, {"low": low} if has_low else {})
    expected = stochastically_rounded(point, torch.bfloat16, key=key, index=start)
    y, z, lows = y.clone(), point.clone(), [low.clone()] if has_low else []
    tensors = Tensors([y], [torch.zeros_like(y)], [z], low=lows, rounding=[Rounding(key, start)])
    numba_cpu.run(tensors, move=Move(lr=0.0), direction=Gradient())
    assert torch.equal(y.view(torch.int16), expected.view(torch.int16))
    if has_low:
        assert torch.equal(lows[0], low_part(point, expected))


@settings(max_examples=40, deadline=None)
@given(payload=st.integers(1, 2**23 - 1), has_low=st.booleans(), key=st.integers(0, 2**64 - 1))
def test_not_a_number_is_rounded_by_the_library_s_rule(
    payload: int, has_low: bool, key: int
) -> None:
    """With all the weight y becomes z, which has any payload; with either sign."""
    patterns = torch.tensor([0x7F800000 + payload, payload - 0x800000], dtype=torch.int32)
    z = patterns.view(torch.float32).repeat(20)
    y = torch.ones(40, dtype=torch.bfloat16)
    low = [torch.ones(40, dtype=torch.int16)] if has_low else []
    tensors = Tensors([y], [torch.zeros_like(y)], [z], low=low, rounding=[Rounding(key, 0)])
    numba_cpu.run(tensors, move=Move(lr=0.0, c=1.0), direction=Gradient())
    assert y.isnan().all()
    expected = stochastically_rounded(z, torch.bfloat16, key=key)
    assert torch.equal(y.view(torch.int16), expected.view(torch.int16))
    assert all(part.count_nonzero() == 0 for part in low)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_what_is_not_a_number_in_a_gradient_shows_in_the_parameter(
    name: str, dtype: torch.dtype
) -> None:
    """And only there, in every step that follows; with the payload that carries into the sign."""
    pattern = torch.tensor([-1, 1, 2], dtype=torch.int16)
    broken = torch.where(pattern == -1, pattern, torch.zeros_like(pattern)).view(dtype)
    for are_used in (True, False):
        w = Parameter(torch.ones(3, dtype=dtype))
        with kernels(are_used=are_used):
            optimizer = make(name, [w])
            for _ in range(8):
                give(optimizer, [broken.clone()])
                assert optim.averaged_point(optimizer)[w].isnan().tolist() == [True, False, False]
                assert w.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("are_used", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_the_largest_numbers_stay_what_they_are(
    name: str, dtype: torch.dtype, are_used: bool
) -> None:
    """A step of length 0 from where no larger number is finite: no low part makes it NaN."""
    largest = torch.finfo(dtype).max
    start = torch.tensor([largest, -largest], dtype=dtype)
    w = Parameter(start.clone())
    with kernels(are_used=are_used):
        optimizer = make(name, [w], lr=0.0)
        for _ in range(3):
            give(optimizer, [torch.zeros_like(w)])
    assert torch.equal(w.detach(), start)


@pytest.mark.parametrize("kind", ["z", "zv", "zvm", "vm"])
def test_the_arithmetic_is_that_of_float32(kind: str) -> None:
    """The same update of float32 points that hold the same values, then rounded."""
    generator = torch.Generator().manual_seed(1)
    y, g = (torch.randn(5000, generator=generator).bfloat16() for _ in range(2))
    states = {letter: [torch.rand(5000, generator=generator)] for letter in kind}
    copies = {letter: [column[0].clone()] for letter, column in states.items()}
    move = Move(lr=0.1, decay=0.01, lr_y=0.02, c=0.3)
    adam = Adam(beta2=0.9, v_scale=1.5, eps=1e-8, beta1=0.8, m_scale=1.25)
    direction = adam if "v" in kind else Gradient()
    points = y.float()
    numba_cpu.run(Tensors([points], [g.float()], **copies), move=move, direction=direction)
    narrow = Tensors([y], [g], **states, rounding=[Rounding(5, 0)])
    numba_cpu.run(narrow, move=move, direction=direction)
    assert torch.equal(y, stochastically_rounded(points, torch.bfloat16, key=5, index=0))
    assert all(torch.equal(states[letter][0], copies[letter][0]) for letter in kind)


@pytest.mark.parametrize("rule", ["adamw", "foreach_adamw", "sgd"])
def test_optimizers_go_the_same_way_with_kernels_and_without(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are rounded in another order, so a point on the edge may fall to the other side: one
    ulp of the parameter, 2⁻⁸, and far less in what is remembered.
    """
    make = optim.ForeachAdamW if rule == "foreach_adamw" else FAST[rule]
    base = replace(example_run("sgd", num_steps=12, dtype=torch.bfloat16), rule=rule)
    ends = []
    for least in (0, 10**12):
        monkeypatch.setattr(choose, "MIN_ELEMENTS", least)
        parameters = [Parameter(p.detach()) for p in base.parameters()[0]]
        optimizer = make(parameters, lr=0.1, weight_decay=0.01, warmup_steps=3)
        for gradients in base.gradients():
            take_step(optimizer, gradients)
        xs = {p: torch.empty(p.shape) for p in parameters}
        optim.averaged_point(optimizer, out=xs)
        ends.append((parameters, list(xs.values()), [optimizer.state[p] for p in parameters]))
    for p, q in zip(ends[0][0], ends[1][0], strict=True):
        assert bool(((p - q).abs() <= 2**-7 * q.abs()).all())
    for state, other in zip(ends[0][2], ends[1][2], strict=True):
        assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in other.items()}
    if rule != "foreach_adamw":
        for x, other in zip(ends[0][1], ends[1][1], strict=True):
            assert float((x - other).abs().max()) <= 1e-4


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_pure_bfloat16_stays_within_a_percent_of_float64(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 steps of a quadratic, by kernels."""
    monkeypatch.setattr(choose, "MIN_ELEMENTS", 0)
    target = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    xs = []
    for dtype in (torch.bfloat16, torch.float64):
        w = Parameter(torch.zeros(500, dtype=dtype))
        optimizer = FAST[rule]([w], lr=0.01)
        for _ in range(1000):
            w.grad = w.detach() - target.to(dtype)
            optimizer.step()
        out = {w: torch.empty(500, dtype=torch.float64)}
        optim.averaged_point(optimizer, out=out)
        xs.append(out[w])
    assert float((xs[0] - xs[1]).norm() / xs[1].norm()) <= 0.01
