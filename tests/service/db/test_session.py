"""P8: a database that is busy or away is a matter of 503 and a little patience."""

import contextlib
import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cuttable import proxied
from fastapi.testclient import TestClient
from played import Service, step_event
from sqlalchemy import event, text
from sqlalchemy.exc import DataError, DisconnectionError, IntegrityError

from roadless.service.attempts.leases import LeaseKeeper
from roadless.service.clock import utc_now
from roadless.service.db import postgresql, sqlite
from roadless.service.db import session as db_session
from roadless.service.db.session import Database, DatabaseUnusable
from roadless.service.errors import Invalid, Locked, Unavailable
from roadless.service.main import create_app
from roadless.service.settings import Settings

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def db(database_url):
    """A database with one number in it."""
    db = Database(database_url)
    with db.write() as session:
        session.execute(text("CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"))
        session.execute(text("INSERT INTO counters VALUES (1, 0)"))
    yield db
    db.close()


def count(session):
    return session.scalar(text("SELECT n FROM counters"))


def add_one(db):
    """Read, think, write: without the lock that write() holds, additions would be lost."""
    lock = "" if db.is_sqlite else " FOR UPDATE"
    with db.write() as session:
        seen = session.scalar(text(f"SELECT n FROM counters{lock}"))
        session.execute(text("UPDATE counters SET n = :n"), {"n": seen + 1})


# ---- transactions --------------------------------------------------------------------------------


def test_eight_writers_lose_nothing_and_see_no_locked_database(db):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [add_one(db) for _ in range(25)], range(8)))
    with db.read() as session:
        assert count(session) == 200


@on_sqlite
def test_writers_of_two_processes_wait_for_each_other(db, database_url):
    other = Database(database_url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: [add_one((db, other)[i % 2]) for _ in range(10)], range(8)))
    other.close()
    with db.read() as session:
        assert count(session) == 80


def test_an_error_undoes_the_whole_transaction(db):
    with contextlib.suppress(ZeroDivisionError), db.write() as session:
        session.execute(text("UPDATE counters SET n = 7"))
        raise ZeroDivisionError
    with db.read() as session:
        assert count(session) == 0
    add_one(db)


def test_a_reader_sees_one_moment_and_waits_for_nobody(db):
    with db.write() as writer:
        writer.execute(text("UPDATE counters SET n = 7"))
        with db.read() as reader:
            assert count(reader) == 0
    with db.read() as reader:
        assert count(reader) == 7


@on_sqlite
def test_sqlite_is_set_up_for_many_readers_and_true_references(db):
    with db.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


# ---- errors --------------------------------------------------------------------------------------


def test_what_is_no_outage_is_not_called_one(db):
    with pytest.raises(IntegrityError), db.write() as session:
        session.execute(text("INSERT INTO counters VALUES (1, 0)"))


def test_a_value_that_does_not_fit_is_the_callers_fault(db):
    with pytest.raises(Invalid, match="cannot be stored") as caught, db.write() as session:
        session.execute(text("UPDATE counters SET n = :n"), {"n": 2**70})
    assert isinstance(caught.value.__cause__, DataError | OverflowError)
    add_one(db)


def test_an_error_that_is_logged_does_not_show_what_users_sent(db):
    with pytest.raises(IntegrityError) as caught, db.write() as session:
        session.execute(text("INSERT INTO counters VALUES (:id, :n)"), {"id": 1, "n": 424242})
    assert "424242" not in str(caught.value)


def test_a_pool_that_is_used_up_is_an_outage_and_passes(database_url, monkeypatch):
    monkeypatch.setattr(db_session, "POOL_SECONDS", 1)
    db = Database(database_url, pool_size=1)
    taken = [db.engine.connect() for _ in range(11)]  # one, and SQLAlchemy's ten of overflow
    with pytest.raises(Unavailable):
        db.ping()
    for connection in taken:
        connection.close()
    db.ping()
    db.close()


@on_postgresql
def test_a_row_that_is_held_for_too_long_is_told_apart(database_url, monkeypatch):
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 0.1)
    db = Database(database_url)
    with db.write() as session:
        session.execute(text("CREATE TABLE counters (n INTEGER)"))
        session.execute(text("INSERT INTO counters VALUES (0)"))
    with db.write() as session:
        session.execute(text("UPDATE counters SET n = 1"))
        with pytest.raises(Locked):
            add_one(db)
    db.close()


@on_postgresql
def test_a_transaction_whose_process_hangs_lets_its_rows_go(database_url, monkeypatch):
    """A suspended replica must not hold a job's lock for ever."""
    monkeypatch.setattr(postgresql, "IDLE_SECONDS", 0.2)
    db = Database(database_url)
    with pytest.raises(Unavailable):
        in_one_transaction(db, lambda: time.sleep(0.5))
    db.ping()
    db.close()


def in_one_transaction(db, happening):
    """Two statements, and what happens between them."""
    with db.write() as session:
        session.execute(text("SELECT 1"))
        happening()
        session.execute(text("SELECT 1"))


# ---- SQLite that another process holds -----------------------------------------------------------


@pytest.fixture
def held(settings, monkeypatch):
    """The app on a database file whose write lock is another process's; call to let go."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(db_session, "TURN_SECONDS", 0.1)
    with TestClient(create_app(settings)) as http:
        service = Service(http, settings.home_dir)
        other = sqlite3.connect(settings.resolved_database_url.removeprefix("sqlite:///"))
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        yield service, lambda: other.execute("ROLLBACK")
        other.close()


@on_sqlite
def test_a_held_lock_is_503_until_it_is_let_go(held, digits_spec):
    service, let_go = held
    answer = service.post("/jobs", json=digits_spec)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["type"] == "urn:roadless:problem:unavailable"
    assert service.get("/jobs").status_code == 200, "readers need no lock"
    let_go()
    assert service.post("/jobs", json=digits_spec).status_code == 201


@on_sqlite
def test_writers_queue_for_a_bounded_time(db, monkeypatch):
    """The hundredth in line is told to come again, not kept for a hundred turns."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(db_session, "TURN_SECONDS", 0.1)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with db.write():
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="busy"), db.write():
        pass
    assert time.monotonic() - began < 5
    leave.set()
    holder.join()
    add_one(db)


def test_a_tick_that_cannot_write_freezes_the_leases(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    settings = Settings(home=tmp_path, tick_seconds=0.02, lease_seconds=5)
    app = create_app(settings)
    with TestClient(app):
        before = app.state.part(LeaseKeeper).policy.frozen_until
        other = sqlite3.connect(tmp_path / "roadless.db")
        other.execute("BEGIN IMMEDIATE")
        wait_until(
            lambda: (
                app.state.part(LeaseKeeper).policy.frozen_until > before + timedelta(seconds=0.1)
            )
        )
        other.rollback()
        other.close()
        frozen = wait_for_rest(lambda: app.state.part(LeaseKeeper).policy.frozen_until)
    assert frozen > before


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_rest(read, seconds=10):
    """The value once it has stayed the same for a while."""
    deadline = time.monotonic() + seconds
    seen = read()
    while time.monotonic() < deadline:
        time.sleep(0.3)
        if read() == seen:
            return seen
        seen = read()
    raise AssertionError("it never rests")


# ---- PostgreSQL behind a wire that is cut --------------------------------------------------------


@pytest.fixture
def behind_a_proxy(database_url, tmp_path):
    with proxied(database_url) as (url, proxy):
        settings = Settings(home=tmp_path / "home", DATABASE_URL=url, tick_seconds=0.05)
        with TestClient(create_app(settings), raise_server_exceptions=False) as http:
            yield Service(http, settings.home_dir), proxy


@on_postgresql
def test_a_cut_database_is_503_and_nothing_is_lost_when_it_is_back(behind_a_proxy, digits_spec):
    service, proxy = behind_a_proxy
    job_id, rank = service.running(digits_spec)
    proxy.cut()
    for answer in (
        service.get(f"/jobs/{job_id}"),
        service.post("/jobs", json=digits_spec, headers={"Idempotency-Key": "k"}),
        service.http.get("/readyz"),
        rank.report(step_event(2)),
    ):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
    assert service.http.get("/healthz").status_code == 200
    proxy.mend()
    assert service.http.get("/readyz").status_code == 200
    rank.last_seq -= 1
    assert rank.report(step_event(2)).json()["ack_seq"] == 2
    assert service.phase(job_id) == "RUNNING"
    assert len(service.get("/jobs").json()["data"]) == 1


@on_postgresql
def test_leases_are_frozen_while_the_database_is_away(behind_a_proxy):
    service, proxy = behind_a_proxy
    leases = service.http.app.state.part(LeaseKeeper)
    before = leases.policy.frozen_until
    proxy.cut()
    wait_until(lambda: leases.policy.frozen_until > before + timedelta(seconds=0.2))
    proxy.mend()
    frozen = wait_for_rest(lambda: leases.policy.frozen_until)
    assert frozen - utc_now() > timedelta(seconds=20), "one full lease from the last failure"


@on_postgresql
def test_a_connection_cut_within_a_transaction_is_an_outage_too(database_url):
    with proxied(database_url) as (url, proxy):
        db = Database(url)
        with pytest.raises(Unavailable):
            in_one_transaction(db, proxy.cut)
        proxy.mend()
        db.ping()
        db.close()


# ---- PostgreSQL that keeps its connections and says nothing --------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """Bounds of a tenth, so that a test does not wait for the real ones."""
    for module, names in (
        (postgresql, ("CONNECT_SECONDS", "ANSWER_SECONDS", "CHECK_SECONDS")),
        (db_session, ("POOL_SECONDS", "TRIAL_SECONDS", "PING_SECONDS")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) / 10)
    monkeypatch.setattr(postgresql, "CONNECT_SECONDS", 2)  # the least that libpq takes
    monkeypatch.setattr(postgresql.BoundedConnection, "answer_seconds", postgresql.ANSWER_SECONDS)


@on_postgresql
def test_every_request_to_a_silent_database_is_503_within_a_bound(impatient, behind_a_proxy):
    """Twenty users at once: each hears soon, and none needs more than one connection's time."""
    service, proxy = behind_a_proxy
    assert service.get("/jobs").status_code == 200
    proxy.silence()
    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.get("/jobs"), range(20)))
    taken = time.monotonic() - began
    assert {(a.status_code, a.headers["retry-after"]) for a in answers} == {(503, "1")}
    assert taken < 20, "a check of 0.2 s, a connection of 2 s"
    assert service.http.get("/healthz").status_code == 200
    proxy.mend()
    wait_until(lambda: service.get("/jobs").status_code == 200)


@on_postgresql
def test_a_database_that_falls_silent_within_a_transaction_is_given_up(impatient, database_url):
    with proxied(database_url) as (url, proxy):
        db = Database(url)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            in_one_transaction(db, proxy.silence)
        assert time.monotonic() - began < 10, "an answer is waited for once, not for each statement"
        proxy.mend()
        db.ping()
        db.close()


@on_postgresql
def test_a_probe_of_a_silent_database_has_a_bound_and_no_second_thread(database_url):
    with proxied(database_url) as (url, proxy):
        db = Database(url)
        db.ping()
        proxy.silence()
        began = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            failures = list(pool.map(lambda _: failure_of(db.ping), range(10)))
        assert all(isinstance(failure, Unavailable) for failure in failures)
        assert time.monotonic() - began < 2 * db_session.PING_SECONDS + 5
        assert [one.name for one in threading.enumerate()].count("database-ping") == 1
        proxy.mend()
        wait_until(lambda: failure_of(db.ping) is None)
        db.close()


def failure_of(action):
    try:
        action()
    except Exception as error:
        return error
    return None


@on_postgresql
def test_connections_that_are_lost_as_soon_as_they_are_made_are_an_outage(database_url):
    db = Database(database_url)

    @event.listens_for(db.engine, "checkout")
    def _lose(_connection, _record, _proxy):
        raise DisconnectionError("lost")

    with pytest.raises(Unavailable):
        db.ping()
    event.remove(db.engine, "checkout", _lose)
    db.ping()
    db.close()


@on_postgresql
def test_the_loop_freezes_the_leases_while_the_database_is_silent(impatient, behind_a_proxy):
    service, proxy = behind_a_proxy
    leases = service.http.app.state.part(LeaseKeeper)
    before = leases.policy.frozen_until
    proxy.silence()
    wait_until(lambda: leases.policy.frozen_until > before + timedelta(seconds=0.2), seconds=20)
    proxy.mend()


@on_postgresql
def test_what_may_take_long_is_given_longer(impatient, database_url):
    db = Database(database_url)
    with postgresql.unhurried(db.engine) as connection:
        connection.execute(text("SELECT pg_sleep(1.5)"))
    with pytest.raises(Unavailable), db.read() as session:
        session.execute(text("SELECT pg_sleep(3)"))
    db.ping()
    db.close()


# ---- what is no database -------------------------------------------------------------------------


def a_text_file(folder):
    path = folder / "text.db"
    path.write_text("no database at all\n" * 100)
    return f"sqlite:///{path}", "file is not a database"


def a_missing_folder(folder):
    return f"sqlite:///{folder / 'absent' / 'a.db'}", "unable to open database file"


def another_kind(folder):
    return "mysql://user:hunter2@host/name", "saw 'mysql'"


def no_url(folder):
    return "hunter2 garbage", "expected DATABASE_URL to be a URL"


def nobody_there(folder):
    return "postgresql://user:hunter2@127.0.0.1:1/name", "Connection refused"


@pytest.mark.parametrize(
    "made", [a_text_file, a_missing_folder, another_kind, no_url, nobody_there]
)
def test_what_is_no_database_is_one_error_at_the_start(tmp_path, made):
    url, reason = made(tmp_path)
    with pytest.raises(DatabaseUnusable) as caught:
        create_app(Settings(home=tmp_path / "home", DATABASE_URL=url))
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@on_postgresql
def test_a_server_without_this_database_is_one_error_too(tmp_path, database_url):
    url = re.sub(r"/test_[0-9a-f]+", "/absent", database_url)
    with pytest.raises(DatabaseUnusable, match="does not exist"):
        create_app(Settings(home=tmp_path / "home", DATABASE_URL=url))
