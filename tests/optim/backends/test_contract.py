"""What every backend must do with the tensors that it takes; Triton's through its interpreter."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from optim_updates import KINDS, Update, example_update, in_float32, pairs, updates

from roadless.optim.backends.form import Gradient, Move, Tensors

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


def backend(name: str) -> Any:
    pytest.importorskip(name.partition("_")[0])
    return import_module(f"roadless.optim.backends.{name}")


@pytest.fixture(params=["numba_cpu", "triton_gpu"], scope="module")
def run(request: pytest.FixtureRequest) -> Callable[[Update], Tensors]:
    module = backend(request.param)

    def done(update: Update) -> Tensors:
        tensors = update.tensors()
        assert all(module.takes(row) for row in tensors.rows())
        module.run(tensors, move=update.move, direction=update.direction)
        return tensors

    return done


def farthest(update: Update, seen: Tensors) -> float:
    """Largest difference from the formulas, relative above 1."""
    gaps = [
        float(((a.double() - b).abs() / b.abs().clamp(min=1)).max())
        for a, b in pairs(seen, update.expected())
        if a.numel()
    ]
    return max(gaps, default=0.0)


@settings(max_examples=60, deadline=None)
@given(update=updates())
def test_an_update_is_its_formula(run: Callable[[Update], Tensors], update: Update) -> None:
    assert farthest(update, run(update)) <= 1e-12


@settings(max_examples=30, deadline=None)
@given(update=updates())
def test_an_update_in_float32_is_its_formula(
    run: Callable[[Update], Tensors], update: Update
) -> None:
    """A quotient by a small root carries its relative error into a large step: 1e-5 of that."""
    narrow = in_float32(update)
    assert farthest(narrow, run(narrow)) <= 1e-5


@pytest.mark.parametrize("kind", ["z", "zv", "zvm"])
def test_with_all_the_weight_y_is_z(run: Callable[[Update], Tensors], kind: str) -> None:
    seen = run(example_update(kind, c=1.0))
    assert all(torch.equal(y, z) for y, z in zip(seen.points, seen.z, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_read_only(run: Callable[[Update], Tensors], kind: str) -> None:
    update = example_update(kind)
    before, after = update.tensors(), run(update)
    assert all(torch.equal(a, b) for a, b in zip(before.gradients, after.gradients, strict=True))
    assert not torch.equal(before.points[0], after.points[0])


@pytest.mark.parametrize("name", ["numba_cpu", "triton_gpu"])
@pytest.mark.parametrize("broken", ["p", "g", "v"])
def test_not_a_number_stays_one(name: str, broken: str) -> None:
    """Also through the least denominator: nothing turns a broken state into a small step."""
    module, update = backend(name), example_update("zv")
    tensors = update.tensors()
    {"p": tensors.points, "g": tensors.gradients, "v": tensors.v}[broken][0][5] = float("nan")
    module.run(tensors, move=update.move, direction=update.direction)
    bad = tensors.points[0].isnan()
    assert bad[5]
    assert bad.sum() == 1


@pytest.mark.parametrize("name", ["numba_cpu", "triton_gpu"])
def test_nothing_to_do_is_no_trouble(name: str) -> None:
    backend(name).run(Tensors([], []), move=Move(lr=0.1), direction=Gradient())


@pytest.mark.parametrize("name", ["numba_cpu", "triton_gpu"])
def test_what_a_backend_refuses(name: str) -> None:
    takes, whole = backend(name).takes, torch.zeros(4, 4)
    assert takes((whole, whole))
    assert takes((whole.double(), whole.double()))
    assert not takes((whole, whole.double()))
    assert not takes((whole.half(), whole.half()))
    assert not takes((whole, whole.t()))
