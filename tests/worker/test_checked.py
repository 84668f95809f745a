"""What a fresh process computes again: the first batches of an evaluation, or what counts of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_bench import build, make_spec

from roadless.worker.data.base import UNCOUNTED, Batch
from roadless.worker.evaluation.evaluate import CHECKED_BATCHES, reevaluate
from roadless.worker.evaluation.sets import Datasets


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 40), max_batches=st.integers(1, 12))
def test_it_is_an_evaluation_of_the_first_batches_alone(batch_size: int, max_batches: int) -> None:
    """In every bit, so that nobody need evaluate the rest to compare."""
    spec = make_spec(evaluation={"batch_size": batch_size, "max_batches": max_batches})
    setup = build(spec)
    checked = reevaluate(setup.model, datasets=setup.datasets, spec=spec).checked
    first = min(max_batches, CHECKED_BATCHES)
    limited = spec.evaluation.model_copy(update={"max_batches": first})
    alone = reevaluate(
        setup.model,
        datasets=setup.datasets,
        spec=spec.model_copy(update={"evaluation": limited}),
    )
    assert checked.num_examples == alone.num_examples
    assert checked.loss.hex() == alone.loss.hex() == alone.checked.loss.hex()


class LateTargets:
    """The held-out data of another set, of which the first targets do not count."""

    def __init__(self, data: Any, *, num_uncounted: int) -> None:
        self._data, self._num_uncounted = data, num_uncounted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def eval_batch(self, start: int, stop: int) -> Batch:
        batch = self._data.eval_batch(start, stop)
        is_counted = torch.arange(start, stop) >= self._num_uncounted
        return replace(batch, targets=batch.targets.where(is_counted, UNCOUNTED))


@pytest.mark.parametrize(("num_uncounted", "num_checked"), [(0, 8), (7, 8), (8, 12), (11, 12)])
def test_where_nothing_counts_in_the_first_batches_all_are_computed(
    tmp_path: Path, num_uncounted: int, num_checked: int
) -> None:
    spec = make_spec(evaluation={"batch_size": 1, "max_batches": 12})
    setup = build(spec)
    data = LateTargets(setup.datasets.validation, num_uncounted=num_uncounted)
    result = reevaluate(setup.model, datasets=Datasets.of(data), spec=spec)  # type: ignore[arg-type]
    assert result.checked.num_examples == num_checked
    assert result.checked.loss == pytest.approx(result.loss, rel=0.9)
    if num_checked == 12:
        assert result.checked.loss == result.loss
