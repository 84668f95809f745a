"""ScheduleFree+: schedule-free Adam whose learning rate is set by Polyak's rule, from the loss.

It needs the value of the loss in every step. Written for readability, like
`roadless.optim.schedule_free.reference`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.averaging import Counters, Pace, advance
from roadless.optim.checks import (
    require_at_least_zero,
    require_ema_coefficient,
    require_inside_unit_interval,
    require_pair,
    require_steps,
)
from roadless.optim.core.ages import count_missed, missed_by, note_missed
from roadless.optim.core.averaged_optimizer import AveragedOptimizer, settings_of
from roadless.optim.core.gradients import gradient_of
from roadless.optim.core.shapes import require_shapes
from roadless.optim.numerics.complex_pairs import as_pair, with_pairs
from roadless.optim.numerics.precision import working_dtype
from roadless.optim.rules.adam import over_root
from roadless.optim.rules.base import Group, State, TensorList


@dataclass(frozen=True, slots=True)
class _Known:
    """A closure for a loss whose gradients are there already."""

    loss: float
    process_group: "dist.ProcessGroup | None"

    def __call__(self) -> float:
        return self.loss


class AdamCScheduleFreePlusPaper(AveragedOptimizer):
    """Schedule-free Adam with momentum, Polyak's step size and a decay that follows its square.

    With f the loss and g the gradient at y, (β₁, β₂) = ``betas``, β_p = ``polyak_beta``,
    λ = ``weight_decay``, t the step from 1 (for m and v, the number of the parameter's gradients),
    b as in `interpolation`, and sums over all parameters::

        e ← β_p e + (1 - β_p) √(π/2) Σ|g|
        P = max(0, f + b Σ g (z - x)) / (e / (1 - β_pᵗ))
        γ = lr · P
        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        z ← z - γ² λ y - γ (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
        x ← (1 - c) x + c z
        y ← (1 - b) z + b x

    c is 1 for the first ``c_warmup`` steps, which are then forgotten, and afterwards as in
    `roadless.optim.averaging.advance`. f - 0 stands in for the gap to the optimum, so the minimum
    of the loss should be near 0. The parameters hold y; read x with
    `roadless.optim.averaged_point`. State per parameter: x, z, m (``exp_avg``) and v
    (``exp_avg_sq``), at least in float32.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: multiplies Polyak's step size, >= 0; for external warmup.
        betas: β₁ and β₂, >= 0 and < 1.
        sf_beta1: b at the start, > 0 and < 1.
        eps: ε, >= 0.
        weight_decay: λ, >= 0. As it is multiplied by γ², 20 to 50 are usual.
        r: power of the step in the averaging weight, >= 0; the authors also try 2 for long runs.
        polyak_beta: β_p, >= 0 and < 1; that of the first group applies to all.
        c_warmup: steps in which x is z, >= 0; once or twice the warmup of lr. Do not leave it at 0:
            early, distant z would then weigh in x forever, and without noise z may run away from x.
        sf_beta1_anneal_steps: steps until b has its final value, >= 0; 0 keeps it constant.
        sf_beta1_max: final value of b, > 0 and < 1.
        weight_lr_power: power of the largest γ so far in the averaging weight, >= 0.

    Raises:
        ValueError: a setting is out of range.

    Example: the minimum of (w - 3)²/2, from 0, with no learning rate to choose.

    >>> import torch
    >>> from roadless.optim import AdamCScheduleFreePlusPaper, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = AdamCScheduleFreePlusPaper([w])
    >>> for _ in range(30):
    ...     optimizer.zero_grad()
    ...     loss = ((w - 3) ** 2 / 2).sum()
    ...     loss.backward()
    ...     _ = optimizer.step_func(loss.item())
    >>> round(averaged_point(optimizer)[w].item(), 6)
    2.594711

    Differences from the published code: e is not corrected twice; lr may be 0; gradients that are
    all zero take no step instead of dividing by zero; a loss that is not finite is refused;
    replicas can average their losses; equal parts on several ranks are not counted twice.

    Source: Defazio 2026, "ScheduleFree+", arXiv 2605.19095; the decay: Defazio 2025, "Why Gradients
    Rapidly Increase Near the End of Training", arXiv 2506.02285.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        sf_beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0,
        polyak_beta: float = 0,
        c_warmup: int = 0,
        sf_beta1_anneal_steps: int = 0,
        sf_beta1_max: float = 0.965,
        weight_lr_power: float = 2,
    ) -> None:
        settings = settings_of(locals())
        memory = {"grad_l1_ema": 0.0, "polyak_k": 0, "polyak_lr": 0.0, "held_beta": sf_beta1}
        super().__init__(params, settings, memory=memory)

    def _check(self, group: Group) -> None:
        require_pair("betas", group["betas"])
        for i, beta in enumerate(group["betas"]):
            require_ema_coefficient(f"betas[{i}]", beta)
        require_ema_coefficient("polyak_beta", group["polyak_beta"])
        for name in ("sf_beta1", "sf_beta1_max"):
            require_inside_unit_interval(name, group[name])
        require_at_least_zero(group, "lr", "eps", "weight_decay", "r", "weight_lr_power")
        require_steps(group, "c_warmup", "sf_beta1_anneal_steps")
        if group.get("maximize", False):
            raise ValueError(
                "maximize: expected False, as Polyak's rule measures how far the loss is above 0, "
                "seen True; pass a loss to minimise"
            )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the loss and the gradients of a closure; otherwise use `step_func`.

        Args:
            closure: recomputes the loss and its gradients at y, and returns the loss; where
                replicas step together, the mean of their losses. It may be None if every lr is 0:
                torch's distributed checkpoint creates states that way.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: the parameters of some group hold x.
            ValueError: there is no closure, the loss is not finite, or a gradient is sparse.
        """
        if self._is_request_for_state(closure):
            return None
        self._require_training_position()
        if closure is None and any(float(group["lr"]) for group in self.param_groups):
            raise ValueError("step(): expected a closure, as it needs the loss, seen None")
        with torch.enable_grad():
            loss = 0.0 if closure is None else closure()
        self._ready()
        process_group = closure.process_group if isinstance(closure, _Known) else None
        self._measure(self._loss_of(float(loss), process_group))
        self._move_all()
        return None if closure is None else loss

    @torch.no_grad()
    def step_func(
        self, function_value: float | Tensor, *, process_group: "dist.ProcessGroup | None" = None
    ) -> float | Tensor:
        """Take one step from the gradients at y and the loss that they belong to.

        It counts as a ``step`` for hooks and learning-rate schedulers.

        Args:
            function_value: the loss at y. With sharded parameters (DTensor) that of this rank; the
                mean over their mesh is taken.
            process_group: the group to average over for replicated parameters (DDP), which would
                drift apart if each used its own loss; None if the loss is already averaged.

        Returns:
            ``function_value``, as given.

        Raises:
            RuntimeError: the parameters of some group hold x.
            ValueError: the loss is not finite, or a gradient is sparse.
        """
        # By way of `step`, which torch and its schedulers wrap to run hooks and to count.
        self.step(_Known(float(function_value), process_group))
        return function_value

    def _loss_of(self, loss: float, process_group: "dist.ProcessGroup | None") -> float:
        """Return the loss, averaged over ranks."""
        mean = _mean(loss, self._gradients(), process_group)
        if not math.isfinite(mean):
            raise ValueError(f"function_value: expected a finite loss, seen {mean}")
        return mean

    def _measure(self, loss: float) -> None:
        """Record P, the same for all groups, and the terms that it is made of."""
        first = self.param_groups[0]
        t, decay = first["polyak_k"] + 1, first["polyak_beta"]
        l1 = _total(as_pair(g).abs().sum(dtype=torch.float64) for g in self._gradients())
        ema = decay * first["grad_l1_ema"] + (1 - decay) * math.sqrt(math.pi / 2) * l1
        distance = max(0.0, loss + self._correction())
        polyak_lr = distance / (ema / (1 - decay**t)) if ema > 0 else 0.0
        for group in self.param_groups:
            group.update(grad_l1_ema=ema, polyak_k=t, polyak_lr=polyak_lr)

    def _correction(self) -> float:
        """Return b Σ g (z - x), which turns the loss at y into that of the linear model at z."""
        return _total(
            interpolation(group, group["k"]) * _inner(gradient_of(p, group), self.state[p])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and self.state.get(p)
        )

    def _gradients(self) -> TensorList:
        parameters = [p for group in self.param_groups for p in group["params"]]
        return [p.grad for p in parameters if p.grad is not None]

    def _pace(self, group: Group, counters: Counters) -> tuple[Counters, Pace]:
        after, pace = advance(
            counters,
            lr=float(group["lr"]) * group["polyak_lr"],
            warmup_steps=0,
            r=group["r"],
            weight_lr_power=group["weight_lr_power"],
        )
        if counters.k < group["c_warmup"]:
            return replace(after, weight_sum=counters.weight_sum), replace(pace, c=1.0)
        return after, pace

    def _update(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        group["held_beta"] = interpolation(group, group["k"])
        count_missed(group, self.state, active=parameters)
        for parameter in parameters:
            state = self._state_of(parameter, pace)
            require_shapes(state, parameter, ("x", "y", "z", "exp_avg", "exp_avg_sq"))
            g = gradient_of(parameter, group).to(state["z"].dtype)
            u = with_pairs(_adam, g, state, group, pace.t - missed_by(state))
            self._move(parameter, u, group, pace)

    def _move(self, parameter: Tensor, u: Tensor, group: Group, pace: Pace) -> None:
        state, gamma, c = self.state[parameter], pace.lr, pace.c
        x, y, z = state["x"], parameter.to(state["z"].dtype), state["z"]

        z = z - gamma**2 * group["weight_decay"] * y - gamma * u
        x = torch.lerp(x, z, c)

        state.update(x=x, z=z)
        self._training_point_into(parameter, group, parameter)

    def _state_of(self, parameter: Tensor, pace: Pace) -> State:
        state: State = self.state[parameter]
        if not state:
            state.update(_start(parameter))
            note_missed(state, pace.t - 1)
        return state

    def _initial_state(self, parameter: Tensor, _group: Group) -> State:
        state = _start(parameter)
        note_missed(state, -1)
        return state

    def _required(self, _group: Group) -> frozenset[str]:
        return frozenset(("x", "z", "exp_avg", "exp_avg_sq"))

    def average_into(self, parameter: Tensor, _group: Group, out: Tensor, /) -> None:
        """Write x, as it is stored, into ``out``."""
        out.copy_(self.state.get(parameter, {}).get("x", parameter))

    def _training_point_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        state = self.state.get(parameter)
        out.copy_(
            torch.lerp(state["x"], state["z"], 1 - group["held_beta"]) if state else parameter
        )


def _start(parameter: Tensor) -> State:
    start = parameter.detach().to(working_dtype(parameter.dtype), copy=True)
    zero = torch.zeros_like(start)
    return {"x": start, "z": start.clone(), "exp_avg": zero, "exp_avg_sq": zero.clone()}


def interpolation(group: Group, k: int) -> float:
    """Return b after k completed steps: log(1 - b) goes linearly to its final value.

    >>> settings = {"sf_beta1": 0.9, "sf_beta1_max": 0.99, "sf_beta1_anneal_steps": 10}
    >>> [round(interpolation(settings, k), 6) for k in (0, 5, 10, 20)]
    [0.9, 0.968377, 0.99, 0.99]
    """
    start, steps = group["sf_beta1"], group["sf_beta1_anneal_steps"]
    if not steps:
        return float(start)
    progress = min(k / steps, 1.0)
    return 1 - float((1 - start) ** (1 - progress) * (1 - group["sf_beta1_max"]) ** progress)


def _adam(g: Tensor, state: State, group: Group, t: int) -> Tensor:
    beta1, beta2 = group["betas"]
    m, v = state["exp_avg"], state["exp_avg_sq"]

    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    u = over_root(m / (1 - beta1**t), v / (1 - beta2**t), group["eps"])

    state.update(exp_avg=m, exp_avg_sq=v)
    return u


def _inner(g: Tensor, state: State) -> Tensor:
    require_shapes(state, g, ("x", "z"))
    terms = as_pair(g.to(state["z"].dtype)) * as_pair(state["z"] - state["x"])
    return terms.sum(dtype=torch.float64)


def _total(terms: Iterable[Tensor]) -> float:
    """Add 0-dimensional tensors; those of one mesh are first added as distributed tensors."""
    by_mesh: dict[Any, TensorList] = {}
    for term in terms:
        by_mesh.setdefault(getattr(term, "device_mesh", None), []).append(term)
    sums = [reduce(torch.add, some) for some in by_mesh.values()]
    return math.fsum(float(_whole(value)) for value in sums)


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _mean(value: float, gradients: TensorList, process_group: "dist.ProcessGroup | None") -> float:
    """Return the mean over the gradients' meshes or over the group, or else the value itself."""
    meshes = list(dict.fromkeys(g.device_mesh for g in gradients if hasattr(g, "device_mesh")))
    groups = [group for mesh in meshes for group in mesh.get_all_groups()]
    if not meshes and process_group is not None:
        groups = [process_group]
    device = meshes[0].device_type if meshes else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    for group in groups:
        dist.all_reduce(total, group=group)
        total /= group.size()
    return float(total)
