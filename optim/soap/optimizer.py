"""SOAP with all its options: averaging, β₂ policy, schedule of the preconditioner."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.checks import require_bool
from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.core.descent import Descent
from roadless.optim.core.initial_states import POINTS
from roadless.optim.numerics.complex_pairs import as_pair
from roadless.optim.numerics.precision import working_dtype
from roadless.optim.rules.base import Group, Rule, State, TensorList
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer
from roadless.optim.schedule_free.fast import FastScheduleFree
from roadless.optim.soap.rule import SoapRule, layout_for
from roadless.optim.soap.schedule import timing_of


class SOAP(Descent):
    """Adam in the slowly turning eigenbasis of Shampoo's preconditioner: Shampoo made stable.

    Each tensor's gradient g is rotated into bases Qᵢ, one for each of its dimensions, where Adam
    sees nearly independent coordinates. For a matrix, with a hat on what is rotated, and L and R
    the running covariances of rows and columns::

        ĝ = Q_Lᵀ g Q_R
        m̂ ← β₁ m̂ + (1 - β₁) ĝ,  v̂ ← β₂ v̂ + (1 - β₂) ĝ²
        p ← p - γ (Q_L (m̂ / max(√v̂, ε)) Q_Rᵀ + λ p)
        L ← β L + (1 - β) g gᵀ,  R ← β R + (1 - β) gᵀ g
        periodically: Q_L, Q_R ← one power iteration closer to the eigenvectors of L, R

    All averages are unbiased at every step (`roadless.optim.rules.moments.debiased`). A tensor's
    first gradient sets its bases and moves nothing; steps of a group count from the next one.
    Moments and bases are float32, or float64 for float64 parameters. State per rotated dimension of
    size n: two n x n matrices; and per parameter m and v.

    Other CPUs, thread counts and numbers of ranks sum in another order, so their gradients and
    products differ in the last bits. Guaranteed for two such runs: rounding makes no choice that
    mathematics leaves open. Identical rows stay identical, rows without gradients move by no more
    than the rounding of a step, and signs or null spaces of a LAPACK do not matter. Not guaranteed:
    equal bits, and equal paths forever. In float64, two runs have diverged after 50 steps by less
    than 1e-8 of the distance travelled; by up to 1e-6 where a basis turns among directions that a
    factor hardly sees, since each refresh divides rounding by its shift, ε; by up to 1e-4 where
    steps overshoot along a direction whose v̂ is almost zero, and double what they find there. In
    float32, on the same problems, it is 1e-5, and up to a few percent. docs/reproducibility.md has
    the figures.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; often that of a well-tuned AdamW. A number or a one-element tensor,
            read at each step.
        betas: β₁ and β₂, >= 0 and < 1. With ``schedule_free`` β₁ is y's interpolation, > 0; with
            ``palm_beta2`` β₂ is not used.
        shampoo_beta: β of L and R, >= 0 and < 1; None takes that of v̂.
        eps: ε, the smallest denominator, >= 0.
        weight_decay: λ, >= 0, decoupled, multiplied by γ.
        precondition_frequency: steps between refreshes of the bases, >= 1.
        max_precond_dim: dimensions larger than this are not rotated, >= 1.
        merge_dims: merge small dimensions first: `roadless.optim.soap.layout.merged`.
        precondition_1d: rotate vectors too; otherwise they get plain Adam.
        normalize_grads: divide each direction by its root mean square.
        data_format: "channels_last" when 4-D weights are stored as (out, height, width, in).
        correct_bias: make the averages of moments unbiased; false starts them at 0, uncorrected.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.
        gradient_clip_val: clip each tensor's gradient at this fraction of the tensor's norm, >= 0;
            0 does not clip: `roadless.optim.soap.clipping`.
        schedule_free: average as `roadless.optim.AdamWScheduleFree` does: z moves by the direction
            with ĝ in place of m̂, parameters hold y, the result is x.
        r: power of the step in the averaging weight, >= 0.
        weight_lr_power: power of the largest learning rate so far in that weight, >= 0.
        palm_beta2: let β₂ grow with the age of the tensor:
            `roadless.optim.rules.moments.palm_beta2`.
        beta2_scale: its exponent, >= 0.
        precond_schedule: refresh less and less often, by `roadless.optim.soap.schedule`, instead of
            every ``precondition_frequency`` steps.
        precond_scheduler: power and exponent of that schedule.
        precond_timing: "even" spreads refreshes evenly, "chance" draws them at random.
        precond_seed: seed for "chance".

    Raises:
        ValueError: a setting is out of range.

    Example: a valley with condition number 361, at 45 degrees to the columns of w, so that Adam
    cannot see its axes. With the same rate ``torch.optim.AdamW`` is at 0.078.

    >>> import torch
    >>> from roadless.optim import SOAP
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, -2.0], [1.0, 2.0]], dtype=torch.float64))
    >>> valley = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    >>> optimizer = SOAP([w], lr=0.1, weight_decay=0)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     loss = (w @ valley).square().sum() / 2
    ...     loss.backward()
    ...     optimizer.step()
    >>> round(loss.item(), 3)
    0.022

    Source: Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv
    2409.11321, algorithm 3.
    """

    rule: ClassVar[Rule] = SoapRule(has_momentum=True)

    def __new__(cls, *_args: Any, schedule_free: bool = False, **_settings: Any) -> Self:
        """Choose the class, as averaging is set by the engine's class."""
        chosen = ScheduleFreeSOAP if cls is SOAP and schedule_free else cls
        return super().__new__(chosen)  # type: ignore[return-value]  # a subclass of SOAP

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 0,
        gradient_clip_val: float = 0.0,
        schedule_free: bool = False,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        palm_beta2: bool = False,
        beta2_scale: float = 0.8,
        precond_schedule: bool = False,
        precond_scheduler: tuple[float, float] = (1 / 3, 9),
        precond_timing: Literal["even", "chance"] = "even",
        precond_seed: int = 0,
    ) -> None:
        settings = settings_of(locals())
        require_bool(settings, "schedule_free")
        del settings["schedule_free"]
        super().__init__(params, settings | {"precond_due": 0.0})

    def _initial_state(self, parameter: Tensor, group: Group) -> State:
        state = super()._initial_state(parameter, group)
        # After the first gradient it is 0.
        state["step"].fill_(-1)
        return state

    def _required(self, group: Group) -> frozenset[str]:
        has_momentum = isinstance(self.rule, SoapRule) and self.rule.has_momentum
        return super()._required(group) | {"step", "exp_avg_sq", *(("exp_avg",) * has_momentum)}

    def _required_of(
        self, parameter: Tensor, given: Mapping[str, Any], read: State, group: Group
    ) -> frozenset[str]:
        rotated = layout_for(as_pair(parameter), self.defaults | group).rotated
        of_layout = {f"{kind}_{i}" for i in rotated for kind in ("factor", "basis")}
        return super()._required_of(parameter, given, read, group) | of_layout

    def _knows(self, name: str, group: Group) -> bool:
        return name.startswith(("exp_avg", "factor_", "basis_")) or super()._knows(name, group)

    def _read_state(self, state: State, parameter: Tensor, saved: Group, *, of: str) -> State:
        read = super()._read_state(state, parameter, saved, of=of)
        dtype = working_dtype(parameter.dtype).to_real()
        averages = {n: t for n, t in read.items() if n not in POINTS and t.is_floating_point()}
        return read | {name: tensor.to(dtype) for name, tensor in averages.items()}

    def _shapes_of(self, name: str, parameter: Tensor, group: Group) -> Sequence[torch.Size]:
        kind, _, dimension = name.partition("_")
        if kind not in ("exp", "factor", "basis"):
            return super()._shapes_of(name, parameter, group)
        shape = layout_for(as_pair(parameter), group).shape
        if kind == "exp":
            return (torch.Size(shape),)
        size = shape[int(dimension)] if int(dimension) < len(shape) else 0
        return (torch.Size((size, size)),)

    def _step_group(self, group: Group, parameters: TensorList) -> None:
        if parameters and not any(self.state.get(parameter) for parameter in parameters):
            # Nothing moves: neither warmup nor averages nor schedule should count it.
            self._started(parameters, group)
            return
        super()._step_group(group, parameters)
        _, group["precond_due"] = timing_of(group).is_due(group["k"], group["precond_due"])


class ScheduleFreeSOAP(FastScheduleFree, SOAP):
    """SOAP whose direction has no momentum: schedule-free averaging takes its place."""

    rule: ClassVar[Rule] = SoapRule(has_momentum=False)

    #: That of `Descent` comes earlier in the MRO.
    _pace = ScheduleFreeOptimizer._pace
