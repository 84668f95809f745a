"""A gradient and a state have their parameter's shape, or the step is refused.

torch lets a parameter be cut or replaced through ``.data`` and leaves the gradient that it has as
it was; of an optimizer's state it does not know. Its operators then broadcast what happens to fit.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from roadless.optim.numerics.complex_pairs import as_pair
from roadless.optim.rules.base import State


def require_fitting_states(
    parameters: Iterable[Tensor], states: Mapping[Any, State], names: Sequence[str]
) -> None:
    """Refuse states that lack something, or whose tensors do not fit their parameter.

    Args:
        parameters: of any shapes.
        states: by parameter; empty ones are passed over.
        names: of the tensors that every state has, as large as the parameter.

    Raises:
        ValueError: with what was expected and seen.
    """
    for parameter in parameters:
        _require_no_flag("params", parameter)
        if state := states.get(parameter):
            _require_fitting_state(state, parameter, names)


def _require_fitting_state(state: State, parameter: Tensor, names: Sequence[str]) -> None:
    for name in names:
        if name not in state:
            raise ValueError(f"state: expected {name!r} in it, seen {sorted(state)}; delete it")
        _require_no_flag(f"state {name!r}", state[name])
    require_shapes(state, parameter, (*names, "low"))


def require_shapes(state: State, parameter: Tensor, names: Iterable[str]) -> None:
    """Refuse a state with a tensor of another shape than its parameter, or the pair of its parts.

    Args:
        state: of the parameter.
        parameter: of any shape.
        names: of the tensors that are as large as the parameter, where the state has them.

    Raises:
        ValueError: with the name and both shapes.
    """
    for name in names:
        if name in state:
            require_shape(state[name], parameter, name=name)


def require_shape(tensor: Tensor, parameter: Tensor, *, name: str) -> None:
    """Refuse a tensor of a state that has another shape than its parameter.

    Raises:
        ValueError: with both shapes.
    """
    if tensor.shape not in (parameter.shape, as_pair(parameter).shape):
        raise ValueError(
            f"state {name!r}: expected the shape of its parameter, {tuple(parameter.shape)}, seen "
            f"{tuple(tensor.shape)}; cut the state as the parameter was cut, or delete it"
        )


def _require_no_flag(what: str, tensor: Tensor) -> None:
    """torch's list operations (2.13) do not write to tensors whose sign is in a flag."""
    if tensor.is_neg():
        raise ValueError(
            f"{what}: expected a tensor with numbers of its own, seen the lazy negative of others; "
            f"make it with resolve_neg()"
        )


def refuse_gradient(gradient: Tensor, parameter: Tensor) -> None:
    """Say that a gradient has another size than its parameter.

    Raises:
        ValueError: always, with both shapes.
    """
    raise ValueError(
        f"gradient: expected the shape of its parameter, {tuple(parameter.shape)}, seen "
        f"{tuple(gradient.shape)}; a gradient from before the parameter was cut must be deleted"
    )
