"""The table of phases keeps its laws, and every phase is documented."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.states import (
    CLAIMABLE,
    REOPENING,
    TERMINAL,
    TRANSITIONS,
    Phase,
    Signal,
)
from roadless.service.jobs.transitions import Refused, is_allowed, next_phase


def test_every_phase_is_reached_from_queued():
    reached = {Phase.QUEUED}
    for _ in Phase:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(Phase)


def test_only_users_open_a_finished_job_again_and_it_queues_as_at_first():
    out = {pair: after for pair, after in TRANSITIONS.items() if pair[0] in TERMINAL}
    assert {signal for _, signal in out} == REOPENING
    assert set(out.values()) == {Phase.QUEUED}


def test_a_cancelled_job_stays_cancelled():
    assert not [pair for pair in TRANSITIONS if pair[0] is Phase.CANCELLED]


def test_every_phase_but_the_ends_and_the_ways_there_can_be_paused():
    refusing = {phase for phase in Phase if not is_allowed(phase, Signal.PAUSE)}
    leaving = {Phase.STOPPING, Phase.FINISHING, Phase.FAILING, Phase.CANCELLING}
    assert refusing == TERMINAL | leaving


def test_a_paused_job_has_given_its_seats_back():
    """So it may end at once: PAUSED is entered from where nothing is held, or by the release."""
    ways_in = {pair for pair, after in TRANSITIONS.items() if after is Phase.PAUSED}
    entered = {pair for pair in ways_in if pair[0] is not Phase.PAUSED}
    assert entered == {(Phase.QUEUED, Signal.PAUSE), (Phase.PAUSING, Signal.RELEASE)}
    assert not is_allowed(Phase.PAUSED, Signal.CLAIM)


def test_a_pause_survives_a_lost_attempt():
    """Nothing is started again only to be paused; the newest training state is kept as it is."""
    assert next_phase(Phase.PAUSING, Signal.LOSE) is Phase.PAUSING


def test_a_larger_budget_moves_no_phase_but_that_of_a_job_at_its_end():
    moved = {
        before: after
        for (before, signal), after in TRANSITIONS.items()
        if signal is Signal.EXTEND and after is not before
    }
    assert moved == {
        Phase.FINISHING: Phase.RECOVERING,
        Phase.SUCCEEDED: Phase.QUEUED,
        Phase.STOPPED: Phase.QUEUED,
    }


def test_a_phase_that_holds_seats_ends_only_by_release():
    ends = {
        (before, signal) for (before, signal), after in TRANSITIONS.items() if after in TERMINAL
    }
    holds_nothing = {Phase.QUEUED, Phase.PAUSED}
    assert {signal for before, signal in ends if before not in holds_nothing} == {Signal.RELEASE}


def test_every_phase_can_be_cancelled_until_its_end():
    assert all(is_allowed(phase, Signal.CANCEL) for phase in set(Phase) - TERMINAL)


@given(st.lists(st.sampled_from(Signal), max_size=60))
def test_any_signals_in_any_order_are_applied_or_refused(signals):
    phase = Phase.QUEUED
    for signal in signals:
        if is_allowed(phase, signal):
            phase = next_phase(phase, signal)
        else:
            with pytest.raises(Refused, match=f"{phase.value} job does not accept {signal.value}"):
                next_phase(phase, signal)


@given(st.lists(st.sampled_from(Signal), max_size=60))
def test_a_cancelled_job_never_runs_again(signals):
    phase = Phase.CANCELLING
    for signal in signals:
        phase = next_phase(phase, signal) if is_allowed(phase, signal) else phase
        assert phase in (Phase.CANCELLING, Phase.CANCELLED)


def test_only_waiting_phases_are_claimed():
    assert {before for before, signal in TRANSITIONS if signal is Signal.CLAIM} == CLAIMABLE


def test_a_refusal_names_phase_and_signal():
    with pytest.raises(Refused, match="SUCCEEDED job does not accept stop"):
        next_phase(Phase.SUCCEEDED, Signal.STOP)
