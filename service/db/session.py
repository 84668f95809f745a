"""Sessions: one transaction per request or tick, committed at the edge.

SQLite has one writer: writers queue on a lock of this process and begin IMMEDIATE, so that nobody
ever sees "database is locked"; readers see a snapshot (WAL). PostgreSQL needs neither. While the
database is away one request at a time tries it, and the others are soon told to come again.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    InterfaceError,
    InvalidRequestError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from roadless.service.db import postgresql, sqlite
from roadless.service.errors import DiskFull, Invalid, Locked, Unavailable

log = logging.getLogger(__name__)

#: How long a writer waits for its turn on SQLite.
TURN_SECONDS = 10
POOL_SECONDS = 5
#: How long a request waits for another one that tries a database which was away.
TRIAL_SECONDS = 2
#: How long the database may take to show that it answers.
PING_SECONDS = 2

#: How DATABASE_URL may begin, and which database that is.
_KINDS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql",
    "postgresql+psycopg": "postgresql",
}
_LOCK_NOT_AVAILABLE = "55P03"
_DISK_FULL = "53100"
#: "database or disk is full"; and "disk I/O error" where the index of its log finds no room.
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class DatabaseUnusable(Exception):
    """What the operator named is no database that the service can use; says why."""


class Database:
    """The engine and the two ways to use it. Raises DatabaseUnusable for a URL that is none."""

    def __init__(self, url: str, *, pool_size: int = 32) -> None:
        self.is_sqlite = _kind_of(url) == "sqlite"
        self._kind = sqlite if self.is_sqlite else postgresql
        self.engine = create_engine(url, **self._options(pool_size))
        self._turn = threading.Lock()
        self._outage = _Outage()
        self._pings = _Pings(self._answer)
        self._kind.prepare(self.engine)

    def _options(self, pool_size: int) -> dict[str, Any]:
        return {
            "pool_size": pool_size,
            "pool_timeout": POOL_SECONDS,
            "hide_parameters": True,  # errors are logged; what users sent is not
            "connect_args": self._kind.connect_arguments(),
        }

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that changes something; commits when the block ends without an error."""
        with self.turn(), self._transaction(immediate=True) as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with self._transaction(immediate=False) as session:
            yield session

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only writer of this process on SQLite; raises Unavailable if others take long."""
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise Unavailable(
                "expected a turn to write within "
                f"{TURN_SECONDS} s, saw the database busy; try again"
            )
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _transaction(self, *, immediate: bool) -> Iterator[Session]:
        with translated(), self._connection() as connection:
            connection = connection.execution_options(roadless_immediate=immediate)
            with Session(connection, expire_on_commit=False) as session, session.begin():
                yield session

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with nullcontext() if self.is_sqlite else self._outage.tried():
            connection = self._connected()
        with connection:
            yield connection

    def _connected(self) -> Connection:
        try:
            return self.engine.connect()
        except InvalidRequestError as error:  # the pool's word for new ones that were lost at once
            raise Unavailable("the database connection was lost; try again") from error

    def ping(self) -> None:
        """Raise Unavailable unless the database answers within PING_SECONDS."""
        self._pings.wait()

    def _answer(self) -> None:
        with self.read() as session:
            session.execute(text("SELECT 1"))

    @property
    def file(self) -> Path | None:
        """Where SQLite keeps its data; None for PostgreSQL, and in memory."""
        return sqlite.file_of(self.engine)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


class _Outage:
    """Whether the last connection failed; if so, one caller at a time makes the next."""

    def __init__(self) -> None:
        self._is_on = False
        self._trial = threading.Lock()

    @contextmanager
    def tried(self) -> Iterator[None]:
        """The block connects; raises Unavailable when another's trial takes too long."""
        has_turn = self._is_on and self._take_turn()
        try:
            yield
        except PoolTimeoutError:
            raise  # all are in use, and the database may be well
        except Exception:
            self._is_on = True
            raise
        else:
            self._is_on = False
        finally:
            if has_turn:
                self._trial.release()

    def _take_turn(self) -> bool:
        if not self._trial.acquire(timeout=TRIAL_SECONDS):
            raise Unavailable("the database does not answer; try again")
        return True


class _Pings:
    """Asks in a thread, so that whoever waits is bound by no database; at most one at a time."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._current: Future[None] = Future()
        self._current.set_result(None)

    def wait(self) -> None:
        """Wait for an answer; raises Unavailable when none comes in time."""
        with self._lock:
            if self._current.done():
                self._current = Future()
                self._start(self._current)
            current = self._current
        try:
            current.result(PING_SECONDS)
        except TimeoutError as error:
            raise Unavailable(
                f"expected an answer of the database within {PING_SECONDS} s, saw none; try again"
            ) from error

    def _start(self, answer: Future[None]) -> None:
        name, run = "database-ping", self._run
        threading.Thread(target=run, name=name, args=(answer,), daemon=True).start()

    def _run(self, answer: Future[None]) -> None:
        try:
            self._ask()
        except Exception as error:
            answer.set_exception(error)
        else:
            answer.set_result(None)


@contextmanager
def translated() -> Iterator[None]:
    """Turn a database that is away or full, or refuses a value, into our errors, with the cause."""
    try:
        yield
    except (DataError, OverflowError) as error:
        # A number beyond 64 bits, or NUL in a text: nothing that trying again would fix.
        raise Invalid(
            f"expected a value that fits, saw one that cannot be stored: {first_line(error)}"
        ) from error
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        if _sqlstate(error) == _LOCK_NOT_AVAILABLE:
            raise Locked("another request is holding a lock; try again") from error
        if _is_full(error):
            log.error("the database has no disk space left; requests wait for it")
            raise DiskFull("the database") from error
        raise Unavailable("the database does not answer; try again") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("the database connection was lost; try again") from error
        raise


def _is_full(error: Exception) -> bool:
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code in _SQLITE_FULL or _sqlstate(error) == _DISK_FULL


def _sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def first_line(error: BaseException) -> str:
    """What the database said, in one line."""
    return str(getattr(error, "orig", error)).partition("\n")[0]


def _kind_of(url: str) -> str:
    """``sqlite`` or ``postgresql``; raises DatabaseUnusable, which shows no password."""
    try:
        scheme = make_url(url).drivername
    except (ArgumentError, ValueError) as error:
        raise DatabaseUnusable("expected DATABASE_URL to be a URL, saw none") from error
    if scheme not in _KINDS:
        raise DatabaseUnusable(
            f"expected DATABASE_URL to begin with postgresql:// or sqlite:///, saw {scheme[:40]!r}"
        )
    return _KINDS[scheme]
