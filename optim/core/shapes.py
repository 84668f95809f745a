"""A gradient and a state have their parameter's shape, or the step is refused.

torch lets a parameter be cut or replaced through ``.data`` and leaves the gradient that it has as
it was; of an optimizer's state it does not know. Its operators then broadcast what happens to fit.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from roadless.optim.numerics.complex_pairs import as_pair
from roadless.optim.rules.base import State


def require_fitting_states(
    parameters: Iterable[Tensor], states: Mapping[Any, State], names: Iterable[str]
) -> None:
    """Refuse states that do not have the shape of their parameter.

    Args:
        parameters: of any shapes.
        states: by parameter; those without one are passed over.
        names: of the state's tensors that are as large as the parameter, where it has them. Of a
            complex one they may be pairs of reals.

    Raises:
        ValueError: with the name and both shapes.
    """
    for parameter in parameters:
        state = states.get(parameter, {})
        for name in names:
            if name in state and state[name].shape != parameter.shape:
                _refuse_other_shape(name, state[name], parameter)


def _refuse_other_shape(name: str, tensor: Tensor, parameter: Tensor) -> None:
    if tensor.shape != as_pair(parameter).shape:
        raise ValueError(
            f"state {name!r}: expected the shape of its parameter, {tuple(parameter.shape)}, seen "
            f"{tuple(tensor.shape)}; cut the state as the parameter was cut, or delete it"
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
