"""Checks of SOAP's settings: each error says what was expected and what was seen."""

from roadless.optim.checks import (
    require_at_least_zero,
    require_ema_coefficient,
    require_pair,
)
from roadless.optim.rules.base import Group

_CHOICES = {
    "data_format": ("channels_first", "channels_last"),
    "precond_timing": ("even", "chance"),
}


def check_soap(group: Group) -> None:
    """Check the settings specific to SOAP.

    Raises:
        ValueError: naming the setting.
    """
    require_pair("betas", group["betas"])
    require_ema_coefficient("betas[0]", group["betas"][0])
    require_ema_coefficient("betas[1]", group["betas"][1])
    if group["shampoo_beta"] is not None:
        require_ema_coefficient("shampoo_beta", group["shampoo_beta"])
    require_at_least_zero(group, "eps", "beta2_scale", "gradient_clip_val")
    _require_count(group, "precondition_frequency")
    _require_count(group, "max_precond_dim")
    _require_powers(group)
    for name, choices in _CHOICES.items():
        if group[name] not in choices:
            raise ValueError(f"{name}: expected one of {choices}, seen {group[name]!r}")


def _require_count(group: Group, name: str) -> None:
    if not isinstance(group[name], int) or group[name] < 1:
        raise ValueError(f"{name}: expected a whole number >= 1, seen {group[name]!r}")


def _require_powers(group: Group) -> None:
    require_pair("precond_scheduler", group["precond_scheduler"])
    power, exponent = group["precond_scheduler"]
    if not (power >= 0 and exponent > 0):
        raise ValueError(
            "precond_scheduler: expected a power >= 0 and an exponent > 0, "
            f"seen {power!r}, {exponent!r}"
        )
