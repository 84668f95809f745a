"""A rank's large file reaches the service over connections that break, and once in all its bytes.

The rank's real client on one side, the real service on a real port on the other, a proxy that tears
between them. At the end: every upload has the same bound on silence.
"""

import hashlib
import random
import socket
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from live_app import serving
from tearing import torn
from wheel_maker import make_wheel

from roadless.service.checkpoints.keys import blob_key
from roadless.service.contract.ids import new_id
from roadless.service.errors import Unavailable
from roadless.service.main import create_app
from roadless.service.settings import Settings
from roadless.service.storage import intake
from roadless.worker.api import AttemptApi, Away, Fenced, Refused
from roadless.worker.retry import call_with_retry

PART = 60_000
CONTENT = random.Random(0).randbytes(500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
#: What a request costs beside its content.
OVERHEAD = 1000
#: What the service may have heard and not yet written when a connection ends.
IN_FLIGHT = 1 << 17


@pytest.fixture
def database_url(tmp_path):
    """Files do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def settings(database_url, tmp_path):
    return Settings(
        home=tmp_path / "home", DATABASE_URL=database_url, tick_seconds=3600, allow_wheels=True
    )


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    monkeypatch.setattr("roadless.worker.api.PART_BYTES", PART)
    monkeypatch.setattr("roadless.worker.retry.FIRST_SECONDS", 0.005)
    monkeypatch.setattr("roadless.worker.retry.LONGEST_SECONDS", 0.02)


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def rank(service, digits_spec):
    return service.running(digits_spec)[1]


@pytest.fixture
def proxy(service):
    with serving(service.http.app) as url, torn(url) as proxy:
        yield proxy


@pytest.fixture
def uploads(settings):
    return lambda: list(settings.uploads_dir.glob("*"))


@contextmanager
def connected(rank, proxy):
    """The rank's client, by way of the proxy."""
    assignment = rank.assignment
    api = AttemptApi(proxy.url, attempt_id=assignment["attempt_id"], token=assignment["token"])
    with api:
        yield api


def send(api, path, *, checkpoint_id=None, sha256=SHA256):
    api.upload(
        path, checkpoint_id=checkpoint_id or new_id("ckpt"), name="model.safetensors", sha256=sha256
    )


def stored(blobs, rank, checkpoint_id):
    """What the store has under the name of the file."""
    job_id = rank.assignment["job_id"]
    key = blob_key("default", job_id, checkpoint_id, name="model.safetensors", sha256=SHA256)
    return b"".join(blobs.read(key, 0, len(CONTENT)))


@limits(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, len(CONTENT) + 20_000), max_size=6))
def test_a_file_arrives_wherever_its_connections_break(service, proxy, rank, large, uploads, tears):
    """Also: what has arrived is not sent again, but for what a connection held when it ended."""
    checkpoint_id = new_id("ckpt")
    sent_before, torn_before = proxy.num_counted, proxy.num_torn
    proxy.tear(tears)
    with connected(rank, proxy) as api:
        call_with_retry(lambda: send(api, large, checkpoint_id=checkpoint_id), seconds=30)
    assert stored(service.http.app.state.blobs, rank, checkpoint_id) == CONTENT
    assert uploads() == []
    num_torn = proxy.num_torn - torn_before
    num_requests = len(CONTENT) // PART + 1 + 3 * (num_torn + 1)
    most = len(CONTENT) + num_requests * OVERHEAD + num_torn * IN_FLIGHT
    assert proxy.num_counted - sent_before <= most


def test_an_upload_continues_at_the_next_service(service, settings, proxy, rank, large):
    checkpoint_id = new_id("ckpt")
    proxy.tear([300_000])
    with connected(rank, proxy) as api:
        with pytest.raises(Away):
            send(api, large, checkpoint_id=checkpoint_id)
        before = proxy.num_counted
        with TestClient(create_app(settings)) as http, serving(http.app) as url:
            proxy.lead_to(url)
            call_with_retry(lambda: send(api, large, checkpoint_id=checkpoint_id), seconds=10)
            assert stored(http.app.state.blobs, rank, checkpoint_id) == CONTENT
    assert proxy.num_counted - before < len(CONTENT) - 300_000 + IN_FLIGHT + 20 * OVERHEAD


def test_a_stored_file_is_not_sent_again(proxy, rank, large):
    checkpoint_id = new_id("ckpt")
    with connected(rank, proxy) as api:
        send(api, large, checkpoint_id=checkpoint_id)
        before = proxy.num_counted
        send(api, large, checkpoint_id=checkpoint_id)
    assert proxy.num_counted - before < OVERHEAD


def test_bytes_that_rotted_on_the_way_are_sent_anew(service, proxy, rank, large, uploads):
    """A machine that crashed may come back with another content than it had taken."""
    checkpoint_id = new_id("ckpt")
    proxy.tear([300_000])
    with connected(rank, proxy) as api:
        with pytest.raises(Away):
            send(api, large, checkpoint_id=checkpoint_id)
        (part,) = uploads()
        part.write_bytes(bytes(part.stat().st_size))
        with pytest.raises(Away, match="expected content with SHA-256"):
            send(api, large, checkpoint_id=checkpoint_id)
        send(api, large, checkpoint_id=checkpoint_id)
    assert stored(service.http.app.state.blobs, rank, checkpoint_id) == CONTENT


def test_a_file_that_is_not_what_it_says_is_refused_once_and_for_all(proxy, rank, large, uploads):
    with connected(rank, proxy) as api, pytest.raises(Refused, match="422"):
        send(api, large, sha256="0" * 64)
    assert uploads() == []


def test_a_file_that_was_swept_meanwhile_is_sent_anew(service, proxy, rank, large, uploads):
    checkpoint_id = new_id("ckpt")
    proxy.tear([300_000])
    with connected(rank, proxy) as api:
        with pytest.raises(Away):
            send(api, large, checkpoint_id=checkpoint_id)
        for path in uploads():
            path.unlink()
        send(api, large, checkpoint_id=checkpoint_id)
    assert stored(service.http.app.state.blobs, rank, checkpoint_id) == CONTENT


def test_an_attempt_that_ended_meanwhile_sends_no_more(proxy, rank, large):
    with connected(rank, proxy) as api:
        proxy.tear([300_000])
        with pytest.raises(Away):
            send(api, large)
        rank.ended()
        with pytest.raises(Fenced):
            send(api, large)


def test_a_store_that_is_away_is_waited_for(service, proxy, rank, large, monkeypatch):
    """The rank hears Away, and what it has sent is not sent again."""
    checkpoint_id, blobs = new_id("ckpt"), service.http.app.state.blobs

    def away(key, source):
        raise Unavailable("the blob store does not answer; try again")

    with connected(rank, proxy) as api:
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "put", away)
            with pytest.raises(Away, match="503"):
                send(api, large, checkpoint_id=checkpoint_id)
        before = proxy.num_counted
        send(api, large, checkpoint_id=checkpoint_id)
    assert proxy.num_counted - before < 3 * OVERHEAD
    assert stored(blobs, rank, checkpoint_id) == CONTENT


# ---- silence -------------------------------------------------------------------------------------


def checkpoint_file(service, rank, tmp_path):
    headers = {**rank.headers, "Upload-Offset": "0", "Upload-Length": str(len(CONTENT))}
    name = f"checkpoints/{new_id('ckpt')}/files/model.safetensors"
    return f"{rank.url}/{name}", headers, CONTENT


def wheel(service, rank, tmp_path):
    path = make_wheel(tmp_path)
    return f"/v1/wheels/{path.name}", service.user, path.read_bytes()


def dataset_part(service, rank, tmp_path):
    created = service.post("/datasets", json={"name": "corpus", "format": "bytes"}).json()
    return f"/v1/datasets/{created['id']}/files/a.bin?offset=0", service.user, CONTENT


UPLOADS = pytest.mark.parametrize("upload", [checkpoint_file, wheel, dataset_part])


def sent(base_url, path, headers, content, *, num_sent):
    """What the service answers to a body that falls silent after ``num_sent`` bytes."""
    address = urlsplit(base_url)
    headers = {
        **headers,
        "Host": "x",
        "Content-Length": str(len(content)),
        "Connection": "close",
        "X-Content-SHA256": hashlib.sha256(content).hexdigest(),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\n{lines}\r\n".encode() + content[:num_sent])
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    return answer.decode()


@UPLOADS
def test_a_silent_body_is_given_up(service, url, rank, tmp_path, uploads, monkeypatch, upload):
    monkeypatch.setattr(intake, "IDLE_SECONDS", 0.2)
    answer = sent(url, *upload(service, rank, tmp_path), num_sent=100)
    assert answer.startswith("HTTP/1.1 503 ")
    assert "nothing came for 0.2 s" in answer
    left = [path.stat().st_size for path in uploads()]
    assert left == ([100] if upload is checkpoint_file else [])  # only that one can be continued


@UPLOADS
def test_a_body_that_does_not_fall_silent_is_taken(
    service, url, rank, tmp_path, uploads, monkeypatch, upload
):
    monkeypatch.setattr(intake, "IDLE_SECONDS", 2.0)
    path, headers, content = upload(service, rank, tmp_path)
    answer = sent(url, path, headers, content, num_sent=len(content))
    assert answer.startswith("HTTP/1.1 20"), answer
    assert uploads() == []
