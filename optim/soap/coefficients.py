"""How much of the past each running average of SOAP keeps, at each age of a tensor."""

from dataclasses import dataclass

from roadless.optim.rules.base import Group
from roadless.optim.rules.moments import debiased, palm_beta2


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The numbers of one step for one tensor."""

    #: β of m; None: no momentum, as where the averaging takes its place.
    beta1: float | None
    #: β of v.
    beta2: float
    #: β of the factors.
    factor_beta: float
    #: ε: the smallest denominator.
    eps: float


def coefficients_of(group: Group, *, t: int, has_momentum: bool) -> Coefficients:
    """Return the numbers of a tensor's t-th update, from 1; its first gradient is not counted.

    The factors have seen that gradient too, so they are one step older than the moments.
    """
    correct = debiased if group["correct_bias"] else _as_it_is
    shampoo_beta = group["shampoo_beta"]
    factor_beta = _beta2(group, t + 1) if shampoo_beta is None else shampoo_beta
    return Coefficients(
        beta1=correct(float(group["betas"][0]), t) if has_momentum else None,
        beta2=correct(_beta2(group, t), t),
        factor_beta=debiased(factor_beta, t + 1),
        eps=group["eps"],
    )


def _beta2(group: Group, t: int) -> float:
    if group["palm_beta2"]:
        return palm_beta2(t, scale=group["beta2_scale"])
    return float(group["betas"][1])


def _as_it_is(beta: float, _t: int) -> float:
    return beta
