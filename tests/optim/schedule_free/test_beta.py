"""Changing beta in mid-run: y moves to where the new one puts it, x and z stay."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import ALL_FAST, ALL_REFERENCE, Run, distance, example_run, runs, take_step

from roadless.optim import averaged_point

KINDS = [(kind, rule) for kind in (ALL_FAST, ALL_REFERENCE) for rule in kind]


def set_beta(optimizer: Any, beta: float) -> None:
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = beta
        else:
            group["betas"] = (beta, group["betas"][1])


@settings(max_examples=50, deadline=None)
@given(run=runs(rules=ALL_REFERENCE), beta=st.floats(0.2, 0.99), data=st.data())
def test_fast_and_reference_agree_whenever_beta_is_changed(
    run: Run, beta: float, data: st.DataObject
) -> None:
    change_at = data.draw(st.integers(0, len(run.steps) - 1))
    pair = [run.optimizer(kind[run.rule], run.parameters()) for kind in (ALL_FAST, ALL_REFERENCE)]
    for t, row in enumerate(run.gradients()):
        for optimizer in pair:
            if t == change_at:
                set_beta(optimizer, beta)
            take_step(optimizer, row)
        tolerance = 1e-12 / min(beta, run.beta) ** 2
        averages = [averaged_point(optimizer) for optimizer in pair]
        for fast, reference in zip(*(list(x.items()) for x in averages), strict=True):
            assert distance(fast[0].detach(), reference[0].detach()) <= tolerance
            assert distance(fast[1], reference[1]) <= tolerance


@pytest.mark.parametrize(("kind", "rule"), KINDS)
def test_the_average_stays_and_y_moves(kind: dict[str, Any], rule: str) -> None:
    run = example_run(rule)
    optimizer = run.optimizer(kind[rule], run.parameters())
    for row in run.gradients():
        take_step(optimizer, row)
    before, z = averaged_point(optimizer), {p: s["z"].clone() for p, s in optimizer.state.items()}
    set_beta(optimizer, 0.4)
    for p, x in averaged_point(optimizer).items():
        assert torch.equal(x, before[p])
    take_step(optimizer, [None, None])
    for p, x in averaged_point(optimizer).items():
        assert distance(x, before[p]) <= 1e-14
        assert distance(p.detach(), 0.6 * z[p] + 0.4 * x) <= 1e-14
        assert torch.equal(optimizer.state[p]["z"], z[p])


@pytest.mark.parametrize(("kind", "rule"), KINDS)
def test_a_state_edited_to_another_beta_keeps_its_average(kind: dict[str, Any], rule: str) -> None:
    run = example_run(rule)
    first = run.optimizer(kind[rule], run.parameters())
    for row in run.gradients():
        take_step(first, row)
    saved = first.state_dict()
    set_beta(first, 0.4)
    for group, edited in zip(saved["param_groups"], first.param_groups, strict=True):
        group.update({name: edited[name] for name in ("momentum", "betas") if name in edited})
    second = kind[rule]([torch.nn.Parameter(p.detach().clone()) for p in averaged_point(first)])
    second.load_state_dict(saved)
    for optimizer in (first, second):
        take_step(optimizer, run.gradients()[0])
    for a, b in zip(averaged_point(first).items(), averaged_point(second).items(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize(("kind", "rule"), KINDS)
def test_beta_changed_while_the_parameters_hold_x(kind: dict[str, Any], rule: str) -> None:
    run = example_run(rule)
    optimizers = [run.optimizer(kind[rule], run.parameters()) for _ in range(2)]
    for row in run.gradients():
        for optimizer in optimizers:
            take_step(optimizer, row)
    optimizers[0].eval()
    for optimizer in optimizers:
        set_beta(optimizer, 0.4)
    optimizers[0].train()
    for optimizer in optimizers:
        take_step(optimizer, run.gradients()[0])
    for p, q in zip(*(averaged_point(optimizer) for optimizer in optimizers), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("kind", "rule"), KINDS)
def test_a_beta_out_of_range_is_refused_before_anything_moves(
    kind: dict[str, Any], rule: str
) -> None:
    run = example_run(rule)
    optimizer = run.optimizer(kind[rule], run.parameters())
    take_step(optimizer, run.gradients()[0])
    before = [p.detach().clone() for p in averaged_point(optimizer)]
    set_beta(optimizer, 0.0)
    with pytest.raises(ValueError, match=r"expected a number > 0 and < 1, seen 0\.0"):
        take_step(optimizer, run.gradients()[1])
    for p, value in zip(averaged_point(optimizer), before, strict=True):
        assert torch.equal(p, value)
