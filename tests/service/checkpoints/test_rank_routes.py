"""Files in and out on the ranks' side: whole or not at all, and never another file."""

import hashlib
import json
import socket
import time
from urllib.parse import unquote, urlsplit

import pytest
from fastapi.testclient import TestClient
from live_app import serving
from played import Service

from roadless.service.contract.ids import new_id
from roadless.service.errors import Unavailable
from roadless.service.main import create_app
from roadless.service.settings import Settings
from roadless.service.storage import intake
from roadless.service.storage.incoming import Incoming

#: Ways to say "another file" that servers of others have fallen for, as sent on the wire.
TRAVERSALS = [
    "../user.token",
    "..%2fuser.token",
    "%2e%2e/user.token",
    "%2e%2e%2fuser.token",
    "%252e%252e%252fuser.token",
    "..%5cuser.token",
    "....//user.token",
    "%2fetc%2fpasswd",
    "/etc/passwd",
    "//etc/passwd",
    "file:%2f%2f%2fetc%2fpasswd",
    "..%00/user.token",
    "model.safetensors%00.txt",
    "%00",
    "model.safetensors%0a",
    ".",
    "..",
    ".hidden",
    "%c0%ae%c0%ae%c0%afuser.token",
    "%e2%80%ae.safetensors",
    "%ef%bc%8e%ef%bc%8e%ef%bc%8fuser.token",
    "model.safetensors%2f",
    "model.safetensors%20",
    "*",
    "~root",
    "model.safetensors;x",
    "model.safetensors%23",
    "a" * 129,
]


@pytest.fixture
def database_url(tmp_path):
    """Files do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def uploads(settings: Settings):
    """Names of what is half there."""
    return lambda: [path.name for path in settings.uploads_dir.glob("*")]


@pytest.fixture
def blobs(settings: Settings):
    """Files of the blob store."""
    return lambda: [path for path in (settings.home_dir / "blobs").rglob("*") if path.is_file()]


def put(rank, name, content=b"x", *, checkpoint_id=None, sha256=None):
    url = f"{rank.url}/checkpoints/{checkpoint_id or new_id('ckpt')}/files/{name}"
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    headers = {**rank.headers, "X-Content-SHA256": sha256}
    return rank.http.put(url, content=content, headers=headers)


def test_what_is_uploaded_is_fetched_byte_for_byte(service, digits_spec):
    content = bytes(range(256)) * 5000
    _, first = service.running(digits_spec)
    checkpoint_id = first.save(1, kind="resume", content=content)
    first.ended()
    second = service.claim(released=[first.assignment["attempt_id"]])
    (file,) = second.brief()["resume"]["files"]
    url = f"{second.url}/checkpoints/{checkpoint_id}/files/{file['name']}"
    answer = service.http.get(url, headers=second.headers)
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content)) == str(file["size"])


def test_a_wrong_hash_is_refused_and_nothing_stays(service, digits_spec, uploads, blobs):
    _, rank = service.running(digits_spec)
    answer = put(rank, "a", b"content", sha256="0" * 64)
    assert answer.status_code == 422
    assert hashlib.sha256(b"content").hexdigest() in answer.json()["detail"]
    assert (uploads(), blobs()) == ([], [])


@pytest.mark.parametrize("sha256", ["", "xyz", "0" * 63, "A" * 64])
def test_a_hash_that_is_none_is_refused(service, digits_spec, sha256, blobs):
    _, rank = service.running(digits_spec)
    assert put(rank, "a", sha256=sha256 or " ").status_code == 422
    assert blobs() == []


def test_an_upload_can_be_repeated(service, digits_spec, blobs):
    _, rank = service.running(digits_spec)
    checkpoint_id = new_id("ckpt")
    for _ in range(2):
        assert put(rank, "a", checkpoint_id=checkpoint_id).status_code == 204
    assert len(blobs()) == 1


def test_a_file_may_be_larger_than_a_json_body(digits_spec, tmp_path):
    settings = Settings(home=tmp_path, DATABASE_URL=None, max_body_bytes=2000, max_file_bytes=5000)
    with TestClient(create_app(settings)) as http:
        _, rank = Service(http, tmp_path).running(digits_spec)
        assert put(rank, "a", b"x" * 5000).status_code == 204
        answer = put(rank, "b", b"x" * 5001)
        assert (answer.status_code, answer.json()["title"]) == (413, "Content too large")
        assert list(settings.uploads_dir.iterdir()) == []


def test_a_torn_upload_leaves_nothing(service, digits_spec, uploads, blobs, caplog):
    _, rank = service.running(digits_spec)
    checkpoint_id = new_id("ckpt")
    with serving(service.http.app) as base_url:
        address = urlsplit(base_url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            path = f"{rank.url}/checkpoints/{checkpoint_id}/files/model.safetensors"
            connection.sendall(
                f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
                f"Authorization: {rank.headers['Authorization']}\r\n"
                f"X-Content-SHA256: {'0' * 64}\r\n\r\n".encode()
                + b"x" * 100_000
            )
            wait_until(lambda: len(uploads()) == 1)
        wait_until(lambda: uploads() == [])
    assert blobs() == []
    event = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x" * 1_000_000)
    assert rank.report(event).status_code == 422
    assert "unexpected error" not in caplog.text, "a client that leaves is no bug of ours"


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- in parts ----------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 10


class Sending:
    """A file that is sent in parts."""

    def __init__(self, rank, *, content=CONTENT, sha256=None):
        self.rank, self.content = rank, content
        self.url = f"{rank.url}/checkpoints/{new_id('ckpt')}/files/model.safetensors"
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        self.headers = {**rank.headers, "X-Content-SHA256": sha256}

    def send(self, start, stop, *, length=None):
        place = {"Upload-Offset": str(start), "Upload-Length": str(length or len(self.content))}
        content = self.content[start:stop]
        return self.rank.http.put(self.url, content=content, headers={**self.headers, **place})

    def look(self):
        return told(self.rank.http.head(self.url, headers=self.headers))


def told(answer):
    assert answer.status_code == 204, answer.text
    return int(answer.headers["Upload-Offset"]), answer.headers["Upload-Complete"]


@pytest.fixture
def sending(service, digits_spec):
    _, rank = service.running(digits_spec)
    return Sending(rank)


def test_parts_make_one_file_which_is_there_with_the_last(sending, uploads, blobs):
    assert sending.look() == (0, "?0")
    assert told(sending.send(0, 1000)) == sending.look() == (1000, "?0")
    assert (len(uploads()), blobs()) == (1, [])
    assert told(sending.send(1000, 1001)) == (1001, "?0")
    assert told(sending.send(1001, 2560)) == sending.look() == (2560, "?1")
    (blob,) = blobs()
    assert (blob.read_bytes(), uploads()) == (CONTENT, [])


@pytest.mark.parametrize("start", [0, 999, 1001])
def test_a_part_that_is_not_the_next_changes_nothing(sending, start):
    sending.send(0, 1000)
    answer = sending.send(start, 2000)
    assert (answer.status_code, answer.json()["title"]) == (409, "Conflict")
    assert answer.json()["detail"] == f"expected offset 1000, saw {start}"
    assert sending.look() == (1000, "?0")


def test_parts_of_another_content_are_refused_and_forgotten(service, digits_spec, uploads, blobs):
    _, rank = service.running(digits_spec)
    sending = Sending(rank, sha256="0" * 64)
    sending.send(0, 1000)
    answer = sending.send(1000, 2560)
    assert answer.status_code == 422
    assert hashlib.sha256(CONTENT).hexdigest() in answer.json()["detail"]
    assert (uploads(), blobs(), sending.look()) == ([], [], (0, "?0"))


def test_parts_of_two_files_do_not_mix(service, digits_spec, blobs):
    _, rank = service.running(digits_spec)
    one, other = Sending(rank), Sending(rank, content=b"y" * 3000)
    for sending in (one, other, one, other):
        sending.send(sending.look()[0], sending.look()[0] + 1500)
    assert sorted(blob.read_bytes() for blob in blobs()) == [CONTENT, b"y" * 3000]


def test_more_than_was_said_is_refused(sending):
    assert sending.send(0, 2560, length=2559).status_code == 413


@pytest.mark.parametrize(
    "place",
    [
        {"Upload-Offset": "0"},
        {"Upload-Length": "5"},
        {"Upload-Offset": "6", "Upload-Length": "5"},
        {"Upload-Offset": "-1", "Upload-Length": "5"},
        {"Upload-Offset": "0", "Upload-Length": "0"},
        {"Upload-Offset": "x", "Upload-Length": "5"},
    ],
)
def test_a_place_that_is_none_is_refused(sending, place, uploads):
    headers = {**sending.headers, **place}
    assert sending.rank.http.put(sending.url, content=b"x", headers=headers).status_code == 422
    assert uploads() == []


def test_a_file_in_parts_has_the_same_bound(digits_spec, tmp_path):
    settings = Settings(home=tmp_path, DATABASE_URL=None, max_file_bytes=2559)
    with TestClient(create_app(settings)) as http:
        _, rank = Service(http, tmp_path).running(digits_spec)
        assert Sending(rank).send(0, 10).status_code == 413


def test_one_connection_at_a_time_brings_a_file(sending, settings, uploads):
    sending.send(0, 1000)
    (name,) = uploads()
    with Incoming(settings.uploads_dir / name):
        answer = sending.send(1000, 2560)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert told(sending.send(1000, 2560)) == (2560, "?1")


def test_a_full_disk_is_waited_for(sending, settings, uploads, blobs, caplog):
    settings.uploads_dir.mkdir()
    sending.send(0, 1)
    (name,) = uploads()
    (settings.uploads_dir / name).unlink()
    (settings.uploads_dir / name).symlink_to("/dev/full")
    answer = sending.send(0, 2560)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "no disk space" in answer.json()["detail"]
    assert "is full" in caplog.text
    (settings.uploads_dir / name).unlink()
    assert told(sending.send(0, 2560)) == (2560, "?1")
    assert len(blobs()) == 1


def test_a_store_that_is_away_at_the_last_byte_costs_no_byte(service, sending, monkeypatch):
    def away(key, source):
        raise Unavailable("the blob store does not answer; try again")

    with monkeypatch.context() as patch:
        patch.setattr(service.http.app.state.blobs, "put", away)
        answer = sending.send(0, 2560)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert sending.look() == (2560, "?0")
    assert told(sending.send(2560, 2560)) == sending.look() == (2560, "?1")


def test_a_silent_connection_gives_its_place_to_the_next(service, sending, uploads, monkeypatch):
    monkeypatch.setattr(intake, "IDLE_SECONDS", 0.2)
    with serving(service.http.app) as base_url:
        address = urlsplit(base_url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            headers = {**sending.headers, "Upload-Offset": "0", "Upload-Length": "2560"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"PUT {sending.url} HTTP/1.1\r\nHost: x\r\nContent-Length: 2560\r\n{lines}\r\n"
            connection.sendall(head.encode() + CONTENT[:1000])
            assert b"503 Service Unavailable" in connection.recv(1000)
    assert told(sending.send(1000, 2560)) == (2560, "?1")


# ---- never another file ------------------------------------------------------------------------


def routes(service, rank, checkpoint_id):
    """Every URL that takes a file name, with a token that opens it."""
    own = f"{rank.url}/checkpoints/{checkpoint_id}/files/"
    return {
        ("GET", f"/v1/checkpoints/{checkpoint_id}/files/"): service.user,
        ("GET", own): rank.headers,
        ("HEAD", own): {**rank.headers, "X-Content-SHA256": hashlib.sha256(b"x").hexdigest()},
        ("PUT", own): {**rank.headers, "X-Content-SHA256": hashlib.sha256(b"x").hexdigest()},
    }


def test_a_name_is_looked_up_and_never_walked(service, settings, digits_spec, blobs):
    _, rank = service.running(digits_spec)
    checkpoint_id = rank.save(1, content=b"the only file")
    before = blobs()
    secrets = (b"the only file", b"root:", (settings.home_dir / "user.token").read_bytes().strip())
    for name in TRAVERSALS:
        for (method, url), headers in routes(service, rank, checkpoint_id).items():
            status, body = raw(service.http, method, url + name, headers, b"x")
            assert status in (404, 422), (method, name, status)
            assert not [secret for secret in secrets if secret in body], (method, name)
    assert blobs() == before


def raw(http, method, target, headers, content):
    """Send the target as it is, past the client, which would tidy it up; return status and body."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": content}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(target),
        "raw_path": target.encode(),
        "query_string": b"",
        "headers": [(key.lower().encode(), value.encode()) for key, value in headers.items()],
    }
    http.portal.call(http.app, scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "checkpoint_id", ["..", "%2e%2e", "ckpt_x", "ckpt_" + "O" * 26, "%00", "ckpt_..%2f"]
)
def test_a_checkpoint_id_is_an_id(service, digits_spec, checkpoint_id, blobs):
    _, rank = service.running(digits_spec)
    for (method, url), headers in routes(service, rank, checkpoint_id).items():
        assert raw(service.http, method, url + "a", headers, b"x")[0] in (404, 422)
    assert blobs() == []


def test_only_files_of_the_own_job_are_fetched(service, digits_spec):
    spec = {**digits_spec, "parallelism": {"num_workers": 1}}
    _, first = service.running(spec)
    theirs = first.save(1)
    service.submit(spec)
    second = service.claim(alive=[first.assignment["attempt_id"]], node={"free_cpus": 3})
    url = f"{second.url}/checkpoints/{theirs}/files/model.safetensors"
    assert service.http.get(url, headers=second.headers).status_code == 404


def test_an_ended_attempt_stores_and_fetches_nothing(service, digits_spec, blobs):
    _, rank = service.running(digits_spec)
    checkpoint_id = rank.save(1)
    before = blobs()
    rank.ended()
    for (method, url), headers in routes(service, rank, checkpoint_id).items():
        if method == "PUT" or "/internal/" in url:
            status, body = raw(service.http, method, url + "model.safetensors", headers, b"x")
            assert (status, json.loads(body)["title"]) == (409, "Attempt has ended")
    assert blobs() == before
