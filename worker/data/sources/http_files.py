"""Files behind http(s) URLs, fetched from public addresses only, unless the operator allows more.

A user chooses the URL, and this machine may reach what the user may not. So every host is resolved
here, all its addresses are checked, and the connection goes to a checked one, not to what the name
resolves to a moment later. Redirects are checked in the same way. Proxies from the environment are
not used, since addresses behind one cannot be checked.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from roadless.service.contract.job.locations import require_web_url
from roadless.worker.data.progress import Tell
from roadless.worker.data.sources.addresses import is_listed, origin_of, resolve
from roadless.worker.data.sources.source_file import Identity, SourceAway, SourceFile
from roadless.worker.errors import DataForbidden, DataInvalid, DataNotFound, DataUnreadable
from roadless.worker.rank_launch import DataSources

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MAX_REDIRECTS = 5
#: Seconds before each retry of a request that breaks off or gets a server error.
_PAUSES_SECONDS = (0.2, 1.0, 5.0)
#: Faults of a request that are there before it is sent.
_NEVER_SENT = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_GONE = frozenset({httpx.codes.NOT_FOUND, httpx.codes.GONE})

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Access:
    """What lets a job read a URL. ``bearer``: the name of a secret that is sent to ``origin``."""

    sources: DataSources
    origin: tuple[str, str | None, int | None]
    bearer: str | None

    def headers(self, url: str) -> dict[str, str]:
        """Headers that authorise a request; none for a redirect to another host."""
        if self.bearer is None or origin_of(url) != self.origin:
            return {}
        if not url.startswith("https:") and not is_listed(url, self.sources.urls):
            raise DataForbidden(f"expected https for the secret {self.bearer}, saw {url}")
        token = os.environ[self.bearer].strip()
        if not token.isascii() or not token.isprintable():
            raise DataUnreadable(f"expected one line of ASCII in {self.bearer}, saw something else")
        return {"Authorization": f"Bearer {token}"}


def find(url: str, *, sources: DataSources, bearer: str | None = None) -> SourceFile:
    """Return the file behind the URL. Raises the JobFailed errors named ``Data...``, or SourceAway.

    Its identity is what the server reports: ``ETag``, ``Last-Modified`` and length. ``bearer``:
    which of the job's secrets is sent to the URL's host.
    """
    if bearer is not None and not sources.has_own(bearer):
        raise DataForbidden(
            f"expected the bearer {bearer} among the job's secrets, saw none of that name"
        )
    access = _Access(sources, origin_of(url), bearer)
    identity = _call_with_retry(lambda: _identity(url, access=access), url=url)

    def fetch(work: Path, tell: Tell) -> Path:
        target = work / "fetched"
        with target.open("wb") as file:
            _call_with_retry(lambda: _download(identity, file, access=access, tell=tell), url=url)
        return target

    return SourceFile(name=url, size=int(identity["size"]), identity=identity, fetch=fetch)


def _call_with_retry(call: Callable[[], Answer], *, url: str) -> Answer:
    """Call again after a pause when the network or the server fails."""
    for pause in (*_PAUSES_SECONDS, None):
        try:
            return call()
        except _NEVER_SENT as error:
            raise DataInvalid(f"expected {url} to be a URL, saw: {error}") from error
        except (httpx.TransportError, OSError) as error:
            if pause is None:
                raise SourceAway(f"expected {url} to answer, saw: {error}") from error
        time.sleep(pause)
    raise AssertionError("the last round returns or raises")


def _identity(url: str, *, access: _Access) -> Identity:
    # GET, not HEAD: signed URLs are signed for one method. The body is left unread.
    with _response(url, {}, access=access) as response:
        return {
            "url": url,
            "size": int(response.headers.get("content-length", 0)),
            "etag": response.headers.get("etag", ""),
            "modified": response.headers.get("last-modified", ""),
        }


def _download(identity: Identity, file: BinaryIO, *, access: _Access, tell: Tell) -> None:
    """Append the missing part of the content to ``file``."""
    headers = {}
    if file.tell() and identity["etag"]:
        headers = {"Range": f"bytes={file.tell()}-", "If-Range": str(identity["etag"])}
    url = str(identity["url"])
    with _response(url, headers, access=access) as response:
        if response.headers.get("etag", "") != identity["etag"]:
            raise DataUnreadable(f"expected {url} to stay unchanged, saw it change")
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()
        for block in response.iter_raw():
            file.write(block)
            tell(f"{url}: {file.tell()} bytes are here")
            if file.tell() > access.sources.cache_bytes:
                raise DataInvalid(f"expected {url} to fit the node's cache, saw more")
    if identity["size"] and file.tell() != identity["size"]:
        raise OSError(f"expected {identity['size']} bytes, saw {file.tell()}")


@contextmanager
def _response(url: str, headers: dict[str, str], *, access: _Access) -> Iterator[httpx.Response]:
    """The response to a GET, after redirects; its body is not read yet."""
    with httpx.Client(timeout=_TIMEOUT, trust_env=False) as client:
        for _ in range(1 + _MAX_REDIRECTS):
            request = _request(client, url, headers, access=access)
            response = client.send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    _require_success(response, url=url)
                    yield response
                    return
                url = _redirected(url, response.headers["location"])
            finally:
                response.close()
    raise DataUnreadable(f"expected at most {_MAX_REDIRECTS} redirects, saw one more, to {url}")


def _request(
    client: httpx.Client, url: str, headers: dict[str, str], *, access: _Access
) -> httpx.Request:
    """A request to a checked address; its host is named for TLS and virtual hosts."""
    named = httpx.URL(url)
    address = resolve(url, listed=access.sources.urls)
    headers = {"Accept-Encoding": "identity", **headers, **access.headers(url)}
    return client.build_request(
        "GET",
        named.copy_with(host=address),
        headers={**headers, "Host": named.netloc.decode()},
        extensions={"sni_hostname": named.host},
    )


def _redirected(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        before, after = urlsplit(url).scheme, urlsplit(target).scheme
        if after in ("http", "https"):
            require_web_url(target)
    except ValueError as error:
        raise DataUnreadable(f"expected {url} to lead to a URL, saw: {error}") from error
    if after not in ("http", "https") or (before == "https" and after == "http"):
        raise DataForbidden(f"expected {url} to lead to https, saw a redirect to {target}")
    return target


def _require_success(response: httpx.Response, *, url: str) -> None:
    if response.is_success:
        return
    if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise OSError(f"the server answered {response.status_code}")
    if response.status_code in _GONE:
        raise DataNotFound(f"expected a file at {url}, saw {response.status_code}")
    raise DataUnreadable(f"expected to read {url}, saw {response.status_code}")
