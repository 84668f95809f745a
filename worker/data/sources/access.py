"""What an operator allows for data: the variables that set it, and how paths are checked."""

import os
from collections.abc import Iterator

DATA_ROOTS_VARIABLE = "ROADLESS_DATA_ROOTS"
DATA_URLS_VARIABLE = "ROADLESS_DATA_URLS"
ALLOW_HUB_VARIABLE = "ROADLESS_ALLOW_HUB"


def is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` is in one of the folders, with all links of both resolved.

    So must be whatever a ``..`` of it is taken from: ``root/../name/../root`` would tell whether
    ``name`` is a link.
    """
    opened = [os.path.realpath(root) for root in roots]
    return all(_is_in(place, opened) for place in (*_before_turns(path), path))


def _before_turns(path: str) -> Iterator[str]:
    parts = path.split("/")
    start = "/" if path.startswith("/") else "."
    return ("/".join(parts[:i]) or start for i, part in enumerate(parts) if part == "..")


def _is_in(path: str, opened: list[str]) -> bool:
    resolved = os.path.realpath(path)
    return any(os.path.commonpath([resolved, root]) == root for root in opened)
