"""The first start: tokens in files that only their owner reads, once, and for everyone the same."""

import logging
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from roadless.service.auth.bootstrap import FIRST_TOKENS
from roadless.service.auth.tokens import digest
from roadless.service.db.session import Database
from roadless.service.db.tables import TokenRow
from roadless.service.main import create_app
from roadless.service.settings import Settings


def test_token_files_are_read_by_their_owner_only(service, settings):
    for _, name in FIRST_TOKENS.values():
        assert stat.S_IMODE((settings.home_dir / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.home_dir.stat().st_mode) == 0o700


def test_a_file_that_lay_there_before_is_not_written_to(settings):
    settings.home_dir.mkdir()
    old = settings.home_dir / "user.token"
    old.write_text("planted")
    old.chmod(0o666)
    with old.open() as reader:
        create_app(settings).state.db.close()
        assert reader.read() == "planted"
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


def test_the_first_start_says_where_the_tokens_are_and_not_what(settings, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        create_app(settings).state.db.close()
    token = (settings.home_dir / "user.token").read_text().strip()
    shown = caplog.text + "".join(capfd.readouterr())
    assert str(settings.home_dir / "user.token") in shown
    assert token not in shown
    assert digest(token) not in shown


def test_a_second_start_changes_no_token_and_says_nothing(settings, caplog):
    create_app(settings).state.db.close()
    before = [(settings.home_dir / name).read_text() for _, name in FIRST_TOKENS.values()]
    caplog.clear()
    create_app(settings).state.db.close()
    assert [(settings.home_dir / name).read_text() for _, name in FIRST_TOKENS.values()] == before
    assert "token" not in caplog.text


def test_a_deleted_file_is_not_made_again(settings):
    """Whoever can start the service shall not thereby get in."""
    create_app(settings).state.db.close()
    (settings.home_dir / "user.token").unlink()
    create_app(settings).state.db.close()
    assert not (settings.home_dir / "user.token").exists()


def test_no_two_services_share_a_credential(tmp_path):
    tokens = set()
    for name in ("a", "b"):
        settings = Settings(home=tmp_path / name, DATABASE_URL=None)
        create_app(settings).state.db.close()
        tokens |= {(settings.home_dir / file).read_text() for _, file in FIRST_TOKENS.values()}
    assert len(tokens) == 4


def test_there_is_no_credential_but_these(service, settings):
    db = Database(settings.resolved_database_url)
    with db.read() as session:
        stored = set(session.scalars(select(TokenRow.sha256)))
    db.close()
    files = [settings.home_dir / name for _, name in FIRST_TOKENS.values()]
    assert stored == {digest(path.read_text().strip()) for path in files}


@pytest.mark.parametrize("num_replicas", [3])
def test_replicas_that_start_together_leave_a_token_that_opens(settings, num_replicas):
    with ThreadPoolExecutor(num_replicas) as pool:
        apps = list(pool.map(create_app, [settings] * num_replicas))
    token = (settings.home_dir / "user.token").read_text().strip()
    with TestClient(apps[0]) as http:
        answer = http.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    for app in apps[1:]:
        app.state.db.close()
    assert answer.status_code == 200
