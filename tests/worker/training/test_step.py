"""One optimizer step of one rank; what two of them agree on is in tests/worker/rank."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_specs import OPTIMIZERS, make_optimizer
from torch import nn
from training_bench import ALONE, bits

from roadless.optim import AdamWScheduleFree
from roadless.worker.data.base import UNCOUNTED, Batch
from roadless.worker.distributed.activation_checkpointing import recompute_activations
from roadless.worker.distributed.precision import set_precision
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.errors import ModelInvalid, NonFiniteLoss
from roadless.worker.training.agreement import Due, Ending, Orders, Signals, agree
from roadless.worker.training.step import StepResult, StepSettings, global_norm, train_step

TARGETS = torch.tensor([0, 1, 0, 1])


def make_batch(scale: float = 1.0) -> Batch:
    return Batch(scale * torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), TARGETS)


def make_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch: Batch | None = None,
    max_grad_norm: float | None = None,
    orders: Orders | None = None,
) -> StepResult:
    return train_step(
        model,
        batch or make_batch(),
        optimizer=optimizer,
        cluster=ALONE,
        settings=StepSettings(task="classification", max_grad_norm=max_grad_norm),
        orders=orders or Orders(),
    )


@pytest.mark.parametrize("max_grad_norm", [None, 0.05, 100.0])
def test_a_step_is_the_step_that_torch_would_take(max_grad_norm: float | None) -> None:
    """Loss before the update, norm before clipping, and clipping as torch clips, bit for bit."""
    model, expected = make_model(), make_model()
    optimizer, other = (AdamWScheduleFree(m.parameters(), lr=0.1) for m in (model, expected))
    for scale in (1.0, 3.0):
        result = step(model, optimizer, batch=make_batch(scale), max_grad_norm=max_grad_norm)
        other.zero_grad()
        loss = nn.functional.cross_entropy(expected(make_batch(scale).inputs), TARGETS)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(expected.parameters(), max_grad_norm or math.inf)
        other.step()
        assert result == StepResult(loss.item(), norm.item(), Orders())
        assert bits(model.state_dict()) == bits(expected.state_dict())
        assert bits(optimizer.state_dict()) == bits(other.state_dict())


def test_norm_and_clipping_leave_out_parameters_without_a_gradient() -> None:
    model = make_model()
    model.unused = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert step(model, optimizer, max_grad_norm=0.1).grad_norm > 0.1
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert norm.item() == pytest.approx(0.1, rel=1e-4)
    assert model.unused.grad is None


class Spoiled(nn.Module):
    """The spoiled loss or gradient of a model that is otherwise sound."""

    def __init__(self, *, value: float = 1.0, slope: float = 1.0) -> None:
        super().__init__()
        self.linear = make_model()
        self.value, self.slope = value, slope

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(inputs) * self.value
        logits.register_hook(lambda gradient: gradient * self.slope)
        return logits


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("part", ["value", "slope"])
def test_what_is_not_finite_is_refused_before_the_update(
    bad: float, part: str, max_grad_norm: float | None
) -> None:
    model = Spoiled()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    step(model, optimizer)
    before = bits(model.state_dict()), bits(optimizer.state_dict())
    setattr(model, part, bad)
    expected = "training loss" if part == "value" else "gradient norm"
    with pytest.raises(NonFiniteLoss, match=f"expected a finite {expected}, saw"):
        step(model, optimizer, max_grad_norm=max_grad_norm)
    assert (bits(model.state_dict()), bits(optimizer.state_dict())) == before


@given(flags=st.lists(st.booleans(), min_size=11, max_size=11), is_lead=st.booleans())
def test_the_lead_hears_its_own_orders_and_others_are_not_heard(
    flags: list[bool], is_lead: bool
) -> None:
    orders = Orders.of_flags(flags)
    cluster = Cluster(rank=0 if is_lead else 1, world_size=1, device=torch.device("cpu"))
    heard = agree(cluster, orders).orders
    assert heard == (orders if is_lead else Orders())
    assert all(type(flag) is bool for flag in heard.flags)


@given(flags=st.lists(st.booleans(), min_size=11, max_size=11))
def test_flags_arrive_in_the_order_in_which_they_were_sent(flags: list[bool]) -> None:
    assert list(Orders.of_flags(flags).flags) == flags


@pytest.mark.parametrize(
    ("orders", "is_end"),
    [
        (Orders(Signals(stop=True)), True),
        (Orders(Signals(pause=True)), True),
        (Orders(Signals(leave=True)), True),
        (Orders(Signals(evaluate=True)), False),
        (Orders(Signals(resize=True)), False),
        (Orders(due=Due(evaluation=True, state=True, judgement=True)), False),
        (Orders(ending=Ending(budget_reached=True)), True),
        (Orders(ending=Ending(good_enough=True)), True),
        (Orders(ending=Ending(no_better=True)), True),
    ],
)
def test_each_order_arrives_as_itself_and_with_the_step(orders: Orders, is_end: bool) -> None:
    assert step(make_model(), torch.optim.SGD([nn.Parameter(torch.ones(1))]), orders=orders).orders
    model = make_model()
    result = step(model, torch.optim.SGD(model.parameters()), orders=orders)
    assert result.orders == orders
    assert result.orders.is_end == is_end


class TwoRanks(Cluster):
    """The other rank's numbers are added to this one's."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        other: Any = torch.zeros_like(values)
        other[0], other[1] = 30.0, 6.0
        return values + other


def test_a_loss_is_weighed_by_how_many_samples_it_stands_for() -> None:
    cluster = TwoRanks(rank=0, world_size=2, device=torch.device("cpu"))
    assert agree(cluster, Orders(), loss_sum=2.0, count=2).loss == (2 + 30) / (2 + 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sum_with_a_loss_that_is_not_finite_is_not_finite(bad: float) -> None:
    cluster = TwoRanks(rank=0, world_size=2, device=torch.device("cpu"))
    assert not math.isfinite(agree(cluster, Orders(), loss_sum=bad, count=1).loss)


# ---- microbatches --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_parts_add_up_to_the_batch_whatever_does_not_count(data: st.DataObject) -> None:
    """Loss, norm and update are those of the mean over all counted targets of the batch."""
    accumulation_steps = data.draw(st.sampled_from([1, 2, 3, 6]))
    counts = data.draw(st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
    targets = torch.tensor([i % 2 if counted else UNCOUNTED for i, counted in enumerate(counts)])
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model, expected = make_model().double(), make_model().double()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, expected))
    result = train_step(
        model,
        Batch(inputs, targets),
        optimizer=optimizer,
        cluster=ALONE,
        settings=StepSettings(task="classification", accumulation_steps=accumulation_steps),
        orders=Orders(),
    )
    loss = nn.functional.cross_entropy(expected(inputs).float(), targets, ignore_index=UNCOUNTED)
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in expected.parameters()])
    other.step()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    for seen, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(seen, wanted, rtol=1e-6, atol=1e-8)


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["amp_bf16", "bf16"])
def test_narrow_steps_stay_near_wide_ones(precision: Any) -> None:
    """And go down: twenty steps, each within a few roundings to bfloat16."""
    model, wide = make_model(), make_model()
    set_precision(model, precision)
    optimizers = [AdamWScheduleFree(m.parameters(), lr=0.05) for m in (model, wide)]
    losses: list[list[float]] = [[], []]
    for _ in range(20):
        for which, (net, optimizer) in enumerate(zip((model, wide), optimizers, strict=True)):
            result = train_step(
                net,
                make_batch(),
                optimizer=optimizer,
                cluster=ALONE,
                settings=StepSettings(
                    task="classification", precision=precision if net is model else "fp32"
                ),
                orders=Orders(),
            )
            losses[which].append(result.loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0][-1] < losses[0][0]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert {p.dtype for p in model.parameters()} == {dtype}
    state = optimizers[0].state_dict()["state"][0]
    assert state["z"].dtype == torch.float32


def test_batch_norm_stays_wide_in_a_narrow_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    set_precision(model, "bf16")
    outputs = model(make_batch().inputs)
    assert outputs.dtype == torch.float32
    assert [p.dtype for p in model.parameters()] == [
        *[torch.bfloat16] * 2,
        *[torch.float32] * 2,
        *[torch.bfloat16] * 2,
    ]
    assert model[1].running_mean.dtype == torch.float32


def test_the_norm_of_narrow_gradients_is_added_up_in_float32() -> None:
    """In bfloat16 the sum of many small squares would stop growing."""
    parameters = [nn.Parameter(torch.zeros(50, dtype=torch.bfloat16)) for _ in range(300)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(parameters)
    assert global_norm(optimizer) == pytest.approx(math.sqrt(50 * 300), rel=1e-6)


# ---- activations ---------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Two blocks with batch norm and dropout, under the name that models give them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.ReLU())
            for _ in range(2)
        )
        self.head = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        outputs: torch.Tensor = self.head(inputs)
        return outputs


def test_recomputed_activations_change_no_bit() -> None:
    """Dropout and batch-norm statistics included, which a second pass must not touch again."""
    model, expected = Blocks(), Blocks()
    recompute_activations(model)
    results = []
    for net in (model, expected):
        optimizer = AdamWScheduleFree(net.parameters(), lr=0.1)
        torch.manual_seed(3)
        results.append([step(net, optimizer, batch=make_batch(1.0 + n)) for n in range(3)])
    assert results[0] == results[1]
    assert bits(model.state_dict()) == bits(expected.state_dict())


def test_activations_are_recomputed_and_not_kept() -> None:
    model, calls = Blocks(), []
    model.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))
    recompute_activations(model)
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert len(calls) == 2


def test_batch_norm_that_is_compiled_cannot_be_recomputed() -> None:
    with pytest.raises(ModelInvalid, match="expected blocks without batch norm"):
        recompute_activations(Blocks(), is_compiled=True)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelInvalid, match=r"expected a model with blocks .* saw Linear"):
        recompute_activations(make_model())


# ---- skipping ------------------------------------------------------------------------------------


class SpoiledNow(nn.Module):
    """Batch norm, and a loss or gradient that is not finite while ``is_bad``."""

    def __init__(self, part: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.part, self.is_bad = part, False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_bad and self.part == "value":
            inputs = inputs * math.nan
        outputs: torch.Tensor = self.layers(inputs)
        if self.is_bad and self.part == "slope":
            outputs.register_hook(lambda gradient: gradient * math.inf)
        return outputs


@pytest.mark.parametrize("part", ["value", "slope"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_no_trace(name: str, part: str) -> None:
    """For every optimizer, batch-norm statistics included: the next step is as if it never was."""
    trails = []
    for has_bad_step in (True, False):
        model = SpoiledNow(part)
        optimizer = make_optimizer(model, name=name)
        seen = []
        for number in range(4):
            model.is_bad = number == 2
            if model.is_bad and not has_bad_step:
                continue
            result = train_step(
                model,
                make_batch(1.0 + number),
                optimizer=optimizer,
                cluster=ALONE,
                settings=StepSettings(task="classification"),
                orders=Orders(Signals(evaluate=True)),
                may_skip=True,
            )
            assert result.is_skipped == model.is_bad
            assert result.orders.signals.evaluate
            if not model.is_bad:
                seen.append((result.loss, result.grad_norm))
        trails.append((seen, dict(model.state_dict())))
    (seen, state), (expected, other) = trails
    # Closure forms go to y and back to x in a skipped step, which may round.
    tolerance = 1e-5 if name.endswith("Closure") else 0
    assert [x for pair in seen for x in pair] == pytest.approx(
        [x for pair in expected for x in pair], rel=tolerance, abs=0
    )
    for key, value in state.items():
        torch.testing.assert_close(value, other[key], rtol=tolerance, atol=tolerance)
