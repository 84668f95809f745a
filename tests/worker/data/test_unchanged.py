"""A run resumes with the data that it began with, or fails before its next step."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_attempt_server import AttemptServer, serving
from rank_runs import Ranks
from training_bench import make_brief

from roadless.service.contract.reports.events import Failed, Finished
from roadless.service.contract.states import Reason
from roadless.worker.data.builtin.digits import Digits


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[AttemptServer]:
    """Tells a rank that its state was trained on data of this fingerprint."""
    brief = make_brief().model_copy(update={"data_fingerprint": request.param})
    with serving(brief) as server:
        yield server


SAME = Digits().description.fingerprint


@pytest.mark.parametrize("server", [SAME, None], indirect=True)
def test_the_same_data_is_gone_on_with(ranks: Ranks, tmp_path: Path, server) -> None:
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    assert isinstance(server.service.said[-1], Finished)


@pytest.mark.parametrize("server", ["0" * 64], indirect=True)
def test_data_that_has_changed_is_not_trained_on(ranks: Ranks, tmp_path: Path, server) -> None:
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    (failed,) = server.service.said
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.DATA_INVALID
    assert f"fingerprint is {'0' * 64}, saw {SAME}" in failed.message
