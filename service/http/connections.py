"""Connections: who may hold one open, and for how long.

A connection takes a file, of which a process has only so many. uvicorn bounds how long one rests
between two requests, and nothing else. Here, one without a request in progress lasts for
`WAIT_SECONDS`, however slowly bytes trickle in; those of strangers, who have shown no token yet,
are at most half of all. Requests in progress are bounded elsewhere (bodies in
`service/http/middleware.py`, answers by what they ask for), so long polls and downloads last.
"""

import asyncio
import resource
import socket
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from roadless.service.http.doors import ON_KNOWN

#: A connection without a request in progress.
WAIT_SECONDS = 10.0
#: Of it, one that has had an answer and sends nothing: uvicorn's own bound.
KEEP_ALIVE_SECONDS = 5
#: The beginning of a request: its line and headers.
MAX_HEAD_BYTES = 64 * 2**10
#: A client that takes nothing of its answer, or has vanished.
STALLED_SECONDS = 60.0
#: All connections, as far as files suffice; and the files that are left for everything else.
MAX_CONNECTIONS, RESERVED_FILES = 10_000, 256
#: Of them, those of strangers that wait for the rest of a request.
STRANGERS_SHARE = 0.5
#: Pause between two looks at all connections.
LOOK_SECONDS = 0.25


class Waiting(Protocol):
    """A connection that waits for its client."""

    @property
    def address(self) -> str:
        """Where it comes from."""


Connection = TypeVar("Connection", bound=Waiting)


def surplus(waiting: Sequence[Connection], *, at_most: int) -> list[Connection]:
    """Those to let go: always the one that waits longest of the address that has most of them.

    So a flood from one address costs nobody elsewhere a connection, and a newcomer from the same
    one is let go last. ``waiting``: those that wait longest come first.
    """
    by_address: dict[str, deque[Connection]] = defaultdict(deque)
    for one in waiting:
        by_address[one.address].append(one)
    return [
        max(by_address.values(), key=len).popleft() for _ in range(len(waiting) - max(0, at_most))
    ]


class Doorkeeper:
    """Looks at all connections of a server now and then, and lets go of some.

    Args:
        max_connections: asked at each new one, as the operator may change the limit of files.
        strangers_share: of them, those without a token that wait for their client.
        wait_seconds: a connection without a request in progress.
    """

    def __init__(
        self,
        *,
        max_connections: Callable[[], int],
        strangers_share: float = STRANGERS_SHARE,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._max_connections = max_connections
        self._strangers_share = strangers_share
        self._wait_seconds = wait_seconds
        #: In the order in which they began to wait.
        self._connections: dict[GuardedConnection, None] = {}
        self._seen_waiting: set[GuardedConnection] = set()
        self._next_look: asyncio.TimerHandle | None = None

    def protocol(self, *args: Any, **kwargs: Any) -> "GuardedConnection":
        """Make the protocol of a new connection, as uvicorn asks for it."""
        return GuardedConnection(self, *args, **kwargs)

    def entered(self, connection: "GuardedConnection") -> None:
        """Watch a new connection; at the bound another one goes for it."""
        self._connections[connection] = None
        if len(self._connections) > self._max_connections():
            strangers = [one for one in self._connections if one.is_waiting_stranger]
            for one in surplus(strangers, at_most=len(strangers) - 1):
                one.drop()
        self._look_again(connection.loop)

    def waits_again(self, connection: "GuardedConnection") -> None:
        """A connection has had its answer: others wait longer than it."""
        if connection in self._connections:
            del self._connections[connection]
            self._connections[connection] = None

    def left(self, connection: "GuardedConnection") -> None:
        """Forget a connection that is over."""
        self._connections.pop(connection, None)
        self._seen_waiting.discard(connection)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._next_look is None:
            self._next_look = loop.call_later(LOOK_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_look = None
        now = loop.time()
        overdue = [
            one
            for one in self._connections
            if one.is_idle and now - one.waits_since > self._wait_seconds
        ]
        waiting = [one for one in self._connections if one.is_waiting_stranger]
        # What was here at the last look has been read by now, however busy the loop is.
        silent = [one for one in waiting if one in self._seen_waiting]
        newcomers = len(waiting) - len(silent)
        max_strangers = int(self._max_connections() * self._strangers_share)
        for one in {*overdue, *surplus(silent, at_most=max_strangers - newcomers)}:
            one.drop()
        self._seen_waiting = set(waiting)
        if self._connections:
            self._look_again(loop)


class GuardedConnection(HttpToolsProtocol):
    """A connection of a client, with what the doorkeeper needs to know of it."""

    def __init__(self, keeper: Doorkeeper, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keeper = keeper
        self._is_known = False
        self._is_received = True
        self._head_bytes = 0
        self.waits_since = self.loop.time()

    # ---- what the doorkeeper asks ------------------------------------------------------------

    @property
    def address(self) -> str:
        """Of the client, without its port."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for its client, and not for the service.

        A stranger's request is in progress once it is here as a whole, or as far as the service
        wants to read it; and strangers do not wait until they have taken their answer.
        """
        in_progress = self.cycle is not None and not self.cycle.response_complete
        if in_progress:
            return not (self._is_known or self._is_received or self.flow.read_paused)
        return not self._is_known or self.transport.get_write_buffer_size() == 0

    @property
    def is_waiting_stranger(self) -> bool:
        """Whether it waits for a client that has shown no token."""
        return self.is_idle and not self._is_known

    def drop(self) -> None:
        """Close at once, whatever was still to be sent."""
        self.transport.abort()

    # ---- what happens on the wire ------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        _bound_stalls(transport.get_extra_info("socket"))
        self._keeper.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the doorkeeper, too."""
        self._keeper.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take no more of a head than is sensible; the parser itself has no bound."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.drop()

    def on_message_begin(self) -> None:
        """Let the app say that it knows the caller."""
        super().on_message_begin()
        self._is_received = False
        self.scope[ON_KNOWN] = self._on_known  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """Count the bytes of the next head from here on."""
        super().on_headers_complete()
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Those of a body are no part of a head."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """From here on the client waits for the app."""
        super().on_message_complete()
        self._is_received = True
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was answered early."""
        self.waits_since = self.loop.time()
        self._keeper.waits_again(self)
        super().on_response_complete()

    def _on_known(self) -> None:
        self._is_known = True


def _bound_stalls(connection: socket.socket | None) -> None:
    """The kernel gives up a client that takes nothing, or does not answer, for so long."""
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        milliseconds = round(STALLED_SECONDS * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def connections_that_fit() -> int:
    """How many this process may have, by its limit of open files."""
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, max(num_files // 2, num_files - RESERVED_FILES))


def raise_file_limit() -> None:
    """Let this process have as many open files as it may and needs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    num_files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, most))
