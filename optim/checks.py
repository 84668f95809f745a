"""Checks of hyper-parameters: each error says what was expected and what was seen.

A number is an int, a float, a NumPy number or a tensor of one element. Text is none, even if
``float`` can read it: a YAML file says ``1e-8`` and PyYAML 6 gives a string, which would only fail
in the first step, or be compared as text. Neither is a bool.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def require_at_least_zero(settings: Mapping[str, Any], *names: str) -> None:
    """Refuse a setting that is negative, infinite or NaN; a one-element tensor counts as a number.

    Raises:
        ValueError: naming the first setting that is not a finite number >= 0.
    """
    for name in names:
        if not 0 <= _number(name, settings[name]) < math.inf:
            raise _unexpected(name, "a finite number >= 0", settings[name])


def require_above_zero(settings: Mapping[str, Any], *names: str) -> None:
    """Refuse a setting that is not positive, or is infinite or NaN.

    Raises:
        ValueError: naming the first setting that is not a finite number > 0.
    """
    for name in names:
        if not 0 < _number(name, settings[name]) < math.inf:
            raise _unexpected(name, "a finite number > 0", settings[name])


def require_inside_unit_interval(name: str, value: Any) -> None:
    """Refuse a value that is not strictly between 0 and 1.

    Raises:
        ValueError: naming the setting.
    """
    if not 0 < _number(name, value) < 1:
        raise _unexpected(name, "a number > 0 and < 1", value)


def require_ema_coefficient(name: str, value: Any) -> None:
    """Refuse a value outside [0, 1).

    Raises:
        ValueError: naming the setting.
    """
    if not 0 <= _number(name, value) < 1:
        raise _unexpected(name, "a number >= 0 and < 1", value)


def require_steps(settings: Mapping[str, Any], *names: str) -> None:
    """Refuse a number of steps that is not a whole number >= 0; 1000.0 is one, 0.05 is none.

    Raises:
        ValueError: naming the first such setting. A share of the steps, as some trainers take for
            their warmup, would otherwise mean no warmup at all.
    """
    for name in names:
        number = _number(name, settings[name])
        if not (0 <= number < math.inf and number == math.floor(number)):
            raise _unexpected(name, "a whole number of steps >= 0", settings[name])


def require_whole_number(name: str, value: Any, *, least: int) -> None:
    """Refuse anything but an int >= ``least``.

    Raises:
        ValueError: naming the setting.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise _unexpected(name, f"a whole number >= {least}", value)


def require_bool(settings: Mapping[str, Any], *names: str) -> None:
    """Refuse anything but True and False; the text "false" would count as true.

    Raises:
        ValueError: naming the first setting that is neither.
    """
    for name in names:
        if not isinstance(settings[name], bool | np.bool_):
            raise _unexpected(name, "True or False", settings[name])


def require_pair(name: str, value: Any) -> None:
    """Refuse anything but a tuple or list of two.

    Raises:
        ValueError: naming the setting.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _unexpected(name, "a pair of numbers", value)


def plain(value: Any) -> Any:
    """Return a setting with numbers of NumPy and tensors of one element as Python's own.

    torch's operators take such a tensor for some arguments and not for others.
    """
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value)) if type(value) in (tuple, list) else value
    is_one = hasattr(value, "item") and math.prod(getattr(value, "shape", (2,))) == 1
    return value.item() if is_one else value


def _number(name: str, value: Any) -> float:
    if type(value) is float:  # the usual case, and every step asks
        return value
    # A tensor is known by its method, so that the parts without torch stay so.
    is_number = isinstance(value, int | float) or hasattr(value, "item")
    dtype = getattr(value, "dtype", None)
    is_text = getattr(dtype, "kind", "f") not in "iuf"
    if not is_number or is_text or isinstance(value, bool) or str(dtype) == "torch.bool":
        raise _unexpected(name, "one number", value)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unexpected(name, "one number", value) from error


def _unexpected(name: str, expected: str, seen: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, seen {seen!r}")
