"""The real app on a real database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from live_app import serving
from played import Service

from roadless.service.main import create_app
from roadless.service.settings import Settings


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        DATABASE_URL=database_url,
        tick_seconds=3600,
        retry_delay_seconds=0,
    )


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as http:
        yield Service(http, settings.home_dir)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    """Where the app answers on a port of this machine."""
    with serving(service.http.app) as url:
        yield url


@pytest.fixture
def token(settings: Settings, service: Service) -> str:
    """The first user's, as the service wrote it."""
    return (settings.home_dir / "user.token").read_text().strip()
