"""The SOAP optimizers: laws of the method, agreement with Adam, state, dtypes, names."""

import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import distance
from torch import Tensor
from torch.nn import Parameter

from roadless import optim

Shape = tuple[int, ...]
Make = Callable[..., Any]

NAMES = (
    "SOAP",
    "ForeachSOAP",
    "PaLMForeachSOAP",
    "SFPaLMForeachSOAP",
    "PrecondScheduleForeachSOAP",
    "PrecondSchedulePaLMForeachSOAP",
    "PrecondScheduleSFPaLMForeachSOAP",
)
makes = st.sampled_from(NAMES).map(lambda name: getattr(optim, name))
seeds = st.integers(0, 10**6)


def schedule_free_soap(*args: Any, **arguments: Any) -> Any:
    return optim.SOAP(*args, **arguments, schedule_free=True)


every_make = pytest.mark.parametrize(
    "make",
    [*(getattr(optim, name) for name in NAMES), schedule_free_soap],
    ids=lambda m: m.__name__,
)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def gradients(num_steps: int, *shape: int, seed: int = 0) -> Iterator[Tensor]:
    return (normal(*shape, seed=seed * 1000 + step + 1) for step in range(num_steps))


def step(optimizer: Any, parameter: Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient
    optimizer.step()


# The method


@settings(deadline=None, max_examples=40)
@given(make=makes, n=st.integers(2, 5), seed=seeds)
def test_a_change_of_basis_changes_nothing_else(make: Make, n: int, seed: int) -> None:
    """SOAP on U W V with gradients U G V is U (SOAP on W) V; Adam's steps would differ."""
    U, V, W = orthogonal(n, seed), orthogonal(n, seed + 1), normal(n, n, seed=seed + 2)
    plain, turned = Parameter(W.clone()), Parameter(U @ W @ V)
    first, second = make([plain], lr=0.05), make([turned], lr=0.05)
    for G in gradients(6, n, n, seed=seed):
        step(first, plain, G)
        step(second, turned, U @ G @ V)
    moved = float((plain - W).detach().norm())
    assert moved > 0
    assert distance(turned.detach(), U @ plain.detach() @ V) < 1e-6


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 5), num_steps=st.integers(1, 8), seed=seeds)
def test_with_a_constant_basis_soap_is_adam_inside_it(n: int, num_steps: int, seed: int) -> None:
    """Gradients U diag(d) V of one sign and order: the bases are U and V, and Adam sees d."""
    U, V = orthogonal(n, seed), orthogonal(n, seed + 1)
    rank = torch.arange(n, 0, -1, dtype=torch.float64) ** 2
    W, d = Parameter(torch.zeros(n, n, dtype=torch.float64)), torch.zeros(n, dtype=torch.float64)
    optimizer = optim.SOAP([W], lr=0.1, eps=1e-3, weight_decay=0, precondition_frequency=1)
    inside = Parameter(d)
    adam = torch.optim.Adam([inside], lr=0.1, betas=(0.9, 0.95), eps=0)
    for t, noise in enumerate(gradients(num_steps + 1, n, seed=seed)):
        diagonal = rank * (1 + 0.1 * noise.tanh())
        step(optimizer, W, U @ diagonal.diag() @ V.T)
        if t:
            step(adam, inside, diagonal)
    assert distance(W.detach(), U @ inside.detach().diag() @ V.T) < 1e-9


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_vectors_get_adam(weight_decay: float) -> None:
    """From the second gradient on: the first one starts bases where there are any."""
    ours, theirs = (Parameter(normal(5, seed=1)) for _ in range(2))
    soap = optim.SOAP([ours], 0.1, eps=0, betas=(0.8, 0.9), weight_decay=weight_decay)
    adam = torch.optim.AdamW([theirs], 0.1, (0.8, 0.9), 0, weight_decay)
    for t, g in enumerate(gradients(10, 5)):
        step(soap, ours, g)
        if t:
            step(adam, theirs, g)
    assert distance(ours.detach(), theirs.detach()) < 1e-12


@pytest.mark.parametrize("shape", [(5,), (1, 5), (), (40, 30)])
def test_what_is_not_rotated_gets_schedule_free_adamw(shape: Shape) -> None:
    given_ = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0, "weight_decay": 0.1, "warmup_steps": 3}
    ours, theirs = (Parameter(normal(*shape, seed=1)) for _ in range(2))
    soap = optim.SOAP([ours], **given_, schedule_free=True, max_precond_dim=20, r=0.5)
    adamw = optim.AdamWScheduleFree([theirs], **given_, r=0.5)
    for t, g in enumerate(gradients(10, *shape)):
        step(soap, ours, g)
        if t:
            step(adamw, theirs, g)
    assert distance(ours.detach(), theirs.detach()) < 1e-12
    expected = optim.averaged_point(adamw)[theirs]
    assert distance(optim.averaged_point(soap)[ours], expected) < 1e-12


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from([name for name in NAMES if "SF" in name]),
    r=st.floats(0, 2),
    power=st.floats(0, 3),
    warmup=st.integers(0, 5),
    seed=seeds,
)
def test_x_is_the_weighted_mean_of_z(
    name: str, r: float, power: float, warmup: int, seed: int
) -> None:
    W = Parameter(normal(3, 4, seed=seed))
    settings_ = {"lr": 0.05, "r": r, "weight_lr_power": power, "warmup_steps": warmup}
    optimizer = getattr(optim, name)([W], **settings_)
    zs, weights = [], []
    for t, G in enumerate(gradients(8, 3, 4, seed=seed)):
        step(optimizer, W, G)
        if t:
            zs.append(optimizer.state[W]["z"].clone())
            weights.append(t**r * (0.05 * min(1, t / max(warmup, 1))) ** power)
    mean = sum(w * z for w, z in zip(weights, zs, strict=True)) / sum(weights)
    assert distance(optim.averaged_point(optimizer)[W], mean) < 1e-12


def loss_after(make: Make, lr: float, num_steps: int = 100) -> float:
    """Of a quadratic with condition number 10^4 whose axes are slanted in rows and columns."""
    n = 8
    scale = torch.logspace(0, -2, n, dtype=torch.float64)
    A, B = orthogonal(n, 1) * scale.sqrt(), orthogonal(n, 2) * scale.sqrt()
    W = Parameter(normal(n, n, seed=3))
    optimizer = make([W], lr=lr, weight_decay=0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (A.T @ W @ B).square().sum() / 2
        loss.backward()
        optimizer.step()
    return float((A.T @ W.detach() @ B).square().sum() / 2)


def test_soap_descends_a_slanted_valley_faster_than_adamw() -> None:
    rates = (0.003, 0.01, 0.03, 0.1)
    adamw = min(loss_after(torch.optim.AdamW, lr) for lr in rates)
    for make in (optim.SOAP, optim.PaLMForeachSOAP, optim.PrecondSchedulePaLMForeachSOAP):
        assert min(loss_after(make, lr) for lr in rates) < adamw / 2


# Where HeavyBall is wrong


@every_make
def test_weight_decay_shrinks_the_weights(make: Make) -> None:
    W = Parameter(torch.ones(2, 3))
    optimizer = make([W], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        step(optimizer, W, torch.zeros(2, 3))
    x = optim.averaged_point(optimizer)[W]
    assert (x < 1).all()
    if make is optim.ForeachSOAP:
        torch.testing.assert_close(x, torch.full((2, 3), 0.95**2))


@every_make
def test_no_warmup_is_no_division(make: Make) -> None:
    W = Parameter(torch.ones(2, 3))
    optimizer = make([W], lr=0.1, warmup_steps=0, weight_decay=0)
    first, second = (G.float() for G in gradients(2, 2, 3))
    step(optimizer, W, first)
    assert torch.equal(W, torch.ones(2, 3))
    step(optimizer, W, second)
    assert optimizer.param_groups[0]["scheduled_lr"] == 0.1
    assert (W != 1).all()


def test_warmup_counts_steps_that_move() -> None:
    W = Parameter(torch.ones(2, 3))
    optimizer = optim.SOAP([W], lr=0.1, warmup_steps=2)
    seen = []
    for _ in range(4):
        step(optimizer, W, torch.ones(2, 3))
        seen.append(optimizer.param_groups[0]["scheduled_lr"])
    assert seen == [0.0, 0.05, 0.1, 0.1]


@pytest.mark.parametrize("name", ["SFPaLMForeachSOAP", "PrecondScheduleSFPaLMForeachSOAP"])
def test_the_second_moment_is_that_of_the_rotated_gradient(name: str) -> None:
    W, U = Parameter(torch.zeros(3, 3, dtype=torch.float64)), orthogonal(3, 1)
    d = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    optimizer = getattr(optim, name)([W], gradient_clip_val=0)
    for _ in range(2):
        step(optimizer, W, U @ d.diag() @ U.T)
    torch.testing.assert_close(optimizer.state[W]["exp_avg_sq"], d.square().diag())


def test_factors_are_averages_of_all_gradients() -> None:
    W = Parameter(torch.zeros(3, 3, dtype=torch.float64))
    optimizer = optim.PaLMForeachSOAP([W], shampoo_beta=0.9)
    drawn = list(gradients(10, 3, 3))
    for G in drawn:
        step(optimizer, W, G)
    shares = [0.9**age for age in range(9, -1, -1)]
    mean = sum(s * G @ G.T for s, G in zip(shares, drawn, strict=True)) / sum(shares)
    torch.testing.assert_close(optimizer.state[W]["factor_0"], mean)


def test_without_a_beta_of_their_own_factors_take_that_of_the_second_moment() -> None:
    W = Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = optim.SOAP([W], palm_beta2=True, shampoo_beta=None)
    first, second = gradients(2, 2, 2)
    step(optimizer, W, first)
    step(optimizer, W, second)
    beta2 = 1 - 2**-0.8
    expected = (beta2 * first @ first.T + second @ second.T) / (beta2 + 1)
    torch.testing.assert_close(optimizer.state[W]["factor_0"], expected)


@pytest.mark.parametrize("make", [schedule_free_soap, optim.PrecondScheduleSFPaLMForeachSOAP])
def test_z_of_a_bfloat16_parameter_moves_as_that_of_a_wide_one(make: Make) -> None:
    start = torch.ones(3, 3).bfloat16()
    narrow, wide = Parameter(start), Parameter(start.float())
    pairs = [(make([p], lr=1e-4, weight_decay=0), p) for p in (narrow, wide)]
    for G in gradients(5, 3, 3):
        for optimizer, parameter in pairs:
            step(optimizer, parameter, G.bfloat16().to(parameter.dtype))
    zs = [optimizer.state[parameter]["z"] for optimizer, parameter in pairs]
    assert zs[0].dtype == torch.float32
    torch.testing.assert_close(zs[0], zs[1], rtol=0, atol=1e-7)


# Options


def test_scheduled_updates_turn_the_basis_when_they_are_due() -> None:
    """1/f is 1, 0.45, 0.34, 0.29, 0.26, 0.24, 0.23 here; their sum passes 0.75, 1.75 and 2.75."""
    W = Parameter(torch.zeros(3, 3))
    optimizer = optim.SOAP([W], precond_schedule=True, precond_scheduler=(4, 1))
    turns, Q = [], torch.empty(0)
    for G in gradients(9, 3, 3):
        step(optimizer, W, G.float())
        turns.append(not torch.equal(optimizer.state[W]["basis_0"], Q))
        Q = optimizer.state[W]["basis_0"].clone()
    assert [t for t, is_turn in enumerate(turns) if is_turn] == [0, 1, 3, 7]


def test_lots_of_the_schedule_depend_on_the_seed() -> None:
    def bases(seed: int) -> list[float]:
        W = Parameter(torch.zeros(3, 3))
        arguments = {"precond_timing": "chance", "precond_seed": seed}
        optimizer = optim.SOAP([W], precond_schedule=True, precond_scheduler=(1, 1), **arguments)
        for G in gradients(12, 3, 3):
            step(optimizer, W, G.float())
        return optimizer.state[W]["basis_0"].tolist()

    assert bases(1) == bases(1)
    assert len({str(bases(seed)) for seed in range(6)}) > 1


def test_normalised_directions_have_the_root_mean_square_one() -> None:
    W = Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = optim.ForeachSOAP([W], lr=0.1, normalize_grads=True, weight_decay=0)
    for G in gradients(6, 3, 4):
        before = W.detach().clone()
        step(optimizer, W, G)
    assert (W.detach() - before).square().mean().sqrt().item() == pytest.approx(0.1)


def test_uncorrected_moments_start_small() -> None:
    W = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.ForeachSOAP([W], lr=0.1, correct_bias=False, weight_decay=0)
    for _ in range(2):
        step(optimizer, W, torch.ones(1, dtype=torch.float64))
    assert W.item() == pytest.approx(-0.1 * 0.1 / 0.05**0.5)


def test_clipping_bounds_the_gradient_by_the_parameter() -> None:
    W = Parameter(torch.full((2, 2), 2.0))
    optimizer = optim.SFPaLMForeachSOAP([W], gradient_clip_val=0.1)
    step(optimizer, W, torch.tensor([[300.0, 0.0], [0.0, 400.0]]))
    torch.testing.assert_close(
        optimizer.state[W]["factor_0"], torch.diag(torch.tensor([0.0576, 0.1024]))
    )


def test_clipping_lets_zeros_grow() -> None:
    """A tensor of norm 0 is treated as of norm 0.001."""
    W = Parameter(torch.zeros(2, 2))
    optimizer = optim.SFPaLMForeachSOAP([W], gradient_clip_val=0.1)
    step(optimizer, W, torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    expected = torch.tensor([6e-5, 8e-5]).square().diag()
    torch.testing.assert_close(optimizer.state[W]["factor_0"], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1.0)},
        {"betas": 0.9},
        {"shampoo_beta": 1.0},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"precondition_frequency": 0},
        {"max_precond_dim": 1.5},
        {"precond_scheduler": (1 / 3, 0)},
        {"precond_timing": "often"},
        {"data_format": "rows"},
        {"gradient_clip_val": float("nan")},
        {"beta2_scale": -1},
    ],
    ids=str,
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        optim.SOAP([Parameter(torch.zeros(2, 2))], **wrong)


def test_without_interpolation_there_is_no_schedule_free() -> None:
    with pytest.raises(ValueError, match=r"betas\[0\]"):
        optim.SOAP([Parameter(torch.zeros(2, 2))], betas=(0.0, 0.9), schedule_free=True)


# State


def make_state(make: Make, dtype: torch.dtype, num_steps: int) -> tuple[list[Parameter], Any]:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 3), (5,), (2, 2, 3))]
    optimizer = make(params, lr=0.01)
    continue_(params, optimizer, range(num_steps))
    return params, optimizer


def continue_(params: list[Parameter], optimizer: Any, steps: range) -> None:
    for t in steps:
        for i, parameter in enumerate(params):
            parameter.grad = normal(*parameter.shape, seed=100 * t + i).to(parameter.dtype)
        optimizer.step()


@every_make
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_resumed_run_is_the_same_run_bit_for_bit(make: Make, dtype: torch.dtype) -> None:
    params, optimizer = make_state(make, dtype, 5)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), params), file)
    file.seek(0)
    state, values = torch.load(file)
    others, resumed = make_state(make, dtype, 0)
    with torch.no_grad():
        for other, value in zip(others, values, strict=True):
            other.copy_(value)
    resumed.load_state_dict(state)
    continue_(params, optimizer, range(5, 12))
    continue_(others, resumed, range(5, 12))
    for a, b in zip(params, others, strict=True):
        assert torch.equal(a, b)
        mine, theirs = optimizer.state[a], resumed.state[b]
        assert {name: t.dtype for name, t in mine.items()} == {
            n: t.dtype for n, t in theirs.items()
        }
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert optimizer.param_groups[0]["precond_due"] == resumed.param_groups[0]["precond_due"]


@every_make
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_state_is_as_wide_as_the_arithmetic(make: Make, dtype: torch.dtype) -> None:
    params, optimizer = make_state(make, dtype, 3)
    wide = torch.promote_types(dtype, torch.float32)
    kept = {n: t.dtype for n, t in optimizer.state[params[0]].items() if t.is_floating_point()}
    assert set(kept.values()) == {wide}
    assert {"exp_avg_sq", "factor_0", "basis_0", "factor_1", "basis_1"} <= set(kept)
    assert not any("basis" in name for name in optimizer.state[params[1]])


@every_make
def test_gradients_are_only_read(make: Make) -> None:
    params, optimizer = make_state(make, torch.float32, 3)
    before = [parameter.grad.clone() for parameter in params]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@every_make
def test_frozen_and_empty_parameters_rest_and_late_ones_start_fresh(make: Make) -> None:
    """A late parameter moves as one that was there alone from the start, but for the pace."""
    frozen, empty = Parameter(torch.ones(2, 2)), Parameter(torch.ones(0, 3))
    early, late = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    optimizer = make([frozen, empty, early, late], lr=0.1, weight_decay=0)
    for t in range(60):
        early.grad, empty.grad = 1e-3 * torch.eye(2), torch.ones(0, 3)
        late.grad = 1e-3 * torch.eye(2) if t >= 50 else None
        optimizer.step()
        if t == 50:
            assert torch.equal(late, torch.ones(2, 2))
    assert torch.equal(frozen, torch.ones(2, 2))
    assert not optimizer.state.get(frozen)
    z = optimizer.state[late].get("z", late.detach())
    assert int(optimizer.state[late]["step"]) == 9
    torch.testing.assert_close(z, 1 - 0.1 * 9 * torch.eye(2), rtol=0, atol=1e-5)


@every_make
def test_the_averaged_point_leaves_the_parameters_alone(make: Make) -> None:
    params, optimizer = make_state(make, torch.float32, 5)
    held = [parameter.detach().clone() for parameter in params]
    x = optim.averaged_point(optimizer)
    with optim.at_average(optimizer):
        assert all(torch.equal(parameter, x[parameter]) for parameter in params)
        with pytest.raises(RuntimeError, match="averaged point"):
            optimizer.step()
    assert all(torch.equal(parameter, value) for parameter, value in zip(params, held, strict=True))


def test_groups_keep_their_own_time_and_settings() -> None:
    first, second = Parameter(torch.zeros(2, 2)), Parameter(torch.zeros(2, 2))
    optimizer = optim.SOAP([{"params": [first], "lr": 0.1}], weight_decay=0, warmup_steps=0)
    step(optimizer, first, torch.eye(2))
    optimizer.add_param_group({"params": [second], "lr": 0.2, "precondition_frequency": 5})
    for _ in range(2):
        first.grad = second.grad = torch.eye(2)
        optimizer.step()
    assert [group["k"] for group in optimizer.param_groups] == [2, 1]
    torch.testing.assert_close(first.detach(), -0.2 * torch.eye(2))
    torch.testing.assert_close(second.detach(), -0.2 * torch.eye(2))


def test_steps_take_closures_schedulers_and_tensor_rates() -> None:
    W = Parameter(torch.ones(2, 2))
    optimizer = optim.SOAP([W], torch.tensor(0.1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = W.square().sum()
        loss.backward()
        return float(loss.detach())

    losses = []
    for _ in range(4):
        losses.append(optimizer.step(closure))
        scheduler.step()
    assert losses[0] == losses[1] > losses[2] > losses[3]


# Names

_SHARED = {
    "lr": 3e-3,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "precondition_frequency": 2,
    "max_precond_dim": 2048,
    "merge_dims": True,
    "precondition_1d": False,
    "normalize_grads": False,
    "data_format": "channels_first",
    "correct_bias": True,
    "warmup_steps": 1,
}
_PALM = {"beta": 0.9, "betas": (None, None), "beta2_scale": 0.8}
_SCHEDULE = {"precond_scheduler": (1 / 3, 9)}
_AVERAGED = {"r": 0.0, "weight_lr_power": 2.0, "gradient_clip_val": 0.1}
_OWN = {"shampoo_beta": 0.95}


@pytest.mark.parametrize(
    ("name", "expected", "first"),
    [
        ("ForeachSOAP", {"betas": (0.9, 0.95)} | _OWN, "lr betas shampoo_beta eps"),
        (
            "PrecondScheduleForeachSOAP",
            {"betas": (0.9, 0.95)} | _OWN | _SCHEDULE,
            "lr betas shampoo_beta eps",
        ),
        ("PaLMForeachSOAP", _PALM | _OWN, "lr beta betas shampoo_beta eps"),
        ("PrecondSchedulePaLMForeachSOAP", _PALM | _OWN | _SCHEDULE, "lr beta shampoo_beta eps"),
        ("SFPaLMForeachSOAP", _PALM | _AVERAGED, "lr beta beta2_scale eps"),
        (
            "PrecondScheduleSFPaLMForeachSOAP",
            _PALM | _AVERAGED | _SCHEDULE,
            "lr beta beta2_scale eps",
        ),
    ],
)
def test_names_take_heavyballs_arguments(name: str, expected: dict[str, Any], first: str) -> None:
    """Of 0.7.4, with its defaults; those given by position are first, in its order."""
    _, *parameters = inspect.signature(getattr(optim, name)).parameters.values()
    assert {p.name: p.default for p in parameters} == _SHARED | expected
    assert " ".join(p.name for p in parameters).startswith(first)


def test_a_name_is_soap_with_its_options() -> None:
    named, general = Parameter(normal(3, 3, seed=0)), Parameter(normal(3, 3, seed=0))
    first = optim.PrecondScheduleSFPaLMForeachSOAP([named], 0.1, betas=(0.8, None))
    second = optim.SOAP(
        [general],
        0.1,
        betas=(0.8, 0.0),
        schedule_free=True,
        palm_beta2=True,
        precond_schedule=True,
        gradient_clip_val=0.1,
    )
    for G in gradients(5, 3, 3):
        step(first, named, G)
        step(second, general, G)
    assert torch.equal(named, general)
    assert optim.PrecondScheduleSFPaLMSOAP is optim.PrecondScheduleSFPaLMForeachSOAP


@every_make
def test_every_name_is_a_soap(make: Make) -> None:
    assert isinstance(make([Parameter(torch.zeros(2, 2))]), optim.SOAP)


@every_make
def test_a_programs_default_device_and_dtype_do_not_reach_a_step(make: Make) -> None:
    """Where all of SOAP is: its counts are on the CPU, its factors in the parameter's dtype."""
    ends = []
    for is_changed in (False, True):
        parameter = Parameter(normal(3, 4, seed=0))
        optimizer = make([parameter])
        for G in gradients(4, 3, 4):
            if is_changed:
                torch.set_default_device("meta")
                torch.set_default_dtype(torch.bfloat16)
            try:
                step(optimizer, parameter, G)
            finally:
                torch.set_default_device(None)
                torch.set_default_dtype(torch.float32)
        ends.append(parameter.detach())
        assert optimizer.state[parameter]["step"].device.type == "cpu"
    assert torch.equal(*ends)
