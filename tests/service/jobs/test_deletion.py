"""A deleted job is gone at once, its rows go in batches, and nobody waits for them."""

import threading
import time
from pathlib import Path

import pytest
from played import Service, eval_event
from sqlalchemy import func, insert, select
from table_rows import a_job, a_runner, an_attempt

from roadless.service.clock import utc_now
from roadless.service.db.deletion import DELETED
from roadless.service.db.session import Database
from roadless.service.db.tables import IdempotencyRow, JobRow, MetricChunkRow, Table
from roadless.service.jobs import deletion
from roadless.service.metrics import store as metrics
from roadless.service.scheduling.housekeeping import KEYS_KEPT, Housekeeping
from roadless.service.storage.local_blobs import LocalBlobs

#: Chunks of the large job: 60 MiB, in more batches than a request deletes.
NUM_CHUNKS = 1920
CHUNK_BYTES = 32 * 2**10
#: No writer waits longer than this for a batch; far beyond what one takes on a busy machine.
LOOSE_SECONDS = 5.0


def delete(service: Service, job_id: str):
    return service.http.delete(f"/v1/jobs/{job_id}", headers=service.user)


def ended_with_checkpoint(service: Service, spec) -> tuple[str, str]:
    """A job that ended, and its checkpoint."""
    job_id, rank = service.running(spec, steps=3)
    rank.report(eval_event(3))
    checkpoint_id = rank.save(3)
    service.post(f"/jobs/{job_id}/cancel")
    service.sync(released=[rank.assignment["attempt_id"]])
    return job_id, checkpoint_id


def keeper(settings, db: Database) -> Housekeeping:
    stores = [LocalBlobs(settings.home_dir / name) for name in ("blobs", "datasets", "wheels")]
    return Housekeeping(db, *stores, settings.uploads_dir)


def num_rows(db: Database) -> dict[str, int]:
    with db.read() as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Table.metadata.sorted_tables
            if table.name == "jobs" or "job_id" in table.columns
        }


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def db(settings, service):
    db = Database(settings.resolved_database_url)
    yield db
    db.close()


def test_a_job_whose_rows_are_still_there_is_gone_for_its_user(
    service, settings, db, digits_spec, monkeypatch
):
    job_id, checkpoint_id = ended_with_checkpoint(service, digits_spec)
    monkeypatch.setattr(deletion, "SECONDS_AT_ONCE", 0.0)
    assert delete(service, job_id).status_code == 204
    assert num_rows(db)["eval_points"] == 1, "or the test shows nothing"

    for path in ("", "/events", "/eval-curve", "/metrics", "/metrics/train.loss", "/checkpoints"):
        assert service.get(f"/jobs/{job_id}{path}").status_code == 404, path
    for action in ("resume", "retry", "extend", "stop", "cancel", "pause", "evaluate"):
        assert service.post(f"/jobs/{job_id}/{action}").status_code == 404, action
    assert service.get(f"/checkpoints/{checkpoint_id}").status_code == 404
    assert service.get("/jobs").json()["data"] == []
    assert delete(service, job_id).status_code == 404
    heir = {**digits_spec, "model": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}
    assert service.post("/jobs", json=heir).status_code in (404, 422)

    keeper(settings, db).remove_deleted_jobs()
    assert not any(num_rows(db).values())
    assert not files_below(settings.home_dir / "blobs")


def test_a_deletion_that_breaks_off_anywhere_is_finished_later(service, settings, db, digits_spec):
    """Whatever a crash leaves: after each number of batches, what is left is found and removed."""
    for num_batches in range(len(deletion._PARTS)):
        job_id, _ = ended_with_checkpoint(service, digits_spec)
        with db.write() as session:
            session.get_one(JobRow, job_id).desired = DELETED
        assert not deletion.remove_rows(db, job_id, max_batches=num_batches)
        keeper(settings, db).remove_deleted_jobs()
        assert not any(num_rows(db).values()), f"after {num_batches} batches"
        assert not files_below(settings.home_dir / "blobs")


def test_files_that_cannot_be_deleted_keep_the_mark_and_hold_up_no_other(
    service, settings, db, digits_spec, monkeypatch
):
    first, _ = ended_with_checkpoint(service, digits_spec)
    second, _ = ended_with_checkpoint(service, digits_spec)
    blobs = LocalBlobs(settings.home_dir / "blobs")
    monkeypatch.setattr(deletion, "SECONDS_AT_ONCE", 0.0)
    assert {delete(service, one).status_code for one in (first, second)} == {204}
    stubborn = Stubborn(blobs, first)
    assert deletion.remove_deleted_jobs(db, stubborn) == 1
    assert num_rows(db)["jobs"] == 1
    assert deletion.remove_deleted_jobs(db, blobs) == 1
    assert not any(num_rows(db).values())


class Stubborn(LocalBlobs):
    """A store that does not delete what belongs to one job."""

    def __init__(self, blobs: LocalBlobs, job_id: str) -> None:
        self.__dict__.update(vars(blobs))
        self._job_id = job_id

    def delete(self, prefix: str) -> None:
        if self._job_id in prefix:
            raise deletion.Unavailable("the folder is kept")
        super().delete(prefix)


# ---- many rows -----------------------------------------------------------------------------------


@pytest.fixture
def large(database_url):
    """A database with a job of many chunks that a user has deleted, and one that trains."""
    db, now = Database(database_url), utc_now()
    with db.write() as session:
        gone, trains = a_job("job_gone", now), a_job("job_trains", now)
        gone.desired, gone.phase = DELETED, "STOPPED"
        session.add_all([gone, trains, a_runner("run_1", now)])
        session.flush()
        session.add(an_attempt(gone, "run_1", fence=1))
        row = {"job_id": gone.id, "name": "train.loss", "fence": 1, "level": 2, "count": 1}
        row |= {"first_step": 1, "last_step": 1, "data": b"\0" * CHUNK_BYTES}
        session.execute(insert(MetricChunkRow), [row] * NUM_CHUNKS)
    yield db
    db.close()


def test_reports_of_other_jobs_flow_while_a_large_job_is_deleted(large, capsys):
    waits: list[float] = []
    is_over = threading.Event()

    def report() -> None:
        while not is_over.is_set():
            began = time.monotonic()
            with large.write() as session:
                series = {"train.loss": ([len(waits)], [1.0])}
                metrics.append(session, job_id="job_trains", fence=1, series=series)
            waits.append(time.monotonic() - began)

    writer = threading.Thread(target=report)
    writer.start()
    began = time.monotonic()
    try:
        assert deletion.remove_rows(large, "job_gone")
    finally:
        is_over.set()
        writer.join()
    with capsys.disabled():
        print(
            f"\n{NUM_CHUNKS} chunks deleted in {time.monotonic() - began:.2f} s; {len(waits)} "
            f"reports meanwhile, the longest waited {1000 * max(waits):.0f} ms"
        )
    assert len(waits) >= 20, "some in each batch's rest"
    assert max(waits) < LOOSE_SECONDS
    assert num_rows(large)["jobs"] == 1


def test_a_batch_is_small(large):
    assert not deletion.remove_rows(large, "job_gone", max_batches=3)
    left = num_rows(large)["metric_chunks"]
    assert NUM_CHUNKS - 200 <= left < NUM_CHUNKS, "two batches of chunks, each of at most 32 MiB"


def test_a_request_deletes_no_longer_than_its_share(large, tmp_path, monkeypatch):
    monkeypatch.setattr(deletion, "SECONDS_AT_ONCE", 0.0)
    deletion.begin(large, LocalBlobs(tmp_path / "blobs"), "job_gone", "default")
    assert num_rows(large)["metric_chunks"] == NUM_CHUNKS


def test_old_keys_are_forgotten_in_batches(service, settings, db, monkeypatch):
    old = utc_now() - 2 * KEYS_KEPT
    rows = [
        {"project": "default", "key": str(i), "body_sha256": "0", "response": {}, "created_at": at}
        for i, at in enumerate([old] * 1200 + [utc_now()] * 3)
    ]
    with db.write() as session:
        session.execute(insert(IdempotencyRow), rows)
    keeper(settings, db).clean_up(utc_now())
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyRow)) == 3
