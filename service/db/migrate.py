"""Bring the database to the newest revision when the service starts, one replica at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from roadless import migrations
from roadless.service.db.session import Database, translated

#: Any number, the same in every replica.
_ADVISORY_LOCK = 0x0AD1E55


@contextmanager
def alone(db: Database, home: Path) -> Iterator[None]:
    """Replicas that start together take turns in here; the others wait."""
    with _alone_on_sqlite(home) if db.is_sqlite else _alone_on_postgresql(db.engine):
        yield


def migrate(db: Database) -> None:
    """Run the migrations that are missing. Call it alone."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with translated(), db.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _alone_on_sqlite(home: Path) -> Iterator[None]:
    path = home / "migrate.lock"
    path.touch(mode=0o600)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone_on_postgresql(engine: Engine) -> Iterator[None]:
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # a migration may take long
        connection.execute(text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text(f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})"))
            connection.commit()
