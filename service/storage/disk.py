"""A full disk is a temporary fault: whoever wants something written is told to try again."""

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from roadless.service.errors import DiskFull, Unavailable

log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: What a disk that has failed answers; systems then make it read-only.
_BROKEN = frozenset({errno.EROFS, errno.EIO})
#: Less than this counts as full: the database needs room for its own files.
MIN_FREE_BYTES = 1 << 20
_PROBE = b"\0" * 4096


@contextlib.contextmanager
def needing_room(folder: Path, *, what: str = "this file") -> Iterator[None]:
    """Raise DiskFull, or Unavailable, and tell the operator, if ``folder`` cannot be written.

    ``what``: what is to be written, for the user.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            log.error("the disk of %s is full; what is to be stored waits for free space", folder)
            raise DiskFull(what) from error
        if error.errno in _BROKEN:
            log.error("the disk of %s cannot be written: %s", folder, error)
            raise Unavailable(
                f"expected a disk that can be written for {what}, saw: {error.strerror}; the "
                "service's operator must mend it, then try again"
            ) from error
        raise


def require_room(folders: Iterable[Path]) -> None:
    """Raise DiskFull or Unavailable unless each of these folders can be written.

    Something is written, since quotas and failing disks do not show in the number of free blocks.
    Folders that are not there yet do not count, nor several of one disk.
    """
    disks = {path.stat().st_dev: path for path in folders if path.is_dir()}
    for folder in disks.values():
        with needing_room(folder, what="new files"):
            _require_free(folder)
            _write_probe(folder)


def _require_free(folder: Path) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < MIN_FREE_BYTES:
        raise OSError(errno.ENOSPC, f"only {free} bytes are free", str(folder))


def _write_probe(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PROBE)
        file.flush()
        os.fsync(file.fileno())
