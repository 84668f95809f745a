"""Connections to PostgreSQL on which no wait is without a bound.

A server that is frozen, or behind a network that drops what it is sent, keeps its connections open
and says nothing: TCP finds no fault, the server's own timeouts do not run, and libpq waits for
ever. So the client bounds every wait for an answer itself; the server's timeouts end what it still
works on when its client has given up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DisconnectionError

#: How long a connection may take to be made.
CONNECT_SECONDS = 5
#: How long a statement waits for a row that another transaction has locked.
LOCK_SECONDS = 5
#: After which the server ends the transaction of a process that went silent in the middle of it.
IDLE_SECONDS = 15
#: After which the server ends a statement.
STATEMENT_SECONDS = 10
#: How long a statement's client waits for its answer: longer, as the server's own end says more.
ANSWER_SECONDS = 12
#: How long a connection from the pool may take to show that it is still good.
CHECK_SECONDS = 2
#: The same as STATEMENT_SECONDS, for migrations.
MIGRATION_SECONDS = 3600

_RV = TypeVar("_RV")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed once an answer does not come in time."""

    answer_seconds: float = ANSWER_SECONDS

    def wait(self, gen: PQGen[_RV], interval: float = 0.1, timeout: float | None = None) -> _RV:
        """Like the base class's, with a bound where its caller has none."""
        seconds = self.answer_seconds if timeout is None else timeout
        try:
            return super().wait(gen, interval, seconds)
        except psycopg.errors._WaitTimeout as error:  # no public name yet (psycopg 3.3)
            self.close()  # an answer that comes later would be taken for the next one's
            raise psycopg.OperationalError(
                f"expected an answer within {seconds:g} s, saw none"
            ) from error


def connect_arguments() -> dict[str, Any]:
    """A server that vanished silently is noticed in seconds, not after TCP's two hours."""
    limits = {
        "lock_timeout": LOCK_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_SECONDS,
        "statement_timeout": STATEMENT_SECONDS,
    }
    return {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": " ".join(f"-c {name}={seconds}s" for name, seconds in limits.items()),
    }


def prepare(engine: Engine) -> None:
    """Make the engine's connections bounded ones, each checked when it leaves the pool."""

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Dialect, _record: Any, args: Any, options: Any) -> BoundedConnection:
        return BoundedConnection.connect(*args, **options)

    @event.listens_for(engine, "checkout")
    def _check(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.answer_seconds = CHECK_SECONDS
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            # The pool drops it, with all that are as old, and makes another.
            raise DisconnectionError("the connection is no longer good") from error
        connection.answer_seconds = ANSWER_SECONDS


@contextmanager
def unhurried(engine: Engine) -> Iterator[Connection]:
    """A connection for what may take long and wait long, such as a migration."""
    with engine.connect() as connection:
        bounded: Any = connection.connection.dbapi_connection
        bounded.answer_seconds = MIGRATION_SECONDS
        connection.execute(text(f"SET statement_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(text("SET lock_timeout = 0"))
        connection.commit()
        try:
            yield connection
        finally:
            connection.invalidate()  # its limits go with it
