"""Alembic's entry: from the service with a connection, from the command line with DATABASE_URL."""

from alembic import context
from sqlalchemy import Connection, create_engine

from roadless.service.db.tables import Table
from roadless.service.settings import Settings


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        render_as_batch=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
    given.commit()
else:
    with create_engine(Settings().resolved_database_url).connect() as connection:
        _run(connection)
        connection.commit()
