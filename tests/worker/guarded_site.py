"""A real web server whose file a bearer token opens; ``/to/URL`` leads on to the URL."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Where it is, and the header Authorization of each request that it heard."""

    url: str = ""
    heard: list[str | None] = field(default_factory=list)


@contextmanager
def guarded_site(content: bytes, *, token: str, is_open: bool = False) -> Iterator[Site]:
    """Serve until the block is left. ``is_open``: to those without a token too."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = self.headers["Authorization"]
            site.heard.append(said)
            if self.path.startswith("/to/"):
                self._answer(302, b"", location=self.path.removeprefix("/to/"))
            elif said == f"Bearer {token}" or (is_open and said is None):
                self._answer(200, content, etag='"1"')
            else:
                self._answer(401, b"")

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
