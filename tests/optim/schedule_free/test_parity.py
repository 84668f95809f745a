"""Fast, reference and published form agree step by step, whatever the settings."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import pytest
import schedulefree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import (
    ALL_FAST,
    ALL_REFERENCE,
    FAST,
    PYPI,
    REFERENCE,
    Run,
    distance,
    example_run,
    runs,
    take_step,
)
from torch import Tensor

from roadless import optim
from roadless.optim import averaged_point
from roadless.optim.core.engine import _CPU_ELEMENTS as MAX_ELEMENTS
from roadless.optim.core.engine import batches

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def any_run(rules: Iterable[str] = FAST, *, has_gaps: bool = True) -> st.SearchStrategy[Run]:
    drawn = runs(rules=rules, has_gaps=has_gaps)
    return st.one_of(drawn, drawn.map(Run.in_float32))


def published_run(rules: Iterable[str]) -> st.SearchStrategy[Run]:
    """Runs that the published library takes right.

    Missed gradients count in its bias corrections, of which SGD has none; and its RAdam never moves
    where the rectification is never defined, unless it is told to take plain steps until then. It
    counts a step in which every lr and every gradient is 0, which here only asks for a state.
    """
    drawn = any_run(["sgd"]) | any_run(set(rules) - {"sgd"}, has_gaps=False)
    return drawn.filter(lambda run: not _never_moves(run) and not _has_idle_step(run))


def _never_moves(run: Run) -> bool:
    silent = run.settings.get("silent_sgd_phase", False)
    return bool(silent and run.settings["betas"][1] <= 0.6)


def _has_idle_step(run: Run) -> bool:
    sizes = [math.prod(shape) for shapes in run.groups for shape in shapes]
    return any(
        step.lr == 0 and not any(n for n, has in zip(sizes, step.has_gradient, strict=True) if has)
        for step in run.steps
    )


def sequences(optimizer: Any) -> list[Tensor]:
    """The live point, z and v of every parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = ("z", "exp_avg_sq")
    states = [optimizer.state.get(p, {}) for p in parameters]
    kept = [state[name] for state in states for name in names if name in state]
    return [p.detach() for p in parameters] + kept


def worst(seen: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    return max((distance(a, b) for a, b in zip(seen, expected, strict=True)), default=0.0)


def assert_equal_averages(seen: Iterable[Tensor], expected: Iterable[Tensor], *, run: Run) -> None:
    """x = (y - (1-beta) z) / beta divides the rounding of y and z by beta too."""
    assert worst(seen, expected) <= TOLERANCE[run.dtype] / run.beta


@settings(max_examples=100, deadline=None)
@given(run=any_run(ALL_REFERENCE), foreach=st.sampled_from([True, False, None]))
def test_fast_equals_reference(run: Run, foreach: bool | None) -> None:
    fast = run.optimizer(ALL_FAST[run.rule], run.parameters(), foreach=foreach)
    reference = run.optimizer(ALL_REFERENCE[run.rule], run.parameters())
    for step, gradients in zip(run.steps, run.gradients(), strict=True):
        take_step(fast, gradients, step.lr)
        take_step(reference, gradients, step.lr)
        assert worst(sequences(fast), sequences(reference)) <= TOLERANCE[run.dtype]
        x, expected = averaged_point(fast), averaged_point(reference)
        assert_equal_averages(x.values(), expected.values(), run=run)


@settings(max_examples=100, deadline=None)
@given(run=published_run(ALL_FAST), foreach=st.booleans())
def test_fast_equals_the_published_library(run: Run, foreach: bool) -> None:
    ours = run.optimizer(ALL_FAST[run.rule], run.parameters(), foreach=foreach)
    theirs = run.optimizer(PYPI[run.rule], run.parameters(), foreach=foreach)
    theirs.train()
    for step, gradients in zip(run.steps, run.gradients(), strict=True):
        take_step(ours, gradients, step.lr)
        take_step(theirs, gradients, step.lr)
        assert worst(sequences(ours), sequences(theirs)) <= TOLERANCE[run.dtype]
        assert_equal_counters(ours, theirs)
    theirs.eval()
    at_x = [p.detach() for group in theirs.param_groups for p in group["params"]]
    assert_equal_averages(averaged_point(ours).values(), at_x, run=run)


def assert_equal_counters(ours: Any, theirs: Any) -> None:
    for our_group, their_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        for name in ("k", "weight_sum", "lr_max", "scheduled_lr"):
            assert our_group[name] == pytest.approx(their_group[name], rel=1e-14), name


@settings(max_examples=50, deadline=None)
@given(run=any_run())
def test_one_tensor_at_a_time_equals_lists_bit_for_bit(run: Run) -> None:
    in_lists = run.optimizer(FAST[run.rule], run.parameters(), foreach=True)
    one_by_one = run.optimizer(FAST[run.rule], run.parameters(), foreach=False)
    for step, gradients in zip(run.steps, run.gradients(), strict=True):
        take_step(in_lists, gradients, step.lr)
        take_step(one_by_one, gradients, step.lr)
    for a, b in zip(sequences(in_lists), sequences(one_by_one), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", sorted(FAST))
def test_parameters_larger_than_a_list_take_the_same_steps(rule: str) -> None:
    """Small, large, small: lists are cut around the large one, and no parameter is left out."""
    start = [torch.randn(n) for n in (5, 2**16 + 1, 2**15, 2**15, 7, 3)]
    moved = []
    for foreach in (True, False):
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = FAST[rule](parameters, lr=0.1, foreach=foreach)
        take_step(optimizer, [torch.ones_like(p) for p in parameters])
        moved.append([p.detach() for p in parameters])
    for before, together, alone in zip(start, *moved, strict=True):
        assert torch.equal(together, alone)
        assert not torch.equal(before, together)


@given(sizes=st.lists(st.integers(0, 2 * MAX_ELEMENTS), max_size=12), is_batched=st.booleans())
def test_lists_hold_every_tensor_in_order_and_stay_small(
    sizes: list[int], is_batched: bool
) -> None:
    """As few as the limit allows: the next tensor would not have fitted. Only one goes above it."""
    tensors = [torch.empty(1).expand(n) for n in sizes]
    lists = list(batches(tensors, is_batched=is_batched))
    totals = [sum(t.numel() for t in each) for each in lists]
    assert [id(t) for each in lists for t in each] == [id(t) for t in tensors]
    assert all(
        len(each) == 1 or total <= MAX_ELEMENTS for each, total in zip(lists, totals, strict=True)
    )
    if is_batched:
        pairs = zip(totals, lists[1:], strict=False)
        assert all(n + after[0].numel() > MAX_ELEMENTS for n, after in pairs)
    else:
        assert all(len(each) == 1 for each in lists)


@pytest.mark.parametrize("name", sorted(n for n in vars(schedulefree) if n in optim.__all__))
def test_same_signature_as_the_published_library(name: str) -> None:
    """Same names, order, kinds and defaults; ours may add arguments at the end."""
    ours, published = (
        [(p.name, p.default, p.kind) for p in inspect.signature(cls).parameters.values()]
        for cls in (getattr(optim, name), getattr(schedulefree, name))
    )
    assert ours[: len(published)] == published
    assert {p[0] for p in ours[len(published) :]} <= {"inner_momentum"}


@pytest.mark.parametrize("rule", sorted(ALL_FAST))
def test_same_groups_as_the_published_library(rule: str) -> None:
    mine, theirs = (
        [make(torch.nn.Linear(1, 1).parameters())] for make in (ALL_FAST[rule], PYPI[rule])
    )
    ours, published = mine[0].param_groups[0], theirs[0].param_groups[0]
    same = set(published) - {"params", "train_mode"}
    assert {name: ours[name] for name in same} == {name: published[name] for name in same}
    assert set(ours) - set(published) <= {"held_beta", "rounding_seed", "inner_momentum"}


@pytest.mark.parametrize("rule", sorted(ALL_FAST))
def test_positional_arguments_mean_the_same(rule: str) -> None:
    positional: tuple[Any, ...] = {
        "sgd": (0.5, 0.8, 0.1, 3, 1.0, 1.5, False),
        "adamw": (0.5, (0.8, 0.9), 1e-4, 0.1, 3, 1.0, 1.5, False),
        "paper": (0.5, (0.8, 0.9), 1e-4, 0.1, 3, 1.0, 1.5, False),
        "radam": (0.5, (0.8, 0.9), 1e-4, 0.1, 1.0, 1.5, False, False),
    }[rule]
    run = example_run(rule)
    groups = [
        make([p for ps in run.parameters() for p in ps], *positional).param_groups[0]
        for make in (ALL_FAST[rule], PYPI[rule])
    ]
    for name in set(groups[1]) - {"params", "train_mode"}:
        assert groups[0][name] == groups[1][name], name


@settings(max_examples=50, deadline=None)
@given(run=published_run(REFERENCE), decay_at_z=st.booleans())
def test_the_reference_text_equals_the_published_one(run: Run, decay_at_z: bool) -> None:
    """With weight decay at either point, which AdamW's text alone has."""
    more: dict[str, Any] = {"decay_at_z": decay_at_z} if run.rule == "adamw" else {}
    published = {
        "sgd": schedulefree.SGDScheduleFreeReference,
        "adamw": schedulefree.AdamWScheduleFreeReference,
    }[run.rule]
    ours = run.optimizer(REFERENCE[run.rule], run.parameters(), **more)
    theirs = run.optimizer(published, run.parameters(), **more)
    theirs.train()
    for step, gradients in zip(run.steps, run.gradients(), strict=True):
        take_step(ours, gradients, step.lr)
        take_step(theirs, gradients, step.lr)
        assert worst(sequences(ours), sequences(theirs)) <= TOLERANCE[run.dtype]


@settings(max_examples=50, deadline=None)
@given(run=any_run(["adamw"]), momentum=st.floats(0.1, 0.99))
def test_inner_momentum_is_that_of_the_reference(run: Run, momentum: float) -> None:
    makes = (FAST["adamw"], REFERENCE["adamw"])
    fast, reference = (
        run.optimizer(make, run.parameters(), inner_momentum=momentum) for make in makes
    )
    for step, gradients in zip(run.steps, run.gradients(), strict=True):
        take_step(fast, gradients, step.lr)
        take_step(reference, gradients, step.lr)
        assert worst(sequences(fast), sequences(reference)) <= TOLERANCE[run.dtype] / (1 - momentum)


def test_inner_momentum_is_adams_first_moment() -> None:
    """z takes the steps of torch's AdamW along the same gradients: the same m and v, no decay."""
    run = example_run("adamw", num_steps=12)
    averaged, plain = run.parameters()[0], run.parameters()[0]
    shared: dict[str, Any] = {"lr": 0.1, "eps": 1e-8}
    ours = FAST["adamw"](averaged, betas=(0.8, 0.99), inner_momentum=0.7, **shared)
    theirs = torch.optim.AdamW(plain, betas=(0.7, 0.99), weight_decay=0, **shared)
    for gradients in run.gradients():
        take_step(ours, gradients)
        take_step(theirs, gradients)
    for p, q in zip(averaged, plain, strict=True):
        assert distance(ours.state[p]["z"], q.detach()) <= 1e-14
    assert set(ours.state[averaged[0]]) == {"z", "exp_avg_sq", "exp_avg"}
