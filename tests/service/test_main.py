"""The first start: tokens in files that only their owner reads, once, and for everyone the same."""

import logging
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from roadless.service.auth.bootstrap import FIRST_TOKENS
from roadless.service.auth.tokens import digest
from roadless.service.db.session import Database
from roadless.service.db.tables import TokenRow
from roadless.service.main import create_app, main
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


# ---- starts that cannot work ---------------------------------------------------------------------


@pytest.fixture
def refusal(monkeypatch, tmp_path):
    """Starts the service with these variables, which cannot work; returns what it says."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    before = os.umask(0o077)

    def refused(**variables: str) -> str:
        for name, value in {"ROADLESS_HOME": str(tmp_path / "home"), **variables}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        said = ended.value.code
        assert isinstance(said, str), said  # so the exit code is 1
        assert "\n" not in said
        return said

    yield refused
    os.umask(before)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ROADLESS_PORT": "abc"}, "expected ROADLESS_PORT to be a valid integer, saw 'abc'"),
        (
            {"ROADLESS_LEASE_SECONDS": "0"},
            "expected ROADLESS_LEASE_SECONDS to be greater than 0, saw '0'",
        ),
        (
            {"ROADLESS_FORGET_RUNNER_SECONDS": "5"},
            "expected ROADLESS_FORGET_RUNNER_SECONDS >= 30, the lease, saw 5",
        ),
        (
            {"ROADLESS_ALLOW_WHEELS": "maybe"},
            "expected ROADLESS_ALLOW_WHEELS to be a valid boolean, saw 'maybe'",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_variable(refusal, variables, said):
    assert refusal(**variables) == said


@pytest.mark.parametrize("below", ["", "home"])
def test_a_home_that_is_no_folder_is_one_line(refusal, tmp_path, below):
    (tmp_path / "file").write_text("no folder")
    said = refusal(ROADLESS_HOME=str(tmp_path / "file" / below), ROADLESS_PORT="0")
    assert said.startswith("expected ROADLESS_HOME to be a folder that can be written, saw ")


@pytest.mark.parametrize(
    "url", ["garbage", "mysql://u:hunter2@h/d", "postgresql://u:hunter2@h:x/d"]
)
def test_a_url_of_no_database_is_one_line_without_its_password(refusal, url):
    said = refusal(DATABASE_URL=url, ROADLESS_PORT="0")
    assert said.startswith("the service cannot use its database: expected ")
    assert "hunter2" not in said


def test_a_file_that_is_no_database_is_one_line(refusal, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "roadless.db").write_bytes(bytes(range(256)) * 400)
    assert "cannot use its database" in refusal(ROADLESS_PORT="0")


def test_a_database_that_is_away_is_one_line_without_its_password(refusal):
    said = refusal(DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/d", ROADLESS_PORT="0")
    assert "the service cannot use its database: expected a database that answers, saw: " in said
    assert "hunter2" not in said


def test_a_port_that_is_taken_is_one_line_and_nothing_is_made(refusal, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        said = refusal(ROADLESS_PORT=str(port))
    assert said.startswith("expected ROADLESS_HOST and ROADLESS_PORT to be an address to listen on")
    assert f"port {port}: Address already in use" in said
    assert not (tmp_path / "home").exists()


def test_a_host_that_is_none_of_this_machine_is_one_line(refusal):
    said = refusal(ROADLESS_HOST="host.invalid", ROADLESS_PORT="0")
    assert "saw host.invalid port 0: " in said
