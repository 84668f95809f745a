"""The wrapper around narrow parameters: its base steps in float32, so nothing small is lost."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optim_makes import parameters_of, same_bits
from optim_runs import distance
from optim_travels import one_process
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter

from roadless import optim
from roadless.optim import (
    ScheduleFreeWrapper,
    ScheduleFreeWrapperReference,
    at_average,
    averaged_point,
)
from roadless.optim.schedule_free.wide_base import stepping

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

Make = Callable[..., torch.optim.Optimizer]
BASES: dict[str, Make] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.5),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adamw in lists": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "adamw fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, centered=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
    "nadam": lambda params: torch.optim.NAdam(params, lr=0.01),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "muon": lambda params: torch.optim.Muon(params, lr=0.01),
    "laprop": lambda params: optim.ForeachLaProp(params, lr=0.01),
    "soap": lambda params: optim.SOAP(params, lr=0.01),
}
FORMS = [ScheduleFreeWrapper, ScheduleFreeWrapperReference]
NARROW = [torch.bfloat16, torch.float16]
SHAPES = ((3, 4), (2, 5))


def parameters(dtype: torch.dtype, *, start: torch.dtype = torch.float16) -> list[Parameter]:
    """Those of all dtypes begin at the same numbers, which ``start`` holds."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [Parameter(value.to(start).to(dtype)) for value in drawn]


def gradients(num: int, dtype: torch.dtype, *, first: int = 0) -> Iterator[list[Tensor]]:
    for t in range(first, first + num):
        generator = torch.Generator().manual_seed(1 + t)
        yield [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def step(optimizer: Any, row: list[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters_of(optimizer), row, strict=True):
        parameter.grad = gradient
    optimizer.step()


def averages(optimizer: Any) -> list[Tensor]:
    """In float32, as they are exported."""
    out = {p: torch.empty(p.shape) for p in parameters_of(optimizer)}
    return list(averaged_point(optimizer, out=out).values())


def zs(optimizer: Any) -> list[Tensor]:
    return [optimizer.state[p]["z"] for p in parameters_of(optimizer)]


def trained(form: Any, base: str, dtype: torch.dtype = torch.bfloat16, num: int = 6) -> Any:
    optimizer = form(BASES[base](parameters(dtype)), weight_decay_at_y=0.0, momentum=0.8)
    for row in gradients(num, dtype):
        step(optimizer, row)
    return optimizer


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_on_the_same_gradients_z_and_x_are_those_of_float32(
    form: Any, base: str, dtype: torch.dtype
) -> None:
    narrow = form(BASES[base](parameters(dtype, start=dtype)))
    wide = form(BASES[base](parameters(torch.float32, start=dtype)))
    for row in gradients(10, dtype):
        step(narrow, row)
        step(wide, [g.float() for g in row])
    assert same_bits(zs(narrow), zs(wide))
    for p, x, expected, y in zip(
        parameters_of(narrow), averages(narrow), averages(wide), parameters_of(wide), strict=True
    ):
        assert p.dtype == dtype
        assert distance(x, expected) <= 1e-5
        assert distance(p.detach().float(), y.detach()) <= 2 * torch.finfo(dtype).eps * 3


@pytest.mark.parametrize("base", BASES)
def test_what_a_base_keeps_is_wide_too(base: str) -> None:
    """Adagrad makes its state, in the parameters' dtype, when it is made itself."""
    optimizer = trained(ScheduleFreeWrapper, base)
    for parameter in parameters_of(optimizer):
        state = optimizer.base.state[parameter]
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        assert all(t.dtype == torch.float32 for t in tensors if t.is_floating_point())
        assert optimizer.state[parameter].keys() == {"z", "low", *(f"base.{n}" for n in state)}
    groups = [p for group in optimizer.base.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(groups, parameters_of(optimizer), strict=True))


def loss_at_average(form: Any, make: Make, dtype: torch.dtype) -> float:
    """Of a network that is trained for 400 steps, each far below a unit of bfloat16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 4, generator=generator)
    targets = torch.sin(inputs.sum(1, keepdim=True))
    optimizer = form(make(model.parameters()))
    for _ in range(400):
        optimizer.zero_grad()
        (model(inputs.to(dtype)).float() - targets).square().mean().backward()
        optimizer.step()
    with torch.no_grad(), at_average(optimizer):
        return float((model(inputs.to(dtype)).float() - targets).square().mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=3e-4),
        lambda params: torch.optim.SGD(params, lr=0.005),
        lambda params: optim.ForeachAdamW(params, lr=3e-4),
    ],
    ids=["adamw", "sgd", "ours"],
)
def test_training_in_bfloat16_converges_as_in_float32(form: Any, make: Make) -> None:
    """To within 2 % of the loss."""
    expected = loss_at_average(form, make, torch.float32)
    assert loss_at_average(form, make, torch.bfloat16) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("position", ["train", "eval", "block"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", ["adamw", "adagrad", "soap"])
def test_resuming_is_bitwise_the_same(form: Any, base: str, position: str) -> None:
    through = trained(form, base)
    if position == "eval":
        through.eval()
    if position == "block":
        with at_average(through):
            saved, held = _saved(through)
    else:
        saved, held = _saved(through)
    resumed = form(BASES[base]([Parameter(value) for value in held]))
    resumed.load_state_dict(saved)
    through.train()
    resumed.train()
    assert same_bits(averages(through), averages(resumed))
    for row in gradients(4, torch.bfloat16, first=6):
        step(through, row)
        step(resumed, row)
    assert same_bits(parameters_of(through), parameters_of(resumed))
    assert same_bits(averages(through), averages(resumed))
    assert same_bits(zs(through), zs(resumed))


def _saved(optimizer: Any) -> tuple[Any, list[Tensor]]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True), [
        p.detach().clone() for p in parameters_of(optimizer)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_flattened_checkpoint_resumes_bit_for_bit(form: Any) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    old, new = (nn.Linear(4, 3).bfloat16() for _ in range(2))
    optimizer, other = (form(torch.optim.AdamW(m.parameters(), lr=0.01)) for m in (old, new))
    inputs = torch.randn(6, 8, 4).bfloat16()

    def train(model: nn.Module, optimizer: Any, batches: Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    train(old, optimizer, inputs[:3])
    saved = get_optimizer_state_dict(old, optimizer, options=options)
    assert saved["state.weight.base.exp_avg"].dtype == torch.float32
    assert "state.weight.low" in saved or form is ScheduleFreeWrapperReference
    new.load_state_dict(old.state_dict())
    set_optimizer_state_dict(new, other, saved, options=options)
    train(old, optimizer, inputs[3:])
    train(new, other, inputs[3:])
    assert same_bits(parameters_of(optimizer), parameters_of(other))
    assert same_bits(averages(optimizer), averages(other))


@pytest.mark.parametrize("form", FORMS)
def test_evaluations_leave_no_trace(form: Any) -> None:
    optimizer = trained(form, "adamw")
    y, x, z = ([t.detach().clone() for t in f(optimizer)] for f in (parameters_of, averages, zs))
    for _ in range(2):
        optimizer.eval()
        assert same_bits([p.detach() for p in parameters_of(optimizer)], [t.bfloat16() for t in x])
        optimizer.train()
        with at_average(optimizer):
            assert same_bits(
                [p.detach() for p in parameters_of(optimizer)], [t.bfloat16() for t in x]
            )
    assert same_bits(parameters_of(optimizer), y)
    assert same_bits(averages(optimizer), x)
    assert same_bits(zs(optimizer), z)
    assert all("y" not in optimizer.state[p] for p in parameters_of(optimizer) if form is FORMS[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_change_of_momentum_keeps_x(form: Any) -> None:
    """Seen at a parameter that rests in the step."""
    optimizer = trained(form, "sgd")
    x, y = averages(optimizer)[0], parameters_of(optimizer)[0].detach().clone()
    optimizer.param_groups[0]["sf_momentum"] = 0.5
    step(optimizer, [None, torch.ones(2, 5).bfloat16()])
    assert distance(averages(optimizer)[0], x) <= 1e-5
    assert not torch.equal(parameters_of(optimizer)[0], y)


def test_a_parameter_changed_at_x_has_a_new_y_that_fits() -> None:
    optimizer = trained(ScheduleFreeWrapper, "adamw")
    optimizer.eval()
    with torch.no_grad():
        parameters_of(optimizer)[0].fill_(0.5)
    optimizer.train()
    assert distance(averages(optimizer)[0], torch.full((3, 4), 0.5)) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_base_that_fails_leaves_the_points_in_order(form: Any) -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise KeyError("base")

    optimizer = trained(form, "sgd")
    x, z = averages(optimizer), [t.clone() for t in zs(optimizer)]
    optimizer.base.__class__ = Fails
    with pytest.raises(KeyError, match="base"):
        step(optimizer, next(gradients(1, torch.bfloat16)))
    assert same_bits(zs(optimizer), z)
    assert all(distance(a, b) <= 1e-5 for a, b in zip(averages(optimizer), x, strict=True))
    groups = [p for group in optimizer.base.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(groups, parameters_of(optimizer), strict=True))
    assert list(optimizer.base.state) == parameters_of(optimizer)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_of_narrow_tensors_goes_on_in_float32(form: Any) -> None:
    """As versions before have saved it."""
    optimizer, other = trained(form, "adamw"), trained(form, "adamw", num=1)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state.pop("low", None)
        for name, value in state.items():
            if value.dim():
                state[name] = value.bfloat16()
    other.load_state_dict(saved)
    for row in gradients(3, torch.bfloat16, first=6):
        step(other, row)
    kept = [*zs(other), *(other.base.state[p]["exp_avg"] for p in parameters_of(other))]
    assert all(t.dtype == torch.float32 for t in kept)
    assert all(bool((t != t.bfloat16().float()).any()) for t in kept)


def test_gradients_may_be_dropped_sparse_wide_or_missing() -> None:
    class Drops(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            self.zero_grad()

    table, other = nn.Embedding(5, 2, sparse=True).bfloat16(), Parameter(torch.ones(3).bfloat16())
    rested = Parameter(torch.ones(2).bfloat16())
    other.grad_dtype = None
    optimizer = ScheduleFreeWrapper(Drops([table.weight, other, rested], lr=0.1))
    before = table.weight.detach().clone()
    table(torch.tensor([1, 3])).sum().backward()
    other.grad = torch.full((3,), 1e-3)
    optimizer.step()
    assert table.weight.grad is other.grad is None
    assert torch.equal(table.weight.detach() != before, torch.tensor([[0, 1, 0, 1, 0]] * 2).T == 1)
    assert torch.equal(optimizer.state[other]["z"], torch.full((3,), 1 - 1e-4))
    assert rested not in optimizer.state


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", ["adamw", "soap"])
def test_shards_and_plain_tensors_step_alike(form: Any, base: str) -> None:
    ends = []
    with one_process():
        for is_sharded in (True, False):
            torch.manual_seed(0)
            model = nn.Linear(4, 3).bfloat16()
            if is_sharded:
                mesh = init_device_mesh("cpu", (1,))
                fully_shard(model, mesh=mesh, ignored_params={model.bias})
            optimizer = form(BASES[base](model.parameters()))
            for t in range(4):
                inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(t)).bfloat16()
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
            points = [*(p.detach() for p in model.parameters()), *zs(optimizer)]
            ends.append([getattr(t, "full_tensor", lambda t=t: t)() for t in points])
    assert same_bits(*ends)


def test_states_keep_their_places_while_others_step() -> None:
    first, second, third = parameters(torch.bfloat16)[0], *parameters(torch.bfloat16)
    base = torch.optim.SGD([first, second, third], lr=0.1, momentum=0.5)
    for parameter in (third, first):
        base.state[parameter] = {"momentum_buffer": torch.ones(parameter.shape)}
    point = torch.zeros(first.shape)
    with stepping(base, {first: point}) as others:
        assert base.param_groups[0]["params"] == [others[first], second, third]
        assert list(base.state) == [third, others[first]]
        with torch.no_grad():
            others[first].fill_(2.0)
    assert list(base.state) == [third, first]
    assert bool((point == 2).all())


@pytest.mark.parametrize("form", FORMS)
def test_a_base_with_a_list_of_its_own_is_refused(form: Any) -> None:
    class Listed(torch.optim.SGD):
        def __init__(self, params: list[Parameter]) -> None:
            super().__init__(params, lr=0.1)
            self.own = params

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for parameter in self.own:
                parameter.add_(parameter.grad, alpha=-0.1)

    row = next(gradients(1, torch.bfloat16))
    with pytest.raises(RuntimeError, match=r"what its groups hold, seen .*Listed step"):
        step(form(Listed(parameters(torch.bfloat16))), row)
    step(form(Listed(parameters(torch.float32))), [g.float() for g in row])


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_is_widened_goes_on_as_it_is(form: Any) -> None:
    """What was kept of y beside bfloat16 has no meaning beside float32."""
    optimizer = trained(form, "adamw")
    z = [t.clone() for t in zs(optimizer)]
    for parameter in parameters_of(optimizer):
        parameter.data = parameter.data.float()
        parameter.grad = None
    for row in gradients(3, torch.float32, first=6):
        step(optimizer, row)
    for parameter, before, after in zip(parameters_of(optimizer), z, zs(optimizer), strict=True):
        assert parameter.dtype == after.dtype == torch.float32
        assert 0 < distance(after, before) < 0.2
        assert distance(parameter.detach(), after) < 0.2
