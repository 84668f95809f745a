"""A full disk is a temporary fault: whoever uploads a file is told to try again."""

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from roadless.service.errors import Unavailable

log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.contextmanager
def needing_room(folder: Path) -> Iterator[None]:
    """Raise Unavailable, and tell the operator, if the disk of ``folder`` is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        log.error("the disk of %s is full; uploads wait for free space", folder)
        raise Unavailable("the service has no disk space left for this file; try again") from error
