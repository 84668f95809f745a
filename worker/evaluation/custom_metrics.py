"""Metrics of a package on this node: one number per held-out sample, from a named function.

What such a function returns is checked at every call, since nothing is known about it. It is tried
out before training starts, so that a misfit fails immediately and by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from roadless.service.contract.job.evaluation_sets import CustomMetric as CustomMetricSpec
from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import DataSet
from roadless.worker.errors import MetricForbidden, MetricInvalid, MetricNotFound
from roadless.worker.model.entry_point import load
from roadless.worker.model.faults import blaming
from roadless.worker.model.random_states import random_states
from roadless.worker.rank_launch import ModelSources

_FLOATS = (torch.float32, torch.float64)
#: Two, since a function may wrongly assume a single one.
_TRIAL_SAMPLES = 2
#: The most outputs of a trial: 256 MiB. For a model with more, an evaluation tries its metrics.
_TRIAL_OUTPUTS = 2**26


@dataclass(frozen=True)
class CustomMetric:
    """A function that the job names, with the arguments that it gives."""

    name: str
    entry_point: str
    function: Callable[..., object]
    arguments: Mapping[str, Any]

    def scores(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return float64 of shape (samples,): what the function finds for each sample.

        Shapes as in ``roadless.worker.evaluation.task.training_loss``. Values may be NaN or
        infinite. Raises MetricInvalid when the function fails, returns anything but one float per
        sample, or modifies its inputs, which are the data set itself.
        """
        before = outputs._version, targets._version
        with blaming(self._invalid, f"{self.entry_point} to score a batch"):
            found = self.function(outputs, targets, **self.arguments)
        if (outputs._version, targets._version) != before:
            raise self.refused("to leave outputs and targets as they are", "a change in place")
        if not isinstance(found, torch.Tensor):
            raise self.refused("to return a tensor", type(found).__name__)
        if found.dtype not in _FLOATS or found.shape != (len(targets),):
            raise self.refused(
                f"to return float32 or float64 of shape ({len(targets)},), a number a sample",
                f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}",
            )
        return found.double()

    def refused(self, expected: str, seen: str) -> MetricInvalid:
        """Return the error that names this metric."""
        return self._invalid(f"expected {self.entry_point} {expected}, saw {seen}")

    def _invalid(self, message: str) -> MetricInvalid:
        return MetricInvalid(f"metric {self.name!r}: {message}")


def load_metrics(
    specs: tuple[CustomMetricSpec, ...], *, sources: ModelSources
) -> tuple[CustomMetric, ...]:
    """Return the metrics that a job names, in its order.

    Raises MetricForbidden unless the operator lists each function, in the list that models use
    too, and MetricNotFound if one is not installed.
    """
    return tuple(
        CustomMetric(
            spec.name,
            spec.entry_point,
            load(
                spec.entry_point,
                sources=sources,
                forbidden=MetricForbidden,
                not_found=MetricNotFound,
                broken=MetricInvalid,
            ),
            spec.arguments,
        )
        for spec in specs
    )


def try_out(metrics: tuple[CustomMetric, ...], *, data: DataSet, task: Task) -> None:
    """Call each metric with outputs of zeros and the first held-out targets.

    Raises MetricInvalid for one that fails, or returns what a metric must not.
    """
    targets = data.eval_batch(0, min(_TRIAL_SAMPLES, data.num_eval)).targets
    samples = targets.shape if task == "causal_lm" else targets.shape[:1]
    shape = (*samples, data.description.num_outputs)
    if torch.Size(shape).numel() > _TRIAL_OUTPUTS:
        return
    outputs = torch.zeros(shape)
    with torch.no_grad():
        for metric in metrics:
            states = random_states()
            found = metric.scores(outputs, targets)
            if random_states() != states and not _is_same(found, metric.scores(outputs, targets)):
                raise metric.refused("to score a batch alike each time", "that it draws anew")


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.nan_to_num().equal(other.nan_to_num())
