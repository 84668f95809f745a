"""Files in S3-compatible and Google stores, read with the credentials of the node.

They are the operator's, so only what the operator lists is read. Endpoint, region and credentials
are found as the stores' own tools find them (``AWS_...``, ``GOOGLE_...``, the instance's role).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError, PreconditionError
from obstore.store import from_url

from worker.data.addresses import is_listed
from worker.data.patterns import before_magic, has_magic, matcher
from worker.data.progress import Tell
from worker.data.source_file import MAX_FILES, SourceAway, SourceFile
from worker.data.sources import DATA_URLS_VARIABLE, DataSources
from worker.errors import DataForbidden, DataInvalid, DataNotFound, DataUnreadable

_BLOCK_BYTES = 8 * 2**20
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
_CLIENT: Any = {
    "allow_http": True,  # where the operator's endpoint is one
    "connect_timeout": timedelta(seconds=10),
    "timeout": timedelta(hours=1),
}


def find(pattern: str, *, sources: DataSources) -> list[SourceFile]:
    """Return the objects that the URL or pattern names, by name; at least one.

    Raises the JobFailed errors named ``Data...``, or SourceAway.
    """
    if not is_listed(before_magic(pattern), sources.urls):
        raise DataForbidden(
            f"expected {pattern} to lie below a URL of {DATA_URLS_VARIABLE} on this node, which "
            f"lists {' '.join(sources.urls) or 'none'}"
        )
    parts = urlsplit(pattern)
    bucket = f"{parts.scheme}://{parts.netloc}"
    with _translated(pattern):
        store = from_url(bucket, retry_config=_RETRIES, client_options=_CLIENT)
        found = _listed(store, pattern.removeprefix(bucket).lstrip("/"))
    if not found:
        raise DataNotFound(f"expected objects that match {pattern}, saw none")
    return [_source_file(store, about, bucket=bucket, sources=sources) for about in found]


def _listed(store: Any, key: str) -> list[Any]:
    """What the store says of each object, by name."""
    if not has_magic(key):
        return [obstore.head(store, key)]
    found: list[Any] = []
    matches = matcher(key)
    for batch in obstore.list(store, prefix=before_magic(key) or None):
        found += [about for about in batch if matches.fullmatch(about["path"])]
        if len(found) > MAX_FILES:
            raise DataInvalid(f"expected at most {MAX_FILES} objects for {key}, saw more")
    return sorted(found, key=lambda about: str(about["path"]))


def _source_file(store: Any, about: Any, *, bucket: str, sources: DataSources) -> SourceFile:
    name = f"{bucket}/{about['path']}"
    e_tag = about.get("e_tag") or ""

    def fetch(work: Path, tell: Tell) -> Path:
        if about["size"] > sources.cache_bytes:
            raise DataInvalid(f"expected {name} to fit the node's cache, saw {about['size']} bytes")
        target = work / "fetched"
        with _translated(name), target.open("wb") as file:
            options: Any = {"if_match": e_tag} if e_tag else {}
            for block in obstore.get(store, about["path"], options=options).stream(
                min_chunk_size=_BLOCK_BYTES
            ):
                file.write(block)
                tell(f"{name}: {file.tell()} bytes are here")
        return target

    identity = {
        "url": name,
        "size": int(about["size"]),
        "etag": e_tag,
        "modified": about["last_modified"].isoformat(),
    }
    return SourceFile(name=name, size=int(about["size"]), identity=identity, fetch=fetch)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        raise DataNotFound(f"expected an object at {name}, saw none") from error
    except PreconditionError as error:
        raise DataUnreadable(f"expected {name} to stay as it was found, saw it change") from error
    except PermissionError as error:
        raise DataUnreadable(f"expected to read {name}, saw: {_first_line(error)}") from error
    except BaseError as error:
        raise SourceAway(f"expected {name} to be read, saw: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
