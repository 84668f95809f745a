"""Files of SQLite: private, and smaller after deletions, without a writer that waits for it."""

import sqlite3
import stat
import threading
import time
from contextlib import closing

import pytest
from sqlalchemy import text

from roadless.service.db import sqlite
from roadless.service.db.migrate import alone, migrate
from roadless.service.db.session import Database
from roadless.service.main import create_app
from roadless.service.settings import Settings

MIB = 2**20


@pytest.fixture
def db(tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    with alone(db, tmp_path):
        migrate(db)
    yield db
    db.close()


def fill(db, num_mib):
    with db.write() as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS ballast (data BLOB)"))
        for _ in range(num_mib):
            session.execute(text("INSERT INTO ballast VALUES (zeroblob(1048576))"))


def empty(db):
    with db.write() as session:
        session.execute(text("DELETE FROM ballast"))


def size(db):
    """Of all its files."""
    return sum(path.stat().st_size for path in db.file.parent.glob(f"{db.file.name}*"))


def test_what_is_deleted_is_given_back_to_the_disk(db):
    fill(db, 100)
    empty(db)
    assert size(db) > 100 * MIB, "or the test shows nothing"
    given = sqlite.give_back(db.engine, db.turn)
    assert given > 80 * MIB
    assert size(db) < 16 * MIB, "spare pages stay, 8 MiB"
    assert sqlite.give_back(db.engine, db.turn) == 0
    with db.read() as session:
        assert session.scalar(text("PRAGMA integrity_check")) == "ok"


def test_writers_have_their_turns_meanwhile(db, capsys):
    fill(db, 100)
    empty(db)
    waits, is_over = [], threading.Event()

    def write():
        while not is_over.is_set():
            began = time.monotonic()
            with db.write() as session:
                session.execute(text("INSERT INTO ballast VALUES (zeroblob(1000))"))
            waits.append(time.monotonic() - began)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sqlite.give_back(db.engine, db.turn)
    finally:
        is_over.set()
        writer.join()
    with capsys.disabled():
        longest = 1000 * max(waits)
        print(f"\n{len(waits)} writes while space was given back, the longest {longest:.0f} ms")
    assert len(waits) >= 10
    assert max(waits) < 5, "far beyond a step's 4 MiB on a busy machine"


def test_a_reader_that_stays_only_delays_it(db):
    """A long answer keeps its snapshot; space comes back once it has ended."""
    fill(db, 30)
    with db.read() as session:
        session.execute(text("SELECT count(*) FROM ballast")).all()
        empty(db)
        began = time.monotonic()
        sqlite.give_back(db.engine, db.turn)
        assert time.monotonic() - began < 20
        with db.write() as writer:
            writer.execute(text("INSERT INTO ballast VALUES (zeroblob(10))"))
    sqlite.give_back(db.engine, db.turn)
    with db.write() as session:
        session.execute(text("DELETE FROM ballast"))
    sqlite.give_back(db.engine, db.turn)
    with closing(sqlite3.connect(db.file)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert size(db) < 16 * MIB


def an_old_file(path, num_mib):
    """As databases were made before: nothing is ever given back."""
    with closing(sqlite3.connect(path)) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.execute("CREATE TABLE ballast (data BLOB)")
        old.executemany("INSERT INTO ballast VALUES (zeroblob(1048576))", [()] * num_mib)
        old.commit()
    path.chmod(0o644)


def test_a_small_older_file_is_rewritten_at_the_start(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    an_old_file(home / "roadless.db", 30)
    db = create_app(Settings(home=home, DATABASE_URL=None)).state.db
    with db.read() as session:
        assert session.scalar(text("PRAGMA auto_vacuum")) == 2
        assert session.scalar(text("SELECT count(*) FROM ballast")) == 30
    empty(db)
    sqlite.give_back(db.engine, db.turn)
    assert size(db) < 16 * MIB
    db.close()


def test_a_large_older_file_stays_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sqlite, "REWRITE_BYTES", MIB)
    an_old_file(tmp_path / "roadless.db", 3)
    create_app(Settings(home=tmp_path, DATABASE_URL=None)).state.db.close()
    assert "never becomes smaller" in caplog.text


def test_an_older_file_that_another_process_uses_is_left_for_the_next_start(tmp_path, caplog):
    an_old_file(tmp_path / "roadless.db", 1)
    engine = Database(f"sqlite:///{tmp_path / 'roadless.db'}").engine
    with closing(sqlite3.connect(tmp_path / "roadless.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sqlite.make_shrinkable(engine)
    assert "next start tries again" in caplog.text
    sqlite.make_shrinkable(engine)
    with closing(sqlite3.connect(tmp_path / "roadless.db")) as other:
        assert other.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    engine.dispose()


@pytest.mark.parametrize("made_before", [False, True])
def test_every_file_of_the_database_is_its_owners_alone(tmp_path, made_before):
    """Also under a process whose umask lets others read, and where an older version let them."""
    path = tmp_path / "roadless.db"
    if made_before:
        an_old_file(path, 1)
    with closing(sqlite3.connect(path)) as other:  # so that the log's files are there
        if made_before:
            other.execute("BEGIN IMMEDIATE")
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).chmod(0o644)
            other.rollback()
        db = Database(f"sqlite:///{path}")
        with alone(db, tmp_path):
            migrate(db)
        with db.write() as session:
            session.execute(text("CREATE TABLE IF NOT EXISTS ballast (data BLOB)"))
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob("roadless.db*")}
        assert modes == dict.fromkeys(("roadless.db", "roadless.db-wal", "roadless.db-shm"), 0o600)
        db.close()
