"""Connections on a real port: silent and slow ones leave, and shut nobody else out meanwhile."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_app import serving
from starlette.responses import StreamingResponse

from roadless.service.http import connections
from roadless.service.http.connections import (
    MAX_HEAD_BYTES,
    Doorkeeper,
    connections_that_fit,
    raise_file_limit,
    surplus,
)

#: Longer than anything here should take, on a busy machine too.
PATIENCE_SECONDS = 30


@pytest.fixture
def database_url(tmp_path):
    """Connections do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@contextmanager
def opened(url, sent=b""):
    """A connection of which so much was sent."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_SECONDS) as one:
        one.sendall(sent)
        yield one


def is_closed(one, *, seconds=PATIENCE_SECONDS):
    """Whether the service ends the connection within so long; what it sends is read."""
    one.settimeout(seconds)
    try:
        while one.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def get(path="/healthz", *, token=None):
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n".encode()


def post(path, *, token=None, length=1000):
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: {length}\r\n"
        "Content-Type: application/json\r\n\r\n{"
    ).encode()


# ---- who leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: ",
        get() + b"GET /heal",
        post("/v1/jobs"),
        post("/login"),
        post("/nowhere"),
    ],
    ids=["silent", "half a head", "half a second head", "no token", "form", "no route"],
)
def test_who_sends_half_a_request_and_no_token_leaves(service, sent):
    with serving(service.http.app, wait_seconds=0.3) as url, opened(url, sent) as one:
        assert is_closed(one)


@pytest.mark.parametrize("begin", [b"GET /healthz HTTP/1.1\r\n", post("/v1/jobs"), post("/login")])
def test_bytes_that_trickle_in_prolong_nothing(service, begin):
    with serving(service.http.app, wait_seconds=0.3) as url, opened(url, begin) as one:
        until = time.monotonic() + PATIENCE_SECONDS
        try:
            while time.monotonic() < until:
                one.sendall(b"x")
                time.sleep(0.02)
        except ConnectionError:
            return
    pytest.fail("it is open still")


def test_a_head_without_an_end_is_not_kept(service):
    with serving(service.http.app) as url, opened(url, b"GET / HTTP/1.1\r\n") as one:
        line = b"x: " + b"y" * 4000 + b"\r\n"
        with pytest.raises(ConnectionError):
            one.sendall(line * (100 * MAX_HEAD_BYTES // len(line)))


def test_a_head_may_be_long_and_so_may_many_on_one_connection(service):
    with serving(service.http.app) as url, httpx.Client(base_url=url) as http:
        for _ in range(5):
            answer = http.get("/healthz", headers={"x-a": "y" * (MAX_HEAD_BYTES // 2)})
            assert answer.status_code == 200


def test_a_client_that_takes_nothing_of_its_answer_leaves(service, monkeypatch):
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.5)
    ended = threading.Event()

    async def endless():
        try:
            while True:
                yield b"x" * 10**6
                await asyncio.sleep(0)  # what is sent to nobody waits for nobody
        finally:
            ended.set()

    @service.http.app.get("/endless")
    async def stream() -> StreamingResponse:
        return StreamingResponse(endless())

    with serving(service.http.app) as url, opened(url, get("/endless")):
        assert ended.wait(PATIENCE_SECONDS)


# ---- who stays -----------------------------------------------------------------------------------


def test_who_is_slow_but_known_or_waits_for_the_service_stays(service, token, monkeypatch):
    """A body in progress, a long poll, a download that is taken slowly: each lasts 1 s and more."""
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.5)
    go_on = threading.Event()

    @service.http.app.get("/poll")
    def poll() -> str:
        return str(go_on.wait(PATIENCE_SECONDS))

    @service.http.app.get("/file")
    async def file() -> StreamingResponse:
        return StreamingResponse(iter([b"x" * 10**6] * 20))

    job = b'{"name": 1}'
    with serving(service.http.app, wait_seconds=1, strangers_share=0) as url, ExitStack() as stack:
        body = stack.enter_context(opened(url, get("/v1/secrets", token=token)))
        assert b"HTTP/1.1 200" in body.recv(65536)
        body.sendall(post("/v1/jobs", token=token, length=len(job)))
        polling = stack.enter_context(opened(url, get("/poll")))
        assert b"200" in taken_slowly(url, get("/file", token=token))
        go_on.set()
        body.sendall(job[1:])
        assert b"HTTP/1.1 422" in body.recv(20)
        assert b"HTTP/1.1 200" in polling.recv(20)


def taken_slowly(url, sent):
    """The head of an answer of 20 MB that is read a few times a second."""
    with opened(url, sent) as one:
        head = one.recv(20)
        num_bytes = 0
        while num_bytes < 20 * 10**6:
            time.sleep(0.1)
            for _ in range(8):
                num_bytes += len(one.recv(10**6))
        return head


# ---- who shuts whom out --------------------------------------------------------------------------


def test_a_crowd_of_strangers_shuts_nobody_out_and_thins(service, token):
    """It has more connections than the server takes, none of which would leave by itself."""
    bounds = {"max_connections": lambda: 40, "wait_seconds": PATIENCE_SECONDS}
    with serving(service.http.app, **bounds) as url, ExitStack() as stack:
        member = stack.enter_context(httpx.Client(base_url=url))
        bearer = {"Authorization": f"Bearer {token}"}
        assert member.get("/v1/jobs", headers=bearer).status_code == 200
        crowd = [stack.enter_context(opened(url)) for _ in range(100)]
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE_SECONDS).status_code == 200
        with ThreadPoolExecutor(len(crowd)) as pool:
            gone = list(pool.map(lambda one: is_closed(one, seconds=3), crowd))
        assert gone.count(False) <= 20
        assert gone == sorted(gone, reverse=True), "who has waited longest leaves first"


def test_whoever_speaks_at_once_is_answered_however_many_do(service, token):
    """A burst is no crowd of silent ones, though its members are strangers when they come."""
    with serving(service.http.app, strangers_share=0.005) as url, ExitStack() as stack:
        heads = [get("/v1/jobs", token=token), get(), post("/v1/jobs", token=token, length=1)]
        burst = [stack.enter_context(opened(url, heads[i % 3])) for i in range(150)]
        answers = [one.recv(12) for one in burst]
    assert answers == [b"HTTP/1.1 200", b"HTTP/1.1 200", b"HTTP/1.1 422"] * 50


@dataclass(eq=False)
class Played:
    """A connection, on a loop whose time the test sets."""

    loop: "PlayedLoop"
    address: str = "a"
    is_idle: bool = True
    is_known: bool = False
    is_dropped: bool = False

    def __post_init__(self):
        self.waits_since = self.loop.now

    @property
    def is_waiting_stranger(self):
        return self.is_idle and not self.is_known

    def drop(self):
        assert not self.is_dropped
        self.is_dropped = True


@dataclass
class PlayedLoop:
    """Looks are taken when the test says so."""

    keeper: Doorkeeper
    now: float = 0.0
    look: Callable[[], None] | None = None

    def time(self):
        return self.now

    def call_later(self, seconds, call, *arguments):
        self.look = partial(call, *arguments)

    def entered(self, **traits):
        connection = Played(self, **traits)
        self.keeper.entered(connection)
        return connection

    def dropped(self, *connections):
        """Which of them are; they are over."""
        for one in connections:
            if one.is_dropped:
                self.keeper.left(one)
        return [one.is_dropped for one in connections]


def played(**bounds):
    return PlayedLoop(Doorkeeper(**{"max_connections": lambda: 100, **bounds}))


def test_at_the_bound_a_newcomer_takes_the_place_of_who_waits_longest():
    loop = played(max_connections=lambda: 3)
    waiting = [loop.entered(is_known=True), loop.entered(is_idle=False), loop.entered()]
    newcomer = loop.entered()
    assert loop.dropped(*waiting, newcomer) == [False, False, True, False]
    newcomer.is_known = True
    assert loop.dropped(*waiting, newcomer, loop.entered()) == [False, False, True, False, True]


def test_a_stranger_is_counted_once_its_bytes_can_have_been_read():
    """All of a burst are accepted before a byte of it is read."""
    loop = played(strangers_share=0.01)
    burst = [loop.entered() for _ in range(4)]
    loop.look()
    assert loop.dropped(*burst) == [False] * 4
    burst[1].is_idle = False
    newcomer = loop.entered()
    loop.look()
    assert loop.dropped(*burst, newcomer) == [True, False, True, True, False]


def test_who_waits_longest_is_not_who_came_first():
    loop = played(strangers_share=0.01)
    first, second = loop.entered(), loop.entered()
    loop.keeper.waits_again(first)
    loop.look()
    loop.look()
    assert loop.dropped(first, second) == [False, True]


def test_who_waits_for_the_service_waits_as_long_as_it_takes():
    loop = played(wait_seconds=10)
    idle, busy = loop.entered(), loop.entered(is_idle=False)
    loop.now = 10
    loop.look()
    assert loop.dropped(idle, busy) == [False, False]
    loop.now = 10.1
    loop.look()
    assert loop.dropped(idle, busy) == [True, False]


def test_nobody_is_looked_at_where_nobody_is():
    loop = played()
    loop.keeper.left(loop.entered())
    look, loop.look = loop.look, None
    look()
    assert loop.look is None


@dataclass(frozen=True)
class Stranger:
    address: str
    number: int


@given(st.text("abc", max_size=30), st.integers(-5, 30))
def test_those_let_go_are_of_the_largest_crowd_and_have_waited_longest(addresses, at_most):
    waiting = [Stranger(address, number) for number, address in enumerate(addresses)]
    gone = surplus(waiting, at_most=at_most)
    left = list(waiting)
    for one in gone:
        crowds = {a: [other for other in left if other.address == a] for a in "abc"}
        assert len(crowds[one.address]) == max(map(len, crowds.values()))
        assert one == crowds[one.address][0]
        left.remove(one)
    assert len(left) == min(len(waiting), max(0, at_most))


def test_a_bound_that_falls_holds_at_once():
    bounds = [4]
    loop = played(max_connections=lambda: bounds[0])
    waiting = [loop.entered() for _ in range(3)]
    bounds[0] = 2
    loop.look()
    newcomer = loop.entered()
    assert loop.dropped(*waiting, newcomer) == [True, False, False, False]
    loop.look()
    assert loop.dropped(*waiting, newcomer) == [True, True, True, False]


@pytest.fixture
def file_limit():
    """Sets that of this process, which has its own again afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda num_files: resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_leave_files_for_everything_else(file_limit):
    for num_files, fit in ((1024, 768), (400, 200)):
        file_limit(num_files)
        assert connections_that_fit() == fit


def test_a_process_has_as_many_files_as_it_may(file_limit):
    file_limit(512)
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 512
