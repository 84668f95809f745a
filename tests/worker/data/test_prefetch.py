"""Batches made ahead: the same values in the same steps, and the same errors."""

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_bench import Bench, bits, make_brief

from roadless.worker.data.prefetch import BLOCK_STEPS, QUICK_IN_A_ROW, Prefetch
from roadless.worker.data.sampler import Sampler
from roadless.worker.errors import DataUnreadable


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 4))
def test_any_order_of_steps_gets_what_was_made_for_each(steps, depth):
    prefetch = Prefetch(lambda steps: [("batch", step) for step in steps], depth=depth)
    assert [prefetch(step) for step in steps] == [("batch", step) for step in steps]
    prefetch.close()


def test_steps_in_a_row_are_made_once_each_in_order_and_never_too_far_ahead():
    made: list[int] = []
    prefetch = Prefetch(lambda steps: made.extend(steps) or steps, depth=2)
    for step in range(5, 20):
        assert prefetch(step) == step
        time.sleep(0.001)
        so_far = made.copy()  # the thread may be at the next
        assert so_far == list(range(5, 5 + len(so_far)))
        assert max(so_far) <= step + 2
    prefetch.close()
    assert len(made) == len(set(made))


def test_the_next_is_made_while_the_present_is_used():
    began = threading.Event()

    def make(steps: range) -> range:
        if 1 in steps:
            began.set()
        return steps

    prefetch = Prefetch(make)
    assert prefetch(0) == 0
    assert began.wait(5)
    prefetch.close()


@pytest.mark.usefixtures("patient_quickness")
def test_an_error_is_raised_at_its_own_step_and_only_if_that_is_asked_for():
    for bad in (2, QUICK_IN_A_ROW + 2 * BLOCK_STEPS - 1):
        prefetch = Prefetch(partial(all_but, bad))
        take(prefetch, range(bad))
        with pytest.raises(DataUnreadable, match="row 7"):
            prefetch(bad)
        take(prefetch, range(bad + 1, bad + 40))
        prefetch.close()


def all_but(bad: int, steps: range) -> range:
    if bad in steps:
        raise DataUnreadable("row 7")
    return steps


def test_nothing_is_left_running_after_the_end():
    before = threading.active_count()
    prefetch = Prefetch(lambda steps: steps)
    prefetch(0)
    prefetch.close()
    assert threading.active_count() == before


# ---- with or without the thread ------------------------------------------------------------------


class Making:
    """Makes batches at a pace that can be changed, and remembers in which thread and how many."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.threads: dict[int, int] = {}
        self.made: list[range] = []

    def __call__(self, steps: range) -> range:
        self.made.append(steps)
        self.threads |= dict.fromkeys(steps, threading.get_ident())
        time.sleep(self.seconds)
        return steps

    def is_ahead(self, step: int) -> bool:
        return self.threads[step] != threading.get_ident()


def take(prefetch: Prefetch[int], steps: range) -> None:
    assert [prefetch(step) for step in steps] == list(steps)


@pytest.fixture
def patient_quickness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes nothing in a fifth of a millisecond."""
    monkeypatch.setattr("roadless.worker.data.prefetch.QUICK_SECONDS", 0.2)


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
def test_what_is_made_quickly_is_made_for_many_steps_up_to_the_same_ones_wherever_one_begins():
    for first in (0, 5):
        make = Making()
        prefetch = Prefetch(make)
        take(prefetch, range(first, 100))
        prefetch.close()
        blocks = [steps for steps in make.made if len(steps) > 1]
        assert blocks[-3:] == [range(64, 80), range(80, 96), range(96, 112)]
        assert [step for steps in make.made for step in steps] == list(range(first, 112))


@pytest.mark.usefixtures("patient_quickness")
def test_one_slow_batch_brings_the_thread_back(monkeypatch):
    make = Making()
    prefetch = Prefetch(make)
    monkeypatch.setattr("roadless.worker.data.prefetch.BLOCK_STEPS", 2)
    take(prefetch, range(40))
    make.seconds = 0.5
    take(prefetch, range(40, 41))
    make.seconds = 0.0
    take(prefetch, range(41, 46))
    assert [make.is_ahead(step) for step in (39, 41, 42, 45)] == [False, False, True, True]
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
        return self._make(range(step, step + 1))[0]

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("patient_quickness")
def test_training_is_the_same_bit_for_bit_with_and_without_it(tmp_path: Path, monkeypatch) -> None:
    """Long enough for batches that are made many at once."""
    brief = make_brief(budget={"max_steps": 3 * BLOCK_STEPS})
    ahead = Bench(brief, tmp_path / "ahead")
    ahead.training.run()
    monkeypatch.setattr("roadless.worker.training.loop.Prefetch", Direct)
    direct = Bench(brief, tmp_path / "direct")
    direct.training.run()
    for one, other in zip(ahead.reporter.steps, direct.reporter.steps, strict=True):
        assert bits(one.values) == bits(other.values)
    assert bits(ahead.state) == bits(direct.state)


def test_data_that_fails_in_the_thread_fails_the_step_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(make_brief(), tmp_path)
    train_batch = bench.setup.datasets.train.train_batch
    asked: list[int] = []

    def fail_in_the_fourth(_: Any, indices: Any) -> Any:
        asked.append(threading.get_ident())
        if len(asked) == 4:
            raise DataUnreadable("the disk is gone")
        return train_batch(indices)

    monkeypatch.setattr(type(bench.setup.datasets.train), "train_batch", fail_in_the_fourth)
    with pytest.raises(DataUnreadable, match="the disk is gone"):
        bench.training.run()
    assert bench.training.step == 3
    assert threading.get_ident() not in asked


def test_making_batches_draws_no_random_numbers(tmp_path: Path) -> None:
    """They are made at a time of their own; the step's dropout must not notice."""
    train = Bench(make_brief(), tmp_path).setup.datasets.train
    batches = Prefetch(Sampler(train, batch_size=8, seed=5, rank=0, world_size=1))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    batches(5)
    assert torch.equal(torch.rand(3), expected)
    batches.close()
