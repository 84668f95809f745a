"""What an operator allows for models: the variables that set it, and how folders are checked."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from roadless.worker.data.sources.access import is_below
from roadless.worker.errors import ModelForbidden, ModelNotFound, ModelUnreadable

MODEL_ROOTS_VARIABLE = "ROADLESS_MODEL_ROOTS"
ALLOW_HUB_VARIABLE = "ROADLESS_ALLOW_HUB"
ENTRY_POINTS_VARIABLE = "ROADLESS_ALLOWED_ENTRY_POINTS"
ALLOW_WHEELS_VARIABLE = "ROADLESS_ALLOW_WHEELS"

#: In an environment of a wheel, beside ``pyvenv.cfg``: written last, so it marks a complete one.
WHEEL_MARKER = "wheel.json"


def wheel_of_this_process() -> str | None:
    """Return the SHA-256 of the wheel that this interpreter's environment was made for, if any."""
    try:
        sha256: str = json.loads((Path(sys.prefix) / WHEEL_MARKER).read_bytes())["sha256"]
    except FileNotFoundError:
        return None
    return sha256


def allowed_folder(path: str, *, roots: Iterable[str]) -> Path:
    """Return the folder at ``path``, resolved.

    Resolved before it is checked, so that neither ``..`` nor a link leads out of the roots, and
    checked before it is accessed, so that nobody learns what exists elsewhere. Its files are
    checked too: a link among them would put another file into the job's checkpoints.

    Raises ModelForbidden, ModelNotFound or ModelUnreadable.
    """
    opened = tuple(roots)
    resolved = _allowed(path, roots=opened)
    if not os.path.isdir(resolved):
        raise ModelNotFound(f"expected a folder at {path}, saw none")
    try:
        entries = list(resolved.iterdir())
    except OSError as error:
        raise ModelUnreadable(f"expected to read {path}, saw: {error.strerror}") from error
    for entry in entries:
        _allowed(str(entry), roots=opened)
    return resolved


def _allowed(path: str, *, roots: tuple[str, ...]) -> Path:
    if not is_below(path, roots):
        raise ModelForbidden(
            f"expected {path} to lie below a folder of {MODEL_ROOTS_VARIABLE} on this node, "
            f"which lists {', '.join(roots) or 'no folder'}"
        )
    return Path(os.path.realpath(path))
