"""HeavyBall's first-order names: its steps where it is right, the method's where it is not."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import heavyball
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_runs import distance, take_step
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim import averaged_point
from roadless.optim.rules.moments import debiased

PLAIN = [optim.ForeachAdamW, optim.ForeachLaProp, optim.ForeachADOPT]
AVERAGED = [optim.ForeachSFAdamW, optim.PaLMForeachSFAdamW]
SHAPES = ((3,), (4, 5), ())

FIRST_ORDER = {
    "lr": 0.0025,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "weight_decay": 0,
    "warmup_steps": 0,
}
AVERAGING = {"r": 0.0, "weight_lr_power": 2.0}
SIGNATURES: dict[Any, dict[str, Any]] = {
    optim.ForeachAdamW: FIRST_ORDER,
    optim.ForeachLaProp: FIRST_ORDER,
    optim.ForeachADOPT: FIRST_ORDER | {"clip": True},
    optim.ForeachSFAdamW: FIRST_ORDER | AVERAGING | {"foreach": True},
    optim.PaLMForeachSFAdamW: {
        "lr": 0.0025,
        "beta": 0.9,
        "betas": (None, None),
        "eps": 1e-8,
        "weight_decay": 0,
        "warmup_steps": 0,
        **AVERAGING,
        "beta2_scale": 0.8,
    },
}


def drawn(seed: int, num_steps: int, dtype: torch.dtype) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Start values, and gradients by step."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
        for _ in range(num_steps + 1)
    ]
    return rows[0], rows[1:]


def run(
    make: Callable[..., Any], start: list[Tensor], gradients: list[list[Tensor]], **more: Any
) -> Any:
    optimizer = make([Parameter(value.clone()) for value in start], **more)
    for row in gradients:
        take_step(optimizer, row)
    return optimizer


def ends(optimizer: Any) -> list[Tensor]:
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


def worst(a: list[Tensor], b: list[Tensor]) -> float:
    return max(distance(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("make", SIGNATURES)
def test_signatures_are_those_of_heavyball_0_7_4(make: Any) -> None:
    """With one setting more in ADOPT, at the end."""
    arguments = list(inspect.signature(make).parameters.values())[1:]
    assert [(a.name, a.default) for a in arguments] == list(SIGNATURES[make].items())


@settings(max_examples=25, deadline=None)
@given(
    pair=st.sampled_from(
        [
            (optim.ForeachAdamW, heavyball.AdamW),
            (optim.ForeachLaProp, heavyball.LaProp),
            (partial(optim.ForeachADOPT, clip=False), heavyball.ADOPT),
        ]
    ),
    lr=st.floats(1e-3, 0.1),
    betas=st.tuples(st.floats(0.5, 0.95), st.floats(0.8, 0.999)),
    decay=st.just(0.0) | st.floats(1e-3, 0.5),
    warmup_steps=st.integers(0, 6),
    seed=st.integers(0, 10**6),
)
def test_steps_are_those_of_heavyball_3(
    pair: tuple[Any, Any],
    lr: float,
    betas: tuple[float, float],
    decay: float,
    warmup_steps: int,
    seed: int,
) -> None:
    """Its arithmetic is float32 whatever the parameters are, and it counts warmup from zero."""
    start, gradients = drawn(seed, 8, torch.float32)
    shared: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": decay}
    ours = run(pair[0], start, gradients, **shared, warmup_steps=warmup_steps)
    its_warmup = max(warmup_steps - 1, 0)
    theirs = run(pair[1], start, gradients, **shared, warmup_steps=its_warmup, compile_step=False)
    assert worst(ends(ours), ends(theirs)) <= 1e-6 * max(1, 20 * lr)


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-3, 0.1),
    betas=st.tuples(st.floats(0.5, 0.95), st.floats(0.8, 0.999)),
    decay=st.just(0.0) | st.floats(1e-3, 0.5),
    warmup_steps=st.integers(0, 6),
    r=st.floats(0, 2),
    seed=st.integers(0, 10**6),
)
def test_averaged_steps_are_those_of_heavyball_3(
    lr: float,
    betas: tuple[float, float],
    decay: float,
    warmup_steps: int,
    r: float,
    seed: int,
) -> None:
    start, gradients = drawn(seed, 8, torch.float32)
    shared: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": decay, "r": r}
    ours = run(
        optim.ForeachSFAdamW, start, gradients, **shared, eps=1e-8, warmup_steps=warmup_steps
    )
    theirs = run(
        heavyball.SFAdamW,
        start,
        gradients,
        **shared,
        eps=1e-8,
        warmup_steps=max(warmup_steps - 1, 0),
        compile_step=False,
    )
    assert worst(ends(ours), ends(theirs)) <= 3e-6
    theirs.eval()
    assert worst(list(averaged_point(ours).values()), ends(theirs)) <= 3e-6 / betas[0]


@settings(max_examples=30, deadline=None)
@given(
    decay=st.just(0.0) | st.floats(1e-3, 0.5),
    warmup_steps=st.integers(0, 6),
    r=st.floats(0, 2),
    seed=st.integers(0, 10**6),
)
def test_two_ways_to_debias_v_are_one(decay: float, warmup_steps: int, r: float, seed: int) -> None:
    """The in-place EMA is what Adam corrects to: both libraries have one schedule-free AdamW."""
    start, gradients = drawn(seed, 12, torch.float64)
    shared: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": decay, "r": r}
    pair = [
        run(make, start, gradients, **shared, eps=0.0, warmup_steps=warmup_steps)
        for make in (optim.ForeachSFAdamW, optim.AdamWScheduleFree)
    ]
    assert worst(*(ends(optimizer) for optimizer in pair)) <= 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_that_of_torch_in_float64(decay: float) -> None:
    start, gradients = drawn(3, 30, torch.float64)
    shared: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": decay, "eps": 0.0}
    pair = [
        run(make, start, gradients, **shared) for make in (optim.ForeachAdamW, torch.optim.AdamW)
    ]
    assert worst(*(ends(optimizer) for optimizer in pair)) <= 1e-12


@pytest.mark.parametrize("make", [*PLAIN, *AVERAGED])
def test_weight_decay_shrinks_weights(make: Any) -> None:
    """With gradients of zero; in 0.7.4 they grow. Each moving step takes lr · decay of them."""
    weight = Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make([weight], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        take_step(optimizer, [torch.zeros_like(weight)])
    moving = 1 if make is optim.ForeachADOPT else 2
    seen = optimizer.state[weight].get("z", weight).detach()
    if make in PLAIN:
        assert distance(seen, torch.full_like(seen, 0.99**moving)) <= 1e-15
    else:
        assert bool((seen < 0.9802).all())


@pytest.mark.parametrize("make", PLAIN)
def test_the_average_is_the_parameter_itself(make: Any) -> None:
    start, gradients = drawn(1, 3, torch.float64)
    optimizer = run(make, start, gradients)
    before = [p.clone() for p in ends(optimizer)]
    optimizer.eval()
    assert all(torch.equal(x, p) for x, p in zip(ends(optimizer), before, strict=True))
    with optim.at_average(optimizer):
        assert all(torch.equal(x, p) for p, x in averaged_point(optimizer).items())
    optimizer.train()
    take_step(optimizer, gradients[0])
    assert optimizer.param_groups[0]["k"] == 4


@pytest.mark.parametrize("step", range(2, 5))
def test_adopt_normalises_by_earlier_gradients_only(step: int) -> None:
    """A gradient a million times larger than all before moves by a million, not by one."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.ForeachADOPT([weight], lr=1.0, betas=(1e-9, 0.9), clip=False)
    for _ in range(step - 1):
        take_step(optimizer, [torch.ones_like(weight)])
    before = weight.detach().clone()
    take_step(optimizer, [torch.full_like(weight, 1e6)])
    assert float(before - weight.detach()) == pytest.approx(1e6, rel=1e-6)


def test_the_first_gradient_of_a_late_parameter_moves_nothing_in_adopt() -> None:
    early, late = (Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = optim.ForeachADOPT([early, late], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        take_step(optimizer, [torch.ones_like(early), None])
    take_step(optimizer, [torch.ones_like(early), torch.full_like(late, 2.0)])
    assert torch.equal(late, torch.ones_like(late))
    assert torch.equal(optimizer.state[late]["exp_avg_sq"], torch.full_like(late, 4.0))
    take_step(optimizer, [torch.ones_like(early), torch.full_like(late, 2.0)])
    assert bool(((late < 1) & (late > 0.8)).all())


def test_palm_needs_no_beta2() -> None:
    """v after three steps, by hand: the coefficients are those of the in-place EMA of 1 - t^-s."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.PaLMForeachSFAdamW([weight], betas=(0.8, 0.123), beta2_scale=0.7)
    v = 0.0
    for t, g in enumerate((3.0, -1.0, 2.0), start=1):
        take_step(optimizer, [torch.full_like(weight, g)])
        beta = debiased(1 - t**-0.7, t)
        v = beta * v + (1 - beta) * g * g
    assert optimizer.state[weight]["exp_avg_sq"].item() == pytest.approx(v, rel=1e-14)
    assert optimizer.param_groups[0]["beta"] == 0.8


@given(beta=st.floats(0, 0.999), values=st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_the_in_place_average_is_the_corrected_one(beta: float, values: list[float]) -> None:
    in_place = plain = 0.0
    for t, value in enumerate(values, start=1):
        coefficient = debiased(beta, t)
        in_place = coefficient * in_place + (1 - coefficient) * value
        plain = beta * plain + (1 - beta) * value
        assert in_place == pytest.approx(plain / (1 - beta**t), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        *((make, {"eps": -1.0}) for make in [*PLAIN, *AVERAGED]),
        *((make, {"betas": (0.9, 1.0)}) for make in [*PLAIN, optim.ForeachSFAdamW]),
        *((make, {"warmup_steps": -1}) for make in [*PLAIN, *AVERAGED]),
        *((make, {"weight_decay": -1}) for make in [*PLAIN, *AVERAGED]),
        *((make, {"lr": -1}) for make in [*PLAIN, *AVERAGED]),
        (optim.PaLMForeachSFAdamW, {"beta2_scale": 0.0}),
        (optim.PaLMForeachSFAdamW, {"beta": 1.0}),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(make: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))}.*expected .*, seen "):
        make([Parameter(torch.zeros(1))], **bad)


@pytest.mark.parametrize("make", [*PLAIN, *AVERAGED])
@pytest.mark.parametrize("gradient", [0.25, 4.0])
def test_eps_is_the_least_denominator(make: Any, gradient: float) -> None:
    """The first step that moves goes lr · g / max(|g|, eps): nothing is added to |g|."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    bare = {"clip": False} if make is optim.ForeachADOPT else {}
    optimizer = make([weight], lr=0.5, eps=1.0, **bare)
    for _ in range(2 if make is optim.ForeachADOPT else 1):
        take_step(optimizer, [torch.full_like(weight, gradient)])
    assert weight.item() == pytest.approx(-0.5 * min(gradient, 1.0), rel=1e-14)


# ADOPT as its authors have it.


class AuthorsADOPT:
    """The authors' code in plain words, with decoupled decay and their default ``clip_lambda``."""

    def __init__(
        self,
        params: list[Parameter],
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self.decay, self.m, self.v = weight_decay, [], []
        self.param_groups = [{"params": params}]
        self.count = 0

    @torch.no_grad()
    def step(self) -> None:
        gradients = [p.grad.clone() for p in self.params]
        if self.count == 0:
            self.v = [g * g for g in gradients]
            self.m = [torch.zeros_like(g) for g in gradients]
        else:
            bound = self.count**0.25
            for i, (p, g) in enumerate(zip(self.params, gradients, strict=True)):
                p.mul_(1 - self.lr * self.decay)
                scale = torch.maximum(self.v[i].sqrt(), torch.tensor(self.eps, dtype=p.dtype))
                ratio = torch.minimum(
                    torch.maximum(g / scale, -g.new_tensor(bound)), g.new_tensor(bound)
                )
                self.m[i] = self.betas[0] * self.m[i] + (1 - self.betas[0]) * ratio
                p.sub_(self.lr * self.m[i])
                self.v[i] = self.betas[1] * self.v[i] + (1 - self.betas[1]) * g * g
        self.count += 1


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-3, 0.1),
    betas=st.tuples(st.floats(0.5, 0.95), st.just(0.0) | st.floats(0.8, 0.9999)),
    decay=st.just(0.0) | st.floats(1e-3, 0.5),
    num_zeros=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_adopt_takes_the_steps_of_its_authors(
    lr: float, betas: tuple[float, float], decay: float, num_zeros: int, seed: int
) -> None:
    """Elements whose first gradients are 0 included."""
    start, gradients = drawn(seed, 12, torch.float64)
    for row in gradients[:num_zeros]:
        row[0][:2], row[1][2] = 0.0, 0.0
    shared: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": decay}
    ours = run(optim.ForeachADOPT, start, gradients, **shared)
    theirs = run(AuthorsADOPT, start, gradients, **shared)
    assert worst(ends(ours), ends(theirs)) <= 1e-12


def low_rank(make: Callable[..., Any]) -> Iterator[float]:
    """A LoRA pair, whose second half starts at 0, so that the first half's gradient does too."""
    generator = torch.Generator().manual_seed(2)
    down = Parameter(torch.randn(3, 6, generator=generator, dtype=torch.float64) / 6**0.5)
    up = Parameter(torch.zeros(6, 3, dtype=torch.float64))
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    wanted = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    optimizer = make([down, up])
    for _ in range(12):
        down.grad = up.grad = None
        loss = (inputs @ down.T @ up.T - wanted).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


def rare_rows(make: Callable[..., Any]) -> Iterator[float]:
    """An embedding, half of whose rows the first batches lack."""
    torch.manual_seed(3)
    table = torch.nn.Embedding(12, 5, dtype=torch.float64)
    head = torch.nn.Linear(5, 12, dtype=torch.float64)
    optimizer = make([*table.parameters(), *head.parameters()])
    for t in range(12):
        tokens = torch.arange(6) + (6 if t >= 3 else 0)
        table.zero_grad()
        head.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(table(tokens)), tokens)
        loss.backward()
        optimizer.step()
        yield loss.item()


def dead_units(make: Callable[..., Any]) -> Iterator[float]:
    """Rectified units that the first batches do not reach."""
    torch.manual_seed(4)
    hidden, head = torch.nn.Linear(3, 8).double(), torch.nn.Linear(8, 1).double()
    hidden.weight.data.abs_()
    hidden.bias.data.zero_()
    model = torch.nn.Sequential(hidden, torch.nn.ReLU(), head)
    optimizer = make(list(model.parameters()))
    for t in range(12):
        generator = torch.Generator().manual_seed(t)
        inputs = torch.randn(16, 3, generator=generator, dtype=torch.float64).abs()
        inputs = inputs if t >= 3 else -inputs
        model.zero_grad()
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


def gated_expert(make: Callable[..., Any]) -> Iterator[float]:
    """A residual branch behind a gate of 0, as ReZero and zero-initialised adapters have it."""
    torch.manual_seed(5)
    branch, gate = torch.nn.Linear(4, 4).double(), Parameter(torch.zeros((), dtype=torch.float64))
    inputs = torch.randn(32, 4, dtype=torch.float64)
    optimizer = make([*branch.parameters(), gate])
    for _ in range(12):
        branch.zero_grad()
        gate.grad = None
        loss = (inputs + gate * branch(inputs) - 2 * inputs.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("problem", [low_rank, rare_rows, dead_units, gated_expert])
def test_adopt_stays_finite_where_first_gradients_are_zero(problem: Any) -> None:
    """With the losses of the authors' code; HeavyBall's formula explodes."""
    ours, theirs = list(problem(optim.ForeachADOPT)), list(problem(AuthorsADOPT))
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert max(ours) < 4 * ours[0]
    bare = list(problem(partial(optim.ForeachADOPT, clip=False)))
    assert not max(bare) < 100 * bare[0]


# Schedulers that cycle momentum.


@pytest.mark.parametrize(
    "cycling",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3),
    ],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_palms_beta_may_be_cycled(cycling: Callable[[Any], Any]) -> None:
    """As that of the form with ``betas`` is; y goes with it, x does not."""
    paths = []
    for make in (optim.PaLMForeachSFAdamW, optim.ForeachSFAdamW):
        weight = Parameter(torch.ones(3, dtype=torch.float64))
        optimizer: Any = make([weight], lr=0.1)
        scheduler, held = cycling(optimizer), []
        for t in range(8):
            take_step(optimizer, [torch.full_like(weight, 1.0 + t)])
            held.append(optimizer.param_groups[0]["held_beta"])
            scheduler.step()
        paths.append(held)
    assert paths[0] == paths[1]
    assert len(set(paths[0])) > 2


def test_palms_beta_is_the_groups_until_a_scheduler_cycles_it() -> None:
    weight = Parameter(torch.ones(3))
    optimizer = optim.PaLMForeachSFAdamW([weight], betas=(0.8, None))
    optimizer.param_groups[0]["beta"] = 0.7
    take_step(optimizer, [torch.ones(3)])
    assert optimizer.param_groups[0]["held_beta"] == 0.7
