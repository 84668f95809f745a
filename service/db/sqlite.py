"""Connections to SQLite, and its files: who may read them, and how they become smaller again.

What is deleted leaves pages of the file free. They are used again, and given back to the disk by
housekeeping in small steps, which SQLite can do in a file that was made for it (auto_vacuum
INCREMENTAL). An older file is rewritten for it when the service starts, if it is small.
"""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

log = logging.getLogger(__name__)

#: How long a statement waits for a lock that another process holds.
BUSY_SECONDS = 10
#: The log is cut to this size once its content is in the file.
LOG_BYTES = 64 * 2**20
#: Free pages that stay in the file for what comes next (8 MiB).
SPARE_PAGES = 2048
#: Pages that one step gives back, in one turn to write (4 MiB).
STEP_PAGES = 1024
#: Steps of one round; the next round continues.
MAX_STEPS = 2000
#: The largest older file that is rewritten at the start of the service.
REWRITE_BYTES = 256 * 2**20
#: How long a step waits for readers and other processes; it is tried again in the next round.
STEP_BUSY_SECONDS = 0.2

_INCREMENTAL = 2


def connect_arguments() -> dict[str, Any]:
    """Waits for locks have a bound."""
    return {"timeout": BUSY_SECONDS, "check_same_thread": False}


def prepare(engine: Engine) -> None:
    """Set the engine's connections up for many readers, true references and files that shrink."""
    if (file := file_of(engine)) is not None:
        make_private(file)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        if _number(connection, "page_count") == 0:  # later it takes a VACUUM, and a writer's turn
            connection.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            f"journal_size_limit={LOG_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("roadless_immediate", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def file_of(engine: Engine) -> Path | None:
    """Where SQLite keeps its data; None for PostgreSQL, and in memory."""
    name = engine.url.database if engine.dialect.name == "sqlite" else None
    return Path(name) if name and name != ":memory:" else None


def make_private(file: Path) -> None:
    """Let its owner alone read the database, whatever it was; SQLite gives new files its mode."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        file.touch(mode=0o600)
    for one in (file, *(file.with_name(f"{file.name}-{end}") for end in ("wal", "shm"))):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            one.chmod(0o600)


# ---- space ---------------------------------------------------------------------------------------


def make_shrinkable(engine: Engine) -> None:
    """Rewrite an older file so that it can become smaller, unless it is large or in use.

    Call it before the service takes requests: nobody writes meanwhile.
    """
    with _raw(engine) as connection:
        if _number(connection, "auto_vacuum") == _INCREMENTAL:
            return
        size = _number(connection, "page_count") * _number(connection, "page_size")
        if size > REWRITE_BYTES:
            log.warning(
                "the database of %d MiB never becomes smaller until it is rewritten by hand",
                size >> 20,
            )
            return
        try:
            connection.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
            connection.execute("VACUUM")
        except sqlite3.DatabaseError as error:
            log.warning(
                "the database could not be rewritten, the next start tries again: %s", error
            )


def give_back(engine: Engine, turn: Callable[[], AbstractContextManager[None]]) -> int:
    """Give free pages back to the disk, beyond a few; return the number of bytes.

    ``turn``: makes the context in which one step may write. Between steps others have theirs.
    """
    num_pages = 0
    with _raw(engine) as connection:
        for _ in range(MAX_STEPS):
            began = time.monotonic()
            with turn():
                given = _step(connection)
            num_pages += given
            if given == 0:
                break
            time.sleep(time.monotonic() - began)
        if num_pages:
            with turn():
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return num_pages * _number(connection, "page_size")


def _step(connection: sqlite3.Connection) -> int:
    """Give one step's pages back; return how many."""
    before = _number(connection, "freelist_count")
    num_pages = min(STEP_PAGES, before - SPARE_PAGES)
    if num_pages <= 0 or _number(connection, "auto_vacuum") != _INCREMENTAL:
        return 0
    try:
        # It ends with an empty row after each page; only a script is followed to its end.
        connection.executescript(f"PRAGMA incremental_vacuum({num_pages})")
    except sqlite3.OperationalError as error:
        log.info("free pages of the database stay for now: %s", error)
        return 0
    return before - _number(connection, "freelist_count")


@contextmanager
def _raw(engine: Engine) -> Iterator[sqlite3.Connection]:
    """A connection without transactions of its own, that waits for others only shortly."""
    file = file_of(engine)
    assert file is not None, "expected a database in a file"
    with closing(sqlite3.connect(file, timeout=STEP_BUSY_SECONDS, isolation_level=None)) as made:
        made.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
        yield made


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
