"""Learning-rate schedules as arrays, by class and by name; numpy only."""

from roadless.optim.schedules.by_name import named_schedule, rates
from roadless.optim.schedules.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OneMinusSqrtSchedule,
    PiecewiseConstantSchedule,
    PolynomialBackwardSchedule,
    PolynomialCooldownSchedule,
    ScheduleBase,
    SqrtSchedule,
    WSDSchedule,
    compute_optimal_base,
)

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "LinearSchedule",
    "OneMinusSqrtSchedule",
    "PiecewiseConstantSchedule",
    "PolynomialBackwardSchedule",
    "PolynomialCooldownSchedule",
    "ScheduleBase",
    "SqrtSchedule",
    "WSDSchedule",
    "compute_optimal_base",
    "named_schedule",
    "rates",
]
