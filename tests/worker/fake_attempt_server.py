"""The fake service behind a real port, for ranks that are processes of their own."""

import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fake_attempt_service import FakeAttemptService

from roadless.service.contract.reports.cluster import AttemptBrief, AttemptEnded
from roadless.service.contract.reports.events import Report
from roadless.worker.api import Away, EventsMissing, Fenced, Refused


class AttemptServer:
    """What ranks of one attempt call. ``brief``: what they are asked to train."""

    def __init__(self, brief: AttemptBrief) -> None:
        self.brief = brief
        self.service = FakeAttemptService()
        #: What has arrived of files that come in parts.
        self.parts: dict[tuple[str, str], bytes] = {}
        self.url = ""
        #: How a file that is not there is refused.
        self.status_of_missing = 404
        #: What was said of the attempt's end beside the reports.
        self.ended: list[AttemptEnded] = []


@contextmanager
def serving(brief: AttemptBrief) -> Iterator[AttemptServer]:
    """Answer until the block is left."""
    attempt = AttemptServer(brief)

    class Handler(_Handler):
        server_of = attempt

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    attempt.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield attempt
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: AttemptServer

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._end if self.path.endswith("/ended") else self._report)

    def do_PUT(self) -> None:
        self._answer(self._upload)

    def do_HEAD(self) -> None:
        self._answer(self._arrived)

    def log_message(self, *args: object) -> None:
        pass

    def _get(self) -> bytes:
        service = self.server_of.service
        service.require_open()
        if "/files/" not in self.path:
            return self.server_of.brief.model_dump_json().encode()
        checkpoint_id, name = self._file()
        if (checkpoint_id, name) not in service.files:
            raise Refused("no such file", status=self.server_of.status_of_missing)
        return service.files[checkpoint_id, name]

    def _report(self) -> bytes:
        report = Report.model_validate_json(self._body())
        return self.server_of.service.answer(report).model_dump_json().encode()

    def _end(self) -> bytes:
        self.server_of.ended.append(AttemptEnded.model_validate_json(self._body()))
        return b""

    def _upload(self) -> bytes:
        body = self._body()
        if "Upload-Offset" in self.headers:
            return self._upload_part(body)
        self._store(body)
        return b""

    def _upload_part(self, part: bytes) -> bytes:
        self.server_of.service.require_open()
        arrived = self.server_of.parts.get(self._file(), b"")
        if len(arrived) != int(self.headers["Upload-Offset"]):
            raise Refused(f"expected byte {len(arrived)} as the next", status=409)
        self.server_of.parts[self._file()] = arrived + part
        if len(arrived + part) == int(self.headers["Upload-Length"]):
            self._store(self.server_of.parts.pop(self._file()))
        return self._arrived()

    def _arrived(self) -> bytes:
        self.server_of.service.require_open()
        stored = self.server_of.service.files.get(self._file())
        arrived = self.server_of.parts.get(self._file(), b"") if stored is None else stored
        self.told = {
            "Upload-Offset": str(len(arrived)),
            "Upload-Complete": "?0" if stored is None else "?1",
        }
        return b""

    def _store(self, body: bytes) -> None:
        checkpoint_id, name = self._file()
        sha256 = self.headers["X-Content-SHA256"]
        assert hashlib.sha256(body).hexdigest() == sha256
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(body)
            self.server_of.service.upload(
                Path(file.name), checkpoint_id=checkpoint_id, name=name, sha256=sha256
            )

    def _file(self) -> tuple[str, str]:
        *_, checkpoint_id, _, name = self.path.split("/")
        return checkpoint_id, name

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _problem(self, **members: object) -> bytes:
        self.told["Content-Type"] = "application/problem+json"
        return json.dumps(members).encode()

    def _answer(self, handle: object) -> None:
        self.told: dict[str, str] = {}
        try:
            status, body = 200, handle()  # type: ignore[operator]
        except Away:
            status, body = 503, b""
        except Fenced as error:
            status, body = 409, self._problem(type="fenced", detail=str(error))
        except EventsMissing as error:
            status, body = 409, self._problem(detail=error.detail, applied_seq=error.applied_seq)
        except Refused as error:
            status, body = error.status, self._problem(detail=error.detail)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for header, value in self.told.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)
