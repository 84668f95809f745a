"""Reports: however often, late or out of order they arrive, each event counts once."""

import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import eval_event, step_event
from sqlalchemy import func, select
from stage import START, Stage, staged

from roadless.service.contract.ids import new_id
from roadless.service.db.tables import (
    AttemptRow,
    CheckpointRow,
    EvalPointRow,
    EventRow,
    JobRow,
    MetricChunkRow,
    RankRow,
)
from roadless.service.errors import Conflict, Fenced, Invalid, ServiceError
from roadless.service.jobs import store as jobs
from roadless.service.metrics.chunks import unpack


def checkpoint_event(assignment, step, *, kind="resume", checkpoint_id=None):
    file = {"name": "a", "size": 1, "sha256": "0" * 64}
    manifest = {
        "checkpoint_id": checkpoint_id or new_id("ckpt"),
        "job_id": assignment.job_id,
        "attempt_id": assignment.attempt_id,
        "kind": kind,
        "step": step,
        "samples": step,
        "files": [file],
    }
    return {"kind": "checkpoint", "manifest": manifest}


def numbered(*events):
    return [{**event, "seq": seq} for seq, event in enumerate(events, start=1)]


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        yield stage


# ---- delivery ----------------------------------------------------------------------------------


@dataclass
class Story:
    """One attempt and all that its rank will ever say."""

    stage: Stage
    job_id: str
    token: str
    events: list

    @classmethod
    def begin(cls, stage, spec):
        stage.empty()
        job_id = stage.submit(spec)
        assignment = stage.claim(stage.register())
        told = [
            {"kind": "started", "world_size": 2},
            step_event(1, 0.9),
            step_event(2, float("nan")),
            eval_event(2, 0.5),
            checkpoint_event(assignment, 2),
            step_event(3, 0.7),
            {"kind": "notice", "code": "note", "message": "hello"},
            step_event(4, 0.6),
            eval_event(4, float("inf")),
            checkpoint_event(assignment, 4, kind="eval"),
        ]
        return cls(stage, job_id, assignment.token, numbered(*told))

    def deliver(self, start, stop):
        """Send a slice; whether the service took it."""
        try:
            reply = self.stage.report(self.token, *self.events[start:stop])
        except Conflict:
            return False
        assert reply.ack_seq >= stop if start < stop else True
        return True

    def stored(self):
        """Everything that the events left, without ids and times."""
        with self.stage.db.read() as session:
            job = session.get(JobRow, self.job_id)
            chunks = session.scalars(select(MetricChunkRow).order_by(MetricChunkRow.name))
            points = sorted(
                (chunk.name, int(step), str(value))
                for chunk in chunks
                for step, value in zip(*unpack(chunk.data), strict=True)
            )
            evals = session.scalars(select(EvalPointRow).order_by(EvalPointRow.step))
            lines = session.scalars(select(EventRow).order_by(EventRow.id))
            listed = session.scalars(select(CheckpointRow).order_by(CheckpointRow.step))
            return {
                "phase": job.phase,
                "progress": (job.step, job.samples, job.wall_seconds),
                "points": points,
                "evals": [(one.step, one.loss, one.metrics) for one in evals],
                "checkpoints": [(one.kind, one.step) for one in listed],
                "lines": sorted((line.code, line.message) for line in lines),
                "seq": session.scalars(select(RankRow.applied_seq)).all(),
            }


SLICES = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)).map(sorted), max_size=12)


@pytest.fixture(scope="module")
def sqlite_stage(tmp_path_factory):
    home = tmp_path_factory.mktemp("stage")
    with staged(f"sqlite:///{home / 'test.db'}", home) as stage:
        yield stage


@pytest.fixture(scope="module")
def told_in_one(sqlite_stage):
    from_one = Story.begin(sqlite_stage, SPEC)
    assert from_one.deliver(0, 10)
    return from_one.stored()


SPEC = {
    "model": {"kind": "preset", "name": "convnet"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree"},
    "parallelism": {"num_workers": 2},
}


@given(SLICES)
def test_any_schedule_of_delivery_stores_the_same(sqlite_stage, told_in_one, slices):
    story, applied = Story.begin(sqlite_stage, SPEC), 0
    for start, stop in slices:
        taken = story.deliver(start, stop)
        assert taken == (start <= applied or start == stop), "taken unless something is missing"
        if taken and start < stop:
            applied = max(applied, stop)
    assert story.deliver(0, 10)
    assert story.stored() == told_in_one


def test_a_nasty_schedule_stores_the_same_on_every_database(stage, told_in_one):
    story = Story.begin(stage, SPEC)
    for start, stop in [(2, 4), (0, 1), (0, 3), (0, 3), (1, 2), (5, 9), (2, 6), (0, 10), (9, 10)]:
        story.deliver(start, stop)
    assert story.stored() == told_in_one


def test_a_gap_is_refused_and_names_what_is_missing(service, digits_spec):
    _, rank = service.running(digits_spec)
    answer = rank.send([{**step_event(9), "seq": 9}])
    assert answer.status_code == 409
    problem = answer.json()
    assert problem["type"].endswith(":events_missing"), "not fenced: the rank goes on"
    assert problem["detail"] == "expected event 2 and those after it, saw [9]"
    assert problem["applied_seq"] == 1


def test_a_request_that_a_restored_database_forgot_is_not_counted_again(stage, digits_spec):
    """The ranks have served two; of a third the service must tell them, under a number above."""
    job_id = stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    served = {**checkpoint_event(assignment, 1, kind="eval"), "evaluations_served": 2}
    reply = stage.report(assignment.token, *numbered(step_event(1), served))
    assert reply.evaluations_requested == 2
    assert stage.job(job_id).evaluations_served == 2


@pytest.mark.parametrize("order", [(3, 2), (2, 2), (2, 4)])
def test_a_report_out_of_order_is_refused_whole(service, digits_spec, order):
    job_id, rank = service.running(digits_spec)
    answer = rank.send([{**step_event(seq), "seq": seq} for seq in order])
    assert answer.status_code == 409
    assert service.job(job_id)["progress"]["step"] == 1


def test_ranks_have_their_own_sequences(stage, digits_spec):
    stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    note = {"kind": "notice", "code": "n", "message": "m", "seq": 1}
    assert stage.report(assignment.token, note, rank=0).ack_seq == 1
    assert stage.report(assignment.token, note, rank=1).ack_seq == 1
    assert stage.report(assignment.token, rank=1).ack_seq == 1
    assert stage.codes(assignment.job_id).count("n") == 2


def test_a_rank_that_the_gang_does_not_have_is_refused(service, digits_spec):
    _, rank = service.running(digits_spec)
    body = {"rank": 2, "events": []}
    answer = service.http.post(f"{rank.url}/report", json=body, headers=rank.headers)
    assert (answer.status_code, answer.json()["detail"]) == (422, "expected a rank below 2, saw 2")


def test_a_heartbeat_renews_the_lease_and_hears_what_is_wanted(stage, digits_spec):
    job_id = stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    stage.pass_time(20)
    stage.stop(job_id)
    reply = stage.report(assignment.token)
    assert (reply.ack_seq, reply.desired) == (0, "stop")
    (attempt,) = stage.attempts()
    assert (attempt.lease_until - START).total_seconds() == 50
    assert stage.job(job_id).last_heard_at == stage.now


def test_the_first_step_of_an_attempt_is_noted_once(stage, digits_spec):
    job_id = stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    stage.pass_time(1)
    stage.report(assignment.token, *numbered(step_event(1)))
    first = stage.now
    stage.pass_time(1)
    stage.report(assignment.token, *numbered(step_event(1), step_event(2))[1:])
    (attempt,) = stage.attempts()
    assert (attempt.first_step_at, stage.job(job_id).started_at) == (first, first)


# ---- values that no database takes ---------------------------------------------------------------


@pytest.mark.parametrize("field", ["step", "samples", "tokens"])
def test_a_number_beyond_64_bits_is_refused_and_not_retried(service, digits_spec, field):
    job_id, rank = service.running(digits_spec)
    answer = rank.report({**step_event(2), field: 2**70})
    assert answer.status_code == 422
    assert service.job(job_id)["progress"]["step"] == 1


def test_nul_in_a_text_blocks_nothing(service, digits_spec):
    """PostgreSQL has no NUL; an answer of 500 would be retried for ever."""
    _, rank = service.running(digits_spec)
    answer = rank.report({"kind": "notice", "code": "n", "message": "a\x00b"})
    assert answer.status_code in (200, 422)
    rank.last_seq -= answer.status_code == 422
    assert rank.report(step_event(2)).status_code == 200


def test_an_evaluation_that_is_not_finite_is_kept_as_null(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report({**eval_event(1), "loss": "NaN", "metrics": {"eval.accuracy": "Infinity"}})
    (point,) = service.get(f"/jobs/{job_id}/eval-curve").json()["data"]
    assert (point["loss"], point["metrics"]) == (None, {"eval.accuracy": None})


def test_a_step_that_is_not_finite_is_counted(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report({**step_event(2), "values": {"train.loss": "NaN"}})
    metric = service.get(f"/jobs/{job_id}/metrics/train.loss").json()
    assert sum(metric["non_finite_count"]) == 1


# ---- the end of an attempt -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending",
    [
        {"kind": "finished", "reason": "budget_reached", "step": 1},
        {"kind": "failed", "reason": "non_finite_loss", "message": "nan"},
        {"kind": "failed", "reason": "worker_error", "message": "boom"},
    ],
)
def test_a_report_after_the_end_is_fenced(service, digits_spec, ending):
    job_id, rank = service.running(digits_spec)
    rank.report(ending)
    answer = rank.report(step_event(2))
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:roadless:problem:fenced"
    assert rank.ended().status_code == 409
    assert service.http.get(rank.url, headers=rank.headers).status_code == 409
    assert service.job(job_id)["progress"]["step"] == 1


def test_an_older_attempt_writes_nothing_beside_its_successor(service, digits_spec):
    job_id, old = service.running(digits_spec)
    old.ended()
    new = service.claim(released=[old.assignment["attempt_id"]])
    new.report(step_event(1, loss=0.25))
    for answer in (old.report(step_event(2)), old.upload(new_id("ckpt"), b"x"), old.ended()):
        assert answer.status_code == 409
    assert service.phase(job_id) == "RUNNING"
    assert service.get(f"/jobs/{job_id}/metrics/train.loss").json()["last"] == [0.25]


def test_a_report_that_waited_while_its_job_was_cancelled_is_fenced(stage, digits_spec):
    """P2: the attempt is looked at after the lock is held, not before."""
    job_id = stage.submit(digits_spec)
    token = stage.claim(stage.register()).token
    errors = []

    def late_report():
        try:
            stage.report(token, *numbered(step_event(1)))
        except ServiceError as error:
            errors.append(error)

    with stage.db.write() as session:
        job = jobs.get(session, job_id, "default", lock=True)
        attempt = session.scalars(select(AttemptRow)).one()
        waiting = threading.Thread(target=late_report)
        waiting.start()
        time.sleep(0.2)  # enough to reach the lock; were it not, the test would still hold
        attempt.ended_at, job.phase, job.desired = stage.now, "CANCELLING", "cancel"
    waiting.join()
    assert [type(error) for error in errors] == [Fenced]
    with stage.db.read() as session:
        assert session.scalar(select(func.count()).select_from(MetricChunkRow)) == 0


def test_a_stop_while_recovering_ends_even_when_all_is_told_in_one_report(service, digits_spec):
    """The spool of a short attempt may arrive whole: start, steps and end at once."""
    job_id, first = service.running(digits_spec)
    first.ended()
    service.post(f"/jobs/{job_id}/stop")
    second = service.claim(released=[first.assignment["attempt_id"]])
    second.report(
        {"kind": "started", "world_size": 2},
        step_event(2),
        {"kind": "finished", "reason": "stopped_by_user", "step": 2},
    )
    assert service.phase(job_id) == "STOPPING"
    service.sync(released=[second.assignment["attempt_id"]])
    assert service.phase(job_id) == "STOPPED"


def test_a_stop_while_recovering_is_stopping_from_the_first_step_at_the_latest(
    service, digits_spec
):
    job_id, first = service.running(digits_spec)
    first.ended()
    service.post(f"/jobs/{job_id}/stop")
    second = service.claim(released=[first.assignment["attempt_id"]])
    second.report({"kind": "started", "world_size": 2}, step_event(2))
    assert service.phase(job_id) == "STOPPING"


def test_an_end_that_nobody_asked_for_still_ends_the_job(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report({"kind": "finished", "reason": "stopped_by_user", "step": 1})
    service.sync(released=[rank.assignment["attempt_id"]])
    assert service.phase(job_id) == "STOPPED"


# ---- checkpoints -------------------------------------------------------------------------------


def listed(service, job_id):
    return [one["id"] for one in service.get(f"/jobs/{job_id}/checkpoints").json()["data"]]


def test_a_checkpoint_without_its_files_is_refused_and_not_listed(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    event = rank.saved(new_id("ckpt"), 1, kind="eval", loss=1.0, content=b"x")
    answer = rank.report(event)
    assert answer.status_code == 422
    assert "saw no such file" in answer.json()["detail"]
    assert listed(service, job_id) == []


def test_a_checkpoint_with_one_file_missing_is_refused(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    checkpoint_id = new_id("ckpt")
    rank.upload(checkpoint_id, b"x")
    event = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    event["manifest"]["files"].append({"name": "b", "size": 1, "sha256": "0" * 64})
    assert rank.report(event).status_code == 422
    assert listed(service, job_id) == []


def test_a_checkpoint_whose_size_is_told_wrong_is_refused(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    checkpoint_id = new_id("ckpt")
    rank.upload(checkpoint_id, b"x")
    event = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    event["manifest"]["files"][0]["size"] = 2
    assert "with 2 bytes, saw 1" in rank.report(event).json()["detail"]
    assert listed(service, job_id) == []


def spoilt(event, **changes):
    return {**event, "manifest": {**event["manifest"], **changes}}


@pytest.mark.parametrize(
    "changes",
    [
        {"job_id": "job_x"},
        {"attempt_id": "att_x"},
        {"checkpoint_id": "../../other/job/ckpt"},
        {"checkpoint_id": "ckpt_" + "0" * 26 + "/x"},
        {"checkpoint_id": "/etc"},
    ],
)
def test_a_checkpoint_of_something_else_is_refused(service, digits_spec, changes):
    job_id, rank = service.running(digits_spec)
    checkpoint_id = new_id("ckpt")
    rank.upload(checkpoint_id, b"x")
    event = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    assert rank.report(spoilt(event, **changes)).status_code == 422
    assert listed(service, job_id) == []


def test_a_file_named_twice_is_refused(service, digits_spec):
    _, rank = service.running(digits_spec)
    checkpoint_id = new_id("ckpt")
    rank.upload(checkpoint_id, b"x")
    event = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    answer = rank.report(spoilt(event, files=2 * event["manifest"]["files"]))
    assert "named twice" in answer.json()["detail"]


def test_the_id_of_another_jobs_checkpoint_cannot_be_taken(service, digits_spec):
    spec = {**digits_spec, "parallelism": {"num_workers": 1}}
    job_id, first = service.running(spec)
    mine = first.save(1, content=b"mine")
    service.submit(spec)
    second = service.claim(alive=[first.assignment["attempt_id"]], node={"free_cpus": 3})
    second.upload(mine, b"theirs")
    event = second.saved(mine, 1, kind="eval", loss=1.0, content=b"theirs")
    assert second.report(event).status_code == 422
    assert listed(service, job_id) == [mine]
    assert service.get(f"/checkpoints/{mine}/files/model.safetensors").content == b"mine"


def test_a_checkpoint_whose_evaluation_is_not_finite_is_listed(service, digits_spec):
    """A run that diverges still has its checkpoint, on databases whose JSON knows no NaN."""
    _, rank = service.running(digits_spec)
    checkpoint_id = rank.save(1, loss="Infinity")
    answer = service.get(f"/checkpoints/{checkpoint_id}")
    assert answer.status_code == 200
    assert answer.json()["evaluation"]["loss"] == "Infinity", "JSON as everybody reads it"


def test_the_best_is_kept_though_another_loss_is_not_a_number(service, digits_spec):
    spec = {**digits_spec, "checkpoints": {"keep_last": 1, "keep_best": 1}}
    job_id, rank = service.running(spec)
    rank.save(1, loss="NaN")
    best = rank.save(2, loss=0.5)
    rank.save(3, loss="NaN")
    last = rank.save(4, loss=0.7)
    assert listed(service, job_id) == [last, best]


def test_retention_removes_files_with_their_rows(service, settings, digits_spec):
    spec = {**digits_spec, "checkpoints": {"keep_last": 1, "keep_best": 0}}
    job_id, rank = service.running(spec)
    old, new = rank.save(1, content=b"old"), rank.save(2, content=b"new")
    assert listed(service, job_id) == [new]
    assert service.get(f"/checkpoints/{old}").status_code == 404
    folder = settings.home_dir / "blobs" / "default" / job_id
    assert [path.name for path in folder.iterdir()] == [new]


def test_files_stay_when_the_report_that_unlists_them_fails(service, settings, digits_spec):
    spec = {**digits_spec, "checkpoints": {"keep_last": 1, "keep_best": 0}}
    job_id, rank = service.running(spec)
    old, new = rank.save(1), new_id("ckpt")
    rank.upload(new, b"x")
    event = rank.saved(new, 2, kind="eval", loss=1.0, content=b"x")
    assert rank.report(event, {**step_event(2), "samples": 2**70}).status_code == 422
    assert listed(service, job_id) == [old]
    assert service.get(f"/checkpoints/{old}/files/model.safetensors").content == b"x"


def test_superseded_checkpoints_are_not_listed(service, digits_spec):
    job_id, first = service.running(digits_spec, steps=2)
    state, beyond = first.save(1, kind="resume"), first.save(2)
    first.ended()
    assert listed(service, job_id) == [beyond, state]
    service.claim(released=[first.assignment["attempt_id"]])
    assert listed(service, job_id) == [state]


def test_an_evaluation_that_a_user_asked_for_is_kept(service, digits_spec):
    spec = {**digits_spec, "checkpoints": {"keep_last": 1, "keep_best": 0}}
    job_id, rank = service.running(spec)
    asked = new_id("ckpt")
    rank.upload(asked, b"x")
    event = rank.saved(asked, 1, kind="eval", loss=1.0, content=b"x")
    rank.report({**event, "evaluations_served": 1})
    new = rank.save(2)
    assert listed(service, job_id) == [new, asked]
    assert rank.brief()["evaluations_served"] == 1


def test_a_taken_id_is_refused_below_http_too(stage, digits_spec):
    stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    event = checkpoint_event(assignment, 1)
    again = {**event, "manifest": {**event["manifest"], "step": 2}}
    with pytest.raises(Invalid, match="already listed"):
        stage.report(assignment.token, *numbered(event, again))
