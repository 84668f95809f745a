"""Checks of hyper-parameters: each error says what was expected and what was seen."""

import math
from collections.abc import Mapping
from typing import Any


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


def require_pair(name: str, value: Any) -> None:
    """Refuse anything but a tuple or list of two.

    Raises:
        ValueError: naming the setting.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _unexpected(name, "a pair of numbers", value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unexpected(name, "one number", value) from error


def _unexpected(name: str, expected: str, seen: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, seen {seen!r}")
