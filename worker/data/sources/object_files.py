"""Files in S3-compatible and Google stores.

With its own credentials, which are among its secrets, a job reads whatever they give access to.
Those of the node are the operator's, so with them only what the operator lists is read. Endpoint,
region and credentials are found as the stores' own tools find them (``AWS_...``, ``GOOGLE_...``,
the instance's role); a job can never choose the endpoint.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from roadless.worker.data.progress import Tell
from roadless.worker.data.sources.access import DATA_URLS_VARIABLE
from roadless.worker.data.sources.addresses import is_listed
from roadless.worker.data.sources.patterns import (
    MAX_LOOKED_AT,
    before_magic,
    has_magic,
    matcher,
    only_reading,
    readings,
    too_many,
)
from roadless.worker.data.sources.source_file import MAX_FILES, SourceAway, SourceFile
from roadless.worker.errors import DataForbidden, DataInvalid, DataNotFound, DataUnreadable
from roadless.worker.rank_launch import DataSources

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_GOOGLE_OVERRIDES = ("gcs_base_url", "disable_oauth")
_REFUSED = re.compile(r"status code: 40[13]\b")
_BLOCK_BYTES = 8 * 2**20
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
_CLIENT: Any = {
    "allow_http": True,  # where the operator's endpoint is one
    "connect_timeout": timedelta(seconds=10),
    "timeout": timedelta(hours=1),
}


def find(pattern: str, *, sources: DataSources) -> list[SourceFile]:
    """Return the objects that the URL or pattern names, sorted by name; at least one.

    Raises the JobFailed errors named ``Data...``, or SourceAway.
    """
    parts = urlsplit(pattern)
    if not _opens_itself(parts, sources) and not is_listed(before_magic(pattern), sources.urls):
        raise DataForbidden(
            f"expected {pattern} to lie below a URL of {DATA_URLS_VARIABLE} on this node, which "
            f"lists {' '.join(sources.urls) or 'none'}, or credentials for it in the job's secrets"
        )
    bucket = f"{parts.scheme}://{parts.netloc}"
    with _translated(pattern):
        store = from_url(bucket, retry_config=_RETRIES, client_options=_CLIENT)
        found = _listed(store, pattern.removeprefix(bucket).lstrip("/"))
    if not found:
        raise DataNotFound(f"expected objects that match {pattern}, saw none")
    return [_source_file(store, about, bucket=bucket, sources=sources) for about in found]


def _opens_itself(url: SplitResult, sources: DataSources) -> bool:
    """Whether the job has its own credentials for the store, and the URL leads nowhere else."""
    if not _BUCKET.fullmatch(url.netloc):
        return False
    if url.scheme == "s3":
        return sources.has_own("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    if sources.has_own("GOOGLE_SERVICE_ACCOUNT_KEY"):
        _require_plain_key(os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"])
        return True
    return False


def _require_plain_key(text: str) -> None:
    """A key may name another server to talk to, which a user must not choose."""
    try:
        fields = set(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        fields = set(_GOOGLE_OVERRIDES)
    if not fields.isdisjoint(_GOOGLE_OVERRIDES):
        raise DataForbidden(
            "expected GOOGLE_SERVICE_ACCOUNT_KEY to be a service account's key in JSON, without "
            f"{' and '.join(_GOOGLE_OVERRIDES)}; saw something else"
        )


def _listed(store: Any, key: str) -> list[Any]:
    """The store's metadata of each object, sorted by name."""
    if not has_magic(key):
        return [obstore.head(store, key)]
    found: list[Any] = []
    num_seen = 0
    matchers = [matcher(one) for one in readings(key)]
    for batch in obstore.list(store, prefix=before_magic(key) or None):
        found += [about for about in batch if any(is_match(about["path"]) for is_match in matchers)]
        num_seen += len(batch)
        if num_seen > MAX_LOOKED_AT:
            raise DataInvalid(too_many(key))
        if len(found) > MAX_FILES:
            raise DataInvalid(f"expected at most {MAX_FILES} objects for {key}, saw more")
    paths = sorted(str(about["path"]) for about in found)
    only_reading((list(filter(one, paths)) for one in matchers), pattern=key)
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
        raise DataUnreadable(f"expected {name} to stay unchanged, saw it change") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise DataUnreadable(f"expected to read {name}, saw: {_first_line(error)}") from error
    except (InvalidPathError, ValueError) as error:  # of the key, or of the bucket's name
        raise DataInvalid(f"expected {name} to be an object, saw: {_first_line(error)}") from error
    except BaseError as error:
        if _REFUSED.search(str(error)):  # a refused list has no error class
            raise DataUnreadable(f"expected to list {name}, saw: {_first_line(error)}") from error
        raise SourceAway(f"expected {name} to be read, saw: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
