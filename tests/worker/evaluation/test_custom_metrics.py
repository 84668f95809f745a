"""Custom metrics: only functions that the operator allows, and only what is a metric."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roadless.service.contract.job.evaluation_sets import CustomMetric as Spec
from roadless.service.contract.states import RETRYABLE, Reason
from roadless.worker.data.base import DataSet
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.data.prepared.token_dataset import TokenString, TokenWindows
from roadless.worker.errors import JobFailed
from roadless.worker.evaluation.custom_metrics import CustomMetric, load_metrics, try_out
from roadless.worker.model.sources import ENTRY_POINTS_VARIABLE
from roadless.worker.rank_launch import ModelSources

MODULE = "metric_functions"
DIGITS = Digits()
OUTPUTS = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])
TARGETS = torch.tensor([1, 1])


def load(function: str, *, allowed: tuple[str, ...] | None = None, **arguments: Any) -> Any:
    name = f"{MODULE}:{function}"
    spec = Spec(name="mine", entry_point=name, arguments=arguments)
    listed = (name,) if allowed is None else allowed
    (metric,) = load_metrics((spec,), sources=ModelSources(entry_points=listed))
    return metric


def fault(function: str, *, outputs: torch.Tensor = OUTPUTS) -> str:
    metric = load(function)
    with pytest.raises(JobFailed) as caught, torch.no_grad():
        metric.scores(outputs.clone(), TARGETS.clone())
    assert caught.value.reason is Reason.METRIC_INVALID
    assert str(caught.value).startswith(f"metric 'mine': expected {MODULE}:{function} to ")
    return str(caught.value)


def test_each_sample_gets_a_number_in_double_precision() -> None:
    found = load("top", k=1).scores(OUTPUTS, TARGETS)
    assert found.dtype is torch.float64
    assert found.tolist() == [1.0, 0.0]


def test_the_arguments_of_the_job_reach_the_function() -> None:
    assert load("top", k=2).scores(OUTPUTS, TARGETS).tolist() == [1.0, 0.0]
    assert load("top").scores(OUTPUTS, TARGETS).tolist() == [1.0, 1.0]
    with pytest.raises(JobFailed, match="unexpected keyword argument 'depth'"):
        load("top", depth=2).scores(OUTPUTS, TARGETS)


def test_a_number_that_is_not_finite_is_a_number() -> None:
    assert load("not_finite").scores(OUTPUTS, TARGETS).tolist() == [float("inf")] * 2


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        ("failing", "RuntimeError: no such thing\n  at "),
        ("leaving", "SystemExit: no licence\n  at "),
        ("one_number", "saw float"),
        ("one_mean", "float32 of shape ()"),
        ("whole_numbers", "int64 of shape (2,)"),
        ("too_many", "float32 of shape (2, 1)"),
        ("changing_targets", "saw a change in place"),
        ("changing_outputs", "saw a change in place"),
    ],
)
def test_what_is_no_metric_fails_by_name(function: str, seen: str) -> None:
    assert seen in fault(function)


@pytest.mark.parametrize(
    "error", [MemoryError("no more"), torch.OutOfMemoryError("CUDA out of memory")], ids=repr
)
def test_want_of_memory_is_no_fault_of_the_metric(error: Exception) -> None:
    def greedy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)):
        CustomMetric("mine", "any:greedy", greedy, {}).scores(OUTPUTS, TARGETS)


def test_a_metric_that_draws_is_refused_before_training() -> None:
    """Nobody would find its number again: neither who downloads the model nor another rank."""
    with pytest.raises(JobFailed, match="to score a batch alike each time") as caught:
        try_out((load("drawing"),), data=DIGITS, task="classification")
    assert caught.value.reason is Reason.METRIC_INVALID


def test_a_module_that_fails_while_it_is_imported_is_its_owners_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_metrics.py").write_text("WEIGHT = 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "broken_metrics:score"
    spec = Spec(name="mine", entry_point=name)
    with pytest.raises(JobFailed, match=r"at broken_metrics\.py:1 in ") as caught:
        load_metrics((spec,), sources=ModelSources(entry_points=(name,)))
    assert caught.value.reason is Reason.METRIC_INVALID
    assert caught.value.reason not in RETRYABLE


@pytest.mark.parametrize("listed", [(), (f"{MODULE}:other",), (MODULE,), (f"{MODULE}:top_5",)])
def test_what_the_operator_does_not_list_in_full_is_forbidden(listed: tuple[str, ...]) -> None:
    """And not imported: importing a module runs it."""
    sys.modules.pop(MODULE, None)
    with pytest.raises(JobFailed, match=ENTRY_POINTS_VARIABLE) as caught:
        load("top", allowed=listed)
    assert caught.value.reason is Reason.METRIC_FORBIDDEN
    assert MODULE not in sys.modules


@pytest.mark.parametrize("name", [f"{MODULE}:absent", "no_such_module:top"])
def test_a_function_that_is_not_installed_is_not_found(name: str) -> None:
    spec = Spec(name="mine", entry_point=name)
    with pytest.raises(JobFailed, match="to be installed on this node") as caught:
        load_metrics((spec,), sources=ModelSources(entry_points=(name,)))
    assert caught.value.reason is Reason.METRIC_NOT_FOUND


def test_none_of_these_is_tried_again() -> None:
    reasons = {Reason.METRIC_FORBIDDEN, Reason.METRIC_NOT_FOUND, Reason.METRIC_INVALID}
    assert not reasons & RETRYABLE


# ---- the trial ----------------------------------------------------------------------------------


class Recording:
    """Takes part in a trial as a metric, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], list[Any]]] = []

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append((tuple(outputs.shape), targets.tolist()))
        return torch.zeros(len(targets))


def tried(data: DataSet, task: Any) -> list[tuple[tuple[int, ...], list[Any]]]:
    recording = Recording()
    try_out((CustomMetric("mine", "a:b", recording, {}),), data=data, task=task)
    return recording.seen


def windows(*, context: int, vocabulary: int = 7) -> TokenWindows:
    tokens = np.arange(8 * context, dtype=np.uint16) % np.uint16(vocabulary)
    string = TokenString(tokens, 4 * context, vocabulary, 0.0, "", "test")
    return TokenWindows(string, context=context)


def test_outputs_of_a_trial_have_the_shape_of_the_models() -> None:
    assert tried(DIGITS, "classification") == [((2, 10), DIGITS.eval_batch(0, 2).targets.tolist())]
    data = windows(context=4)
    assert tried(data, "causal_lm") == [((2, 4, 7), data.eval_batch(0, 2).targets.tolist())]


def test_outputs_that_would_fill_the_memory_are_not_made() -> None:
    assert tried(windows(context=1024, vocabulary=60_000), "causal_lm") == []


def test_what_does_not_fit_fails_in_the_trial() -> None:
    with pytest.raises(JobFailed, match="float32 of shape"):
        try_out((load("too_many"),), data=DIGITS, task="classification")
