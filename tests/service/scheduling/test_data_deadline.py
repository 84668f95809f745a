"""A rank that prepares data for long is not taken for one that does not start."""

from collections.abc import Iterator

import pytest
from stage import DEADLINES, Stage, staged

from roadless.service.contract.reports.cluster import Assignment
from roadless.service.contract.reports.events import DATA_PREPARING, MODEL_TRIED


@pytest.fixture
def stage(database_url, tmp_path) -> Iterator[Stage]:
    with staged(database_url, tmp_path) as stage:
        yield stage


@pytest.fixture
def attempt(stage, digits_spec) -> Assignment:
    stage.thaw()
    stage.submit(digits_spec)
    return stage.claim(stage.register())


def notice(seq: int, code: str = DATA_PREPARING) -> dict[str, object]:
    return {"kind": "notice", "code": code, "message": "10 rows are prepared", "seq": seq}


def live_heard(stage: Stage, attempt: Assignment, *, seconds: float) -> None:
    """Time passes with a heartbeat each second, so that only the deadline is in question."""
    for _ in range(int(seconds)):
        stage.live(1)
        if stage.job(attempt.job_id).phase == "STARTING":
            stage.report(attempt.token)


@pytest.mark.parametrize("code", [DATA_PREPARING, MODEL_TRIED])
def test_each_word_of_a_long_preparation_renews_the_deadline_of_starting(
    stage, attempt, code
) -> None:
    for seq in (1, 2, 3):
        live_heard(stage, attempt, seconds=DEADLINES.start_seconds - 20)
        stage.report(attempt.token, notice(seq, code))
    assert stage.job(attempt.job_id).phase == "STARTING"
    assert stage.codes(attempt.job_id).count(code) == 3


@pytest.mark.parametrize("events", [[], [notice(1, "train.skipped")]])
def test_a_rank_that_says_nothing_of_it_is_tried_again(stage, attempt, events) -> None:
    stage.report(attempt.token, *events)
    live_heard(stage, attempt, seconds=DEADLINES.start_seconds + 2)
    assert stage.job(attempt.job_id).reason == "start_timeout"
