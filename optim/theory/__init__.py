"""The convex bound on the loss under a schedule, and its fit to a run; numpy only."""

from roadless.optim.theory.bounds import (
    BoundTerms,
    averaged_bounds_at,
    averaging_weights,
    bound,
    bounds_at,
    optimal_base,
    schedule_free_bound,
    schedule_free_bounds_at,
    split_bound,
    split_schedule_free_bound,
    tuned_schedule_free,
)
from roadless.optim.theory.fitting import DistanceFit, LossFit, fit_distance, fit_losses

__all__ = [
    "BoundTerms",
    "DistanceFit",
    "LossFit",
    "averaged_bounds_at",
    "averaging_weights",
    "bound",
    "bounds_at",
    "fit_distance",
    "fit_losses",
    "optimal_base",
    "schedule_free_bound",
    "schedule_free_bounds_at",
    "split_bound",
    "split_schedule_free_bound",
    "tuned_schedule_free",
]
