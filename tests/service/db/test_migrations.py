"""Migrations lead from nothing to exactly the tables of the code, and back."""

import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from roadless import migrations
from roadless.service.db.migrate import alone, migrate
from roadless.service.db.session import Database
from roadless.service.db.tables import Table


@pytest.fixture
def db(empty_database_url):
    db = Database(empty_database_url)
    yield db
    db.close()


def config(connection=None):
    made = Config()
    made.set_main_option("script_location", str(next(iter(migrations.__path__))))
    made.attributes["connection"] = connection
    return made


def tables(db):
    return set(inspect(db.engine).get_table_names()) - {"alembic_version"}


def test_every_table_of_the_code_is_made_and_no_other(db):
    migrate(db)
    assert tables(db) == set(Table.metadata.tables)


def test_nothing_differs_between_the_migrated_database_and_the_code(db):
    migrate(db)
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_names_of_constraints_and_indexes_are_those_of_the_code(db, tmp_path):
    """A later migration drops them by name, on a database made by any earlier one."""
    migrate(db)
    fresh = create_engine(f"sqlite:///{tmp_path / 'fresh.db'}")
    Table.metadata.create_all(fresh)
    assert names(db.engine) == names(fresh)
    fresh.dispose()


def names(engine):
    seen = inspect(engine)
    return {
        table: (
            seen.get_pk_constraint(table)["name"],
            {one["name"] for one in seen.get_foreign_keys(table)},
            {one["name"] for one in seen.get_unique_constraints(table)},
            {one["name"] for one in seen.get_indexes(table)},
        )
        for table in Table.metadata.tables
    }


def test_a_second_run_changes_nothing(db):
    migrate(db)
    with db.engine.connect() as connection:
        before = MigrationContext.configure(connection).get_current_heads()
    migrate(db)
    with db.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_heads() == before


def test_down_and_up_again_leads_back(db):
    migrate(db)
    with db.engine.connect() as connection:
        command.downgrade(config(connection), "base")
    assert tables(db) == set()
    migrate(db)
    assert tables(db) == set(Table.metadata.tables)


def test_revisions_are_one_line():
    script = ScriptDirectory.from_config(config())
    assert len(script.get_heads()) == len(script.get_bases()) == 1
    assert not [one.revision for one in script.walk_revisions() if one.is_branch_point]


def test_what_was_asked_for_before_the_column_had_its_name_is_pinned(service, digits_spec):
    _, rank = service.running(digits_spec)
    asked, other = rank.save(1), rank.save(2)
    assert service.post(f"/checkpoints/{asked}/pin").status_code == 200
    db = service.http.app.state.db
    with db.engine.connect() as connection:
        command.downgrade(config(connection), "0003")
    with db.read() as session:
        before = session.execute(text("SELECT id, requested FROM checkpoints")).all()
    assert {row[0]: bool(row[1]) for row in before} == {asked: True, other: False}
    migrate(db)
    assert service.get(f"/checkpoints/{asked}").json()["pinned"] is True
    assert service.get(f"/checkpoints/{other}").json()["pinned"] is False


def test_only_one_replica_migrates_at_a_time(db, empty_database_url, tmp_path):
    other, order = Database(empty_database_url), []
    with alone(db, tmp_path):
        waiting = in_thread(lambda: enter(other, tmp_path, order))
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    other.close()
    assert order == ["first", "second"]


def enter(db, home, order):
    with alone(db, home):
        order.append("second")


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread
