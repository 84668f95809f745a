"""What an operator opens for data: the variables that say it, and what lies below a folder."""

import os

DATA_ROOTS_VARIABLE = "ROADLESS_DATA_ROOTS"
DATA_URLS_VARIABLE = "ROADLESS_DATA_URLS"
ALLOW_HUB_VARIABLE = "ROADLESS_ALLOW_HUB"


def is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` lies in one of the folders once every link of both is followed."""
    resolved = os.path.realpath(path)
    return any(
        os.path.commonpath([resolved, root]) == root for root in map(os.path.realpath, roots)
    )
