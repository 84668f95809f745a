"""Where files can be, as users write it: a path of a node, or a URL.

What can never lead to a file is refused when a job is posted, and again by the ranks of jobs that
were stored before. What depends on a node, such as the addresses that it allows, only ranks know.
"""

import re
from glob import has_magic
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

SCHEMES = ("s3", "gs", "http", "https")
#: Of Linux: bytes of a path, without the null byte at its end, and of a name in it.
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
#: Characters of a host's name in the domain name system.
_MAX_HOST_LENGTH = 253

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.IGNORECASE)


def scheme_of(location: str) -> str:
    """Return the scheme of a URL, "" for a path.

    >>> scheme_of("s3://bucket/a.csv"), scheme_of("/data/a://b.csv")
    ('s3', '')
    """
    url = _URL.match(location)
    return url["scheme"] if url else ""


def require_possible(location: str) -> None:
    """Raise ValueError if no file can be at this path, URL or pattern, on whatever node."""
    match scheme_of(location):
        case "":
            require_path(location)
        case "s3" | "gs":
            _require_key(location)
        case _:
            require_web_url(location)
            if "*" in urlsplit(location).path:
                raise ValueError(f"expected the URL of one file, saw a pattern: {location}")


def require_url(url: str) -> None:
    """Raise ValueError if nothing can be at or below this URL."""
    if scheme_of(url) in ("s3", "gs"):
        _split(url)
    else:
        require_web_url(url)


def require_path(path: str) -> None:
    """Raise ValueError if no file system has such a path."""
    if "\0" in path:
        raise ValueError("expected a path, saw one with a null byte")
    if has_magic(path):
        return  # what it matches may be shorter
    size = len(path.encode())
    longest = max(len(name.encode()) for name in path.split("/"))
    if size > MAX_PATH_BYTES or longest > MAX_NAME_BYTES:
        raise ValueError(
            f"expected a path of at most {MAX_PATH_BYTES} bytes whose names have at most "
            f"{MAX_NAME_BYTES}, saw {size} and {longest}"
        )


def require_web_url(url: str) -> None:
    """Raise ValueError if no http(s) server can be at this URL."""
    host = (_split(url).hostname or "").rstrip(".")
    is_address = ":" in host and "%" not in host  # in brackets, which urlsplit has read
    if not (is_address or _is_name(host)):
        _refuse(url, "the name or address of a host")


def _require_key(url: str) -> None:
    parts = _split(url)
    key = url.removeprefix(f"{parts.scheme}://{parts.netloc}").strip("/")
    if not key:
        _refuse(url, "the key of an object, or a pattern, behind the bucket")
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        _refuse(url, "a key whose parts are names, none of them empty, . or ..")


def _split(url: str) -> SplitResult:
    if _CONTROL.search(url):
        _refuse(url, "a URL without control characters")
    try:
        parts = urlsplit(url)
    except ValueError:
        _refuse(url, "brackets around an IPv6 address alone")
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not is_port:
        _refuse(url, "a port from 1 to 65535, or none")
    return parts


def _is_name(host: str) -> bool:
    try:
        name = host.encode("idna").decode() if host else ""
    except UnicodeError:  # a label that is empty or too long
        return False
    return len(name) <= _MAX_HOST_LENGTH and all(map(_LABEL.fullmatch, name.split(".")))


def _refuse(url: str, expected: str) -> NoReturn:
    raise ValueError(f"expected {expected}, saw {url!r}")
