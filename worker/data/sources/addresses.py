"""Which addresses and URLs a user may make a node connect to."""

import socket
from urllib.parse import SplitResult, unquote, urlsplit

from roadless.worker.data.sources.access import DATA_URLS_VARIABLE
from roadless.worker.data.sources.special_addresses import is_public
from roadless.worker.errors import DataForbidden

_PORTS = {"http": 80, "https": 443}


def is_listed(url: str, listed: tuple[str, ...]) -> bool:
    """Whether the URL is one of those listed, or is below one.

    >>> is_listed("s3://bucket/corpora/a.parquet", ("s3://bucket/corpora",))
    True
    >>> is_listed("s3://bucket/corpora/../secret", ("s3://bucket/corpora",))
    False
    """
    asked = urlsplit(url)
    if ".." in unquote(asked.path).split("/"):
        return False
    return any(_is_below(asked, urlsplit(one)) for one in listed)


def _is_below(asked: SplitResult, listed: SplitResult) -> bool:
    folder = listed.path.rstrip("/")
    return _origin(asked) == _origin(listed) and (
        asked.path == folder or asked.path.startswith(f"{folder}/")
    )


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of a URL.

    >>> origin_of("https://Example.org/a") == origin_of("https://example.org:443/b")
    True
    """
    return _origin(urlsplit(url))


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)


def resolve(url: str, *, listed: tuple[str, ...]) -> str:
    """Return an IP address to connect to for this http(s) URL.

    Raises DataForbidden when any address of its host is not public and the URL is not ``listed``,
    and OSError when there is none.
    """
    parts = urlsplit(url)
    found = socket.getaddrinfo(
        parts.hostname, parts.port or _PORTS[parts.scheme], type=socket.SOCK_STREAM
    )
    addresses = [str(entry[4][0]) for entry in found]
    private = [address for address in addresses if not is_public(address)]
    if private and not is_listed(url, listed):
        raise DataForbidden(
            f"expected public addresses of {parts.hostname}, or {url} below a URL of "
            f"{DATA_URLS_VARIABLE} on this node; saw {private[0]}"
        )
    return addresses[0]
