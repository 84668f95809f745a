"""What holds for every optimizer of the library, those that are added later included."""

import copy
import io
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_makes import (
    CLOSURES,
    NAMES,
    PLUS,
    WRAPPERS,
    make,
    parameters,
    parameters_of,
    randoms,
    same_bits,
    step,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from roadless.optim import at_average, averaged_point
from roadless.optim.backends import choose

pytestmark = pytest.mark.parametrize("name", NAMES)

POSITIONS = ["train", "eval", "block"]


def values(optimizer: Any) -> list[Tensor]:
    return [p.detach().clone() for p in parameters_of(optimizer)]


def assert_rested(seen: list[Tensor], before: list[Tensor], name: str) -> None:
    """Bit for bit; the references multiply out (1 - c) x + c z, which rounds."""
    if name.endswith("Reference"):
        torch.testing.assert_close(seen, before, rtol=1e-6, atol=0)
    else:
        assert same_bits(seen, before)


def trained(name: str, *, num_steps: int = 8, **settings: Any) -> Any:
    params = parameters()
    optimizer = make(name, params, lr=0.05, **settings)
    for gradients in randoms(num_steps, params):
        step(optimizer, gradients)
    return optimizer


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_step_moves_and_reads_gradients_only(name: str) -> None:
    optimizer = trained(name)
    before = values(optimizer)
    gradients = randoms(1, parameters_of(optimizer), seed=5)[0]
    step(optimizer, gradients)
    assert not any(torch.equal(a, b) for a, b in zip(before, values(optimizer), strict=True))
    assert same_bits([p.grad for p in parameters_of(optimizer)], gradients)


def test_learning_rate_zero_leaves_the_parameters(name: str) -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = make(name, params, lr=0.0, weight_decay=0.1)
    for gradients in randoms(3, params):
        step(optimizer, gradients)
    assert_rested(values(optimizer), before, name)
    assert_rested(list(averaged_point(optimizer).values()), before, name)


def test_frozen_and_unused_parameters_rest(name: str) -> None:
    params = parameters()
    frozen, unused = Parameter(torch.ones(3), requires_grad=False), Parameter(torch.ones(2, 2))
    optimizer = make(name, [*params, frozen, unused], lr=0.05, weight_decay=0.1)
    for gradients in randoms(3, params):
        step(optimizer, [*gradients, None, None])
    optimizer.eval()
    optimizer.train()
    assert same_bits([frozen, unused], [torch.ones(3), torch.ones(2, 2)])
    x = averaged_point(optimizer)
    assert same_bits([x[frozen], x[unused]], [torch.ones(3), torch.ones(2, 2)])


def test_a_parameter_frozen_late_keeps_its_average(name: str) -> None:
    """The published closure forms pull it to where it was in the first step.

    Ours bring it to y and back once, with the gradient of before still on it: a rounding of x.
    """
    optimizer = trained(name)
    first = parameters_of(optimizer)[0].requires_grad_(False)
    x, held = averaged_point(optimizer)[first], first.detach().clone()
    for gradients in randoms(3, parameters_of(optimizer), seed=3):
        step(optimizer, [None, *gradients[1:]])
    one_rounding = {"rtol": 2 * torch.finfo(held.dtype).eps, "atol": 1e-9}
    torch.testing.assert_close(first.detach(), held, **one_rounding)
    torch.testing.assert_close(averaged_point(optimizer)[first], x, **one_rounding)


def test_a_late_parameter_starts_from_where_it_is(name: str) -> None:
    params = parameters()
    late = Parameter(torch.zeros(2, 3))
    optimizer = make(name, [*params, late], lr=0.05)
    for gradients in randoms(3, params):
        step(optimizer, [*gradients, None])
    late.data.fill_(50.0)
    # RAdam rests for a tensor's first four gradients.
    for gradients in randoms(8 if name.startswith("RAdam") else 4, [*params, late], seed=1):
        step(optimizer, gradients)
    assert bool(((late - 50).abs() < 10).all())
    assert not torch.equal(late, torch.full_like(late, 50.0))
    assert bool(((averaged_point(optimizer)[late] - 50).abs() < 10).all())


def test_empty_groups_and_groups_of_their_own_settings(name: str) -> None:
    params = parameters()
    fast, still = params[-1], params[0]
    groups = [{"params": []}, {"params": [fast]}, {"params": [still], "lr": 0.0}]
    optimizer = make(name, groups, lr=0.05)
    before = values(optimizer)
    for gradients in randoms(8, [fast, still]):
        step(optimizer, gradients)
    optimizer.eval()
    optimizer.train()
    assert not torch.equal(fast, before[0])
    assert_rested([still], [before[1]], name)


def test_a_group_added_late_trains(name: str) -> None:
    optimizer = trained(name)
    late = Parameter(torch.ones(3, 2))
    optimizer.add_param_group({"params": [late]})
    for gradients in randoms(8, parameters_of(optimizer), seed=2):
        step(optimizer, gradients)
    assert not torch.equal(late, torch.ones(3, 2))
    with at_average(optimizer):
        assert torch.equal(late, averaged_point(optimizer)[late])


def test_the_block_shows_what_the_value_says_and_restores(name: str) -> None:
    optimizer = trained(name)
    before, x = values(optimizer), list(averaged_point(optimizer).values())
    with at_average(optimizer):
        assert same_bits(values(optimizer), x)
        with pytest.raises(RuntimeError, match="at_average"):
            step(optimizer, randoms(1, parameters_of(optimizer))[0])
    assert same_bits(values(optimizer), before)


@pytest.mark.parametrize("position", POSITIONS)
def test_going_on_from_a_saved_state_is_bitwise_the_same(name: str, position: str) -> None:
    through = trained(name)
    if position == "eval":
        through.eval()
    if position == "block":
        with at_average(through):
            saved, held = through_a_file(through.state_dict()), values(through)
    else:
        saved, held = through_a_file(through.state_dict()), values(through)
    resumed = make(name, [Parameter(value) for value in held])
    resumed.load_state_dict(saved)
    if name not in CLOSURES:
        through.train()
        resumed.train()
    for gradients in randoms(3, parameters_of(through), seed=9):
        step(through, gradients)
        step(resumed, gradients)
    assert same_bits(values(through), values(resumed))
    x, y = averaged_point(through), averaged_point(resumed)
    assert same_bits(list(x.values()), list(y.values()))


def test_a_loaded_state_shares_nothing_with_its_source(name: str) -> None:
    first = trained(name)
    twin, second = copy.deepcopy(first), make(name, parameters())
    second.load_state_dict(first.state_dict())
    gradients = randoms(2, parameters_of(first), seed=6)
    step(second, gradients[0])
    for each in (first, twin):
        step(each, gradients[1])
    assert same_bits(values(first), values(twin))


def test_eval_and_train_lead_back_bit_for_bit(name: str) -> None:
    optimizer = trained(name)
    before, x = values(optimizer), list(averaged_point(optimizer).values())
    for _ in range(2):
        optimizer.eval()
        assert same_bits(values(optimizer), x)
    for _ in range(2):
        optimizer.train()
        assert same_bits(values(optimizer), before)


def test_copies_and_pickles_go_on_the_same_way(name: str) -> None:
    optimizer = trained(name)
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    gradients = randoms(2, parameters_of(optimizer), seed=4)
    for each in (optimizer, *twins):
        for row in gradients:
            step(each, row)
    assert all(same_bits(values(optimizer), values(twin)) for twin in twins)


def test_schedulers_of_torch_drive_the_learning_rate(name: str) -> None:
    """lr goes to 0 and stays there: z rests, and what the schedule says is what is used."""
    params = parameters()
    optimizer = make(name, params, lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 3 else 0.0)
    gradients = randoms(6, params)
    for row in gradients[:3]:
        step(optimizer, row)
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0]
    z = [state["z"].clone() for state in optimizer.state.values() if "z" in state]
    held = values(optimizer)
    for row in gradients[3:]:
        step(optimizer, row)
        scheduler.step()
    after = [state["z"] for state in optimizer.state.values() if "z" in state]
    assert same_bits(z, after) if z else same_bits(held, values(optimizer))


@pytest.mark.parametrize("num_parts", [2, 4])
def test_gradient_clipping_and_accumulation_are_seen(name: str, num_parts: int) -> None:
    """Parts of a batch, clipped together, are one batch: nothing is consumed between them."""
    ends = [values(clipped(name, parts)) for parts in (1, num_parts)]
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def clipped(name: str, num_parts: int) -> Any:
    params = parameters()
    optimizer = make(name, params, lr=0.05)
    rows = iter(randoms(8, params))

    def closure() -> float:
        optimizer.zero_grad()
        row = next(rows)
        for _ in range(num_parts):
            losses = [(p * g).sum() / num_parts for p, g in zip(params, row, strict=True)]
            torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        return 1.0

    for _ in range(8):
        optimizer.step(closure)
    return optimizer


def test_a_gradient_scaler_skips_overflow_and_unscales(name: str) -> None:
    """A step by closure cannot be scaled; torch's scaler refuses it, and so does the optimizer."""
    if name in CLOSURES or name == PLUS:
        with pytest.raises(ValueError, match="expected a closure"):
            make(name, parameters()).step()
        return
    params = parameters()
    optimizer, plain = make(name, params, lr=0.05), make(name, parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    for i, row in enumerate(randoms(4, params)):
        before = values(optimizer)
        scaled = [g * scaler.get_scale() * (float("inf") if i == 1 else 1.0) for g in row]
        # What scale() notes when a loss is scaled.
        scaler.scale(torch.ones(1))
        for p, g in zip(params, scaled, strict=True):
            p.grad = g
        scaler.step(optimizer)
        scaler.update()
        if i == 1:
            assert same_bits(before, values(optimizer))
        else:
            step(plain, row)
    assert same_bits(values(optimizer), values(plain))


def test_a_tensor_learning_rate_is_read_as_a_number(name: str) -> None:
    ends = []
    for lr in (0.05, torch.tensor(0.05, dtype=torch.float64)):
        params = parameters()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = make(name, params, lr=lr, **({"foreach": False} if "Wrap" in name else {}))
            for row in randoms(3, params):
                step(optimizer, row)
        ends.append(values(optimizer))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_it_is_among_the_choices(name: str) -> None:
    """In docs/choosing.md, which says when to take it."""
    page = Path(__file__).parents[2] / "docs" / "choosing.md"
    assert f"`{name}`" in page.read_text()


def test_hooks_run_once_a_step_whatever_was_made_before(name: str) -> None:
    """torch (2.13) wraps the ``step`` of each class when it is made: one inside another runs twice.

    Those that a form derives from are made first, so that all of them are wrapped.
    """
    for kind in type(make(name, parameters())).__mro__:
        if kind.__name__ in NAMES and kind.__name__ != name:
            make(kind.__name__, parameters())
    optimizer, seen = make(name, parameters()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    everywhere = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("before all")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after all")),
    ]
    try:
        for row in randoms(2, parameters_of(optimizer)):
            step(optimizer, row)
    finally:
        for handle in everywhere:
            handle.remove()
    ours = [one for one in seen if not one.endswith("all")]
    assert ours == ["before", "after"] * 2
    # A wrapper's base is an optimizer, too.
    assert seen.count("before all") == seen.count("after all") == (4 if name in WRAPPERS else 2)


def test_a_scheduler_counts_every_step_once(name: str) -> None:
    """It warns where it is stepped before the optimizer, which it tells by counting calls."""
    optimizer = make(name, parameters(), lr=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
        for row in randoms(3, parameters_of(optimizer)):
            step(optimizer, row)
            scheduler.step()
    assert scheduler.last_epoch == 3


def test_momentum_may_be_cycled_by_torchs_schedulers(name: str) -> None:
    """OneCycleLR asks for ``betas`` or ``momentum`` in the defaults."""
    optimizer = make(name, parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=8)
    held = []
    for row in randoms(6, parameters_of(optimizer)):
        step(optimizer, row)
        scheduler.step()
        group = optimizer.param_groups[0]
        held.append(group["betas"][0] if "betas" in group else group["momentum"])
    assert min(held) == pytest.approx(0.85, abs=0.01)
    assert all(bool(p.isfinite().all()) for p in parameters_of(optimizer))


def test_a_sparse_gradient_is_refused_before_anything_moves(name: str) -> None:
    params = parameters()
    optimizer = make(name, [{"params": params[:-1]}, {"params": params[-1:]}], lr=0.05)
    before, row = values(optimizer), randoms(1, params)[0]
    with pytest.raises(ValueError, match="expected dense gradients"):
        step(optimizer, [*row[:-1], row[-1].to_sparse()])
    if name not in WRAPPERS:
        # A wrapper's base may have stepped the other group.
        assert_rested(values(optimizer), before, name)
    for row in randoms(8, params):
        step(optimizer, row)
    assert not same_bits(values(optimizer), before)


@pytest.mark.parametrize("least", [0, 2**60])
def test_without_eps_what_has_had_no_gradient_rests(
    name: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 / 0 would be NaN, as it is in torch. A gradient whose square underflows does no harm."""
    if "eps" not in make(name, parameters()).defaults or name in WRAPPERS:
        pytest.skip("no eps of its own")
    monkeypatch.setattr(choose, "MIN_ELEMENTS", least)
    matrix, vector = Parameter(torch.ones(4, 3)), Parameter(torch.ones(5))
    optimizer = make(name, [matrix, vector], lr=0.05, eps=0.0, weight_decay=0.0)
    for row in randoms(6, [matrix, vector]):
        row[0][:, 1], row[1][2] = 0.0, 0.0
        row[1][3] *= 1e-30
        step(optimizer, row)
    for p in (*parameters_of(optimizer), *averaged_point(optimizer).values()):
        assert bool(p.isfinite().all())
    torch.testing.assert_close(matrix[:, 1], torch.ones(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(vector[2:4], torch.ones(2), rtol=0, atol=1e-6)
    assert not torch.equal(vector[:2], torch.ones(2))


@pytest.mark.parametrize("lr", [math.nan, math.inf, -0.1, "0.05", torch.tensor(math.nan)], ids=str)
def test_a_learning_rate_that_is_none_is_refused_before_anything_moves(name: str, lr: Any) -> None:
    """Set between steps, by a scheduler or by hand, in the second of two groups."""
    params = parameters()
    optimizer = make(name, [{"params": params[:1]}, {"params": params[1:]}], lr=0.05)
    for row in randoms(8, params):
        step(optimizer, row)
    before, counted = values(optimizer), copy.deepcopy(optimizer.param_groups[0])
    optimizer.param_groups[1]["lr"] = lr
    with pytest.raises(ValueError, match=r"^lr: expected .*, seen "):
        step(optimizer, row)
    optimizer.param_groups[1]["lr"] = 0.05
    for seen, held in zip(values(optimizer), before, strict=True):
        torch.testing.assert_close(seen, held, rtol=1e-6, atol=1e-6)
    counters = {"k", "sf_k"} & counted.keys()
    assert all(optimizer.param_groups[0][k] == counted[k] for k in counters)
    step(optimizer, row)
    assert not same_bits(values(optimizer), before)
