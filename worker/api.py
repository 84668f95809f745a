"""The calls that runners, agents and ranks make to the service; it never calls them.

Maps every failure of a call to one of three exceptions, so that no caller reads a status code:

    ApiError
      Away      the service or its database does not answer; try again
      Fenced    the attempt is over; exit
      Refused   the service understood and rejects the call; trying again does not help
        EventsMissing  it lacks events of this rank before these
        NameTaken      of a runner: another cluster's has this name
        Replaced       of a runner: another process has taken its place
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import httpx
from pydantic import BaseModel, ValidationError

from roadless.service.contract.reports.cluster import (
    AttemptBrief,
    AttemptEnded,
    Registered,
    RegisterRunner,
    Sync,
    SyncReply,
)
from roadless.service.contract.reports.events import ReportReply
from roadless.service.contract.uploads.datasets import DatasetContent

_CONNECT_SECONDS = 3.0
_READ_SECONDS = 10.0
_TIMEOUT = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
#: A checkpoint file is hashed and stored before the service answers.
_FILE_TIMEOUT = httpx.Timeout(120.0, connect=_CONNECT_SECONDS)
#: A file up to this size is sent in one request, a larger one in parts of this size.
PART_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_AWAY_STATUSES = frozenset({408, 425, 429})


class ApiError(Exception):
    """Base class for failed calls to the service."""


class Away(ApiError):
    """The service or its database does not answer; whether the call took effect is unknown."""


class Fenced(ApiError):
    """The attempt has ended or was replaced."""


class Refused(ApiError):
    """The service refuses the content of the call. ``status``: 4xx."""

    def __init__(self, detail: str, *, status: int) -> None:
        super().__init__(f"{status}: {detail}")
        self.detail = detail
        self.status = status


class EventsMissing(Refused):
    """The service lacks events. ``applied_seq``: the last that it has of this rank."""

    def __init__(self, detail: str, *, status: int, applied_seq: int) -> None:
        super().__init__(detail, status=status)
        self.applied_seq = applied_seq


class NameTaken(Refused):
    """The runner of another cluster has this name, and is alive."""


class Replaced(Refused):
    """Another process is the runner of this cluster now; exit."""


class RunnerApi:
    """The calls of a runner, made with the runner token."""

    def __init__(self, base_url: str, *, token: str) -> None:
        self._client = _client(base_url, token=token)

    def register(self, name: str, *, cluster: str, session: str) -> Registered:
        """Speak for this cluster from now on; the same cluster gets the same runner id.

        Raises NameTaken while the runner of another cluster has the name.
        """
        body = RegisterRunner(name=name, cluster=cluster, session=session)
        url = "/internal/v1/runners"
        response = _unless_conflict(lambda: _post(self._client, url, _json(body)), NameTaken)
        return Registered.model_validate_json(response.content)

    def sync(self, runner_id: str, *, seen: Sync) -> SyncReply:
        """Report what is seen and receive what to start and stop; takes up to ``wait_seconds``.

        Raises Replaced when another process has registered for this cluster.
        """
        url = f"/internal/v1/runners/{runner_id}/sync"
        timeout = httpx.Timeout(_READ_SECONDS + seen.wait_seconds, connect=_CONNECT_SECONDS)
        response = _unless_conflict(
            lambda: _post(self._client, url, _json(seen), timeout=timeout), Replaced
        )
        return SyncReply.model_validate_json(response.content)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


@dataclass(frozen=True)
class Arrived:
    """How many bytes of a file the service has. ``is_stored``: it has all, and has checked them."""

    num_bytes: int
    is_stored: bool

    @classmethod
    def told_by(cls, response: httpx.Response) -> Self:
        """What the headers say; a proxy in between may have answered without them."""
        try:
            num_bytes = int(response.headers["Upload-Offset"])
            return cls(num_bytes, is_stored=response.headers["Upload-Complete"] == "?1")
        except (KeyError, ValueError) as error:
            raise Away(f"expected how much has arrived, saw {response.headers}") from error


class AttemptApi:
    """The calls of one attempt's ranks and agents, made with the attempt's token.

    An attempt whose token the service does not know is over, so 401 is ``Fenced`` here.
    """

    def __init__(self, base_url: str, *, attempt_id: str, token: str) -> None:
        self._client = _client(base_url, token=token)
        self._path = f"/internal/v1/attempts/{attempt_id}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def brief(self) -> AttemptBrief:
        """Fetch what the attempt trains, and what it resumes from."""
        response = _fencing(lambda: self._client.get(self._path))
        return AttemptBrief.model_validate_json(response.content)

    def report(self, rank: int, events: Sequence[bytes] = ()) -> ReportReply:
        """Deliver events, or a heartbeat if there are none.

        ``events``: each as JSON (``roadless.service.contract.reports.events.Report``).
        """
        body = b'{"rank":%d,"events":[%b]}' % (rank, b",".join(events))
        response = _fencing(lambda: _post(self._client, f"{self._path}/report", body))
        return ReportReply.model_validate_json(response.content)

    def ended(self, ended: AttemptEnded) -> None:
        """Report that the attempt is over when its ranks did not."""
        _fencing(lambda: _post(self._client, f"{self._path}/ended", _json(ended)))

    def upload(self, path: Path, *, checkpoint_id: str, name: str, sha256: str) -> None:
        """Store the file at ``path`` as the checkpoint's file ``name``; safe to repeat.

        A file larger than ``PART_BYTES`` is sent in parts: the next call after ``Away`` resumes
        at the first byte that has not arrived.
        """
        url = self._file_url(checkpoint_id, name)
        headers = {"X-Content-SHA256": sha256}
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            if num_bytes > PART_BYTES:
                self._upload_in_parts(file, url, headers, num_bytes=num_bytes)
            else:
                self._send(file, url, headers, num_bytes=num_bytes)

    def download(self, path: Path, *, checkpoint_id: str, name: str) -> None:
        """Write the checkpoint's file ``name`` to ``path``; the caller checks its hash."""
        url = self._file_url(checkpoint_id, name)

        def fetch() -> httpx.Response:
            with self._client.stream("GET", url, timeout=_FILE_TIMEOUT) as response:
                _write_or_read(response, path)
            return response

        _fencing(fetch)

    def download_wheel(self, path: Path) -> None:
        """Write the wheel that the job's model comes from to ``path``; the caller checks it."""

        def fetch() -> httpx.Response:
            with self._client.stream("GET", f"{self._path}/wheel", timeout=_FILE_TIMEOUT) as answer:
                _write_or_read(answer, path)
            return answer

        _fencing(fetch)

    def dataset(self, dataset_id: str) -> DatasetContent:
        """Fetch what the job's uploaded data set consists of."""
        response = _fencing(lambda: self._client.get(f"{self._path}/datasets/{dataset_id}"))
        return DatasetContent.model_validate_json(response.content)

    def dataset_part(self, dataset_id: str, *, name: str, offset: int) -> bytes:
        """Fetch the part of its file ``name`` that begins at ``offset``; the caller checks it."""
        url = f"{self._path}/datasets/{dataset_id}/files/{name}"
        params = {"offset": offset}
        return _fencing(lambda: self._client.get(url, params=params, timeout=_FILE_TIMEOUT)).content

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _upload_in_parts(
        self, file: BinaryIO, url: str, headers: dict[str, str], *, num_bytes: int
    ) -> None:
        arrived = resumed = self._arrived(url, headers)
        while not arrived.is_stored:
            before = arrived.num_bytes
            try:
                arrived = self._send_part(file, url, headers, start=before, num_bytes=num_bytes)
            except Refused as error:
                if _is_mended_by_looking_again(error, resumed):
                    raise Away(f"the service has other bytes: {error}") from error
                raise
            if not arrived.is_stored and arrived.num_bytes <= before:
                raise Away(f"expected the service to have more than {before} bytes, saw no more")

    def _arrived(self, url: str, headers: dict[str, str]) -> Arrived:
        try:
            response = _fencing(lambda: self._client.head(url, headers=headers))
        except Refused as error:
            if error.status == httpx.codes.CONFLICT:  # a HEAD has no body that could say "fenced"
                raise Fenced("the attempt is over") from error
            raise
        return Arrived.told_by(response)

    def _send_part(
        self, file: BinaryIO, url: str, headers: dict[str, str], *, start: int, num_bytes: int
    ) -> Arrived:
        place = {"Upload-Offset": str(start), "Upload-Length": str(num_bytes)}
        file.seek(start)
        size = min(PART_BYTES, num_bytes - start)
        return Arrived.told_by(self._send(file, url, headers | place, num_bytes=size))

    def _send(
        self, file: BinaryIO, url: str, headers: dict[str, str], *, num_bytes: int
    ) -> httpx.Response:
        """Send the next ``num_bytes`` of the file, read as they are sent."""
        kind = {"Content-Type": "application/octet-stream", "Content-Length": str(num_bytes)}
        return _fencing(
            lambda: self._client.put(
                url,
                content=_chunks(file, num_bytes),
                headers=headers | kind,
                timeout=_FILE_TIMEOUT,
            )
        )

    def _file_url(self, checkpoint_id: str, name: str) -> str:
        return f"{self._path}/checkpoints/{checkpoint_id}/files/{name}"


def _is_mended_by_looking_again(error: Refused, resumed: Arrived) -> bool:
    """Whether the service expects other bytes, or has kept wrong ones, which it then drops."""
    if error.status == httpx.codes.CONFLICT:
        return True
    return error.status == httpx.codes.UNPROCESSABLE_ENTITY and resumed.num_bytes > 0


def _unless_conflict(send: Callable[[], httpx.Response], conflict: type[Refused]) -> httpx.Response:
    """The answer; raises ``conflict`` for 409."""
    try:
        return _checked(send)
    except Refused as error:
        if error.status == httpx.codes.CONFLICT:
            raise conflict(error.detail, status=error.status) from error
        raise


def _client(base_url: str, *, token: str) -> httpx.Client:
    # Reading the certificate store takes 15 ms, half of what starting a rank takes.
    needs_certificates = base_url.startswith("https:")
    return httpx.Client(
        base_url=base_url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=_TIMEOUT,
        verify=needs_certificates,
    )


def _post(
    client: httpx.Client, url: str, body: bytes, *, timeout: httpx.Timeout = _TIMEOUT
) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return client.post(url, content=body, headers=headers, timeout=timeout)


def _json(body: BaseModel) -> bytes:
    return body.model_dump_json().encode()


def _chunks(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes and (chunk := file.read(min(_CHUNK_BYTES, num_bytes))):
        num_bytes -= len(chunk)
        yield chunk


def _write_or_read(response: httpx.Response, path: Path) -> None:
    if not response.is_success:
        response.read()
        return
    with path.open("wb") as file:
        for chunk in response.iter_bytes():
            file.write(chunk)


def _fencing(send: Callable[[], httpx.Response]) -> httpx.Response:
    try:
        return _checked(send)
    except Refused as error:
        if error.status == httpx.codes.UNAUTHORIZED:
            raise Fenced(error.detail) from error
        raise


def _checked(send: Callable[[], httpx.Response]) -> httpx.Response:
    try:
        response = send()
    except httpx.TransportError as error:
        raise Away(f"{type(error).__name__}: {error}") from error
    if response.is_success:
        return response
    if response.is_server_error or response.status_code in _AWAY_STATUSES:
        raise Away(f"the service answered {response.status_code}")
    if _is_foreign(response):
        seen = f"{response.status_code} {response.text[:200]!r}"
        raise Away(f"expected an answer of the service, saw {seen} of something in between")
    status, problem = response.status_code, _problem(response)
    if status == httpx.codes.CONFLICT and problem.type.endswith("fenced"):
        raise Fenced(problem.detail)
    if status == httpx.codes.CONFLICT and problem.applied_seq is not None:
        raise EventsMissing(problem.detail, status=status, applied_seq=problem.applied_seq)
    raise Refused(problem.detail, status=status)


def _is_foreign(response: httpx.Response) -> bool:
    """Whether a proxy answers in the place of the service, as some do with 404 while it is away.

    A proxy's bound on bodies is a refusal: less at a time may pass.
    """
    kind = response.headers.get("Content-Type", "")
    is_problem = kind.startswith("application/problem+json")
    return not is_problem and response.status_code != httpx.codes.REQUEST_ENTITY_TOO_LARGE


class _Problem(BaseModel):
    """What matters here of an RFC 9457 answer; the answer to a HEAD has none."""

    type: str = ""
    detail: str = ""
    applied_seq: int | None = None


def _problem(response: httpx.Response) -> _Problem:
    try:
        return _Problem.model_validate_json(response.content)
    except ValidationError:
        return _Problem(detail=response.text[:500])
