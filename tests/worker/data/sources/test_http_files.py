"""Files behind URLs: from public addresses only, whatever a name or a redirect says, and whole."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from data_cases import Node, csv_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.sources import http_files
from roadless.worker.data.sources.addresses import is_listed
from roadless.worker.data.sources.source_file import SourceAway
from roadless.worker.errors import JobFailed

CONTENT = csv_text(
    {"x": [float(i) for i in range(5000)], "y": [i % 2 for i in range(5000)]}
).encode()


@dataclass
class Site:
    """A real server, and what befalls its answers. ``faults``: one word a request."""

    url: str = ""
    faults: list[str] = field(default_factory=list)
    heard: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    etag: str | None = '"1"'


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.heard.append((self.path, self.headers["Range"], self.headers["Host"]))
            fault = site.faults.pop(0) if site.faults else ""
            if self.path.startswith("/to/"):
                self._head(302, location=self.path.removeprefix("/to/"))
            elif fault.isdecimal():
                self._head(int(fault))
            else:
                self._content(fault)

        def _content(self, fault: str) -> None:
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            body = CONTENT[start:]
            extra = {"etag": '"2"' if fault == "changed" else site.etag or ""}
            self._head(206 if start else 200, length=len(body), **extra)
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        def _head(self, status: int, *, length: int = 0, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def node(tmp_path: Path, site: Site) -> Node:
    """A node whose operator allows the site."""
    return Node.at(tmp_path, urls=(site.url,))


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(http_files, "_PAUSES_SECONDS", (0.0, 0.0))


def load(node: Node, url: str):
    return node.build({"format": "csv", "path": url, "target": "y"})


def fetched(node: Node, url: str, work: Path) -> bytes:
    return http_files.find(url, sources=node.sources).fetch(work, print).read_bytes()


def fault(node: Node, url: str, reason: Reason) -> str:
    with pytest.raises(JobFailed) as caught:
        load(node, url)
    assert caught.value.reason is reason
    return str(caught.value)


# ---- what is read -------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_found_again(node, site):
    first = load(node, f"{site.url}/rows.csv")
    assert first.num_train + first.num_eval == 5000
    asked = len(site.heard)
    again = load(node, f"{site.url}/rows.csv")
    assert again.description == first.description
    assert len(site.heard) == asked + 1  # who it is, and no content


def test_a_file_that_changed_is_fetched_again(node, site):
    load(node, f"{site.url}/rows.csv")
    site.etag = '"3"'
    asked = len(site.heard)
    load(node, f"{site.url}/rows.csv")
    assert len(site.heard) == asked + 2


def test_nothing_that_was_fetched_stays_beside_what_is_prepared(node, site):
    load(node, f"{site.url}/rows.csv")
    assert not list(Path(node.sources.cache).rglob("fetched"))


def test_a_download_that_breaks_off_is_gone_on_with(node, site, tmp_path):
    site.faults = ["", "cut", "503", "cut", ""]
    node_pauses = (0.0,) * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_files, "_PAUSES_SECONDS", node_pauses)
        assert fetched(node, f"{site.url}/rows.csv", tmp_path) == CONTENT
    ranges = [header for _, header, _ in site.heard[1:]]
    half = len(CONTENT) // 2
    assert ranges[0] is None
    assert ranges[1] == ranges[2] == f"bytes={half}-"
    assert int(ranges[3][6:-1]) > half


def test_a_server_without_tags_is_asked_for_the_whole_again(node, site, tmp_path):
    site.etag = None
    site.faults = ["", "cut", ""]
    assert fetched(node, f"{site.url}/rows.csv", tmp_path) == CONTENT
    assert [header for _, header, _ in site.heard] == [None] * 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(["cut", "503", "429"]), max_size=2))
def test_whatever_breaks_off_the_content_is_whole(tmp_path, site, faults):
    site.faults = ["", *faults, ""]
    node = Node.at(tmp_path, urls=(site.url,))
    content = fetched(node, f"{site.url}/rows.csv", tmp_path)
    assert hashlib.sha256(content).digest() == hashlib.sha256(CONTENT).digest()


def test_a_server_that_stays_away_is_no_fault_of_the_job(node, site):
    site.faults = ["503"] * 3
    with pytest.raises(SourceAway, match="the server answered 503"):
        load(node, f"{site.url}/rows.csv")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/rows.csv"
    with pytest.raises(SourceAway, match="to answer"):
        load(node.allowing(urls=(closed,)), closed)


@pytest.mark.parametrize(
    ("status", "reason"),
    [("404", Reason.DATA_NOT_FOUND), ("403", Reason.DATA_UNREADABLE)],
)
def test_a_refusal_of_the_server_ends_the_job(node, site, status, reason):
    site.faults = [status]
    assert f"saw {status}" in fault(node, f"{site.url}/rows.csv", reason)


def test_a_file_that_changes_while_it_is_fetched_is_refused(node, site):
    site.faults = ["", "changed"]
    said = fault(node, f"{site.url}/rows.csv", Reason.DATA_UNREADABLE)
    assert "to stay unchanged" in said


def test_a_file_that_does_not_fit_the_cache_is_refused_while_it_comes(node, site):
    small = node.allowing(cache_bytes=1000)
    assert "node's cache" in fault(small, f"{site.url}/rows.csv", Reason.DATA_INVALID)


def test_a_url_has_no_patterns(node, site):
    assert "saw a pattern" in fault(node, f"{site.url}/*.csv", Reason.DATA_INVALID)


@pytest.mark.parametrize(
    "url",
    [
        *("http://h:0/a", "http://h:65536/a", "http://h:x/a", "http://:80/a", "http://[::1/a"),
        *(f"http://{'x' * 64}/a", "http://a..b/a", "http://a b/c", "http://h/a\nb"),
    ],
)
def test_a_url_that_no_server_can_have_is_final(node, url):
    assert "expected " in fault(node, url, Reason.DATA_INVALID)


@pytest.mark.parametrize("target", ["http://h:0/", "//a..b/c"])
def test_a_redirect_to_no_url_is_final(node, site, target):
    assert "to lead to a URL" in fault(node, f"{site.url}/to/{target}", Reason.DATA_UNREADABLE)


@pytest.mark.parametrize("path", [" http://127.0.0.1/a", "ht\ntp://127.0.0.1/a", "x" * 256])
def test_what_only_looks_like_a_url_is_a_path(node, site, path):
    with pytest.raises(JobFailed) as caught:
        load(node, path)
    assert caught.value.reason in (Reason.DATA_FORBIDDEN, Reason.DATA_INVALID)
    assert site.heard == []


# ---- where from ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_private_addresses_are_never_asked(node, site, host):
    port = site.url.rpartition(":")[2]
    closed = node.allowing(urls=())
    said = fault(closed, f"http://{host}:{port}/rows.csv", Reason.DATA_FORBIDDEN)
    assert "ROADLESS_DATA_URLS" in said
    assert site.heard == []


def test_a_redirect_is_judged_like_the_url_itself(node, site):
    port = site.url.rpartition(":")[2]
    said = fault(node, f"{site.url}/to/http://localhost:{port}/rows.csv", Reason.DATA_FORBIDDEN)
    assert "localhost" in said
    assert [path for path, _, _ in site.heard] == [f"/to/http://localhost:{port}/rows.csv"]
    assert load(node, f"{site.url}/to//rows.csv").num_train > 0


def test_redirects_end_and_lead_to_the_web_only(node, site):
    loop = f"{site.url}{'/to/' * 9}rows.csv"
    assert "at most 5 redirects" in fault(node, loop, Reason.DATA_UNREADABLE)
    said = fault(node, f"{site.url}/to/file:///etc/passwd", Reason.DATA_FORBIDDEN)
    assert "saw a redirect to file:///etc/passwd" in said


def test_a_name_is_judged_by_every_address_and_the_connection_goes_to_one_that_was(
    node, site, monkeypatch
):
    """A name that means something private a moment later gains nothing."""
    port = int(site.url.rpartition(":")[2])
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def resolving(host, port, *arguments, **options):
        if host == "127.0.0.1":
            return resolve(host, port, *arguments, **options)
        asked.append(host)
        addresses = ["127.0.0.1"] if len(asked) == 1 else ["1.1.1.1", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr("roadless.worker.data.sources.addresses.socket.getaddrinfo", resolving)
    url = f"http://files.example:{port}/rows.csv"
    found = http_files.find(url, sources=node.allowing(urls=(url,)).sources)
    assert found.size == len(CONTENT)
    assert asked == ["files.example"]
    assert site.heard[0][2] == f"files.example:{port}"
    assert "saw 127.0.0.1" in fault(node, url, Reason.DATA_FORBIDDEN)


def test_proxies_of_the_environment_are_not_used(node, site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert load(node, f"{site.url}/rows.csv").num_train > 0


@pytest.mark.parametrize(
    ("url", "listed", "expected"),
    [
        ("http://h/a/b.csv", "http://h/a", True),
        ("http://h/a/b.csv", "http://h/a/", True),
        ("http://h/a", "http://h/a", True),
        ("http://h:80/a", "http://h/", True),
        ("http://h/ab", "http://h/a", False),
        ("http://h.evil/a", "http://h", False),
        ("http://h:81/a", "http://h", False),
        ("https://h/a", "http://h", False),
        ("http://h/a/../b", "http://h/a", False),
        ("http://h/a/%2e%2e/b", "http://h/a", False),
        ("s3://bucket/a", "s3://bucket", True),
        ("s3://bucket2/a", "s3://bucket", False),
    ],
)
def test_a_url_is_listed_if_it_lies_below_one_that_is(url, listed, expected):
    assert is_listed(url, (listed,)) is expected
