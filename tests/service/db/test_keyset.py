"""Pages of every list hold what is there once, whatever is deleted and made between them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete
from sqlalchemy.orm import Session
from table_rows import a_job, a_runner, an_attempt

from roadless.service.checkpoints import store as checkpoints
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.datasets import store as datasets
from roadless.service.db.keyset import Place, place_of
from roadless.service.db.session import Database
from roadless.service.db.tables import (
    CheckpointRow,
    DatasetRow,
    JobRow,
    SecretRow,
    Table,
    WheelRow,
)
from roadless.service.errors import Invalid, NotFound
from roadless.service.jobs import store as jobs
from roadless.service.secrets import store as secrets
from roadless.service.wheels import store as wheels

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PROJECT = "default"


def a_dataset(id: str, at: datetime) -> DatasetRow:
    return DatasetRow(
        id=id,
        project=PROJECT,
        name=id,
        format="csv",
        state="open",
        created_at=at,
        touched_at=at,
    )


def a_wheel(id: str, at: datetime) -> WheelRow:
    return WheelRow(
        id=id,
        project=PROJECT,
        file_name="a.whl",
        distribution="a",
        version="1",
        sha256="0" * 64,
        size=1,
        is_stored=True,
        created_at=at,
    )


def a_secret(id: str, at: datetime) -> SecretRow:
    return SecretRow(project=PROJECT, name=id, sealed=b"", key_id="k", created_at=at, updated_at=at)


def a_checkpoint(id: str, at: datetime) -> CheckpointRow:
    """The later, the higher its step, so that lists by step and by time are tested alike."""
    return CheckpointRow(
        id=id,
        job_id="job_0",
        attempt_id="att_1",
        project=PROJECT,
        fence=1,
        kind="eval",
        step=(at - NOW) // timedelta(seconds=1),
        pinned=False,
        manifest={},
        created_at=NOW,
    )


def add_attempt(session: Session, *, at: datetime) -> None:
    """The attempt that saved the checkpoints, and its job."""
    job = a_job("job_0", at)
    session.add_all([job, a_runner("run_0", at)])
    session.flush()
    session.add(an_attempt(job, "run_0", fence=1))
    session.flush()


def page_of_jobs(session, after, limit):
    return jobs.page(session, PROJECT, after=after, limit=limit, phase=None)


def page_of_datasets(session, after, limit):
    return datasets.page(session, PROJECT, after=after, limit=limit)


def page_of_wheels(session, after, limit):
    return wheels.page(session, PROJECT, after=after, limit=limit)


def page_of_secrets(session, after, limit):
    return secrets.page(session, PROJECT, after=after and after.id, limit=limit)


def page_of_checkpoints(session, after, limit):
    kind = CheckpointKind.EVAL
    return checkpoints.page(session, "job_0", kind=kind, after=after, limit=limit)


LISTS = {
    "jobs": (JobRow, a_job, page_of_jobs, place_of),
    "data sets": (DatasetRow, a_dataset, page_of_datasets, place_of),
    "wheels": (WheelRow, a_wheel, page_of_wheels, place_of),
    "checkpoints": (CheckpointRow, a_checkpoint, page_of_checkpoints, checkpoints.place_of),
}


#: Secrets are listed by name, so a name is a place by itself.
BY_NAME = {"secrets": (SecretRow, a_secret, page_of_secrets, lambda row: row.name)}


@pytest.fixture
def db(database_url):
    database = Database(database_url)
    Table.metadata.create_all(database.engine)
    yield database
    database.close()


def empty(db: Database) -> None:
    with db.write() as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())


#: Seconds at which rows are made, some of them at once; what is deleted after each page; what is
#: made after each page.
MADE = st.lists(st.integers(0, 4), min_size=1, max_size=12)
DELETED = st.lists(st.lists(st.integers(0, 11), max_size=3), max_size=12)
ADDED = st.lists(st.integers(0, 4), max_size=12)


@pytest.mark.parametrize("name", LISTS | BY_NAME)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=MADE, deleted=DELETED, added=ADDED, limit=st.integers(1, 3))
def test_what_stays_is_listed_once_whatever_comes_and_goes(db, name, made, deleted, added, limit):
    table, make, page, cursor = (LISTS | BY_NAME)[name]
    key = table.name if table is SecretRow else table.id
    empty(db)
    with db.write() as session:
        if table is CheckpointRow:
            add_attempt(session, at=NOW)
        session.add_all(make(f"x_{i}", NOW + timedelta(seconds=at)) for i, at in enumerate(made))
    stay = {f"x_{i}" for i in range(len(made))}
    seen, after, turn = [], None, 0
    while True:
        with db.write() as session:
            rows = list(page(session, after, limit))
            if not rows:
                break
            seen += [getattr(row, key.key) for row in rows]
            after = Place.parse(str(cursor(rows[-1])))
            gone = {f"x_{i}" for i in deleted[turn]} if turn < len(deleted) else set()
            session.execute(delete(table).where(key.in_(gone)))
            if turn < len(added):
                session.add(make(f"y_{turn}", NOW + timedelta(seconds=added[turn])))
        stay -= gone
        turn += 1
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)


@pytest.mark.parametrize("name", LISTS)
def test_the_id_alone_of_a_row_that_is_listed_is_a_place_and_that_of_another_is_not_found(db, name):
    _, make, page, _ = LISTS[name]
    with db.write() as session:
        add_attempt(session, at=NOW - timedelta(days=1))
        session.add_all(make(f"x_{i}", NOW + timedelta(seconds=i)) for i in range(3))
    with db.read() as session:
        found = page(session, Place("x_2"), 2)
        assert [row.id for row in found] == ["x_1", "x_0"]
        with pytest.raises(NotFound, match="x_9"):
            page(session, Place("x_9"), 2)


@given(st.from_regex(r"[a-z0-9_]{1,40}", fullmatch=True), st.none() | st.integers(0, 2**63 - 1))
def test_a_place_reads_back_as_it_is_written(id, order):
    assert Place.parse(str(Place(id, order))) == Place(id, order)


@pytest.mark.parametrize(
    "text", ["", "job_1.", "job_1.x", "job_1.-1", ".1", "a b", f"job_1.{2**63}"]
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(Invalid, match="expected the last_id of a page") as refused:
        Place.parse(text)
    assert refused.value.errors[0].pointer == "query:after"


def test_a_moment_that_no_row_can_have_is_refused(db):
    with db.read() as session, pytest.raises(Invalid, match="expected the last_id of a page"):
        page_of_jobs(session, Place("job_1", 2**63 - 1), 1)


def test_a_page_follows_one_whose_last_job_was_deleted(service, digits_spec):
    ids = [service.submit(digits_spec) for _ in range(4)]
    first = service.get("/jobs", params={"limit": 2}).json()
    for job_id in ids[1:3]:
        service.post(f"/jobs/{job_id}/cancel")
        assert service.http.delete(f"/v1/jobs/{job_id}", headers=service.user).status_code == 204
    rest = service.get("/jobs", params={"limit": 2, "after": first["last_id"]})
    assert rest.status_code == 200, rest.text
    assert [job["id"] for job in rest.json()["data"]] == [ids[0]]


def test_a_page_follows_one_whose_last_checkpoint_retention_has_removed(service, digits_spec):
    spec = {**digits_spec, "checkpoints": {"keep_last": 3}}
    job_id, rank = service.running(spec)
    ids = [rank.save(step, loss=1 / step) for step in (1, 2, 3)]
    path = f"/jobs/{job_id}/checkpoints"
    first = service.get(path, params={"limit": 2}).json()
    for step in (4, 5):  # of the first three only the last is kept
        rank.save(step, loss=1 / step)
    rest = service.get(path, params={"limit": 2, "after": first["last_id"]})
    assert (rest.status_code, rest.json()["data"]) == (200, [])
    assert [one["id"] for one in first["data"]] == [ids[2], ids[1]]


def test_a_cursor_that_is_none_is_refused_by_name(service):
    for path in ("/jobs", "/datasets", "/wheels"):
        answer = service.get(path, params={"after": "no such place"})
        assert answer.status_code == 422
        (fault,) = answer.json()["errors"]
        assert fault["pointer"] == "query:after"
