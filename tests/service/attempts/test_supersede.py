"""Superseding: each step of the curve is served from exactly one attempt."""

from hypothesis import given
from hypothesis import strategies as st

from roadless.service.attempts.supersede import cutoffs


def test_a_first_attempt_is_live_throughout():
    assert cutoffs([(1, 0)]) == {1: None}


def test_a_resume_cuts_older_attempts_at_its_step():
    assert cutoffs([(1, 0), (2, 100)]) == {1: 100, 2: None}


def test_a_second_resume_from_an_earlier_step_cuts_both():
    assert cutoffs([(1, 0), (2, 100), (3, 50)]) == {1: 50, 2: 50, 3: None}


@given(st.lists(st.integers(0, 30), max_size=7), st.randoms(), st.integers(1, 40))
def test_each_step_is_served_by_the_last_attempt_that_lived_it(resumed, random, step):
    attempts = list(enumerate([0, *resumed], start=1))
    live = cutoffs(random.sample(attempts, len(attempts)))
    serving = [
        fence
        for fence, start in attempts
        if start < step and (live[fence] is None or step <= live[fence])
    ]
    assert serving == [max(fence for fence, start in attempts if start < step)]
