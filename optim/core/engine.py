"""The engine: a base rule, run over batches of parameters in working precision by a backend.

How the parts fit together, for anyone adding one:

* A **rule** (`roadless.optim.rules.base.Rule`, one small file) says how u comes from a gradient.
* An optimizer **chooses its averaging by its base class**: `roadless.optim.core.descent.Descent`
  moves the parameter itself, `roadless.optim.schedule_free.fast.FastScheduleFree` moves y and z
  around the average x. Both are engines; they differ in `_move` and in where x is.
* A named optimizer is a thin declaration: signature, ``rule``, and a docstring.
* A **backend** (`roadless.optim.backends`) may take over the whole update of some parameters: rule,
  decay and averaging in one pass over memory. It is given tensors and the numbers of the step, from
  the rule's ``kernel`` and the engine's ``_kernel_move``, and does what `_update_batch` does.
* **Complex** parameters reach rules as pairs of reals (`roadless.optim.numerics.complex_pairs`);
  the rule's buffers stay such pairs, and points are complex.
* **Precision** (`roadless.optim.numerics.precision`) widens narrow parameters before the update and
  rounds them after it, by the group's ``rounding_seed``.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import ParamsT

from roadless.optim.averaging import Pace
from roadless.optim.backends.choose import is_worth_a_kernel, prepared, run_where_possible
from roadless.optim.backends.form import Direction, Move, Rounding, Tensors
from roadless.optim.backends.repeat import Repeat
from roadless.optim.core.ages import by_missed, count_missed, note_missed, own_pace
from roadless.optim.core.averaged_optimizer import AveragedOptimizer
from roadless.optim.core.gradients import gradient_of
from roadless.optim.core.shapes import require_fitting_states
from roadless.optim.numerics.complex_pairs import as_pair
from roadless.optim.numerics.precision import is_narrow, keep_low_part, low_of, wide, working_dtype
from roadless.optim.numerics.rounding import rounding_key, stochastically_round_into
from roadless.optim.numerics.sharding import by_kind, first_index
from roadless.optim.rules.base import Batch, Group, Rule, State, TensorList

#: Elements that one list operation touches per operand. On a CPU operands then stay in its cache;
#: elsewhere temporaries stay small next to the parameters. A larger tensor is processed alone.
_CPU_ELEMENTS = 2**16
_DEVICE_ELEMENTS = 2**24
#: Kernels' names for the tensors of a state.
_KERNEL_LETTERS = {"z": "z", "v": "exp_avg_sq", "m": "exp_avg"}


class Engine(AveragedOptimizer):
    """An optimizer made of a base rule and a way of moving along its direction."""

    #: The base rule, with its policies.
    rule: ClassVar[Rule]
    #: Whether to remember what rounding takes from a narrow point. If the loss sees the point
    #: itself, it corrects the rounding; if another point is derived from it, nothing does.
    keeps_low_part: ClassVar[bool] = False
    #: What states hold beside the rule's buffers: points that move with the parameter.
    point_names: ClassVar[tuple[str, ...]] = ()

    #: Repeats by group and missed steps.
    _repeats: dict[tuple[int, int], Repeat]
    #: Steps missed, by group, where all parameters had a gradient in the last step.
    _only_age: dict[int, int]

    def __init__(self, params: ParamsT, settings: Group) -> None:
        super().__init__(params, settings, memory={"rounding_seed": 0})
        self._repeats, self._only_age = {}, {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, as copies and torch's loading do; nothing is known of its steps."""
        super().__setstate__(state)
        self._repeats, self._only_age = {}, {}

    @abstractmethod
    def _move(self, batch: Batch, us: TensorList) -> None:
        """Move the batch's points by -γ (u + λ · point), and average."""

    @abstractmethod
    def _kernel_move(self, group: Group, pace: Pace) -> Move:
        """Return what `_move` does, as numbers for a kernel."""

    @abstractmethod
    def _start(self, point: Tensor, gradient: Tensor, group: Group) -> State:
        """Return the initial state of a parameter, at its first gradient."""

    def _check(self, group: Group) -> None:
        self.rule.check(group)

    def _update(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        if not self.rule.depends_on_age:
            self._update_alike(parameters, group, pace)
            return
        if self._is_steady(parameters, group, pace):
            return
        count_missed(group, self.state, active=parameters)
        alike = by_missed(parameters, self.state, of_new=pace.t - 1)
        for missed, some in alike.items():
            own = own_pace(pace, group, missed=missed, lr_factor=self.rule.lr_factor)
            self._update_alike(some, group, own)
        self._note_ages(parameters, group, alike)

    def _is_steady(self, parameters: TensorList, group: Group, pace: Pace) -> bool:
        """Repeat a step of a group in which all had a gradient then as now, and are of one age.

        Nobody's count can have changed since, so that nobody's has to be read.
        """
        missed = self._only_age.get(id(group))
        if missed is None or len(parameters) != len(group["params"]):
            return False
        own = own_pace(pace, group, missed=missed, lr_factor=self.rule.lr_factor)
        return self._is_repeated(parameters, group, own)

    def _note_ages(self, parameters: TensorList, group: Group, ages: Collection[int]) -> None:
        self._only_age.pop(id(group), None)
        if len(ages) == 1 and len(parameters) == len(group["params"]):
            self._only_age[id(group)] = next(iter(ages))
        kept = [key for key in self._repeats if key[0] != id(group) or key[1] in ages]
        self._forget_repeats(keep=kept)

    def _update_alike(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        """Take one step with parameters that are of one age, if the rule depends on it."""
        if self._is_repeated(parameters, group, pace):
            return
        moving = self._started(parameters, group, missed=pace.missed)
        try:
            left = self._left_by_kernels(moving, group, pace)
            self._update_in_torch(left, group, pace)
        except (KeyError, RuntimeError):
            # torch stops at sizes that do not fit, and names nothing. To ask first costs each step.
            require_fitting_states(moving, self.state, self._kernel_names(group))
            raise

    def _update_in_torch(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        is_batched = group.get("foreach", True) is not False
        for some in batches(parameters, is_batched=is_batched):
            batch = self._batch_of(some, group, pace)
            self._update_batch(batch)
            if batch.points is not some:
                self._narrow(some, batch)

    def _left_by_kernels(self, parameters: TensorList, group: Group, pace: Pace) -> TensorList:
        """Let backends do what they can, in one pass over memory; return the parameters left."""
        direction = self.rule.kernel(group, pace.age)
        if not parameters or direction is None:
            return parameters
        num_elements = sum(map(Tensor.numel, self._all_parameters()))
        if not is_worth_a_kernel(num_elements, parameters[0].device.type):
            return parameters
        move, left = self._kernel_move(group, pace), []
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            equal = [p for p in parameters if p.dtype == dtype]
            if dtype.is_complex:
                left += equal
                continue
            tensors = self._kernel_tensors(equal, group, pace)
            if self._is_prepared(tensors, group, pace, move=move, direction=direction):
                continue
            done = run_where_possible(tensors, move=move, direction=direction)
            increment_version([equal[i] for i in done])
            left += [p for i, p in enumerate(equal) if i not in done]
        return left

    def _is_prepared(
        self, tensors: Tensors, group: Group, pace: Pace, *, move: Move, direction: Direction
    ) -> bool:
        """Let one kernel do it all if possible, and keep the job for the next step to repeat."""
        # A repeat would read the parameters' own gradients.
        job = None if group.get("maximize", False) else prepared(tensors)
        if job is None:
            return False
        job.run([g.data_ptr() for g in tensors.gradients], move=move, direction=direction)
        increment_version(tensors.points)
        ids = {id(group) for group in self.param_groups}
        self._forget_repeats(keep=[key for key in self._repeats if key[0] in ids])
        names = self._kernel_names(group)
        self._repeats[id(group), pace.missed] = Repeat.of(job, tensors.points, self.state, names)
        return True

    def _forget_repeats(self, *, keep: Collection[tuple[int, int]]) -> None:
        """Drop those of groups that no longer exist, and of ages that no parameter has."""
        for key in self._repeats.keys() - keep:
            del self._repeats[key]

    def _is_repeated(self, parameters: TensorList, group: Group, pace: Pace) -> bool:
        """Repeat the previous step's update with new gradients, if nothing else has changed."""
        repeat = self._repeats.get((id(group), pace.missed))
        if repeat is None or group.get("maximize", False):
            return False
        if repeat.names != self._kernel_names(group):
            return False
        gradients = repeat.gradients(parameters, self.state)
        direction = self.rule.kernel(group, pace.age)
        if gradients is None or direction is None:
            return False
        move = self._kernel_move(group, pace)
        repeat.prepared.run(gradients, move=move, direction=direction)
        increment_version(parameters)
        return True

    def _kernel_names(self, group: Group) -> tuple[str, ...]:
        """Return the names of the state's tensors that kernels use."""
        return (*self.point_names, *self.rule.buffer_names(group))

    def _kernel_tensors(self, parameters: TensorList, group: Group, pace: Pace) -> Tensors:
        states = [self.state[p] for p in parameters]
        names = self._kernel_names(group)
        columns = {
            letter: [state[name] for state in states if name in names]
            for letter, name in _KERNEL_LETTERS.items()
        }
        gradients = [gradient_of(p, group) for p in parameters]
        if not is_narrow(parameters[0].dtype):
            return Tensors(parameters, gradients, **columns)
        if self.keeps_low_part:
            columns["low"] = [low_of(p, s) for p, s in zip(parameters, states, strict=True)]
        rounding = self._rounding(parameters, group, pace)
        return Tensors(parameters, gradients, **columns, rounding=rounding)

    def _rounding(self, parameters: TensorList, group: Group, pace: Pace) -> list[Rounding]:
        index = {p: i for i, p in enumerate(self._all_parameters())}
        seed, step = group["rounding_seed"], pace.t
        return [
            Rounding(rounding_key(seed=seed, step=step, parameter=index[p]), first_index(p))
            for p in parameters
        ]

    def _update_batch(self, batch: Batch) -> None:
        """Do the whole update of a batch in plain torch; a backend's kernel does the same."""
        self._move(batch, self.rule.direction(batch))

    def _started(self, parameters: TensorList, group: Group, *, missed: int = 0) -> TensorList:
        """Create missing states; return the parameters that move in this step."""
        names, moving = self.rule.buffer_names(group), []
        for parameter in parameters:
            state = self.state.get(parameter)
            if state:
                _fit_state(state, parameter, names)
                moving.append(parameter)
                continue
            state = self._new_state(parameter, group)
            note_missed(state, missed)
            self.state[parameter] = state
            if not self.rule.rests_first:
                moving.append(parameter)
        return moving

    def _new_state(self, parameter: Tensor, group: Group) -> State:
        point = as_pair(wide(parameter, {}))
        state = self._start(point, _gradient(parameter, point.dtype, group), group)
        if parameter.is_complex():
            state |= {name: torch.view_as_complex(state[name]) for name in self.point_names}
        return state

    def _initial_state(self, parameter: Tensor, group: Group) -> State:
        state = self._new_state(parameter, group)
        if self.keeps_low_part and is_narrow(parameter.dtype):
            low_of(parameter, state)
        if self._counts_missed():
            note_missed(state, -1)
        return state

    def _lineage(self) -> dict[str, Any]:
        owner = next(one for one in type(self).__mro__ if "rule" in vars(one))
        return {"name": type(self).__name__, "form": owner.__name__}

    def _required(self, group: Group) -> frozenset[str]:
        return frozenset((*self.point_names, *self.rule.buffer_names(group)))

    def _knows(self, name: str, group: Group) -> bool:
        return name == "low" or super()._knows(name, group)

    def _counts_missed(self) -> bool:
        return self.rule.depends_on_age

    def _batch_of(self, parameters: TensorList, group: Group, pace: Pace) -> Batch:
        states: list[State] = [self.state[parameter] for parameter in parameters]
        points = parameters
        if any(is_narrow(p.dtype) or p.is_complex() for p in parameters):
            points = [as_pair(wide(p, s)) for p, s in zip(parameters, states, strict=True)]
        gradients = [_gradient(p, q.dtype, group) for p, q in zip(parameters, points, strict=True)]
        return Batch(points, gradients, states, group, pace)

    def _narrow(self, parameters: TensorList, batch: Batch) -> None:
        """Round the batch's points into their narrow parameters, and keep what rounding took."""
        roundings = self._rounding(parameters, batch.group, batch.pace)
        for parameter, point, state, rounding in zip(
            parameters, batch.points, batch.states, roundings, strict=True
        ):
            if not is_narrow(parameter.dtype):
                continue
            stochastically_round_into(parameter, point, key=rounding.key)
            if self.keeps_low_part:
                keep_low_part(point, parameter, state)


def _fit_state(state: State, parameter: Tensor, names: Sequence[str]) -> None:
    """Convert a state to the arithmetic's dtype, if it or the model was loaded in another one.

    A buffer that only a later setting requires starts at zero.
    """
    dtype = working_dtype(parameter.dtype)
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(as_pair(parameter), dtype=dtype.to_real())
    for name in ("z", *names):
        buffer = state.get(name)
        if buffer is None or buffer.dtype is dtype:
            continue
        fitting = dtype if buffer.is_complex() else dtype.to_real()
        if buffer.dtype != fitting:
            state[name] = buffer.to(fitting)


def _gradient(parameter: Tensor, dtype: torch.dtype, group: Group) -> Tensor:
    """Return the gradient to descend, real and in this dtype."""
    gradient = as_pair(gradient_of(parameter, group))
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def batches(tensors: Sequence[Tensor], *, is_batched: bool) -> Iterator[TensorList]:
    """Split into lists of one kind within the device's limit, or of one tensor each.

    torch's list operations (2.13) take no plain and distributed tensors together, nor those of
    several meshes; torch's own optimizers take them one by one.
    """
    for kind in by_kind(tensors):
        yield from _consecutive(kind, is_batched=is_batched)


def _consecutive(tensors: Sequence[Tensor], *, is_batched: bool) -> Iterator[TensorList]:
    batch: TensorList = []
    num_elements = 0
    for tensor in tensors:
        num_elements += tensor.numel()
        if batch and (not is_batched or _is_too_large(num_elements, tensor)):
            yield batch
            batch, num_elements = [], tensor.numel()
        batch.append(tensor)
    if batch:
        yield batch


def _is_too_large(num_elements: int, tensor: Tensor) -> bool:
    # The number first: it costs nothing to ask for.
    return num_elements > _CPU_ELEMENTS and (tensor.is_cpu or num_elements > _DEVICE_ELEMENTS)
