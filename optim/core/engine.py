"""The engine: a base rule, run over batches of parameters in working precision by some backend.

How the parts meet, for who adds one:

* A **rule** (`roadless.optim.rules.base.Rule`, one small file) says how u comes from a gradient.
* An optimizer **chooses its averaging by its base class**: `roadless.optim.core.descent.Descent`
  moves the parameter itself, `roadless.optim.schedule_free.fast.FastScheduleFree` moves y and z
  around the average x. Both are engines; they differ in `_move` and in where x is.
* A named optimizer is a thin declaration: signature, ``rule``, and a docstring.
* A **backend** (`roadless.optim.backends`) may take over the whole update of parameters: rule,
  decay and averaging in one pass over memory. It is given tensors and the numbers of the step, from
  the rule's ``kernel`` and the engine's ``_kernel_move``, and does what `_update_batch` does.
* **Precision** (`roadless.optim.numerics.precision`) widens narrow parameters before, and rounds
  them after, by the group's ``rounding_seed``.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.averaging import Pace
from roadless.optim.backends.choose import is_worth_a_kernel, prepared, run_where_possible
from roadless.optim.backends.form import Direction, Move, Rounding, Tensors
from roadless.optim.backends.repeat import Repeat
from roadless.optim.core.averaged_optimizer import AveragedOptimizer
from roadless.optim.numerics.precision import is_narrow, keep_low_part, low_of, wide, working_dtype
from roadless.optim.numerics.rounding import rounding_key, stochastically_round_into
from roadless.optim.numerics.sharding import first_index
from roadless.optim.rules.base import Batch, Group, Rule, State, TensorList

#: Elements that one list operation touches per operand. On a CPU operands then stay in its cache;
#: elsewhere temporaries stay small next to the parameters. A larger tensor goes alone.
_CPU_ELEMENTS = 2**16
_DEVICE_ELEMENTS = 2**24
#: What kernels call the tensors of a state.
_KERNEL_LETTERS = {"z": "z", "v": "exp_avg_sq", "m": "exp_avg"}


class Engine(AveragedOptimizer):
    """An optimizer that is a base rule and a way of moving by it."""

    #: The base rule, with its policies.
    rule: ClassVar[Rule]
    #: Whether to remember what rounding takes from a narrow point. Where the loss sees the point
    #: itself it corrects the rounding; where the point stands for another one nothing does.
    keeps_low_part: ClassVar[bool] = False
    #: What its states hold beside the rule's buffers: points that move with the parameter.
    point_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: ParamsT, settings: Group) -> None:
        super().__init__(params, settings, memory={"rounding_seed": 0})

    @abstractmethod
    def _move(self, batch: Batch, us: TensorList) -> None:
        """Move the batch's points by -γ (u + λ · point), and average."""

    @abstractmethod
    def _kernel_move(self, group: Group, pace: Pace) -> Move:
        """Return what `_move` does, as the numbers of a kernel."""

    @abstractmethod
    def _start(self, point: Tensor, gradient: Tensor, group: Group) -> State:
        """Return the state of a parameter that has its first gradient."""

    def _check(self, group: Group) -> None:
        self.rule.check(group)

    def _update(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        if self._is_repeated(parameters, group, pace):
            return
        is_batched = group.get("foreach", True) is not False
        moving = self._started(parameters, group)
        left = self._left_by_kernels(moving, group, pace)
        for some in batches(left, is_batched=is_batched):
            batch = self._batch_of(some, group, pace)
            self._update_batch(batch)
            if batch.points is not some:
                self._narrow(some, batch)

    def _left_by_kernels(self, parameters: TensorList, group: Group, pace: Pace) -> TensorList:
        """Let backends do what they can, in one pass over memory; return who is left."""
        num_elements = sum(p.numel() for p in self._all_parameters())
        direction = self.rule.kernel(group, pace.t)
        if not parameters or direction is None:
            return parameters
        if not is_worth_a_kernel(num_elements, parameters[0].device.type):
            return parameters
        move, left = self._kernel_move(group, pace), []
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            equal = [p for p in parameters if p.dtype == dtype]
            tensors = self._kernel_tensors(equal, group, pace)
            if self._is_prepared(tensors, group, move=move, direction=direction):
                continue
            done = run_where_possible(tensors, move=move, direction=direction)
            left += [p for i, p in enumerate(equal) if i not in done]
        return left

    def _is_prepared(
        self, tensors: Tensors, group: Group, *, move: Move, direction: Direction
    ) -> bool:
        """Let one kernel do all of it, and keep how: the next step may be like this one."""
        job = prepared(tensors)
        if job is None:
            return False
        job.run([g.data_ptr() for g in tensors.gradients], move=move, direction=direction)
        self._forget_repeats(keep={id(group) for group in self.param_groups})
        names = self._kernel_names(group)
        self._repeats[id(group)] = Repeat.of(job, tensors.points, self.state, names)
        return True

    def _forget_repeats(self, *, keep: Collection[int] = ()) -> None:
        """Let go of the states of groups that are no more."""
        for key in self._repeats.keys() - keep:
            del self._repeats[key]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `AveragedOptimizer`; what was known of the old state goes with it."""
        self._forget_repeats()
        super().load_state_dict(state_dict)

    def _is_repeated(self, parameters: TensorList, group: Group, pace: Pace) -> bool:
        """Take the step as the one before was taken, if nothing has moved and all is as it was."""
        repeat = self._repeats.get(id(group))
        if repeat is None or repeat.names != self._kernel_names(group):
            return False
        gradients = repeat.gradients(parameters, self.state)
        direction = self.rule.kernel(group, pace.t)
        if gradients is None or direction is None:
            return False
        move = self._kernel_move(group, pace)
        repeat.prepared.run(gradients, move=move, direction=direction)
        return True

    @property
    def _repeats(self) -> dict[int, Repeat]:
        """By group. Not part of the state, and not copied with it."""
        repeats: dict[int, Repeat] = vars(self).setdefault("_kept_repeats", {})
        return repeats

    def _kernel_names(self, group: Group) -> tuple[str, ...]:
        """Return what the states have that kernels use."""
        return (*self.point_names, *self.rule.buffer_names(group))

    def _kernel_tensors(self, parameters: TensorList, group: Group, pace: Pace) -> Tensors:
        states = [self.state[p] for p in parameters]
        names = self._kernel_names(group)
        columns = {
            letter: [state[name] for state in states if name in names and name in state]
            for letter, name in _KERNEL_LETTERS.items()
        }
        gradients = [p.grad for p in parameters if p.grad is not None]
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

    def _started(self, parameters: TensorList, group: Group) -> TensorList:
        """Give a state to who has none; return who moves in this step."""
        names, moving = self.rule.buffer_names(group), []
        for parameter in parameters:
            state = self.state.get(parameter)
            if state:
                _fit_state(state, parameter, names)
                moving.append(parameter)
                continue
            point = wide(parameter, {})
            self.state[parameter] = self._start(point, _gradient(parameter, point.dtype), group)
            if not self.rule.rests_first:
                moving.append(parameter)
        return moving

    def _batch_of(self, parameters: TensorList, group: Group, pace: Pace) -> Batch:
        states: list[State] = [self.state[parameter] for parameter in parameters]
        points = parameters
        if any(is_narrow(p.dtype) for p in parameters):
            points = [wide(p, state) for p, state in zip(parameters, states, strict=True)]
        gradients = [_gradient(p, q.dtype) for p, q in zip(parameters, points, strict=True)]
        return Batch(points, gradients, states, group, pace)

    def _narrow(self, parameters: TensorList, batch: Batch) -> None:
        """Round the batch's points into their narrow parameters, and keep what rounding took."""
        roundings = self._rounding(parameters, batch.group, batch.pace)
        for parameter, point, state, rounding in zip(
            parameters, batch.points, batch.states, roundings, strict=True
        ):
            if point is parameter:
                continue
            stochastically_round_into(parameter, point, key=rounding.key)
            if self.keeps_low_part:
                keep_low_part(point, parameter, state)

    def _all_parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)


def _fit_state(state: State, parameter: Tensor, names: Sequence[str]) -> None:
    """Bring a state to the arithmetic's dtype, if it or the model came in another one.

    A buffer that only a later setting asks for starts at zero.
    """
    dtype = working_dtype(parameter.dtype)
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(parameter, dtype=dtype)
    for name in ("z", *names):
        buffer = state.get(name)
        if buffer is not None and buffer.dtype != dtype:
            state[name] = buffer.to(dtype)


def _gradient(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def batches(tensors: Sequence[Tensor], *, is_batched: bool) -> Iterator[TensorList]:
    """Split into lists of neighbours that stay within the device's limit, or of one tensor each."""
    batch: TensorList = []
    num_elements = 0
    for tensor in tensors:
        num_elements += tensor.numel()
        if batch and (not is_batched or num_elements > _max_elements(tensor)):
            yield batch
            batch, num_elements = [], tensor.numel()
        batch.append(tensor)
    if batch:
        yield batch


def _max_elements(tensor: Tensor) -> int:
    return _CPU_ELEMENTS if tensor.device.type == "cpu" else _DEVICE_ELEMENTS
