"""A database that lacks its last seconds: what ranks say again is there as if it had never gone."""

from datetime import timedelta

from played import eval_event, step_event
from sqlalchemy import delete, update

from roadless.service.checkpoints.retention import remove_unlisted
from roadless.service.clock import utc_now
from roadless.service.db.tables import CheckpointRow, EvalPointRow, MetricChunkRow, RankRow


def forget(state, *, applied_seq):
    """All that the job's attempt has reported after that, as a copy made then would."""
    with state.db.write() as session:
        session.execute(update(RankRow).values(applied_seq=applied_seq))
        session.execute(delete(CheckpointRow))
        session.execute(delete(EvalPointRow))
        session.execute(delete(MetricChunkRow).where(MetricChunkRow.first_step > applied_seq))


def test_a_checkpoint_that_was_forgotten_keeps_its_files_until_its_rank_lists_it_again(
    service, digits_spec
):
    """Housekeeping comes in between, hours later: files without a row, an attempt that lasts."""
    job_id, rank = service.running(digits_spec)
    state = service.http.app.state
    told = [{**step_event(2), "seq": 2}, {**eval_event(2, loss=0.25), "seq": 3}]
    assert rank.send(told).status_code == 200
    rank.last_seq = 3
    checkpoint_id = rank.save(2, loss=0.25, content=b"weights")
    (listed,) = service.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    forget(state, applied_seq=1)

    refused = rank.report(step_event(3))
    assert (refused.status_code, refused.json()["applied_seq"]) == (409, 1)
    assert rank.send([]).json()["ack_seq"] == 1
    later = utc_now() + timedelta(hours=3)
    assert remove_unlisted(state.db, state.blobs, now=later) == 0

    saved = rank.saved(checkpoint_id, 2, kind="eval", loss=0.25, content=b"weights")
    again = rank.send([*told, {**saved, "seq": 4}, {**step_event(3), "seq": 5}])
    assert (again.status_code, again.json()["ack_seq"]) == (200, 5)
    (found,) = service.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert found | {"created_at": ""} == listed | {"created_at": ""}
    file = service.get(f"/checkpoints/{checkpoint_id}/files/model.safetensors")
    assert file.content == b"weights"
    (point,) = service.get(f"/jobs/{job_id}/eval-curve").json()["data"]
    assert (point["step"], point["checkpoint_id"]) == (2, checkpoint_id)
    metric = service.get(f"/jobs/{job_id}/metrics/train.loss").json()
    assert (metric["x"], metric["count"]) == ([1, 2, 3], [1, 1, 1])


def test_a_rank_of_an_attempt_that_was_forgotten_is_told_to_leave_and_its_runner_to_let_go(
    service, digits_spec
):
    """It began after the copy: nobody knows its token, and its seats are released."""
    service.submit(digits_spec)
    rank = service.claim()
    rank.assignment["token"] = f"{rank.assignment['token'][:-1]}x"
    assert rank.report(step_event(1)).status_code == 401
    assert rank.ended().status_code == 401
    unknown = "att_01m8sgjndpxqvj92et269vwtp3"
    alive = [rank.assignment["attempt_id"], unknown]
    assert service.sync(alive=alive)["stop"] == [unknown]
