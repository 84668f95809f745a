"""Checks of SOAP's settings: each error says what was expected and what was seen."""

from roadless.optim.checks import (
    require_above_zero,
    require_at_least_zero,
    require_bool,
    require_ema_coefficient,
    require_pair,
    require_whole_number,
)
from roadless.optim.rules.base import Group

_SWITCHES = (
    "merge_dims",
    "precondition_1d",
    "normalize_grads",
    "correct_bias",
    "palm_beta2",
    "precond_schedule",
)
_CHOICES = {
    "data_format": ("channels_first", "channels_last"),
    "precond_timing": ("even", "chance"),
}


def check_soap(group: Group) -> None:
    """Check the settings specific to SOAP.

    Raises:
        ValueError: naming the setting.
    """
    if "schedule_free" in group:
        raise ValueError(
            "schedule_free: expected among the constructor's arguments, as it holds for all "
            f"groups, seen {group['schedule_free']!r} in a group; make two optimizers"
        )
    require_pair("betas", group["betas"])
    require_ema_coefficient("betas[0]", group["betas"][0])
    require_ema_coefficient("betas[1]", group["betas"][1])
    if group["shampoo_beta"] is not None:
        require_ema_coefficient("shampoo_beta", group["shampoo_beta"])
    require_at_least_zero(group, "eps", "beta2_scale", "gradient_clip_val", "r", "weight_lr_power")
    require_bool(group, *_SWITCHES)
    for name in ("precondition_frequency", "max_precond_dim"):
        require_whole_number(name, group[name], least=1)
    require_whole_number("precond_seed", group["precond_seed"], least=0)
    _require_powers(group)
    for name, choices in _CHOICES.items():
        if group[name] not in choices:
            raise ValueError(f"{name}: expected one of {choices}, seen {group[name]!r}")


def _require_powers(group: Group) -> None:
    require_pair("precond_scheduler", group["precond_scheduler"])
    power, exponent = group["precond_scheduler"]
    require_at_least_zero({"precond_scheduler[0]": power}, "precond_scheduler[0]")
    require_above_zero({"precond_scheduler[1]": exponent}, "precond_scheduler[1]")
