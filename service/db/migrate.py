"""Bring the database to the newest revision when the service starts, one replica at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from roadless import migrations
from roadless.service.db import postgresql, sqlite
from roadless.service.db.session import Database, DatabaseUnusable, first_line, translated
from roadless.service.errors import DiskFull, Locked, Unavailable

#: Any number, the same in every replica.
_ADVISORY_LOCK = 0x0AD1E55


@contextmanager
def alone(db: Database, home: Path) -> Iterator[None]:
    """Replicas that start together take turns in here; the others wait.

    Raises DatabaseUnusable when what they are to share lets nobody in.
    """
    _require_usable(db)
    with _alone_on_sqlite(home) if db.is_sqlite else _alone_on_postgresql(db):
        yield


def migrate(db: Database) -> None:
    """Run the migrations that are missing. Call it alone."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with translated(), _unhurried(db) as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseUnusable(
                f"expected a database of this version or an older one, saw: {error}"
            ) from error
    if db.file is not None:
        sqlite.make_shrinkable(db.engine)


def _require_usable(db: Database) -> None:
    try:
        with translated(), db.engine.connect():
            pass
    except (DiskFull, Locked):
        raise
    except Unavailable as error:
        reason = first_line(error.__cause__ or error)
        raise DatabaseUnusable(f"expected a database that answers, saw: {reason}") from error
    except DatabaseError as error:
        raise DatabaseUnusable(f"expected a database, saw: {first_line(error)}") from error


def _unhurried(db: Database) -> AbstractContextManager[Connection]:
    return db.engine.connect() if db.is_sqlite else postgresql.unhurried(db.engine)


@contextmanager
def _alone_on_sqlite(home: Path) -> Iterator[None]:
    path = home / "migrate.lock"
    path.touch(mode=0o600)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone_on_postgresql(db: Database) -> Iterator[None]:
    with _unhurried(db) as connection:
        connection.execute(text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))
        connection.commit()
        yield  # the lock is let go with the connection
