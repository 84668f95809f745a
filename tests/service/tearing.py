"""A TCP proxy before an HTTP server that breaks connections after a given number of bytes."""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_CHUNK = 1 << 16


class TearingProxy:
    """Tears each connection after its number of ``tears``; when these are used up, none.

    Counted are bytes that come from the client, or from the server where ``is_download``.
    """

    def __init__(self, upstream: str, *, is_download: bool = False) -> None:
        parsed = urlsplit(upstream)
        self._upstream = (parsed.hostname, parsed.port)
        self._is_download = is_download
        self._tears: deque[int] = deque()
        self.is_away = False
        self.num_torn = 0
        self.num_counted = 0  #: bytes passed on of the kind that is counted
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def tear(self, after: Iterable[int]) -> None:
        self._tears = deque(after)

    def lead_to(self, upstream: str) -> None:
        parsed = urlsplit(upstream)
        self._upstream = (parsed.hostname, parsed.port)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = None if self.is_away else socket.create_connection(self._upstream)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                far = None
            if far is None:
                near.close()
                continue
            room = [self._tears.popleft() if self._tears else 1 << 60]
            for source, target, is_counted in (
                (near, far, not self._is_download),
                (far, near, self._is_download),
            ):
                pump = threading.Thread(
                    target=self._pump,
                    args=(source, target, room if is_counted else None),
                    daemon=True,
                )
                pump.start()

    def _pump(self, source: socket.socket, target: socket.socket, room: list[int] | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                target.sendall(data if room is None else data[: room[0]])
                if room is not None:
                    self.num_counted += min(len(data), room[0])
                    room[0] -= len(data)
                    if room[0] < 0:
                        self.num_torn += 1
                        break
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def torn(upstream: str, *, is_download: bool = False) -> Iterator[TearingProxy]:
    proxy = TearingProxy(upstream, is_download=is_download)
    try:
        yield proxy
    finally:
        proxy.close()
