"""Keys of secrets: made once, rotated without a loss, and clear words when one is missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from stage import staged

from roadless.service.clock import utc_now
from roadless.service.contract.secrets import NewSecret
from roadless.service.db.session import Database
from roadless.service.db.tables import SecretRow
from roadless.service.secrets import actions, store
from roadless.service.secrets.cipher import Cipher, KeyUnusable, Sealed, SecretUnreadable, new_key
from roadless.service.secrets.keys import open_cipher
from roadless.service.secrets.rotation import Rotated, rotate
from roadless.service.settings import Settings

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PLACE = {"project": "default", "name": "HF_TOKEN"}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_what_is_sealed_opens_as_it_was_and_shows_nothing(value):
    sealed = Cipher([KEY]).seal(value, **PLACE)
    assert Cipher([KEY]).open(sealed, **PLACE) == value
    assert len(value) < 4 or value.encode() not in sealed.token
    assert repr(sealed.token) not in repr(sealed)


def test_the_same_value_is_never_sealed_alike():
    """Who reads the database cannot tell that two projects share a credential."""
    cipher = Cipher([KEY])
    assert cipher.seal("value", **PLACE).token != cipher.seal("value", **PLACE).token


@pytest.mark.parametrize("place", [{"project": "other"}, {"name": "OTHER_TOKEN"}])
def test_a_sealed_value_opens_in_its_own_place_only(place):
    sealed = Cipher([KEY]).seal("value", **PLACE)
    with pytest.raises(SecretUnreadable, match="another project or name"):
        Cipher([KEY]).open(sealed, **{**PLACE, **place})


@given(st.integers(min_value=0, max_value=119), st.integers(min_value=1, max_value=255))
def test_any_byte_that_is_changed_is_noticed(position, change):
    sealed = Cipher([KEY]).seal("a-secret-value", **PLACE)
    token = bytearray(sealed.token)
    token[position] ^= change
    with pytest.raises(SecretUnreadable, match="corrupt"):
        Cipher([KEY]).open(Sealed(bytes(token), sealed.key_id), **PLACE)


def test_another_key_does_not_open_and_says_which_would():
    sealed = Cipher([KEY]).seal("value", **PLACE)
    with pytest.raises(SecretUnreadable, match=f"key {sealed.key_id}, which the service no longer"):
        Cipher([new_key()]).open(sealed, **PLACE)


@pytest.mark.parametrize("key", ["", "short", "x" * 44, "ü" * 44, KEY[:-1], KEY + "AA", KEY[:-2]])
def test_what_is_no_key_is_refused_and_not_repeated(key):
    with pytest.raises(KeyUnusable, match="expected a key of 32 bytes") as caught:
        Cipher([key])
    assert len(key) < 5 or key not in str(caught.value)


# ---- where keys come from -----------------------------------------------------------------------


def test_a_key_file_is_made_once_and_is_its_owners_only(tmp_path):
    settings = Settings(home=tmp_path, DATABASE_URL=None)
    first = open_cipher(settings)
    path = tmp_path / "secrets.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_cipher(settings).key_id == first.key_id
    assert [file.name for file in tmp_path.iterdir()] == ["secrets.key"]


def test_keys_of_the_setting_go_before_the_file(tmp_path):
    settings = Settings(home=tmp_path, DATABASE_URL=None, secrets_key=f" {KEY} , {new_key()},")
    assert open_cipher(settings).key_id == Cipher([KEY]).key_id
    assert list(tmp_path.iterdir()) == []
    assert KEY not in f"{settings!r}"


@pytest.mark.parametrize("text", ["", ",", "no key", f"{KEY},no key"])
def test_a_setting_that_is_no_key_is_named_and_not_repeated(tmp_path, text):
    with pytest.raises(KeyUnusable, match="ROADLESS_SECRETS_KEY: expected") as caught:
        open_cipher(Settings(home=tmp_path, DATABASE_URL=None, secrets_key=text))
    assert "no key" not in str(caught.value)


def test_a_damaged_key_file_is_named_and_never_replaced(tmp_path):
    """A new key in its place would make every secret unreadable for good."""
    (tmp_path / "secrets.key").write_text("half")
    with pytest.raises(KeyUnusable, match=r"secrets\.key: expected"):
        open_cipher(Settings(home=tmp_path, DATABASE_URL=None))
    assert (tmp_path / "secrets.key").read_text() == "half"


def test_the_service_does_not_start_with_a_key_that_is_none(tmp_path):
    environment = {"ROADLESS_HOME": str(tmp_path), "ROADLESS_SECRETS_KEY": "not-a-key-but-private"}
    done = subprocess.run(
        [sys.executable, "-m", "roadless.service.main"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "the service cannot store secrets: ROADLESS_SECRETS_KEY: expected" in done.stderr
    assert "not-a-key-but-private" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


# ---- rotation -----------------------------------------------------------------------------------


@pytest.fixture
def db(database_url: str, tmp_path: Path) -> Any:
    with staged(database_url, tmp_path) as stage:
        yield stage.db


def put(db: Database, cipher: Cipher, name: str, value: str, project: str = "default") -> None:
    with db.write() as session:
        asked = NewSecret(value=value)
        actions.put(session, asked, project=project, name=name, cipher=cipher)


def handed(db: Database, cipher: Cipher, *names: str) -> actions.Handed:
    with db.read() as session:
        return actions.hand_over(session, names, project="default", cipher=cipher)


def values(found: actions.Handed) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in found.values.items()}


def test_after_a_rotation_the_new_key_opens_everything_alone(db, monkeypatch):
    """In batches, over projects, whatever is sealed with the new key already left as it is."""
    monkeypatch.setattr("roadless.service.secrets.rotation._BATCH", 2)
    old, new = new_key(), new_key()
    for index in range(5):
        put(db, Cipher([old]), f"A{index}_KEY", f"value {index}")
    put(db, Cipher([old]), "A0_KEY", "of another", project="other")
    put(db, Cipher([new]), "B_KEY", "value of B")
    both = Cipher([new, old])
    assert values(handed(db, both, "A0_KEY", "B_KEY"))["A0_KEY"] == "value 0"
    assert rotate(db, both) == Rotated(num_sealed=6)
    assert rotate(db, both) == Rotated()
    names = [*(f"A{index}_KEY" for index in range(5)), "B_KEY"]
    found = handed(db, Cipher([new]), *names)
    assert values(found) == {f"A{i}_KEY": f"value {i}" for i in range(5)} | {"B_KEY": "value of B"}
    assert found.faults == []


def test_what_no_key_opens_stays_until_its_key_is_back(db, monkeypatch):
    monkeypatch.setattr("roadless.service.secrets.rotation._BATCH", 2)
    lost, present = new_key(), new_key()
    for index in range(3):
        put(db, Cipher([lost]), f"A{index}_KEY", f"value {index}")
    put(db, Cipher([present]), "B_KEY", "value of B")
    assert rotate(db, Cipher([present])) == Rotated(num_unreadable=3)
    found = handed(db, Cipher([present]), "A0_KEY", "B_KEY", "C_KEY")
    assert values(found) == {"B_KEY": "value of B"}
    assert found.faults[0].startswith("A0_KEY was sealed with key ")
    assert found.faults[1] == "C_KEY was deleted; put it again"
    assert rotate(db, Cipher([present, lost])) == Rotated(num_sealed=3)
    assert values(handed(db, Cipher([present]), "A2_KEY")) == {"A2_KEY": "value 2"}


def test_a_put_replaces_what_an_older_key_has_sealed(db):
    put(db, Cipher([new_key()]), "A_KEY", "value")
    cipher = Cipher([KEY])
    put(db, cipher, "A_KEY", "the newer value")
    with db.read() as session:
        row = session.scalars(select(SecretRow)).one()
    assert row.key_id == cipher.key_id
    assert values(handed(db, cipher, "A_KEY")) == {"A_KEY": "the newer value"}


def test_times_say_when_a_value_was_put(db):
    before = utc_now()
    put(db, Cipher([KEY]), "A_KEY", "value")
    with db.read() as session:
        (row,) = store.page(session, "default", after=None, limit=10)
    assert before <= row.created_at == row.updated_at <= utc_now()
