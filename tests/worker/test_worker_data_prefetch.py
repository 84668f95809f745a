"""Batches made ahead: the same values in the same steps, and the same errors."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_bench import Bench, bits, make_brief

from worker.data.prefetch import QUICK_IN_A_ROW, Prefetch
from worker.errors import DataUnreadable


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 4))
def test_any_order_of_steps_gets_what_was_made_for_each(steps, depth):
    prefetch = Prefetch(lambda step: ("batch", step), depth=depth)
    assert [prefetch(step) for step in steps] == [("batch", step) for step in steps]
    prefetch.close()


def test_steps_in_a_row_are_made_once_each_in_order_and_never_too_far_ahead():
    made: list[int] = []
    prefetch = Prefetch(lambda step: made.append(step) or step, depth=2)
    for step in range(5, 20):
        assert prefetch(step) == step
        time.sleep(0.001)
        assert made == list(range(5, 5 + len(made)))
        assert max(made) <= step + 2
    prefetch.close()
    assert len(made) == len(set(made))


def test_the_next_is_made_while_the_present_is_used():
    began = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            began.set()
        return step

    prefetch = Prefetch(make)
    assert prefetch(0) == 0
    assert began.wait(5)
    prefetch.close()


def test_an_error_is_raised_at_its_own_step_and_only_if_that_is_asked_for():
    def make(step: int) -> int:
        if step == 2:
            raise DataUnreadable("row 7")
        return step

    prefetch = Prefetch(make)
    assert [prefetch(0), prefetch(1)] == [0, 1]
    with pytest.raises(DataUnreadable, match="row 7"):
        prefetch(2)
    assert prefetch(3) == 3
    prefetch.close()


def test_nothing_is_left_running_after_the_end():
    before = threading.active_count()
    prefetch = Prefetch(lambda step: step)
    prefetch(0)
    prefetch.close()
    assert threading.active_count() == before


# ---- with or without the thread ------------------------------------------------------------------


class Making:
    """Makes batches at a pace that can be changed, and remembers in which thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.threads: dict[int, int] = {}

    def __call__(self, step: int) -> int:
        self.threads[step] = threading.get_ident()
        time.sleep(self.seconds)
        return step

    def is_ahead(self, step: int) -> bool:
        return self.threads[step] != threading.get_ident()


def take(prefetch: Prefetch[int], steps: range) -> None:
    assert [prefetch(step) for step in steps] == list(steps)


@pytest.fixture
def patient_quickness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes nothing in a fifth of a millisecond."""
    monkeypatch.setattr("worker.data.prefetch.QUICK_SECONDS", 0.5)


@pytest.mark.usefixtures("patient_quickness")
def test_what_is_made_quickly_is_made_by_the_one_that_needs_it():
    make = Making()
    prefetch = Prefetch(make)
    take(prefetch, range(QUICK_IN_A_ROW + 10))
    assert make.is_ahead(0)
    assert make.is_ahead(QUICK_IN_A_ROW - 1)
    assert not make.is_ahead(QUICK_IN_A_ROW + 9)
    prefetch.close()


@pytest.mark.usefixtures("patient_quickness")
def test_one_slow_batch_brings_the_thread_back():
    make = Making()
    prefetch = Prefetch(make)
    take(prefetch, range(40))
    make.seconds = 0.6
    take(prefetch, range(40, 41))
    make.seconds = 0.0
    take(prefetch, range(41, 46))
    assert [make.is_ahead(step) for step in (39, 40, 41, 45)] == [False, False, True, True]
    prefetch.close()


def test_what_is_slow_is_always_made_ahead():
    make = Making()
    make.seconds = 0.002
    prefetch = Prefetch(make)
    take(prefetch, range(30))
    assert all(make.is_ahead(step) for step in range(30))
    prefetch.close()


# ---- in the loop --------------------------------------------------------------------------------


class Direct:
    """The same without a thread: a batch is made when its step needs it."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, step: int) -> Any:
        return self._make(step)

    def close(self) -> None:
        pass


def test_training_is_the_same_bit_for_bit_with_and_without_it(tmp_path: Path, monkeypatch) -> None:
    ahead = Bench(make_brief(), tmp_path / "ahead")
    ahead.training.run()
    monkeypatch.setattr("worker.loop.Prefetch", Direct)
    direct = Bench(make_brief(), tmp_path / "direct")
    direct.training.run()
    for one, other in zip(ahead.reporter.steps, direct.reporter.steps, strict=True):
        assert bits(one.values) == bits(other.values)
    assert bits(ahead.state) == bits(direct.state)


def test_data_that_fails_in_the_thread_fails_the_step_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(make_brief(), tmp_path)
    data = bench.built.data
    asked: list[int] = []

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(data, name)

        def train_batch(self, indices: Any) -> Any:
            asked.append(threading.get_ident())
            if len(asked) == 4:
                raise DataUnreadable("the disk is gone")
            return data.train_batch(indices)

    monkeypatch.setattr(type(bench.built), "data", Failing())
    with pytest.raises(DataUnreadable, match="the disk is gone"):
        bench.training.run()
    assert bench.training.step == 3
    assert threading.get_ident() not in asked


def test_making_batches_draws_no_random_numbers(tmp_path: Path) -> None:
    """They are made at a time of their own; the step's dropout must not notice."""
    bench = Bench(make_brief(), tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    bench.training._load(5)
    assert torch.equal(torch.rand(3), expected)
