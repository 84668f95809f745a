"""The Reporter against a service that follows the real rule of numbers, over a bad network."""

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_attempt_service import (
    FAULTS,
    FakeAttemptService,
    Fault,
    eval_point,
    stage,
    step_point,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import SmallDisk
from worker_drills import wait_until

from roadless.service.contract.checkpoint.manifest import (
    CheckpointFile,
    CheckpointKind,
    EvaluationReceipt,
)
from roadless.service.contract.job.evaluation import CheckpointsSpec
from roadless.service.contract.reports.events import (
    MAX_EVENTS_PER_REPORT,
    CheckpointSaved,
    EvalPoint,
    Event,
    Finished,
    Notice,
    ReportReply,
    StepMetrics,
    Usage,
)
from roadless.service.contract.states import Desired, Reason
from roadless.worker import retry
from roadless.worker.api import Away, EventsMissing, Fenced, Refused
from roadless.worker.reporting import event_queue, outbox, spool
from roadless.worker.reporting.event_queue import Bounds
from roadless.worker.reporting.outbox import Heard
from roadless.worker.reporting.reporter import Reporter
from roadless.worker.reporting.staged_checkpoint import Staged

MakeReporter = Callable[..., Reporter]
FINISHED = Finished(reason=Reason.BUDGET_REACHED, step=1)


@pytest.fixture(scope="module", autouse=True)
def hurry() -> Iterator[None]:
    """Waits of milliseconds instead of seconds; a test that measures waiting sets its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "GATHER_SECONDS", 0.001)
        patch.setattr(outbox, "HEARTBEAT_SECONDS", 0.005)
        patch.setattr(retry, "FIRST_SECONDS", 0.001)
        patch.setattr(retry, "LONGEST_SECONDS", 0.004)
        yield


@pytest.fixture
def service() -> FakeAttemptService:
    return FakeAttemptService()


@pytest.fixture
def make_reporter(service: FakeAttemptService, tmp_path: Path) -> Iterator[MakeReporter]:
    made: list[Reporter] = []

    def make(api: object = service, **options: Any) -> Reporter:
        reporter = Reporter(api, rank=0, folder=tmp_path / "scratch", **options)
        made.append(reporter)
        return reporter

    yield make
    for reporter in made:
        reporter.close(timeout_seconds=0)


class Kept:
    """Redacts nothing, and remembers what a reporter was about to keep on disk."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> Event:
        self.events.append(event)
        return event


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def reporter(make_reporter: MakeReporter) -> Reporter:
    return make_reporter()


def threads_of_reporters() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name in ("report", "upload")]


def unnumbered(events: list[Event]) -> list[Event]:
    return [event.model_copy(update={"seq": 0}) for event in events]


def checkpoints_of(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, CheckpointSaved)]


def usage_point(step: int) -> Usage:
    return Usage(step=step, values={"rss_bytes": 1e9})


def without_checkpoints(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, CheckpointSaved)]


def steps_of(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepMetrics)]


# ---- once and in order --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["step", "eval", "checkpoint"]), max_size=25),
    faults=st.lists(st.sampled_from(FAULTS), max_size=40),
)
def test_every_event_arrives_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], faults: list[Fault]
) -> None:
    """Whatever the network does, as long as it comes back; the service checks the files itself.

    A checkpoint comes behind all that was said before it, and the ending behind everything.
    """
    folder = tmp_path_factory.mktemp("reporter")
    service = FakeAttemptService(faults)
    reporter = Reporter(service, rank=0, folder=folder)
    expected: list[Event] = []
    for step, word in enumerate(words):
        match word:
            case "checkpoint":
                staged = stage(folder, step)
                reporter.publish(staged)
                expected.append(CheckpointSaved(manifest=staged.manifest))
            case "eval":
                expected.append(eval_point(step))
                reporter.say(expected[-1])
            case "step":
                expected.append(step_point(step))
                reporter.say(expected[-1])
    reporter.end(FINISHED)
    reporter.close(timeout_seconds=10)
    *said, last = unnumbered(service.said)
    assert last == FINISHED
    assert without_checkpoints(said) == without_checkpoints(expected)
    assert checkpoints_of(said) == checkpoints_of(expected)
    for checkpoint in checkpoints_of(said):
        before = said[: said.index(checkpoint)]
        assert all(event in before for event in expected[: expected.index(checkpoint)])
    assert not list(folder.glob("ckpt_*"))


def test_a_long_absence_costs_nothing_but_time(
    service: FakeAttemptService, reporter: Reporter
) -> None:
    service.is_away = True
    for step in range(5000):
        reporter.say(step_point(step))
    wait_until(lambda: len(service.reports) > 5)
    assert not service.said
    service.is_away = False
    assert reporter.close(timeout_seconds=10)
    assert steps_of(service.said) == list(range(5000))


def test_a_backlog_is_sent_report_by_report_without_a_pause(
    service: FakeAttemptService, make_reporter: MakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.is_away = True
    reporter = make_reporter()
    for step in range(4500):
        reporter.say(step_point(step))
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 60)
    service.is_away = False
    # A report that was under way as the service came back is smaller: what is left is no full one.
    wait_until(lambda: len(service.said) > 4500 - MAX_EVENTS_PER_REPORT)
    assert max(len(report.events) for report in service.reports) == MAX_EVENTS_PER_REPORT


def test_losses_that_are_not_numbers_arrive_as_they_are(
    service: FakeAttemptService, reporter: Reporter
) -> None:
    reporter.say(eval_point(1, loss=float("-inf")))
    assert reporter.close(timeout_seconds=10)
    assert service.said[0].loss == float("-inf")


def test_each_rank_has_numbers_of_its_own(service: FakeAttemptService, tmp_path: Path) -> None:
    reporters = [Reporter(service, rank=rank, folder=tmp_path) for rank in range(2)]
    for rank, reporter in enumerate(reporters):
        reporter.say(step_point(10 + rank))
    assert all(reporter.close(timeout_seconds=10) for reporter in reporters)
    assert [steps_of(service.applied[rank]) for rank in range(2)] == [[10], [11]]


# ---- when ---------------------------------------------------------------------------------------


def test_the_first_step_goes_at_once_and_later_ones_gather(
    service: FakeAttemptService, make_reporter: MakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 60)
    reporter = make_reporter()
    reporter.say(step_point(1))
    wait_until(lambda: len(service.said) == 1)
    reporter.say(step_point(2))
    time.sleep(0.1)
    assert len(service.said) == 1
    reporter.say(eval_point(2))
    wait_until(lambda: len(service.said) == 3)


def test_steps_are_sent_once_they_have_gathered(
    service: FakeAttemptService, make_reporter: MakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only with the next heartbeat."""
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "HEARTBEAT_SECONDS", 60)
    reporter = make_reporter()
    reporter.say(step_point(1))
    wait_until(lambda: len(service.said) == 1)
    reporter.say(step_point(2))
    wait_until(lambda: len(service.said) == 2)
    assert len(service.reports) == 2


def test_a_silent_rank_sends_heartbeats_and_hears_wishes(
    service: FakeAttemptService, reporter: Reporter
) -> None:
    wait_until(lambda: len(service.reports) > 2)
    assert all(not report.events for report in service.reports)
    assert reporter.heard == Heard(Desired.RUN, 0)
    service.desired, service.evaluations_requested = Desired.STOP, 3
    wait_until(lambda: reporter.heard == Heard(Desired.STOP, 3))


def test_what_the_specification_came_with_counts_as_heard(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    service.is_away = True
    reporter = make_reporter()
    reporter.set_desired_state(Desired.STOP)
    assert reporter.heard == Heard(Desired.STOP, 0)


# ---- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_waits_for_its_files_and_nothing_else_for_it(
    service: FakeAttemptService, make_reporter: MakeReporter, tmp_path: Path
) -> None:
    """A large upload costs neither the lease nor the curve; only the ending waits for it."""
    may_upload = threading.Event()

    class SlowUploads:
        report = service.report

        def upload(self, path: Path, **options: str) -> None:
            may_upload.wait(10)
            service.upload(path, **options)

    reporter = make_reporter(SlowUploads())
    reporter.say(step_point(1))
    staged = stage(tmp_path, 1)
    reporter.publish(staged)
    reporter.say(step_point(2))
    reporter.say(eval_point(2))
    reporter.end(FINISHED)
    wait_until(lambda: len(service.said) == 3)
    heartbeats = len(service.reports)
    wait_until(lambda: len(service.reports) > heartbeats + 3)
    assert len(service.said) == 3
    assert staged.folder.exists()
    may_upload.set()
    wait_until(lambda: len(service.said) == 5)
    assert [event.kind for event in service.said[3:]] == ["checkpoint", "finished"]
    assert not staged.folder.exists()


def test_a_training_state_takes_the_place_of_those_that_wait(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    """Not of the one that is being sent, nor of an eval checkpoint; told once."""
    service.is_away = True
    first, kept = state_of(tmp_path, 1), stage(tmp_path, 2)
    reporter.publish(first)
    wait_until(lambda: len(service.uploads) > 0)
    reporter.publish(kept)
    for step in range(2, 6):
        state = state_of(tmp_path, step)
        reporter.publish(state)
        waiting = {first.folder, kept.folder, state.folder}
        assert set(tmp_path.glob("ckpt_*")) == waiting
    service.is_away = False
    assert reporter.close(timeout_seconds=10)
    announced = [event.manifest.step for event in checkpoints_of(service.said)]
    assert announced == [1, 2, 5]
    notices = [event for event in service.said if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["checkpoint.superseded"]
    assert "step 2" in notices[0].message
    assert "step 3" in notices[0].message


def state_of(folder: Path, step: int, *, peers: object = None) -> Staged:
    staged = stage(folder, step)
    manifest = staged.manifest.model_copy(update={"kind": CheckpointKind.RESUME})
    return Staged(staged.folder, manifest, peers=peers)  # type: ignore[arg-type]


class TwoOthers:
    """Two more ranks, whose words the test gives."""

    def __init__(self, *, is_lead: bool) -> None:
        self.is_lead = is_lead
        self.told: list[object] = []
        self.words: list[object] | None = None

    def tell(self, checkpoint_id: str, files: object) -> None:
        self.told.append(files)

    def hear(self, checkpoint_id: str) -> list[object] | None:
        return self.words


def test_a_state_of_several_ranks_is_announced_when_all_have_uploaded(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    others = TwoOthers(is_lead=True)
    staged = state_of(tmp_path, 1, peers=others)
    files = [
        CheckpointFile(name=f"state-0000{rank}.safetensors", size=1, sha256="0" * 64)
        for rank in (1, 2)
    ]
    for file in files:
        service.files[staged.manifest.checkpoint_id, file.name] = b""
    reporter.publish(staged)
    reporter.say(step_point(2))
    wait_until(lambda: len(service.said) == 1)
    time.sleep(0.05)
    assert not checkpoints_of(service.said)
    others.words = [(file,) for file in files]
    assert reporter.close(timeout_seconds=10)
    (announced,) = checkpoints_of(service.said)
    assert announced.manifest.files == (*staged.manifest.files, *files)


def test_a_state_that_another_rank_has_given_up_is_not_announced(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    others = TwoOthers(is_lead=True)
    others.words = [(), None]
    reporter.publish(state_of(tmp_path, 1, peers=others))
    assert reporter.close(timeout_seconds=10)
    assert service.said == []


def test_who_does_not_lead_uploads_and_tells_and_announces_nothing(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    others = TwoOthers(is_lead=False)
    staged = state_of(tmp_path, 1, peers=others)
    broken = state_of(tmp_path, 2, peers=others)
    (broken.folder / "a.safetensors").unlink()
    for state in (staged, broken):
        reporter.publish(state)
        wait_until(lambda state=state: not state.folder.exists())
    assert reporter.close(timeout_seconds=10)
    assert others.told == [staged.manifest.files, None]
    assert service.said == []
    assert len(service.files) == 2


def test_a_checkpoint_whose_upload_is_refused_becomes_a_notice(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    staged = stage(tmp_path, 1)
    (staged.folder / "b.json").unlink()
    reporter.publish(staged)
    reporter.publish(stage(tmp_path, 2))
    reporter.end(FINISHED)
    reporter.close(timeout_seconds=10)
    assert [event.kind for event in service.said] == ["notice", "checkpoint", "finished"]
    assert not list(tmp_path.glob("ckpt_*"))


def looked_at(folder: Path, step: int, *, loss: float = 1.0, **fields: Any) -> Staged:
    """An eval checkpoint whose validation the test ends; three of them are kept."""
    staged = stage(folder, step)
    receipt = EvaluationReceipt(
        loss=loss,
        num_examples=1,
        batch_size=1,
        threads=1,
        torch_version="2",
        data_fingerprint="f",
    )
    manifest = staged.manifest.model_copy(update={"evaluation": receipt})
    options = {"validated": Future(), "keep": CheckpointsSpec(keep_last=2, keep_best=1), **fields}
    return Staged(staged.folder, manifest, **options)


def test_a_checkpoint_waits_for_its_validation_and_what_is_behind_it_too(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    """A training state implies the evaluations before it; points and steps wait for nothing."""
    looked, state = looked_at(tmp_path, 1), state_of(tmp_path, 1)
    reporter.publish(looked)
    reporter.publish(state)
    reporter.say(eval_point(1))
    wait_until(lambda: len(service.said) == 1)
    time.sleep(0.05)
    assert service.uploads == []
    checked = looked.manifest.model_copy(update={"samples": 77})
    assert looked.validated is not None
    looked.validated.set_result(checked)
    assert reporter.close(timeout_seconds=10)
    assert [event.manifest for event in checkpoints_of(service.said)] == [checked, state.manifest]


@pytest.mark.parametrize("is_raised", [False, True])
def test_a_checkpoint_that_fails_validation_is_neither_uploaded_nor_announced(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path, is_raised: bool
) -> None:
    bad, good = looked_at(tmp_path, 1), looked_at(tmp_path, 2)
    assert bad.validated is not None
    assert good.validated is not None
    reporter.publish(bad)
    reporter.publish(good)
    bad.validated.set_exception(RuntimeError()) if is_raised else bad.validated.set_result(None)
    good.validated.set_result(good.manifest)
    reporter.end(FINISHED)
    assert reporter.close(timeout_seconds=10)
    assert [event.kind for event in service.said] == ["checkpoint", "finished"]
    assert {checkpoint_id for checkpoint_id, _ in service.uploads} == {good.manifest.checkpoint_id}
    assert not list(tmp_path.glob("ckpt_*"))


def test_the_end_of_an_attempt_does_not_wait_for_a_validation(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    reporter.publish(looked_at(tmp_path, 1))
    service.is_over = True
    wait_until(lambda: reporter.heard.is_fenced)
    started = time.monotonic()
    assert not reporter.close(timeout_seconds=60)
    assert time.monotonic() - started < 5


def test_eval_checkpoints_that_the_job_would_not_keep_do_not_wait_for_an_absent_service(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    """The last two, the best and the asked-for stay, and the one on its way; told once."""
    service.is_away = True
    losses = {1: 9.0, 2: 8.0, 3: 1.0, 4: 7.0, 5: 6.0, 6: 5.0, 7: 4.0, 8: 3.0}
    staged = {}
    for step, loss in losses.items():
        served = {"evaluations_served": 1} if step == 4 else {}
        staged[step] = looked_at(tmp_path, step, loss=loss, **served)
        reporter.publish(staged[step])
        staged[step].validated.set_result(staged[step].manifest)
        wait_until(lambda: len(service.uploads) > 0)
    kept = {1, 3, 4, 7, 8}
    assert set(tmp_path.glob("ckpt_*")) == {staged[step].folder for step in kept}
    service.is_away = False
    assert reporter.close(timeout_seconds=10)
    assert {event.manifest.step for event in checkpoints_of(service.said)} == kept
    notices = [event for event in service.said if isinstance(event, Notice)]
    assert [notice.code for notice in notices] == ["checkpoint.superseded"]
    assert "checkpoint of step 2" in notices[0].message


def test_a_checkpoint_that_is_being_looked_at_stays_and_one_that_waits_for_it_is_called_off(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    service.is_away = True
    staged = [looked_at(tmp_path, step, loss=9.0 - step) for step in range(7)]
    for one in staged:
        assert one.validated is not None
        if one.manifest.step == 2:
            one.validated.set_running_or_notify_cancel()
        reporter.publish(one)
    assert [one.validated.cancelled() for one in staged if one.validated] == [
        *(False, True, False, True, True),  # the first is in turn, the third is being read
        *(False, False),
    ]
    assert staged[2].folder.exists()


def test_an_evaluation_that_is_not_made_yet_is_never_called_off(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    """Beside training: its point is wanted, whatever becomes of the checkpoint."""
    service.is_away = True
    keep = CheckpointsSpec(keep_last=1, keep_best=0)
    staged = [replace(stage(tmp_path, step), validated=Future(), keep=keep) for step in range(4)]
    for one in staged:
        reporter.publish(one)
    assert not any(one.validated.cancelled() for one in staged)
    assert all(one.folder.exists() for one in staged)


def test_a_good_checkpoint_does_not_go_for_one_that_will_not_be_listed(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    """It stays in line, although the job keeps one alone and a newer one was published."""
    service.is_away = True
    keep = CheckpointsSpec(keep_last=1, keep_best=0)
    first, good, bad = (looked_at(tmp_path, step, keep=keep) for step in (1, 2, 3))
    for one, manifest in ((first, first.manifest), (good, good.manifest), (bad, None)):
        reporter.publish(one)
        assert one.validated is not None
        one.validated.set_result(manifest)
        wait_until(lambda: len(service.uploads) > 0)
    assert good.folder.exists()
    service.is_away = False
    assert reporter.close(timeout_seconds=10)
    assert [event.manifest.step for event in checkpoints_of(service.said)] == [1, 2]


def test_what_was_announced_counts_among_what_the_job_keeps(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    """The best one so far is at the service, so a worse one need not wait for being the best."""
    best = looked_at(tmp_path, 1, loss=0.1)
    reporter.publish(best)
    best.validated.set_result(best.manifest)
    wait_until(lambda: len(service.said) == 1)
    service.is_away = True
    staged = [looked_at(tmp_path, step, loss=float(step)) for step in range(2, 7)]
    for one in staged:
        one.validated.set_result(one.manifest)
        reporter.publish(one)
    waiting = {one.manifest.step for one in staged if one.folder.exists()}
    assert waiting in ({2, 5, 6}, {5, 6})  # the first of them is perhaps in turn


def test_what_a_checkpoint_answers_is_told(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    staged = stage(tmp_path, 1)
    reporter.publish(Staged(staged.folder, staged.manifest, evaluations_served=2))
    assert reporter.close(timeout_seconds=10)
    assert service.said[0].evaluations_served == 2


# ---- the end ------------------------------------------------------------------------------------


def test_a_fenced_reporter_falls_silent(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    service.is_over = True
    wait_until(lambda: reporter.heard.is_fenced)
    num_reports = len(service.reports)
    reporter.publish(stage(tmp_path, 1))
    reporter.say(eval_point(1))
    time.sleep(0.05)
    assert len(service.reports) == num_reports
    assert not service.uploads
    started = time.monotonic()
    assert not reporter.close(timeout_seconds=60)
    assert time.monotonic() - started < 5


def test_what_the_uploads_hear_of_the_end_is_not_forgotten(
    service: FakeAttemptService, make_reporter: MakeReporter, tmp_path: Path
) -> None:
    """A reply that was under way meanwhile does not bring the attempt back to life."""
    is_asked, may_answer = threading.Event(), threading.Event()

    class SlowAnswer:
        def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
            is_asked.set()
            may_answer.wait(10)
            return service.report(rank, events)

        def upload(self, path: Path, **options: str) -> None:
            raise Fenced("this attempt is over")

    reporter = make_reporter(SlowAnswer())
    assert is_asked.wait(10)
    reporter.publish(stage(tmp_path, 1))
    wait_until(lambda: reporter.heard.is_fenced)
    may_answer.set()
    wait_until(lambda: len(service.reports) == 1)
    time.sleep(0.05)
    assert reporter.heard.is_fenced
    assert len(service.reports) == 1


def test_close_sends_the_last_words(service: FakeAttemptService, reporter: Reporter) -> None:
    reporter.say(step_point(1))
    reporter.say(FINISHED)
    assert reporter.close(timeout_seconds=10)
    assert service.said[-1] == FINISHED.model_copy(update={"seq": 2})


def test_last_words_whose_answer_is_lost_are_known_to_have_arrived(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    """The service has ended the attempt with them, so the repeat is told that it is over."""
    service.faults.extend(["lost_request"] * 2)
    reporter = make_reporter()
    reporter.say(FINISHED)
    assert not reporter.close(timeout_seconds=10)
    assert reporter.heard.is_fenced
    assert unnumbered(service.said) == [FINISHED]


def test_close_ends_although_the_service_stays_away(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    service.is_away = True
    reporter.say(eval_point(1))
    reporter.publish(stage(tmp_path, 1))
    started = time.monotonic()
    assert not reporter.close(timeout_seconds=0.2)
    assert 0.2 <= time.monotonic() - started < 3
    wait_until(lambda: not threads_of_reporters())


def test_an_upload_given_up_at_the_end_is_not_announced(
    service: FakeAttemptService, make_reporter: MakeReporter, kept: Kept, tmp_path: Path
) -> None:
    """Nor is the ending said that waits behind it."""
    service.is_away = True
    reporter = make_reporter(redact=kept)
    reporter.publish(stage(tmp_path, 1))
    reporter.end(FINISHED)
    wait_until(lambda: bool(service.uploads))
    assert not reporter.close(timeout_seconds=0.05)
    wait_until(lambda: not threads_of_reporters())
    assert kept.events == []


# ---- refused ------------------------------------------------------------------------------------


def test_a_refused_event_is_kept_aside_and_the_rest_goes_through(
    service: FakeAttemptService, make_reporter: MakeReporter, tmp_path: Path
) -> None:
    """Answers of any length, and a notice that has to be sent three times."""
    service.refuses = lambda event: isinstance(event, EvalPoint) and event.step == 2
    service.detail = "expected another loss " * 1000
    service.is_away = True
    reporter = make_reporter()
    events = [eval_point(1), eval_point(2), step_point(3), eval_point(3)]
    for event in events:
        reporter.say(event)
    service.faults.extend(["ok", "ok", "ok", "lost", "ok", "ok", "lost"])
    service.is_away = False
    assert reporter.close(timeout_seconds=10)
    assert unnumbered(service.said)[::2] == [events[0], events[2]]
    assert service.said[3].step == 3
    notice = service.said[1]
    assert isinstance(notice, Notice)
    assert (notice.seq, notice.code) == (2, "report.refused")
    assert notice.message.startswith("eval: 422: expected another loss")
    letters = (tmp_path / "scratch" / "refused-0.jsonl").read_text().splitlines()
    assert [EvalPoint.model_validate_json(letter).step for letter in letters] == [2]


def test_a_refused_event_goes_its_way_although_it_cannot_be_kept(
    service: FakeAttemptService, reporter: Reporter, tmp_path: Path
) -> None:
    (tmp_path / "scratch" / "refused-0.jsonl").mkdir(parents=True)
    service.refuses = lambda event: isinstance(event, EvalPoint)
    reporter.say(eval_point(1))
    reporter.say(step_point(2))
    assert reporter.close(timeout_seconds=10)
    assert [event.kind for event in service.said] == ["notice", "step"]


def test_no_more_is_set_aside_than_a_file_may_hold(
    service: FakeAttemptService,
    reporter: Reporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = eval_point(1).model_copy(update={"seq": 1}).model_dump_json()
    monkeypatch.setattr(outbox, "SET_ASIDE_BYTES", 2 * len(line))
    service.refuses = lambda event: isinstance(event, EvalPoint)
    for step in range(1, 6):
        reporter.say(eval_point(step))
    assert reporter.close(timeout_seconds=10)
    assert [event.kind for event in service.said] == ["notice"] * 5
    letters = (tmp_path / "scratch" / "refused-0.jsonl").read_text().splitlines()
    assert [EvalPoint.model_validate_json(letter).step for letter in letters] == [1, 2]


# ---- bounds -------------------------------------------------------------------------------------


def test_beyond_the_bound_only_steps_are_thinned(
    service: FakeAttemptService,
    make_reporter: MakeReporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole up to the bound, one in sixteen up to twice the bound, then none; said once.

    Give or take the points that are not written yet, which the bounds do not see.
    """
    monkeypatch.setattr(event_queue, "FRESH_POINTS", 16)
    service.is_away = True
    size = len(step_point(1000).model_dump_json())
    reporter = make_reporter(bounds=Bounds(spool_bytes=100 * size))
    for step in range(1000, 6000):
        reporter.say(step_point(step))
    for step in range(50):
        reporter.say(eval_point(step))
    reporter.publish(stage(tmp_path, 6000))
    reporter.say(step_point(6000))
    reporter.end(FINISHED)
    service.is_away = False
    reporter.close(timeout_seconds=10)
    kinds = [event.kind for event in service.said]
    assert kinds[-52:] == ["eval"] * 50 + ["checkpoint", "finished"]
    assert kinds.count("notice") == 1
    assert service.said[kinds.index("notice")].code == "metrics.thinned"
    steps = steps_of(service.said)
    whole = kinds.index("notice")
    assert 95 <= whole <= 105 + event_queue.FRESH_POINTS
    assert steps[:whole] == list(range(1000, 1000 + whole))
    gaps = {
        after - before for before, after in zip(steps[whole:], steps[whole + 1 :], strict=False)
    }
    assert gaps == {event_queue.THINNED_TO_ONE_IN}
    assert 90 - event_queue.FRESH_POINTS <= len(steps) - whole <= 110 + event_queue.FRESH_POINTS


def test_a_step_is_written_by_another_thread_or_with_many(
    service: FakeAttemptService,
    make_reporter: MakeReporter,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop waits for no disk, and what waits for one is bounded."""
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 0.5)
    reporter = make_reporter(redact=kept)
    reporter.say(step_point(1))
    wait_until(lambda: service.said)
    for step in range(2, 2 + event_queue.FRESH_POINTS - 1):
        reporter.say(step_point(step))
    assert steps_of(kept.events) == [1]
    reporter.say(step_point(event_queue.FRESH_POINTS + 1))
    assert steps_of(kept.events) == list(range(1, event_queue.FRESH_POINTS + 2))
    reporter.end(FINISHED)
    reporter.close(timeout_seconds=10)
    assert steps_of(service.said) == list(range(1, event_queue.FRESH_POINTS + 2))


def test_what_ranks_say_of_their_machine_is_thinned_with_the_steps(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    service.is_away = True
    size = len(usage_point(1000).model_dump_json())
    reporter = make_reporter(bounds=Bounds(spool_bytes=100 * size))
    for step in range(1000, 6000):
        reporter.say(usage_point(step))
    reporter.end(FINISHED)
    service.is_away = False
    reporter.close(timeout_seconds=10)
    kinds = [event.kind for event in service.said]
    assert kinds[-1] == "finished"
    assert kinds.count("notice") == 1
    assert 190 <= kinds.count("usage") <= 220


def test_a_service_that_does_not_know_usage_hears_it_once(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    """One of an earlier release, whose history of the job would else fill with refusals."""
    service.refuses = lambda event: event.kind == "usage"
    reporter = make_reporter()
    reporter.say(usage_point(1))
    wait_until(lambda: len(service.said) == 1)
    for step in range(2, 50):
        reporter.say(usage_point(step))
    reporter.say(step_point(50))
    reporter.close(timeout_seconds=10)
    assert [event.kind for event in service.said] == ["notice", "step"]


def test_thinning_ends_with_the_backlog_and_is_told_again(
    service: FakeAttemptService, make_reporter: MakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "FRESH_POINTS", 16)
    reporter = make_reporter(bounds=Bounds(spool_bytes=2000))
    for absence in range(2):
        service.is_away = True
        for step in range(100):
            reporter.say(step_point(1000 * absence + step))
        service.is_away = False
        wait_until(lambda: reporter.is_delivered)
        reporter.say(step_point(1000 * absence + 500))
    assert reporter.close(timeout_seconds=10)
    assert [event.kind for event in service.said].count("notice") == 2
    assert {500, 1500} <= set(steps_of(service.said))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    """Where the spools of this test are."""
    disk = SmallDisk()
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", disk)
    return disk


def test_a_full_disk_costs_nothing_while_the_service_is_at_hand(
    service: FakeAttemptService,
    make_reporter: MakeReporter,
    disk: SmallDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from the start either, nor for checkpoints, endings and what is refused."""
    monkeypatch.setattr(event_queue, "FRESH_POINTS", 16)
    disk.room = 0
    service.refuses = lambda event: isinstance(event, EvalPoint) and event.step == 500
    monkeypatch.setattr(Path, "open", full_for("refused-0.jsonl"))
    reporter = make_reporter()
    for step in range(1, 1001):
        reporter.say(step_point(step))
        if step % 100 == 0:
            reporter.say(usage_point(step))
            reporter.say(eval_point(step))
    reporter.publish(stage(tmp_path, 1000))
    reporter.end(FINISHED)
    assert reporter.close(timeout_seconds=30)
    assert steps_of(service.said) == list(range(1, 1001))
    kinds = [event.kind for event in service.said]
    assert [kinds.count(kind) for kind in ("usage", "eval", "checkpoint", "finished")] == [
        *(10, 9, 1, 1)
    ]
    notices = [event.code for event in service.said if isinstance(event, Notice)]
    assert notices == ["report.refused"]


def full_for(name: str) -> Callable[..., Any]:
    """``Path.open`` on a disk that has no room for the file of this name."""
    real = Path.open

    def opening(path: Path, *given: Any, **named: Any) -> Any:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *given, **named)

    return opening


def test_a_full_disk_and_a_service_that_is_away_cost_the_steps_that_memory_does_not_hold(
    service: FakeAttemptService, make_reporter: MakeReporter, disk: SmallDisk, tmp_path: Path
) -> None:
    """And nothing else; once there is room for the next ones they are kept again."""
    service.is_away = True
    size = len(step_point(10).model_copy(update={"seq": 10}).model_dump_json())
    reporter = make_reporter(bounds=Bounds(memory_bytes=3 * size))
    disk.room = 0
    for step in range(10, 20):
        reporter.say(step_point(step))
    reporter.say(eval_point(20))
    reporter.publish(stage(tmp_path, 20))
    disk.room = 10_000
    reporter.say(step_point(21))
    reporter.end(FINISHED)
    service.is_away = False
    reporter.close(timeout_seconds=10)
    kinds = [event.kind for event in service.said]
    assert kinds == [*["step"] * 3, "notice", "eval", "step", "checkpoint", "finished"]
    assert service.said[3].code == "metrics.lost"
    assert steps_of(service.said) == [10, 11, 12, 21]


# ---- a service that has forgotten ----------------------------------------------------------------


def told(service: FakeAttemptService, reporter: Reporter, steps: range) -> None:
    """Steps that the service has acknowledged."""
    for step in steps:
        reporter.say(step_point(step))
    wait_until(lambda: reporter.is_delivered and steps_of(service.said)[-1] == steps[-1])


@pytest.mark.parametrize("is_silent", [False, True])
def test_what_a_restored_database_lacks_is_sent_again(
    service: FakeAttemptService, reporter: Reporter, is_silent: bool
) -> None:
    """Whether the rank learns of it from a heartbeat, or from what it has to say."""
    told(service, reporter, range(1, 1001))
    reporter.say(eval_point(1000))
    wait_until(lambda: reporter.is_delivered)
    before = list(service.said)
    with service.lock:
        del service.said[89:]
        service.is_away = not is_silent
    if not is_silent:
        reporter.say(step_point(1001))
        service.is_away = False
        before.append(step_point(1001).model_copy(update={"seq": 1002}))
    wait_until(lambda: len(service.said) == len(before))
    assert service.said == before
    assert reporter.close(timeout_seconds=10)


@settings(max_examples=30, deadline=None)
@given(
    losses=st.lists(st.integers(0, 60), max_size=4),
    faults=st.lists(st.sampled_from(FAULTS), max_size=20),
)
def test_however_often_a_database_goes_back_every_event_is_there_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, losses: list[int], faults: list[Fault]
) -> None:
    folder = tmp_path_factory.mktemp("reporter")
    service = FakeAttemptService(faults)
    reporter = Reporter(service, rank=0, folder=folder)
    steps = range(1, 30 * len(losses) + 31)
    for loss, start in zip([0, *losses], steps[::30], strict=True):
        for step in range(start, start + 30):
            reporter.say(step_point(step))
        with service.lock:
            del service.said[max(0, len(service.said) - loss) :]
    wait_until(lambda: steps_of(service.said) == list(steps))
    reporter.end(FINISHED)
    reporter.close(timeout_seconds=10)
    assert unnumbered(service.said) == [*map(step_point, steps), FINISHED]


def test_a_rank_that_no_longer_has_what_is_missing_says_so_and_falls_silent(
    service: FakeAttemptService, make_reporter: MakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 1000)
    given_up: list[str] = []
    reporter = make_reporter(bounds=Bounds(kept_bytes=2000), on_unheard=given_up.append)
    told(service, reporter, range(1, 101))
    with service.lock:
        del service.said[10:]
    wait_until(lambda: given_up)
    (message,) = given_up
    assert message.startswith("expected events up to 100 in the database, saw up to 10,")
    num_reports = len(service.reports)
    reporter.close(timeout_seconds=10)
    assert len(service.reports) == num_reports


def test_a_service_that_has_heard_more_than_was_said_is_left(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    """Its database has what an earlier process said as this rank: none of ours would count."""
    service.applied[0] = [step_point(step) for step in range(5)]
    given_up: list[str] = []
    make_reporter(on_unheard=given_up.append)
    wait_until(lambda: given_up)
    assert "expected event 0 as the last, which this rank said, saw 5" in given_up[0]


# ---- a service that refuses everything -----------------------------------------------------------


class Refusing:
    """A service that refuses every report, or whose answer makes no sense."""

    def __init__(self, service: FakeAttemptService, error: Exception) -> None:
        self.service = service
        self.error: Exception | None = error
        self.num_reports = 0

    def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
        self.num_reports += 1
        if self.error is not None:
            raise self.error
        return self.service.report(rank, events)

    def upload(self, path: Path, **options: str) -> None:
        raise AssertionError("nothing is uploaded here")


@pytest.mark.parametrize(
    "error",
    [
        Refused("no", status=422),
        Refused("no", status=413),
        Refused("no", status=403),
        EventsMissing("no", status=409, applied_seq=0),
        ValueError("no"),
        OSError("no"),
    ],
    ids=str,
)
def test_a_rank_that_is_refused_for_too_long_says_so_and_falls_silent(
    service: FakeAttemptService, make_reporter: MakeReporter, error: Exception
) -> None:
    api, given_up = Refusing(service, error), list[str]()
    reporter = make_reporter(api, on_unheard=given_up.append)
    reporter.say(step_point(1))
    wait_until(lambda: api.num_reports > 3)
    assert not given_up, "it waits, until it knows for how long"
    reporter.set_patience(0.05)
    wait_until(lambda: given_up)
    assert given_up[0].startswith("expected the service to accept a report within 0.05 s, saw each")
    assert given_up[0].endswith("no")
    assert not reporter.close(timeout_seconds=10)


def test_a_rank_whose_service_is_away_never_gives_up(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    api, given_up = Refusing(service, Away("no")), list[str]()
    reporter = make_reporter(api, on_unheard=given_up.append)
    reporter.set_patience(0.0)
    reporter.say(step_point(1))
    wait_until(lambda: api.num_reports > 20)
    api.error = None
    assert reporter.close(timeout_seconds=10)
    assert not given_up


def test_what_is_refused_for_another_reason_than_its_content_is_not_set_aside(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    """It ends just as a notice is about to take the place of the event."""
    refusals = [Refused("no", status=403)]

    class Once(Refusing):
        def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
            if events and refusals:
                raise refusals.pop()
            return self.service.report(rank, events)

    reporter = make_reporter(Once(service, Away("")))
    reporter.say(eval_point(1))
    assert reporter.close(timeout_seconds=10)
    assert unnumbered(service.said) == [eval_point(1)]
    assert not refusals


def test_a_long_report_is_sent_in_parts_that_a_bound_on_bodies_lets_pass(
    service: FakeAttemptService, make_reporter: MakeReporter
) -> None:
    class Bounded(Refusing):
        def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
            self.num_reports += 1
            if sum(map(len, events)) > 5000:
                raise Refused("too large", status=413)
            return self.service.report(rank, events)

    service.is_away = True
    reporter = make_reporter(Bounded(service, Away("")))
    for step in range(1, 301):
        reporter.say(step_point(step))
    service.is_away = False
    assert reporter.close(timeout_seconds=10)
    assert steps_of(service.said) == list(range(1, 301))
    assert not any(isinstance(event, Notice) for event in service.said)
