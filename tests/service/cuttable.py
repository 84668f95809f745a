"""A TCP proxy before PostgreSQL that the test can cut or silence, as networks and failovers do."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

_CHUNK = 1 << 16


class Proxy:
    """Passes bytes on both ways until it is cut, then refuses; or takes them and says nothing."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream)
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._is_cut = False
        self._passes = threading.Event()
        self._passes.set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._is_cut = True
        self._break_all()

    def silence(self) -> None:
        """Keep every connection and take new ones, but pass nothing on."""
        self._passes.clear()

    def mend(self) -> None:
        """Pass on again, what was held back first."""
        self._is_cut = False
        self._passes.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break_all()
        self._passes.set()
        self._thread.join()

    def _break_all(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self._upstream)
            except OSError:  # the server is down
                near.close()
                continue
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._passes.wait()
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()


@contextmanager
def proxied(url: str) -> Iterator[tuple[str, Proxy]]:
    """The URL of a database behind a proxy, and the proxy. ``url``: of a Unix socket."""
    parsed = make_url(url)
    proxy = Proxy(Path(str(parsed.query["host"])) / ".s.PGSQL.5432")
    through = parsed.set(query={}, host="127.0.0.1", port=proxy.port)
    try:
        yield through.render_as_string(hide_password=False), proxy
    finally:
        proxy.close()
