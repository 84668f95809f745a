"""One file that data is read from, wherever it is, and how its content gets to this disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from roadless.worker.data.progress import Tell
from roadless.worker.errors import DataInvalid, DataUnreadable

#: The most files of one source; more are a mistake in a pattern, or should be fewer, larger ones.
MAX_FILES = 10_000

#: What distinguishes one content from another without reading it; JSON.
Identity = dict[str, str | int]


class SourceAway(Exception):
    """A remote source does not answer. Another attempt may succeed."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file; ``name`` is what messages call it."""

    name: str
    size: int  #: bytes; 0: not known
    identity: Identity
    #: Returns the path of the content. A remote file is fetched into the given folder, with
    #: progress messages.
    fetch: Callable[[Path, Tell], Path] = field(repr=False, compare=False)


def require_once(files: Sequence[SourceFile]) -> None:
    """Raise DataInvalid where a file is named twice, by two patterns or by its other name.

    Its rows would count twice, and some would be held out and trained on.
    """
    seen: dict[str | int, str] = {}
    for file in files:
        place = file.identity.get("path", file.name)
        if place in seen:
            raise DataInvalid(
                f"expected each file once, saw {file.name} again after {seen[place]}; name it once"
            )
        seen[place] = file.name


@contextmanager
def opened(file: SourceFile, work: Path, *, tell: Tell) -> Iterator[Path]:
    """Yield a local path to the content; what was fetched is removed after the block.

    ``work``: the caller's own folder. Raises DataUnreadable when reading fails in the block.
    """
    path = file.fetch(work, tell)
    try:
        yield path
    except OSError as error:
        raise DataUnreadable(f"expected to read {file.name}, saw: {error}") from error
    finally:
        if path.is_relative_to(work):
            path.unlink(missing_ok=True)
