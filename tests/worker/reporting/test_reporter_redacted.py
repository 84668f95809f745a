"""What a Reporter is told never to say is in no report and in no file that it keeps."""

from pathlib import Path

import pytest
from fake_attempt_service import FakeAttemptService

from roadless.service.contract.reports.events import Failed, Notice
from roadless.service.contract.states import Reason
from roadless.worker.reporting.reporter import Reporter
from roadless.worker.secrets import Redactor

VALUE = "a-secret-value"


@pytest.mark.parametrize("is_refused", [False, True])
def test_events_are_redacted_before_they_are_kept(tmp_path: Path, is_refused: bool) -> None:
    """Those that the service refuses too, which are kept in a file and described in a notice."""
    service = FakeAttemptService()
    service.refuses = lambda event: is_refused and event.kind == "failed"
    redact = Redactor([VALUE]).redact_event
    reporter = Reporter(service, rank=0, folder=tmp_path / "scratch", redact=redact)
    reporter.say(Notice(code="data.preparing", message=f"reading with {VALUE}"))
    reporter.end(Failed(reason=Reason.WORKER_ERROR, message=f"no access with {VALUE}"))
    assert reporter.close(timeout_seconds=30)
    assert service.said[0].message == "reading with ***"
    assert VALUE not in "".join(map(str, service.said))
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == is_refused
    assert all("no access with ***" in text and VALUE not in text for text in kept)
