"""Sessions: one transaction per request or tick, committed at the edge.

SQLite has one writer: writers queue on a lock of this process and begin IMMEDIATE, so that nobody
ever sees "database is locked"; readers see a snapshot (WAL). PostgreSQL needs neither.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from roadless.service.errors import DiskFull, Invalid, Locked, Unavailable

log = logging.getLogger(__name__)

#: How long a writer waits for its turn on SQLite.
BUSY_SECONDS = 10
POOL_SECONDS = 5
#: How long a statement waits for a row that another transaction has locked (PostgreSQL).
LOCK_SECONDS = 5
#: After which PostgreSQL ends the transaction of a process that went silent in the middle of it.
IDLE_SECONDS = 15

_LOCK_NOT_AVAILABLE = "55P03"
_DISK_FULL = "53100"
#: "database or disk is full"; and "disk I/O error" where the index of its log finds no room.
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class Database:
    """The engine and the two ways to use it."""

    def __init__(self, url: str, *, pool_size: int = 32) -> None:
        self.engine = create_engine(url, **_engine_options(url, pool_size))
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._turn = threading.Lock()
        if self.is_sqlite:
            _prepare_sqlite(self.engine)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that changes something; commits when the block ends without an error."""
        alone = self._my_turn() if self.is_sqlite else nullcontext()
        with alone, self._transaction(immediate=True) as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with self._transaction(immediate=False) as session:
            yield session

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise Unavailable(
                "expected a turn to write within "
                f"{BUSY_SECONDS} s, saw the database busy; try again"
            )
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _transaction(self, *, immediate: bool) -> Iterator[Session]:
        with translated(), self.engine.connect() as connection:
            connection = connection.execution_options(roadless_immediate=immediate)
            with Session(connection, expire_on_commit=False) as session, session.begin():
                yield session

    def ping(self) -> None:
        """Raise Unavailable unless the database answers."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    @property
    def file(self) -> Path | None:
        """Where SQLite keeps its data; None for PostgreSQL, and in memory."""
        name = self.engine.url.database
        return Path(name) if self.is_sqlite and name and name != ":memory:" else None

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


@contextmanager
def translated() -> Iterator[None]:
    """Turn a database that is away or full, or refuses a value, into our errors, with the cause."""
    try:
        yield
    except (DataError, OverflowError) as error:
        # A number beyond 64 bits, or NUL in a text: nothing that trying again would fix.
        raise Invalid(
            f"expected a value that fits, saw one that cannot be stored: {_first_line(error)}"
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


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error)).partition("\n")[0]


def _engine_options(url: str, pool_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "pool_timeout": POOL_SECONDS,
        "hide_parameters": True,  # errors are logged; what users sent is not
    }
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    else:
        options["pool_pre_ping"] = True
        options["connect_args"] = _postgresql_arguments()
    return options


def _postgresql_arguments() -> dict[str, Any]:
    """A server that vanished silently is noticed in seconds, not after TCP's two hours."""
    limits = {
        "lock_timeout": f"{LOCK_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    }
    return {
        "connect_timeout": POOL_SECONDS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
    }


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("roadless_immediate", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
