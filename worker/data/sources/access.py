"""What the operator of a node lets jobs read data from, and where prepared data is kept.

A rank carries this value from its birth, and the fork server imports it: standard library only.
"""

import os
from dataclasses import dataclass

DATA_ROOTS_VARIABLE = "ROADLESS_DATA_ROOTS"
DATA_URLS_VARIABLE = "ROADLESS_DATA_URLS"
ALLOW_HUB_VARIABLE = "ROADLESS_ALLOW_HUB"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSources:
    """Public web addresses and nothing else, unless the operator says otherwise."""

    roots: tuple[str, ...] = ()  #: folders of the node that data and tokenizers may lie in
    #: Beginnings of URLs that may be read although they are private (http, https), or with the
    #: credentials of the node (s3, gs).
    urls: tuple[str, ...] = ()
    allow_hub: bool = False  #: whether data sets may be fetched from Hugging Face's hub
    cache: str = "~/.roadless/data-cache"  #: ``~`` is that of the node's user
    cache_bytes: int = 100 * 2**30
    project: str = ""  #: whose job it is
    secrets: tuple[
        str, ...
    ] = ()  #: names of the job's own credentials, which are in the environment

    def has_own(self, *names: str) -> bool:
        """Whether the job has brought credentials of its own under all these names."""
        return set(names) <= set(self.secrets)


def is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` lies in one of the folders once every link of both is followed."""
    resolved = os.path.realpath(path)
    return any(
        os.path.commonpath([resolved, root]) == root for root in map(os.path.realpath, roots)
    )
