"""How long everything has been refused, on a clock that the test moves."""

import pytest

from roadless.worker.reporting.refusals import Refusals


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> Refusals:
    return Refusals(clock)


def refused_after(refusals: Refusals, clock: Clock, seconds: float) -> float:
    clock.now += seconds
    return refusals.add()


def test_the_time_from_refusal_to_refusal_counts(refusals: Refusals, clock: Clock) -> None:
    assert [refused_after(refusals, clock, seconds) for seconds in (5, 2, 3)] == [0, 2, 5]


def test_whatever_is_accepted_ends_it(refusals: Refusals, clock: Clock) -> None:
    refused_after(refusals, clock, 1)
    refused_after(refusals, clock, 600)
    refusals.end()
    assert [refused_after(refusals, clock, seconds) for seconds in (5, 2)] == [0, 2]


def test_the_time_that_the_service_is_away_does_not_count(refusals: Refusals, clock: Clock) -> None:
    """Neither before nor after; what was counted is kept: being away now and then ends nothing."""
    refused_after(refusals, clock, 1)
    assert refused_after(refusals, clock, 10) == 10
    clock.now += 1
    refusals.pause()
    clock.now += 3600
    refusals.pause()
    assert refused_after(refusals, clock, 5) == 10
    assert refused_after(refusals, clock, 2) == 12
