"""What an operator allows for data: the variables that set it, and how paths are checked."""

import os

DATA_ROOTS_VARIABLE = "ROADLESS_DATA_ROOTS"
DATA_URLS_VARIABLE = "ROADLESS_DATA_URLS"
ALLOW_HUB_VARIABLE = "ROADLESS_ALLOW_HUB"


def is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` is in one of the folders, with all links of both resolved."""
    resolved = os.path.realpath(path)
    return any(
        os.path.commonpath([resolved, root]) == root for root in map(os.path.realpath, roots)
    )
