"""Files on the node that data may be read from, by path or pattern.

The path comes from a user. It is resolved before it is checked, so that neither ``..`` nor a link
leads out of the allowed folders, and it is checked before the disk is accessed, so that nobody
learns what exists elsewhere.
"""

import os
import stat
from functools import partial
from itertools import islice
from pathlib import Path

from roadless.worker.data.sources.access import DATA_ROOTS_VARIABLE, is_below
from roadless.worker.data.sources.local_patterns import LocalPattern
from roadless.worker.data.sources.patterns import has_magic, only_reading, readings
from roadless.worker.data.sources.source_file import MAX_FILES, Identity, SourceFile
from roadless.worker.errors import DataForbidden, DataInvalid, DataNotFound, DataUnreadable
from roadless.worker.rank_launch import DataSources


def find(pattern: str, *, sources: DataSources) -> list[SourceFile]:
    """Return the regular files that the path or pattern names, sorted by name; at least one.

    Raises DataForbidden outside the allowed folders, DataNotFound, and DataUnreadable for anything
    but a regular file.
    """
    if not has_magic(pattern):
        return [file_at(pattern, sources=sources)]
    require_allowed = partial(_require_opened, sources=sources)
    walks = [LocalPattern(one, require_allowed=require_allowed) for one in readings(pattern)]
    found = [sorted(islice(walk.matches(), MAX_FILES + 1)) for walk in walks]
    names = only_reading(found, pattern=pattern)
    if not names:
        raise DataNotFound(f"expected files that match {pattern}, saw none")
    if len(names) > MAX_FILES:
        raise DataInvalid(f"expected at most {MAX_FILES} files for {pattern}, saw more")
    return [file_at(name, sources=sources) for name in names]


def allowed_path(path: str, *, sources: DataSources) -> Path:
    """Return the path with all links resolved; raises DataForbidden outside the allowed folders."""
    if "\0" in path:
        raise DataNotFound("expected a path, saw one with a null byte")
    _require_opened(path, sources=sources, shown=path)
    return Path(os.path.realpath(path))


def _require_opened(path: str, *, sources: DataSources, shown: str) -> None:
    if not is_below(path, sources.roots):
        raise DataForbidden(
            f"expected {shown} to lie below a folder of {DATA_ROOTS_VARIABLE} on this node, "
            f"which lists {', '.join(sources.roots) or 'no folder'}"
        )


def file_at(name: str, *, sources: DataSources) -> SourceFile:
    """Return the regular file of this name, which is no pattern; raises as :func:`find` does."""
    path = allowed_path(name, sources=sources)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataNotFound(f"expected a file at {name}, saw none") from error
    except OSError as error:
        raise DataUnreadable(f"expected to read {name}, saw: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = f"a folder; name the files in it: {name}/*"
        seen = kind if stat.S_ISDIR(status.st_mode) else "another kind"
        raise DataUnreadable(f"expected {name} to be a regular file, saw {seen}")
    identity: Identity = {
        "path": str(path),
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
    }
    return SourceFile(name=name, size=status.st_size, identity=identity, fetch=lambda *_: path)
